"""Fit the network of edges "learned" to boundaries that people drew, on Ray."""

from saff.cli import run_alone
from saff.cli.fitting import fit_edges

if __name__ == "__main__":
    run_alone(fit_edges)
