"""Quality of every cue and every fusion on a folder of images with masks; prints JSON.

    python tests/benchmarks/quality.py --images DIR --truth DIR --truth-format voc

Each variant is one Evaluation (256 thresholds, mean_pr) over the same superpixels.
"""

import argparse
import dataclasses
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from saff import config, images
from saff.labeling import label_image
from saff.metrics import Evaluation, read_truth

CUES = ("S_s", "S_s_con", "S_a", "S_a_con")
UNBALANCED = dataclasses.replace(config.paper(), balance=False)
LEAST_SQUARES = dataclasses.replace(config.default(), prior_strength=0.0)
NO_SPREAD = dataclasses.replace(config.default(), spread=False, gamma=1.0)
PLAIN_PRIOR = dataclasses.replace(config.default(), prior_strength=1e6)
CENTRE_SEEDS = dataclasses.replace(
    config.default(), seeds="agreement", background_below=0.2, foreground_above=0.6
)


def variants(image):
    """Confidence of every variant, uint8 (H, W), by name."""
    default, paper = label_image(image), label_image(image, config.paper())
    maps = {}
    for name, labeled in (("paper", paper), ("default", default)):
        columns = labeled.features.T
        for cue, values in zip(CUES, columns, strict=True):
            maps[f"{name}: {cue}"] = values[labeled.superpixels]
        maps[f"{name}: plain mean of the four"] = labeled.features.mean(1)[labeled.superpixels]
    maps["paper(), unbalanced"] = label_image(image, UNBALANCED).confidence
    maps["paper()"] = paper.confidence
    maps["default(), published seeds, least squares, no spread"] = label_image(
        image, dataclasses.replace(CENTRE_SEEDS, prior_strength=0.0, spread=False, gamma=1.0)
    ).confidence
    maps["default(), published seeds"] = label_image(image, CENTRE_SEEDS).confidence
    maps["default(), no prior"] = label_image(image, LEAST_SQUARES).confidence
    maps["default(), prior alone"] = label_image(image, PLAIN_PRIOR).confidence
    maps["default(), no spread"] = label_image(image, NO_SPREAD).confidence
    maps["default()"] = default.confidence
    return {name: np.rint(m * 255).astype(np.uint8) for name, m in maps.items()}


def evaluate(task):
    """Evaluate some of the images: a dict of Evaluations for each half of the ids."""
    halves = ({}, {})
    paths, truth, truth_format = task
    for index, path in paths:
        mask, valid = read_truth((truth / f"{path.stem}.png").read_bytes(), truth_format)
        for name, confidence in variants(images.read(path)).items():
            halves[index % 2].setdefault(name, Evaluation()).add(confidence, mask, valid)
    return halves


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--truth-format", choices=("voc", "binary"), required=True)
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    args = parser.parse_args()
    paths = list(enumerate(sorted(args.images.iterdir())))[:: args.every]
    workers = os.cpu_count() or 1
    tasks = [(paths[k :: 4 * workers], args.truth, args.truth_format) for k in range(4 * workers)]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(evaluate, tasks))
    rows = {}
    for name in next(p for part in parts for p in part if p):
        even, odd = (
            sum((part[half][name] for part in parts if name in part[half]), Evaluation())
            for half in (0, 1)
        )
        whole = (even + odd).summary()
        rows[name] = {
            "mean_pr": round(whole["mean_pr"]["max_f"], 4),
            "even": round(even.summary()["mean_pr"]["max_f"], 4),
            "odd": round(odd.summary()["mean_pr"]["max_f"], 4),
            "mean_f": round(whole["mean_f"]["max_f"], 4),
            "max_f": round(whole["max_f"]["max_f"], 4),
            "mae": round(whole["mae"], 4),
            "iou": round(whole["iou"], 4),
        }
    print(json.dumps({"images": len(paths), "variants": rows}, indent=1))


if __name__ == "__main__":
    main()
