"""Cost of measuring one image against its mask, and of pysodmetrics where it is; prints JSON.

The map has 500 x 375 pixels and soft noise, the mask is an ellipse; CPU time on one thread, medians
of 21 calls after a warm-up.
"""

import json
import statistics
import time

import cv2
import numpy as np
from bench_label_image import machine

from saff.images import encode_png
from saff.measures import boundary_f, e_measures, level_counts, s_measure, weighted_f
from saff.metrics import Evaluation, normalise_to_255
from saff.threads import single_thread
from saff.truth import read_truth

ROUNDS = 21


def drawn(seed=0, height=375, width=500):
    rows, columns = np.mgrid[:height, :width]
    truth = ((rows - 180) / 120) ** 2 + ((columns - 230) / 150) ** 2 < 1
    noise = np.random.default_rng(seed).normal(0, 40, truth.shape)
    soft = cv2.GaussianBlur(np.clip(truth * 200 + noise, 0, 255), (0, 0), 7)
    return normalise_to_255(soft), truth


def median_ms(call):
    call()
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        call()
        times.append(1000 * (time.process_time() - start))
    return round(statistics.median(times), 2)


def others(levels, truth):
    """Calls of pysodmetrics, none where it is not installed."""
    try:
        import py_sod_metrics
    except ImportError:
        return {}
    mask = truth.astype(np.uint8) * 255
    names = ("Smeasure", "Emeasure", "WeightedFmeasure")
    return {
        f"pysodmetrics {n}": lambda n=n: getattr(py_sod_metrics, n)().step(levels, mask)
        for n in names
    }


def main():
    levels, truth = drawn()
    mask = encode_png(truth.astype(np.uint8) * 255)
    calls = {
        "read_truth": lambda: read_truth(mask),
        "Evaluation(measures='f')": lambda: Evaluation(measures="f").add(levels, truth),
        "Evaluation()": lambda: Evaluation().add(levels, truth),
        "E-measure": lambda: e_measures(level_counts(levels, truth, None)[:2]),
        "S-measure": lambda: s_measure(levels, truth),
        "weighted F": lambda: weighted_f(levels, truth),
        "boundary F": lambda: boundary_f(levels >= 128, truth),
        **others(levels, truth),
    }
    with single_thread():
        times = {name: median_ms(call) for name, call in calls.items()}
    print(json.dumps({"benchmark": "measures, 500 x 375", "cpu_ms": times, **machine()}, indent=1))


if __name__ == "__main__":
    main()
