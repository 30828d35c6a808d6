"""Trunks that semantic features, edges and the network share, and how images become their input."""
