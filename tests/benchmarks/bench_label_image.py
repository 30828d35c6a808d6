"""Cost of a label and of a prediction on one thread, in passes of mobilenet_v2; prints JSON.

    python tests/benchmarks/bench_label_image.py [--images FOLDER --count 20] [--rounds 7]

The unit is one pass of torchvision's mobilenet_v2 at 448 x 352 (batch 1, evaluation mode) in the
same process, so that machines can be compared.  Everything is CPU time of the thread, measured in
turn with the unit after a warm-up, so that work on other cores disturbs it least.  The table of
stages is measured around the functions that ``label_image`` calls, in the same calls as its whole.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import time
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from skimage import data

import saff
from saff import config, images, labeling
from saff.fused_prediction import models_beside, predict_fused
from saff.labeling import label_image, load_models
from saff.network.shipped import load_shipped
from saff.resize import resize
from saff.threads import single_thread
from saff.torchvision_import import models

ROUNDS = 21
NAMES = ("astronaut", "chelsea", "coffee", "rocket")
STAGES = (  # functions of saff.labeling, none inside another
    "slic",
    "encode_semantics",
    "region_saliency",
    "encode_edges",
    "fit_image",
    "context",
    "cut_outline",
    "predict",
    "resize",
    "weighted_mean",
)
BACK_ENDS = ("encoder", "edges")


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_ms(call, rounds=ROUNDS):
    call()
    return round(1000 * statistics.median(seconds(call) for _ in range(rounds)), 2)


def cpu_seconds(call):
    start = time.thread_time()
    call()
    return time.thread_time() - start


def make_unit():
    """Make the call that costs one unit."""
    network = models.mobilenet_v2(weights=None).eval()
    probe = torch.rand(1, 3, 352, 448, generator=torch.Generator().manual_seed(0))

    def unit():
        with torch.inference_mode():
            network(probe)

    return unit


def photographs(folder, count):
    """The first images of a folder, or four of scikit-image in the size of VOC's."""
    if folder is None:
        return [resize(getattr(data, name)()[:, :, :3], (375, 500)) for name in NAMES]
    return [images.read(path) for path in sorted(folder.iterdir())[:count]]


def make_calls(network):
    """What is measured on an image, by name."""
    settings = config.default()
    alone = dataclasses.replace(
        settings, inference=dataclasses.replace(settings.inference, pseudo_label_share=0.0)
    )
    beside = models_beside(settings)
    labels = {name: partial(label_image, config=make()) for name, make in config.NAMED.items()}
    return labels | {
        "prediction": lambda image: predict_fused(network, [image], settings, beside),
        "network alone": lambda image: predict_fused(network, [image], alone, None),
    }


class StageClock:
    """Adds up the CPU time of the stages of ``label_image`` with some settings."""

    def __init__(self, settings):
        self.settings = settings
        self.spent = defaultdict(float)
        self.running = False
        loaded = load_models(settings)
        wrapped = {name: self.timed(name, getattr(loaded, name)) for name in BACK_ENDS}
        self.models = dataclasses.replace(loaded, **wrapped)

    def timed(self, name, function):
        """The function, its time added to a stage; inside of another stage it is that stage's."""

        def run(*args, **kwargs):
            if self.running:
                return function(*args, **kwargs)
            self.running, start = True, time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[name] += time.thread_time() - start
                self.running = False

        return run

    @contextmanager
    def measuring(self):
        """Put the clock around the functions of saff.labeling."""
        stages = {name: self.timed(name, getattr(labeling, name)) for name in STAGES}
        with mock.patch.multiple(labeling, **stages):
            yield

    def table(self, image):
        """Seconds of each stage of one image, of what lies between them, and of the whole."""
        self.spent.clear()
        with self.measuring():
            whole = cpu_seconds(lambda: label_image(image, self.settings, self.models))
        stages = dict(self.spent)
        return stages | {"between": whole - sum(stages.values()), "whole": whole}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder; scikit-image's pictures without it")
    parser.add_argument("--count", type=int, default=20, help="images of the folder")
    parser.add_argument("--rounds", type=int, default=7, help="times that each image is measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pictures, unit = photographs(args.images, args.count), make_unit()
    calls, clock = make_calls(load_shipped().network), StageClock(config.default())
    ratios, stages, ms = defaultdict(list), defaultdict(list), defaultdict(list)

    def one_unit():
        with single_thread():
            return cpu_seconds(unit)

    for turn in range(args.rounds + 1):
        for image in pictures:
            for name, call in calls.items():
                base, spent = one_unit(), cpu_seconds(lambda c=call, i=image: c(i))
                if turn:  # the first round warms up
                    ratios[name].append(spent / base)
                    ms[name].append(1000 * spent)
                    ms["unit"].append(1000 * base)
            base = one_unit()
            for name, spent in clock.table(image).items():
                if turn:
                    stages[name].append(spent / base)
    print(
        json.dumps(
            {
                "benchmark": "label and prediction of one image, CPU time of one thread",
                "images": f"{args.images or 'scikit-image'}: {len(pictures)}",
                "median_ms": {name: round(statistics.median(v), 1) for name, v in ms.items()},
                "units": {name: summary(v) for name, v in ratios.items()},
                "stages of default(), units": {
                    name: round(statistics.median(v), 3)
                    for name, v in sorted(stages.items(), key=lambda item: -sum(item[1]))
                },
                **machine(),
            },
            indent=1,
        )
    )


def summary(values):
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": round(middle, 2), "iqr": [round(low, 2), round(high, 2)]}


def machine():
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "commit": git.stdout.strip(),
        "versions": {"saff": saff.__version__, "torch": torch.__version__, "cv2": cv2.__version__},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


if __name__ == "__main__":
    main()
