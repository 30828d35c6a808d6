"""Cost of label_image on one thread, in forward passes of mobilenet_v2; prints JSON.

The unit is torchvision's mobilenet_v2 at 448 x 352 (batch 1, evaluation mode) in the same process,
so that machines can be compared.  Both are timed in turn; medians after a warm-up.
"""

import json
import platform
import statistics
import subprocess
import time

import cv2
import numpy as np
import torch
from skimage import data

import saff
from saff import config, edges, labeling, saliency
from saff.labeling import label_image, load_models
from saff.superpixels import slic
from saff.threads import single_thread
from saff.torchvision_import import models

ROUNDS = 21


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_ms(call, rounds=ROUNDS):
    call()
    return round(1000 * statistics.median(seconds(call) for _ in range(rounds)), 2)


def main():
    torch.set_num_threads(1)
    image = cv2.resize(data.astronaut()[:384], (500, 375), interpolation=cv2.INTER_AREA)
    network = models.mobilenet_v2(weights=None).eval()
    probe = torch.rand(1, 3, 352, 448, generator=torch.Generator().manual_seed(0))

    def unit():
        with torch.inference_mode():
            network(probe)

    configs = {name: make() for name, make in config.NAMED.items()}
    calls = {"mobilenet_v2": unit}
    calls |= {name: lambda c=c: label_image(image, c) for name, c in configs.items()}
    back_ends = {
        "saliency drfi": saliency.load("drfi"),
        "saliency rbd": saliency.load("rbd"),
        "edges learned": edges.load("learned"),
        "edges gradient": edges.load("gradient"),
    }
    for name, back_end in back_ends.items():
        calls[name] = lambda b=back_end: b(image)
    times = {name: [] for name in calls}
    for turn in range(ROUNDS + 2):
        for name, call in calls.items():
            with single_thread():
                elapsed = seconds(call)
            if turn >= 2:  # the first two warm up
                times[name].append(elapsed)
    ratios = {
        name: [a / b for a, b in zip(times[name], times["mobilenet_v2"], strict=True)]
        for name in times
        if name != "mobilenet_v2"
    }
    print(
        json.dumps(
            {
                "benchmark": "label_image, 500 x 375, one thread",
                "median_ms": {n: round(1000 * statistics.median(t), 1) for n, t in times.items()},
                "units": {n: summary(r) for n, r in ratios.items()},
                "stages_ms": stages(image),
                **machine(),
            },
            indent=1,
        )
    )


def stages(image):
    """Where the time of default() goes."""
    settings = config.default()
    loaded = load_models(settings)
    with single_thread():
        superpixels = slic(image, settings.superpixel_count)
        maps = loaded.encoder(image)
        edge_map = loaded.edges(image)
        return {
            "superpixels": median_ms(lambda: slic(image, settings.superpixel_count)),
            "encoder": median_ms(lambda: loaded.encoder(image)),
            "S_s and M_s": median_ms(
                lambda: labeling.encode_semantics(maps, superpixels, settings)
            ),
            "saliency": median_ms(lambda: loaded.saliency(image)),
            "edge map": median_ms(lambda: loaded.edges(image)),
            "M_a": median_ms(lambda: labeling.encode_edges(edge_map, superpixels, settings)),
        }


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
