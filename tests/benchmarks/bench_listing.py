"""Time and memory to list many images: a tree of folders, one folder, and a prefix; prints JSON.

    python tests/benchmarks/bench_listing.py [--images 1000000] [--objects 100000]

Each listing is by a process of its own; the files are empty.  The prefix is of an S3 server on this
machine (rclone's), which walks all of its files for every page: its seconds are the server's.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_label_image import machine

sys.path.insert(0, str(Path(__file__).parents[1]))

import chaos
from saff.sources import list_images


def fill(folder, count, in_folder):
    """Make so many files, so many to a folder."""
    for number in range(count):
        if number % in_folder == 0:
            inside = folder / f"{number // in_folder:06}"
            inside.mkdir(parents=True)
        os.close(os.open(inside / f"{number:09}.jpg", os.O_CREAT))
    return str(folder)


def listed(source):
    """List it here: images, seconds, and the MiB that this adds to what the process held before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    count = sum(1 for _ in list_images(source))
    seconds = round(time.perf_counter() - start, 2)
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"images": count, "s": seconds, "MiB": added >> 10}


def listed_apart(source, environment):
    command = [sys.executable, __file__, "--list", source]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--list", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list:
        print(json.dumps(listed(args.list)))
        return
    result = {"benchmark": "listing"}
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        tree = fill(here / "tree", args.images, 1000)
        result["folders of 1,000"] = listed_apart(tree, os.environ)
        one = fill(here / "one", args.images, args.images)
        result["one folder"] = listed_apart(one, os.environ)
        fill(here / "buckets" / "flat", args.objects, args.objects)
        with chaos.serve_s3(here) as address:
            keys = chaos.ENVIRONMENT | {"AWS_ENDPOINT_URL": address}
            result["a prefix of S3"] = listed_apart("s3://flat/000000", os.environ | keys)
    print(json.dumps(result | machine(), indent=1))


if __name__ == "__main__":
    main()
