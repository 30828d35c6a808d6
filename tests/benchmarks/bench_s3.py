"""Cost of S3: labelling from and to a server on this machine against the local disk; prints JSON.

    python tests/benchmarks/bench_s3.py [--images FOLDER] [--count 16] [--repeats 5] [--job]

Both label the same images with default(), in turn: in this process or, with --job, by the job on
all cores, which the server then has to share; a job is timed from its first finished part to its
last.  The server is rclone's.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_job import photographs
from bench_label_image import machine, seconds

sys.path.insert(0, str(Path(__file__).parents[1]))

import chaos
from saff import config
from saff.cluster import LabelPart
from saff.manifests import extend_manifest
from saff.sources import list_images
from saff.storage import Folder

JOB = Path(__file__).parents[2] / "jobs" / "pseudo_labels.py"


def take_in(images, output, count):
    rows = list(list_images(str(images)))[:count]
    folder = Folder.at(str(output))
    extend_manifest(folder, rows)
    return folder, (folder / "manifest").names(".parquet"), len(rows)


def job_seconds(source, output, home, count):
    """Seconds an image that the job takes, without its start; its output lies at ``home``."""
    manifest = home.parent / "few.csv"
    rows = list(list_images(str(source)))[:count]
    manifest.write_text("image_id,uri\n" + "".join(f"{r['image_id']},{r['uri']}\n" for r in rows))
    command = [sys.executable, str(JOB), "--manifest", str(manifest), "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    shards = sorted(p.stat().st_mtime_ns for p in (home / "pseudo_labels").glob("part-*.parquet"))
    images = len(rows) * (len(shards) - 1) / len(shards)  # done after the first part
    shutil.rmtree(home)
    return (shards[-1] - shards[0]) / 1e9 / images


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder; skimage's photographs without it")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--job", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        bucket = work / "server" / "buckets" / chaos.BUCKET
        bucket.mkdir(parents=True)
        if args.images:
            shutil.copytree(args.images, bucket / "photos")
        else:
            photographs(bucket / "photos")
        with chaos.serve_s3(work / "server", "--dir-cache-time", "1s") as endpoint:
            os.environ.update(chaos.ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint})
            runs = [
                take_in(bucket / "photos", work / "run", args.count),
                take_in(f"s3://{chaos.BUCKET}/photos", f"s3://{chaos.BUCKET}/run", args.count),
            ]

            def label(run):
                folder, parts, _ = run
                task = LabelPart(folder, config.default())
                for part in parts:
                    folder.fs.invalidate_cache()
                    task({"part": part})
                    (folder / "pseudo_labels").remove(part)  # or its rows would be kept

            places = [
                (bucket / "photos", work / "by job", work / "by job"),
                (f"s3://{chaos.BUCKET}/photos", f"s3://{chaos.BUCKET}/by-job", bucket / "by-job"),
            ]
            count = runs[0][2]
            if args.job:
                pairs = [
                    tuple(count * job_seconds(*place, count) for place in places)
                    for _ in range(args.repeats)
                ]
            else:
                for run in runs:
                    label(run)  # warm
                pairs = [
                    tuple(seconds(lambda r=r: label(r)) for r in runs) for _ in range(args.repeats)
                ]
    print(
        json.dumps(
            {
                "benchmark": "labelling with S3 against the local disk, default(), "
                + ("the job on all cores" if args.job else "one process"),
                "images": count,
                "local, s/image": round(statistics.median(a for a, _ in pairs) / count, 4),
                "S3, s/image": round(statistics.median(b for _, b in pairs) / count, 4),
                "S3 / local": [round(b / a, 3) for a, b in pairs],
                "median": round(statistics.median(b / a for a, b in pairs), 3),
            }
            | machine(),
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
