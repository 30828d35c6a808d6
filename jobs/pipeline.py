"""Run all stages: label, train, predict, measure, report; resumable, on Ray."""

from saff.cli import run_alone
from saff.cli.pipeline import run

if __name__ == "__main__":
    run_alone(run)
