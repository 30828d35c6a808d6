"""Latency and rate of ``saff serve``: clients that post photographs one after the other.

    python tests/benchmarks/bench_serve.py --images FOLDER --replicas 1 2 --clients 1 4

It starts the command for each number of replicas, posts every photograph once unmeasured, then
measures for so many clients at once.  Prints JSON.  ``cpu_ms`` is the CPU time that the replicas
and the proxy take for an image, ``direct`` the same images in this process, without any server:
both say more than seconds where the machine does other work.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import aiohttp
import numpy as np
import psutil

from saff.config_files import read_config
from saff.network.shipped import load_shipped
from saff.serving import Segmenter, answer

PORT = 8765


async def post(session, image, seconds):
    begun = time.perf_counter()
    async with session.post("/mask", data=image) as answer:
        await answer.read()
        assert answer.status == 200, await answer.text()
    seconds.append(time.perf_counter() - begun)


async def measure(images, clients, count):
    """Rate and latencies of so many images from so many clients."""
    waiting, seconds = iter(list(islice(cycle(images), count))), []

    async def work(session):
        for image in waiting:
            await post(session, image, seconds)

    timeout = aiohttp.ClientTimeout(600)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{PORT}", timeout=timeout) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(work(session) for _ in range(clients)))
        whole = time.perf_counter() - begun
    middle, late = np.percentile(seconds, [50, 95])
    return {
        "images_per_second": round(count / whole, 2),
        "median_ms": round(1000 * middle),
        "p95_ms": round(1000 * late),
    }


def cpu_seconds(process):
    """CPU time of the replicas and the proxy that a process has started."""
    names = ("ray::ServeReplica", "ray::ProxyActor")
    children = psutil.Process(process.pid).children(recursive=True)
    serving = [one for one in children if "".join(one.cmdline()).startswith(names)]
    return sum(sum(one.cpu_times()[:2]) for one in serving)


def direct(images, config):
    """Rate, latency and CPU time without a server."""
    segment = Segmenter(load_shipped().network, read_config(config))
    answer(segment(images[0]), "mask", 0.5, 1)
    begun, cpu = time.perf_counter(), time.process_time()
    for image in images:
        answer(segment(image), "mask", 0.5, 1)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    rate = {"images_per_second": round(len(images) / seconds, 2)}
    return rate | {"cpu_ms": round(1000 * cpu / len(images))}


def serve(replicas, config):
    """Start the command and wait until it is open."""
    command = [sys.executable, "-m", "saff", "serve", "--port", str(PORT), "--config", config]
    command += ["--replicas", str(replicas), "--queue", "64"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    begun = time.perf_counter()
    while not re.match("open ", line := process.stdout.readline()):
        assert line, "the server did not start"
    return process, time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--config", default="default")
    words = parser.parse_args()
    files = sorted(p for p in Path(words.images).rglob("*") if p.suffix.lower() == ".jpg")[:20]
    images = [path.read_bytes() for path in files]
    print(json.dumps({"config": words.config, "direct": direct(images, words.config)}), flush=True)
    for replicas in words.replicas:
        process, seconds = serve(replicas, words.config)
        try:
            for clients in words.clients:
                asyncio.run(measure(images, clients, len(images)))  # each has been seen once
                cpu = cpu_seconds(process)
                found = asyncio.run(measure(images, clients, words.count))
                cpu = (cpu_seconds(process) - cpu) / words.count
                about = {"config": words.config, "replicas": replicas, "clients": clients}
                load = {"load": round(os.getloadavg()[0], 1), "start_s": round(seconds, 1)}
                found["cpu_ms"] = round(1000 * cpu)
                print(json.dumps(about | found | load), flush=True)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


if __name__ == "__main__":
    main()
