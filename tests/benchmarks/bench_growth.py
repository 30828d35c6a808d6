"""How the job grows with workers and with the corpus; prints JSON.

    python tests/benchmarks/bench_growth.py [--rows 1000 10000 100000 1000000] [--plot FILE.svg]

Workers: one, two, four and eight nodes of one CPU each, simulated on this machine.  Labelling an
image is a stand-in that sleeps for as long as a label takes and gives the columns of an image that
was labelled before; the manifest, Ray, reading, decoding and shards are real.  What is below one is
what the machinery loses.  Corpus: bench_scale.py, in which labelling takes no time at all.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from bench_label_image import machine
from bench_scale import MAX_PIXELS, write_source
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from clusters import nodes
from saff import config
from saff.cluster import label_row, map_parts
from saff.cluster.image_rows import image_row
from saff.cluster.parts import PartWriter
from saff.lists import read_manifest
from saff.manifests import extend_manifest
from saff.shards import PSEUDO_LABELS, Row
from saff.storage import Folder

matplotlib.rcParams["svg.hashsalt"] = "saff"  # the same numbers give the same file
SECONDS = 0.115  # of a core, default() on an image of 500 x 375
OF_THE_IMAGE = ("image_id", "uri", "sha256", "height", "width", "error", "error_kind")


@dataclass(frozen=True)
class SleepingPart:
    """LabelPart, but that every image takes so many seconds of waiting."""

    output: Folder
    columns: Row
    seconds: float

    def __call__(self, row):
        return PartWriter(self.output, "pseudo_labels", PSEUDO_LABELS).do_part(
            row, lambda rows: [image_row(r, PSEUDO_LABELS, MAX_PIXELS, self._label) for r in rows]
        )

    def _label(self, image):
        time.sleep(self.seconds)
        return self.columns


def rate_with(workers, rows_each, seconds, folder):
    """Images a second of so many nodes of one CPU, from the first finished part on."""
    source, image = write_source(folder / "source", workers * rows_each)
    columns = label_row("x", image, config.default())
    for name in OF_THE_IMAGE:
        del columns[name]
    output = Folder.at(str(folder / "run"))
    extend_manifest(output, read_manifest(str(source)))
    names = (output / "manifest").names(".parquet")
    done, begun = 0, None
    with nodes(*[1] * workers):
        for part in map_parts(SleepingPart(output, columns, seconds), names):
            done += part["images"]
            if begun is None:
                begun, before = time.perf_counter(), done
        return (done - before) / (time.perf_counter() - begun)


def grow_workers(counts, rows_each, seconds):
    table = []
    for workers in counts:
        with tempfile.TemporaryDirectory() as folder:
            rate = rate_with(workers, rows_each, seconds, Path(folder))
        share = rate * seconds / workers
        table.append({"workers": workers, "images/s": round(rate, 2), "of ideal": round(share, 3)})
        print(json.dumps(table[-1]), file=sys.stderr)
    return table


def grow_corpus(counts):
    table = []
    for rows in counts:
        command = [sys.executable, str(Path(__file__).with_name("bench_scale.py"))]
        done = subprocess.run([*command, "--rows", str(rows)], check=True, capture_output=True)
        figures = json.loads(done.stdout)
        memory = figures.pop("memory (driver, largest worker)")
        table.append(
            {
                "rows": rows,
                "rows/s": figures["rows/s"],
                "take in, s": figures["take in, s"],
                "finished run, s": figures["saff label on the finished run, s"],
                "driver, MiB": max(one["MiB"][0] for one in memory),
                "worker, MiB": max(one["MiB"][1] for one in memory),
            }
        )
        print(json.dumps(table[-1]), file=sys.stderr)
    return table


def draw(by_workers, by_rows, path):
    """Write the figure: rate over workers, and rate, times and memory over rows."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    workers, rate, times = figure.subplots(1, 3)
    counts = [one["workers"] for one in by_workers]
    workers.plot(counts, [one["images/s"] for one in by_workers], "o-", label="measured")
    workers.plot(counts, [n / SECONDS for n in counts], "--", color="0.6", label="without any loss")
    workers.set_xlabel("workers")
    workers.set_ylabel("images a second")
    workers.legend(fontsize=8)
    rows = [one["rows"] for one in by_rows]
    rate.loglog(rows, [one["rows/s"] for one in by_rows], "o-")
    rate.set_ylabel("rows a second, no labelling")
    for name in ("take in, s", "finished run, s"):
        times.loglog(rows, [one[name] for one in by_rows], "o-", label=name.rpartition(",")[0])
    times.set_ylabel("seconds")
    times.legend(fontsize=8)
    for axes in (rate, times):
        axes.set_xlabel("rows of the corpus")
    for axes in (workers, rate, times):
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0 if axes is workers else None)
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rows-each", type=int, default=400, help="of each worker")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that an image takes")
    parser.add_argument("--rows", type=int, nargs="*", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    given = parser.parse_args()
    by_workers = grow_workers(given.workers, given.rows_each, given.seconds)
    by_rows = grow_corpus(given.rows)
    if given.plot:
        draw(by_workers, by_rows, given.plot)
    print(json.dumps({"workers": by_workers, "corpus": by_rows, **machine()}, indent=1))


if __name__ == "__main__":
    main()
