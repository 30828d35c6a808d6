"""An export of many rows to an S3 server, with a worker and then the driver killed; prints JSON.

    python tests/benchmarks/bench_export_s3.py [--rows 100000] [--format coco]

The run lies on this machine, its export in a bucket of rclone's server.  A worker of Ray is killed
when a quarter of the parts is written, the driver with all that it started at half; the same
command is then run to its end.  Every row must be in the result once.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from bench_label_image import machine

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_export import a_map

import chaos
from clusters import is_worker, started, wait_for
from saff.exports.run import RECORDS
from saff.images import encode_png
from saff.runs import claim
from saff.shards import PSEUDO_LABELS, write_rows
from saff.storage import Folder

JOB = Path(__file__).parents[2] / "jobs" / "export.py"
PART = 1024
DISTINCT = 64


def a_run(home, rows):
    """A run of so many rows, whose maps are a quarter of 500 x 375 a side."""
    output = Folder.at(str(home / "run"))
    claim(output, {"saff": "0.2.0", "config": {}, "digest": "0" * 64})
    maps = [np.ascontiguousarray(a_map(seed)[::4, ::4]) for seed in range(DISTINCT)]
    stored = [encode_png(found) for found in maps]
    height, width = maps[0].shape
    for first in range(0, rows, PART):
        part = []
        for number in range(first, min(first + PART, rows)):
            row = dict.fromkeys(PSEUDO_LABELS.names)
            row |= {"image_id": f"{number // 1000}/{number:07}.jpg", "uri": f"/photos/{number}.jpg"}
            row |= {"sha256": f"{number:064x}", "height": height, "width": width, "quality": 0.5}
            part.append(row | {"confidence": stored[number % DISTINCT]})
        name = f"part-{first // PART:07}.parquet"
        write_rows(output / "pseudo_labels", name, part, PSEUDO_LABELS)
    return output


def workers_below(process):
    return [p for p in psutil.Process(process.pid).children(recursive=True) if is_worker(p)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        bucket = work / "server" / "buckets" / chaos.BUCKET
        bucket.mkdir(parents=True)
        output = a_run(work, args.rows)
        parts = -(-args.rows // PART)
        with chaos.serve_s3(work / "server", "--dir-cache-time", "1s") as endpoint:
            os.environ.update(chaos.ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint})
            to = f"s3://{chaos.BUCKET}/coco"
            command = [sys.executable, str(JOB), output.path, "--to", to, "--format", "coco"]
            records = bucket / "coco" / RECORDS
            with open(work / "log", "ab") as log:

                def done():
                    return len(list(records.glob("part-*.json")))

                start = time.monotonic()
                with started(command, log=log) as process:
                    wait_for(lambda: done() >= parts // 4, process, 500, work / "log")
                    random.Random(0).choice(workers_below(process)).kill()
                    wait_for(lambda: done() >= parts // 2, process, 500, work / "log")
                    half = time.monotonic() - start
                again = time.monotonic()
                before = done()
                with started(command, log=log) as process:
                    code = process.wait(560)
            content = json.loads((bucket / "coco" / "annotations.json").read_bytes())
        names = [image["file_name"] for image in content["images"]]
        ids = [annotation["id"] for annotation in content["annotations"]]
        print(
            json.dumps(
                {
                    "benchmark": "COCO export to S3, a worker and the driver killed",
                    "rows": args.rows,
                    "images": len(names),
                    "lost": args.rows - len(set(names)),
                    "twice": len(names) - len(set(names)),
                    "annotations": len(ids),
                    "annotation ids twice": len(ids) - len(set(ids)),
                    "exit code": code,
                    "seconds to half": round(half),
                    "parts kept": before,
                    "parts": parts,
                    "seconds of the rest": round(time.monotonic() - again),
                    "MB": round((bucket / "coco" / "annotations.json").stat().st_size / 1e6),
                    **machine(),
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
