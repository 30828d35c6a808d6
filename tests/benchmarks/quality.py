"""Quality of every cue and every fusion on a folder of images with masks; prints JSON.

    python tests/benchmarks/quality.py --images DIR --truth DIR --truth-format voc

Each variant is one Evaluation (256 thresholds, mean_pr) over the same superpixels.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from saff import config, images
from saff.labeling import label_image
from saff.metrics import HALF, Evaluation
from saff.quality import to_levels
from saff.truth import read_truth

CUES = ("S_s", "S_s_con", "S_a", "S_a_con")
FULL, PUBLISHED = config.default(), config.paper()
ONE_SPREAD = {"spread_steps": 1, "gamma": 1.6}
CONFIGS = {
    "paper()": PUBLISHED,
    "paper(), unbalanced": replace(PUBLISHED, balance=False),
    "paper(), gradient edges": replace(PUBLISHED, edges="gradient"),
    "paper(), robust background, gradient edges": replace(
        PUBLISHED, saliency="rbd", edges="gradient"
    ),
    "default()": FULL,
    "default(), learned edges": replace(FULL, edges="learned"),
    "default(), DRFI": replace(FULL, saliency="drfi"),
    "default(), outline by superpixels": replace(FULL, outline="none"),
    "default(), one spread": replace(FULL, **ONE_SPREAD),
    "default(), one spread, DRFI": replace(FULL, saliency="drfi", **ONE_SPREAD),
    "default(), no spread": replace(FULL, spread_steps=0, gamma=1.0),
    "default(), 300 superpixels": replace(FULL, superpixel_count=300),
    "fast()": config.fast(),
    "best()": config.best(),
}


def variants(image, saliency, only):
    """Confidence of every variant, uint8 (H, W), and its quality, by name."""
    maps = {}
    for name in only:
        settings = CONFIGS[name]
        if settings.saliency == "drfi":
            settings = replace(settings, saliency=saliency)
        labeled = label_image(image, settings)
        maps[name] = labeled.confidence, labeled.quality
        if name in ("paper()", "default()"):
            for cue, values in zip(CUES, labeled.features.T, strict=True):
                maps[f"{name}: {cue}"] = values[labeled.superpixels], 0.0
            mean = labeled.features.mean(1)[labeled.superpixels]
            maps[f"{name}: plain mean of the four"] = mean, 0.0
    return {name: (to_levels(m), q) for name, (m, q) in maps.items()}


def evaluate(task):
    """Evaluate some of the images: for each half of the ids, Evaluations and (quality, IoU)."""
    halves = ({}, {})
    paths, truth, truth_format, saliency, only = task
    for index, path in paths:
        mask, valid = read_truth((truth / f"{path.stem}.png").read_bytes(), truth_format)
        for name, (confidence, quality) in variants(images.read(path), saliency, only).items():
            evaluation, pairs = halves[index % 2].setdefault(name, (Evaluation(), []))
            evaluation.add(confidence, mask, valid)
            kept = confidence >= HALF
            either = ((kept | mask) & valid).sum()
            if mask.any():
                pairs.append((quality, (kept & mask & valid).sum() / max(either, 1)))
    return halves


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--truth-format", choices=("voc", "binary"), required=True)
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    parser.add_argument("--half", type=int, choices=(0, 1), help="only images of even or odd rank")
    parser.add_argument(
        "--saliency", default="drfi", help="in place of drfi: drfi:FILE, fitted to other images"
    )
    parser.add_argument("--only", nargs="+", choices=CONFIGS, default=[*CONFIGS])
    args = parser.parse_args()
    paths = list(enumerate(sorted(args.images.iterdir())))[:: args.every]
    paths = [(k, path) for k, path in paths if args.half is None or k % 2 == args.half]
    workers = os.cpu_count() or 1
    rest = args.truth, args.truth_format, args.saliency, args.only
    tasks = [(paths[k :: 4 * workers], *rest) for k in range(4 * workers)]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(evaluate, tasks))
    rows = {}
    for name in next(p for part in parts for p in part if p):
        found = [[part[half][name] for part in parts if name in part[half]] for half in (0, 1)]
        even, odd = (sum((e for e, _ in half), Evaluation()) for half in found)
        pairs = np.array([pair for half in found for _, more in half for pair in more])
        whole = (even + odd).summary()
        rows[name] = {
            "mean_pr": round(whole["mean_pr"]["max_f"], 4),
            **{
                word: round(half.summary()["mean_pr"]["max_f"], 4)
                for word, half in (("even", even), ("odd", odd))
                if half.images
            },
            "mean_f": round(whole["mean_f"]["max_f"], 4),
            "max_f": round(whole["max_f"]["max_f"], 4),
            "mae": round(whole["mae"], 4),
            "iou": round(whole["iou"], 4),
            "quality_rank_correlation": round(float(spearmanr(*pairs.T)[0]), 3),
        }
    print(json.dumps({"images": len(paths), "variants": rows}, indent=1))


if __name__ == "__main__":
    main()
