"""Fit the regressor of saliency "drfi" to images with masks, cross-validated, on Ray."""

from saff.cli import run_alone
from saff.cli.fitting import fit_saliency

if __name__ == "__main__":
    run_alone(fit_saliency)
