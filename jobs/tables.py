"""Make the paper's Tables 1 and 2 and Figures 2 and 3 from a VOC tree; resumable, on Ray."""

from saff.cli import run_alone
from saff.cli.fitting import tables

if __name__ == "__main__":
    run_alone(tables)
