"""Rate of the job against two plain processes, and memory over its length; prints JSON.

    python tests/benchmarks/bench_job.py [--rows 200] [--images FOLDER] [--memory-rows 10000]

Both label the same rows; start-up is left out on both sides (the clock starts when the first shard
or image is done).  Memory is the resident size of the driver and of the largest worker.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import psutil
from bench_label_image import machine
from skimage import data

from saff import config
from saff.cluster import LabelPart, label_row, map_parts, start_ray
from saff.images import encode_png
from saff.manifests import extend_manifest
from saff.resize import shrink
from saff.sources import list_images
from saff.storage import Folder

NAMES = ("astronaut", "chelsea", "coffee", "rocket")
CHEAP = dataclasses.replace(config.default(), encoder_side=64, superpixel_count=40)


def photographs(folder, side=None):
    """Write the photographs into a folder, whole or shrunk so that the machinery shows."""
    folder.mkdir()
    for name in NAMES:
        image = getattr(data, name)()
        (folder / f"{name}.png").write_bytes(encode_png(shrink(image, side) if side else image))
    return list(list_images(str(folder)))


def repeated(rows, count):
    return [rows[n % len(rows)] | {"image_id": f"{n}.png"} for n in range(count)]


def loop(rows, settings, ready, results):
    """One plain process: label_row in a loop."""
    label_row(rows[0]["image_id"], rows[0]["uri"], settings)  # warm
    ready.wait()
    for row in rows:
        label_row(row["image_id"], row["uri"], settings)
    results.put(len(rows))


def plain_rate(rows, settings):
    context = get_context("spawn")
    ready, results = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=loop, args=(rows[k::2], settings, ready, results)) for k in (0, 1)
    ]
    for worker in workers:
        worker.start()
    ready.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    return len(rows) / (time.perf_counter() - start)


def job_rate(rows, settings, folder, samples=None):
    """Rate of the mapped parts, counted from the first two that are done."""
    output = Folder.at(str(folder))
    extend_manifest(output, rows)
    start_ray()
    done, start = 0, None
    for part in map_parts(LabelPart(output, settings), (output / "manifest").names(".parquet")):
        done += part["images"]
        if start is None:  # the workers have started and loaded their models
            start, before = time.perf_counter(), done
        if samples is not None:
            samples.append((done, *resident()))
    return (done - before) / (time.perf_counter() - start)


def resident():
    """Resident MiB of this process and of the largest Ray worker that maps."""
    workers = []
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        if process.info["cmdline"] and "ray::" in process.info["cmdline"][0]:
            workers.append(process.info["memory_info"].rss)
    own = psutil.Process().memory_info().rss
    return own >> 20, max(workers, default=0) >> 20


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--images", type=Path, help="folder; skimage's photographs without it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-rows", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        sources = (
            list(list_images(str(args.images))) if args.images else photographs(work / "photos")
        )
        rows = repeated(sources, args.rows)
        pairs = []
        for turn in range(args.repeats):
            job = job_rate(rows, config.default(), work / f"run{turn}")
            pairs.append((job, plain_rate(rows, config.default())))
        result = {
            "benchmark": "job against two plain processes, default(), images/s",
            "rows": args.rows,
            "job": round(statistics.median(j for j, _ in pairs), 2),
            "plain": round(statistics.median(p for _, p in pairs), 2),
            "ratio": [round(j / p, 3) for j, p in pairs],
        }
        if args.memory_rows:
            samples = []
            many = repeated(photographs(work / "small", 96), args.memory_rows)
            rate = job_rate(many, CHEAP, work / "memory", samples)
            step = max(1, len(samples) // 20)
            result["memory"] = {
                "rows": args.memory_rows,
                "images_per_s": round(rate, 1),
                "done, driver MiB, largest worker MiB": samples[::step] + samples[-1:],
            }
    print(json.dumps(result | machine(), indent=1))


if __name__ == "__main__":
    main()
