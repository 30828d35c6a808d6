"""Figure of quality against cost, from what the benchmarks printed; writes an SVG.

python tests/benchmarks/quality.py ... > quality.json
python tests/benchmarks/bench_label_image.py > cost.json
python tests/benchmarks/frontier.py quality.json cost.json docs/images/frontier.svg
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

matplotlib.rcParams["svg.hashsalt"] = "saff"  # the same numbers give the same file


def main():
    quality, cost, output = (Path(name) for name in sys.argv[1:])
    found = json.loads(quality.read_text())
    units = json.loads(cost.read_text())["units"]
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for name in ("paper", "fast", "default", "best"):
        row, unit = found["variants"][f"{name}()"], units[name]["median"]
        for measure, marker in (("mean_pr", "o"), ("iou", "s")):
            axes.plot(unit, row[measure], marker, color="C0" if measure == "mean_pr" else "C1")
            axes.annotate(
                f"{name}()", (unit, row[measure]), (6, 4), textcoords="offset points", fontsize=8
            )
    axes.plot([], [], "o", color="C0", label="max F (mean_pr)")
    axes.plot([], [], "s", color="C1", label="IoU at 0.5")
    axes.set_xlabel("cost of an image on one thread, in forward passes of mobilenet_v2")
    axes.set_ylabel(f"quality, {found['images']} images")
    axes.margins(x=0.15, y=0.15)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize=8)
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    main()
