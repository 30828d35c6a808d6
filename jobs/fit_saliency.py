"""Fit the regressor of saliency "drfi" to images with masks, cross-validated, on Ray."""

from saff.cli import fit_saliency, run_alone

if __name__ == "__main__":
    run_alone(fit_saliency)
