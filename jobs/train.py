"""Train a segmentation network on the pseudo labels of a run; resumable, on Ray Train."""

from saff.cli import run_alone, train

if __name__ == "__main__":
    run_alone(train)
