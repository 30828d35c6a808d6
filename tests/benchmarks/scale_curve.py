"""Figure of rows done and of memory over time, from what bench_scale.py printed; writes an SVG.

python tests/benchmarks/bench_scale.py --rows 1000000 > scale.json
python tests/benchmarks/scale_curve.py scale.json docs/images/scale.svg
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

matplotlib.rcParams["svg.hashsalt"] = "saff"  # the same numbers give the same file


def main():
    source, output = (Path(name) for name in sys.argv[1:])
    samples = json.loads(source.read_text())["memory (driver, largest worker)"]
    minutes = [sample["seconds"] / 60 for sample in samples]
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    rows, memory = figure.subplots(1, 2)
    rows.plot(minutes, [sample["rows"] / 1e6 for sample in samples])
    rows.set_ylabel("rows done, millions")
    for place, name in enumerate(("driver", "largest worker")):
        memory.plot(minutes, [sample["MiB"][place] for sample in samples], label=name)
    memory.axhline(1024, color="0.6", linestyle="--", linewidth=1, label="1 GiB")
    memory.set_ylabel("resident memory, MiB")
    memory.legend(loc="lower right", fontsize=8)
    for axes in (rows, memory):
        axes.set_xlabel("minutes since the first finished part")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    main()
