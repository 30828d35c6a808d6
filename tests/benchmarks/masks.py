"""Quality of labels and predictions of default() on images with masks; prints JSON.

    python tests/benchmarks/masks.py --images DIR --truth MASKS --truth-format voc

Labels with and without the network that comes with saff, the network alone, and predictions, which
are the mean of the network and of a label; of all images, of even and of odd ranks.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from saff import config, images
from saff.fused_prediction import models_beside, predict_fused
from saff.labeling import label_image
from saff.metrics import HALF, Evaluation
from saff.network.shipped import load_shipped
from saff.quality import to_levels
from saff.storage import Folder
from saff.trained import load_trained
from saff.truth import read_truth

DEFAULT = config.default()
PLAIN = {"normalise": False, "measures": "f"}  # maps as they are
ALONE = replace(DEFAULT, inference=replace(DEFAULT.inference, pseudo_label_share=0.0))


def variants(image, network):
    """Confidence map and whether there is foreground, by name."""
    alone = label_image(image, replace(DEFAULT, network_share=0.0)).confidence
    predicted = {
        name: predict_fused(network, [image], settings, models_beside(settings))[0]
        for name, settings in (("network alone", ALONE), ("prediction", DEFAULT))
    }
    return {
        "label without the network": (alone, True),
        "label": (label_image(image, DEFAULT).confidence, True),
        **predicted,
    }


def evaluate(task):
    """Evaluate some of the images: by half of the ranks and name, stretched and plain."""
    paths, args = task
    network = load_trained(Folder.at(args.network)) if args.network else load_shipped()
    halves = ({}, {})
    for rank, path in paths:
        mask, valid = read_truth((args.truth / f"{path.stem}.png").read_bytes(), args.truth_format)
        for name, (confidence, found) in variants(images.read(path), network.network).items():
            new = Evaluation(), Evaluation(**PLAIN)
            for evaluation in halves[rank % 2].setdefault(name, new):
                evaluation.add(to_levels(confidence), mask, valid, foreground_found=found)
    return halves


def figures(stretched, plain):
    """What stands in the tables of docs/results.md."""
    summary = stretched.summary()
    return {
        "images": summary["images"],
        "max_f": round(summary["mean_pr"]["max_f"], 4),
        "f_of_mean_pr_at_half": round(float(plain.curve().f[HALF]), 4),
        **{
            name: round(summary[name], 4)
            for name in ("iou", "boundary_f", "mae", "adaptive_f", "s_measure", "weighted_f")
        },
        "e_measure_mean": round(summary["e_measure"]["mean"], 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--truth-format", choices=("voc", "binary"), required=True)
    parser.add_argument("--network", help="output of a run, in place of the shipped network")
    parser.add_argument("--every", type=int, default=1, help="take every n-th pair of images")
    args = parser.parse_args()
    ranked = list(enumerate(sorted(args.images.iterdir())))
    ranked = [(rank, path) for rank, path in ranked if rank // 2 % args.every == 0]
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers) as pool:
        parts = list(
            pool.map(evaluate, [(ranked[k :: 4 * workers], args) for k in range(4 * workers)])
        )
    report = {}
    for name in next(found for part in parts for found in part if found):
        halves = [
            [
                sum((part[half][name][k] for part in parts if name in part[half]), empty())
                for k, empty in enumerate((Evaluation, partial(Evaluation, **PLAIN)))
            ]
            for half in (0, 1)
        ]
        whole = [even + odd for even, odd in zip(*halves, strict=True)]
        report[name] = {
            what: figures(*found)
            for what, found in (("all", whole), ("even", halves[0]), ("odd", halves[1]))
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
