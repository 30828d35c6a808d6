"""Decode mutated files of every format that is read; count what comes of them, measure memory.

Everything is drawn from the seed: the same seed gives the same files.  Batches of files run in
processes of their own, so that one that ends its process is found, and named::

    python tests/fuzz_images.py --files 100000 --seed 1
    python tests/fuzz_images.py --seed 1 --only 4711

Prints JSON.  Exit code 1 if a file ended its process, raised anything but an ImageError, took more
memory above that of its process than ``--most-megabytes``, or more than ``--most-seconds``.
"""

import argparse
import collections
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import PIL
import PIL.Image

from image_files import drawn_files, fix_checksums
from saff.images import ImageError, decode, decode_png, read_samples

KINDS = {"empty", "not_an_image", "unsupported", "truncated", "corrupt", "no_pixels"}
KINDS |= {"too_many_pixels"}
LIMITS = (714, 10_000, 2_000_000)
"""Pixels that a file may announce: as many as those that it was made from, or more."""
BATCH = 10_000
EXTREMES = [
    number.to_bytes(width, order)
    for width in (1, 2, 4, 8)
    for number in (0, 1, 2 ** (4 * width), 2 ** (8 * width - 1), 2 ** (8 * width) - 1)
    for order in ("big", "little")
]


@functools.cache
def corpus():
    """Give name and bytes of the files to start from."""
    return sorted(drawn_files().items())


def mutated(seed, number):
    """Give the name of a format and the bytes of one mutated file."""
    rng = np.random.default_rng([seed, number])
    files = corpus()
    name, file = files[rng.integers(len(files))]
    data = bytearray(file)
    for _ in range(rng.integers(1, 6)):
        mutate(data, rng, files)
    if name.startswith("png") and rng.random() < 0.7:  # else most end at the first checksum
        data = bytearray(fix_checksums(bytes(data)))
    return name, bytes(data)


def mutate(data, rng, files):
    """Change one place: set it, cut it, repeat it, fill it from another file, or end there."""
    place = int(rng.integers(len(data) + 1))
    if rng.random() < 0.6:  # headers and footers decide most
        place = min(int(rng.integers(400)), len(data))
        place = place if rng.random() < 0.75 else len(data) - place
    size = int(rng.integers(1, 40))
    way = rng.choice(["set", "flip", "cut", "repeat", "extreme", "splice", "number", "end"])
    if way == "set":
        data[place : place + size % 8] = rng.bytes(size % 8)
    elif way == "flip" and place < len(data):
        data[place] ^= 1 << int(rng.integers(8))
    elif way == "cut":
        del data[place : place + size]
    elif way == "repeat":
        data[place:place] = bytes(data[place : place + size]) * int(rng.choice([1, 2, 50]))
    elif way == "extreme":
        new = EXTREMES[rng.integers(len(EXTREMES))]
        data[place : place + len(new)] = new
    elif way == "number" and place < len(data):
        data[place] = (data[place] + int(rng.integers(-4, 5))) % 256
    elif way == "splice":
        other = files[rng.integers(len(files))][1]
        start = int(rng.integers(len(other)))
        data[place : place + size] = other[start : start + size]
    elif rng.random() < 0.2:
        del data[place:]


def outcome(read, data, max_pixels):
    """Give ``read``, or the kind of the refusal, or what else was raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = read(data, max_pixels=max_pixels)
    except ImageError as error:
        named = error.kind in KINDS and "; expected " in str(error) and " at 0x" not in str(error)
        return error.kind if named else f"UNNAMED {error.kind} {error}"
    except Exception as error:
        return f"RAISED {type(error).__name__} {error}"
    array = getattr(result, "values", result)
    return "read" if array.shape[0] * array.shape[1] <= max_pixels else f"TOO LARGE {array.shape}"


def memory(what):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1000
    raise KeyError(what)


def try_file(seed, number):
    """Decode one file in every way; give what came of it, and what it took."""
    name, data = mutated(seed, number)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest memory so far
    before, start = memory("VmRSS"), time.perf_counter()
    limit = LIMITS[number % len(LIMITS)]
    found = [outcome(read, data, limit) for read in (decode, read_samples, decode_png)]
    return name, found, memory("VmHWM") - before, time.perf_counter() - start


def run_batch(seed, first, stop, progress):
    """Try some files; print what came of them as JSON."""
    kinds, formats, faults = collections.Counter(), collections.Counter(), []
    most_memory, most_time = (0.0, -1), (0.0, -1)
    try_file(seed, first)  # imports, caches
    base = memory("VmRSS")
    for number in range(first, stop):
        os.pwrite(progress, str(number).ljust(20).encode(), 0)
        name, found, megabytes, seconds = try_file(seed, number)
        kinds[found[0]] += found[0] in KINDS | {"read"}
        formats[f"{name.split()[0]} {'read' if found[0] == 'read' else 'refused'}"] += 1
        faults += [(number, name, text) for text in found if text not in KINDS | {"read"}]
        most_memory = max(most_memory, (megabytes, number))
        most_time = max(most_time, (seconds, number))
    growth = memory("VmRSS") - base
    result = {"kinds": kinds, "formats": formats, "faults": faults, "growth": growth}
    print(json.dumps(result | {"memory": most_memory, "time": most_time}))


def run_process(seed, first, stop):
    """Run a batch in a process of its own; a file that ends it is a fault."""
    with tempfile.TemporaryFile() as progress, tempfile.TemporaryFile() as noise:
        handle = progress.fileno()
        command = [sys.executable, __file__, "--seed", str(seed), "--batch", str(first), str(stop)]
        done = subprocess.run(
            [*command, "--progress", str(handle)],
            pass_fds=[handle],
            stdout=subprocess.PIPE,
            stderr=noise,
            timeout=3600,
        )
        if done.returncode == 0:
            return [json.loads(done.stdout)]
        last = int(os.pread(handle, 20, 0) or b"-1")
        if done.returncode > 0:  # a defect of this program
            noise.seek(0)
            raise RuntimeError(noise.read().decode(errors="replace")[-2000:])
    fault = {"faults": [(last, mutated(seed, last)[0], f"ENDED ITS PROCESS {done.returncode}")]}
    rest = run_process(seed, last + 1, stop) if last + 1 < stop else []
    return [fault, *rest]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="Try one file again, and show it.")
    parser.add_argument("--most-megabytes", type=float, default=150)
    parser.add_argument("--most-seconds", type=float, default=10)
    parser.add_argument("--batch", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--progress", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only is not None:
        print(mutated(args.seed, args.only))
        print(*try_file(args.seed, args.only))
        return 0
    if args.batch:
        run_batch(args.seed, *args.batch, args.progress)
        return 0
    start = time.perf_counter()
    stops = [*range(BATCH, args.files, BATCH), args.files]
    results = []
    for first, stop in zip([0, *stops], stops, strict=False):
        results += run_process(args.seed, first, stop)
    kinds, formats = collections.Counter(), collections.Counter()
    for result in results:
        kinds.update(result.get("kinds", {}))
        formats.update(result.get("formats", {}))
    faults = [fault for result in results for fault in result["faults"]]
    memory_most = max(result["memory"] for result in results if "memory" in result)
    time_most = max(result["time"] for result in results if "time" in result)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = {
        "files": args.files,
        "seed": args.seed,
        "start_files": len(corpus()),
        "kinds": dict(sorted(kinds.items())),
        "formats": dict(sorted(formats.items())),
        "faults": faults[:20],
        "fault_count": len(faults),
        "most_megabytes": round(memory_most[0], 1),
        "most_megabytes_file": memory_most[1],
        "most_seconds": round(time_most[0], 2),
        "most_seconds_file": time_most[1],
        "growth_megabytes": round(max(r["growth"] for r in results if "growth" in r), 1),
        "largest_process_megabytes": round(used.ru_maxrss / 1000),
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
        "wall_seconds": round(time.perf_counter() - start),
        "python": platform.python_version(),
        "pillow": PIL.__version__,
    }
    print(json.dumps(summary, indent=1))
    good = memory_most[0] <= args.most_megabytes and time_most[0] <= args.most_seconds
    return 0 if good and not faults else 1


if __name__ == "__main__":
    sys.exit(main())
