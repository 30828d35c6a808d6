"""Cost of asking the default network on one thread, and gain of a second training worker; JSON.

The unit of the first is torchvision's mobilenet_v2 at 448 x 352 (batch 1, evaluation mode), timed
in turn with it.  "row" reads nothing from disk but decodes the photograph from JPEG and encodes
its two maps, as a row of predictions does.  Two training workers have one thread each, and so has
the one that they are compared with; a share of a batch costs what a batch of its size costs.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bench_label_image import ROUNDS, machine, seconds, summary
from skimage import data

from saff import config, images, network
from saff.cluster.predictions import encode_prediction
from saff.config import Inference
from saff.inference import predict
from saff.samples import Batch
from saff.torchvision_import import models
from saff.training import train

NAMES = ("predict", "one scale, 512", "row")
STEPS = 12
WARM_UP = 3


def main():
    torch.set_num_threads(1)
    image = cv2.resize(data.astronaut()[:384], (500, 375), interpolation=cv2.INTER_AREA)
    jpeg = bytes(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1])
    unit_network = models.mobilenet_v2(weights=None).eval()
    probe = torch.rand(1, 3, 352, 448, generator=torch.Generator().manual_seed(0))
    trained = network.load("efficientnet_lite0", pretrained=True).eval()
    how = config.default().inference

    def unit():
        with torch.inference_mode():
            unit_network(probe)

    calls = {
        "mobilenet_v2": unit,
        "predict": lambda: predict(trained, image, how),
        "one scale, 512": lambda: predict(trained, image, Inference(input_sides=(512,))),
        "row": lambda: encode_prediction(predict(trained, images.decode(jpeg), how)),
    }
    times = {name: [] for name in calls}
    for turn in range(ROUNDS + 2):
        for name, call in calls.items():
            elapsed = seconds(call)
            if turn >= 2:  # the first two warm up
                times[name].append(elapsed)
    ratios = {
        name: [a / b for a, b in zip(times[name], times["mobilenet_v2"], strict=True)]
        for name in NAMES
    }
    print(
        json.dumps(
            {
                "benchmark": "network, 500 x 375, one thread",
                "median_ms": {n: round(1000 * statistics.median(t), 1) for n, t in times.items()},
                "images_per_second": {n: round(1 / statistics.median(times[n]), 1) for n in NAMES},
                "units": {n: summary(r) for n, r in ratios.items()},
                "training_samples_per_second": training_rates(),
                **machine(),
            },
            indent=1,
        )
    )


def training_rates():
    """Samples a second with one and two workers of one thread, and their ratio."""
    rates = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_worker, (workers, folder), nprocs=workers)
            with open(f"{folder}/seconds") as file:
                per_step = statistics.median(json.load(file)[WARM_UP:])
        rates[str(workers)] = round(config.default().training.batch_size / per_step, 2)
    return rates | {"ratio": round(rates["2"] / rates["1"], 2)}


def _worker(rank, workers, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers
    )
    training = dataclasses.replace(config.default().training, steps=STEPS)
    learner = network.load(training.network, pretrained=True)
    network.freeze(learner, training.frozen_stages)
    rng = np.random.default_rng(0)
    side = training.crop_size
    image = rng.integers(0, 256, (training.batch_size, side, side, 3), np.uint8)
    whole = Batch(
        image, image.max(3), np.ones(image.shape[:3], bool), [*range(training.batch_size)]
    )
    share = Batch(*(column[rank::workers] for column in whole))
    found = []
    train(
        torch.nn.parallel.DistributedDataParallel(learner),
        (share for _ in range(STEPS)),
        training,
        on_step=lambda metrics: found.append(metrics["seconds"]),
    )
    if rank == 0:
        with open(f"{folder}/seconds", "w") as file:
            json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
