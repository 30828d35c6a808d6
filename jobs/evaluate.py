"""Measure a stage of a run against masks: metrics.json, curve.csv and curve.svg."""

from saff.cli import run_alone
from saff.cli.checks import evaluate

if __name__ == "__main__":
    run_alone(evaluate)
