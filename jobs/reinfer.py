"""Infer masks with a trained network, for the images of a run or for new ones; resumable."""

from saff.cli import reinfer, run_alone

if __name__ == "__main__":
    run_alone(reinfer)
