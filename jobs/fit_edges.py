"""Fit the network of edges "learned" to boundaries that people drew, on Ray."""

from saff.cli import fit_edges, run_alone

if __name__ == "__main__":
    run_alone(fit_edges)
