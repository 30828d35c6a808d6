"""The machinery alone, at the size of a large run; prints JSON.

    python tests/benchmarks/bench_scale.py [--rows 100000] [--folder EMPTY]

Labelling an image takes no time here: every row gets the columns of one tiny image that was
labelled before.  All else is real: the manifest, Ray, reading and decoding of each row's image
(16 x 16 pixels), shards, resuming.  ``saff label`` itself is timed on the finished run.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_job import resident
from bench_label_image import machine

from saff import config
from saff.cluster import describe_run, label_row, map_parts, plan_stage, start_ray
from saff.cluster.image_rows import image_row
from saff.cluster.parts import PartWriter
from saff.images import encode_png
from saff.lists import read_manifest
from saff.manifests import extend_manifest
from saff.runs import claim
from saff.shards import MANIFEST, PSEUDO_LABELS, Row
from saff.sources import describe_source
from saff.storage import Folder

BLOCK = 65_536  # rows of the source that are made at once
SAMPLES = 25  # of memory
MAX_PIXELS = config.default().max_pixels


@dataclass(frozen=True)
class ConstantPart:
    """LabelPart, but that every image gets the same columns."""

    output: Folder
    columns: Row

    def __call__(self, row):
        stage = PartWriter(self.output, "pseudo_labels", PSEUDO_LABELS)
        work = lambda image: self.columns  # noqa: E731
        return stage.do_part(
            row,
            lambda rows: [image_row(r, PSEUDO_LABELS, MAX_PIXELS, work) for r in rows],
        )


def write_source(folder, count):
    """A manifest of many rows that name 16 tiny images in turn."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    uris = []
    for number in range(16):
        path = folder / f"{number}.png"
        path.write_bytes(encode_png(rng.integers(0, 256, (16, 16, 3), np.uint8)))
        uris.append(str(path))
    source = folder / "manifest.parquet"
    with pq.ParquetWriter(source, MANIFEST) as writer:
        for start in range(0, count, BLOCK):
            numbers = range(start, min(start + BLOCK, count))
            ids = [f"photos/{n // 1000:07}/{n:010}.jpg" for n in numbers]
            writer.write_table(pa.table([ids, [uris[n % 16] for n in numbers]], schema=MANIFEST))
    return source, uris[0]


def timed(call, *arguments):
    start = time.perf_counter()
    result = call(*arguments)
    return round(time.perf_counter() - start, 2), result


def run_all(output, names, columns, count):
    """Rows a second from the first finished part on, and memory on the way."""
    start_ray()
    done, begun, samples = 0, None, []
    task = ConstantPart(output, columns)
    for part in map_parts(task, names):
        done += part["images"]
        if begun is None:
            begun, before = time.perf_counter(), done
        if done >= len(samples) * count / SAMPLES:
            seconds = round(time.perf_counter() - begun, 1)
            samples.append({"rows": done, "seconds": seconds, "MiB": resident()})
    return (done - before) / (time.perf_counter() - begun), samples


def take_in(output, source):
    return extend_manifest(output, read_manifest(str(source))).added


def look_again(output, source):
    """What a resumed job does before its first task."""
    added = take_in(output, source)
    return added, plan_stage(output)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="empty; a temporary one without it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.folder or Path(scratch)
        source, image = write_source(work / "source", args.rows)
        output = Folder.at(str(work / "run"))
        named = describe_source(str(source), is_manifest=True)
        claim(output, describe_run(named, config.default()))
        columns = label_row("x", image, config.default())
        for name in ("image_id", "uri", "sha256", "height", "width", "error", "error_kind"):
            del columns[name]
        result = {"benchmark": "the machinery alone", "rows": args.rows}
        result["take in, s"], _ = timed(take_in, output, source)
        result["after taking in, driver MiB"] = resident()[0]
        result["plan, s"], todo = timed(plan_stage, output)
        result["parts"] = len(todo.parts)
        rate, result["memory (driver, largest worker)"] = run_all(
            output, todo.parts, columns, args.rows
        )
        result["rows/s"] = round(rate)
        stage = output / "pseudo_labels"
        shards = stage.names(".parquet")
        result["shards, MB"] = round(sum(Path(stage.path, n).stat().st_size for n in shards) / 1e6)
        saff = [str(Path(sys.executable).parent / "saff"), "label", "--manifest", str(source)]
        seconds, _ = timed(
            lambda: subprocess.run([*saff, "--output", output.uri], check=True, capture_output=True)
        )
        result["saff label on the finished run, s"] = seconds
        for percent in (99, 50):
            for name in shards[len(shards) * percent // 100 :]:
                stage.remove(name)
            seconds, (added, todo) = timed(look_again, output, source)
            assert added == 0
            result[f"resume at {percent} %, s until the first task"] = seconds
            result[f"resume at {percent} %, rows left"] = todo.left
        result["largest driver, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps(result | machine(), indent=1))


if __name__ == "__main__":
    main()
