"""Cost of a row against the size of its image, time and memory; prints JSON, draws a figure.

    python tests/benchmarks/bench_size.py [--sizes 0.1 1 10 100] [--plot docs/images/size.svg]

For each size in megapixels a process of its own reads a JPEG file, labels it with ``default()`` and
encodes its maps as the job does.  Time is CPU time of one thread, the second call of two; memory is
the most that the process held, its models (600 MB with all libraries) included.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from bench_label_image import machine
from matplotlib.figure import Figure
from skimage import data

from saff import config
from saff.cluster import label_row

SIZES = (0.1, 0.3, 1, 3, 10, 30, 100)
matplotlib.rcParams["svg.hashsalt"] = "saff"  # the same numbers give the same file


def write_photograph(path, megapixels):
    """Write a JPEG of a size, 4:3: a photograph enlarged, with noise as a sensor has it."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size = (round(height * 4 / 3), height)
    image = cv2.resize(data.astronaut()[:384], size, interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).integers(-4, 5, (256, 256, 3), dtype=np.int16)
    for top in range(0, height, 256):  # in pieces: a hundred megapixels of int16 are 600 MB
        rows = image[top : top + 256]
        tiled = np.tile(noise[: len(rows)], (1, size[0] // 256 + 1, 1))[:, : size[0]]
        rows[:] = np.clip(rows + tiled, 0, 255)
    path.write_bytes(cv2.imencode(".jpg", image[:, :, ::-1])[1].tobytes())


def resident():
    """Most MB that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def measure(path, results):
    """Label one file twice: seconds of the second call, and the peak of memory in MB."""
    settings = config.default()
    for _ in range(2):
        start = time.thread_time()
        row = label_row(path.name, str(path), settings)
        seconds = time.thread_time() - start
    stored = sum(len(value) for value in row.values() if isinstance(value, bytes))
    results.put((seconds, resident(), stored, row["error"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="megapixels")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    args = parser.parse_args()
    context, table = get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in args.sizes:
            path, results = Path(folder) / "photo.jpg", context.Queue()
            for work in (  # a child's peak begins with that of its parent, so this one stays small
                context.Process(target=write_photograph, args=(path, megapixels)),
                context.Process(target=measure, args=(path, results)),
            ):
                work.start()
                work.join()
            seconds, peak, stored, error = results.get()
            if error:
                raise SystemExit(f"{megapixels} megapixels: {error}")
            table.append(
                {
                    "megapixels": megapixels,
                    "s": round(seconds, 3),
                    "peak MB": round(peak),
                    "row kB": round(stored / 1e3),
                }
            )
            print(json.dumps(table[-1]), file=sys.stderr)
    if args.plot:
        draw(table, args.plot)
    name = "label_row of default() against the size of a JPEG file, one thread"
    print(json.dumps({"benchmark": name, "sizes": table, **machine()}, indent=1))


def draw(table, path):
    """Write the figure: seconds and memory over megapixels, all logarithmic."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    sizes = [row["megapixels"] for row in table]
    for axis, name, label in (
        (axes[0], "s", "CPU time of a row, s"),
        (axes[1], "peak MB", "most memory of the process, MB"),
    ):
        axis.loglog(sizes, [row[name] for row in table], "o-")
        axis.set_xlabel("megapixels")
        axis.set_title(label, fontsize=9)
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
