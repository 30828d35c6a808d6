"""Everything: pseudo labels, training, re-inference, evaluation, report; resumable, on Ray."""

from saff.cli import run, run_alone

if __name__ == "__main__":
    run_alone(run)
