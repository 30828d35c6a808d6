"""Measure what predictions say of themselves, quality and foreground_found; prints JSON.

python tests/benchmarks/network_answers.py --images DIR --truth MASKS --truth-format voc
python tests/benchmarks/network_answers.py --images CROPS   # of object_free_crops.py

With masks: the rank correlation (Spearman) of the column quality with true IoU.  In any case: the
peak confidences (saff.quality) at which so many per cent of the images lie below, and the share of
images in which nothing is found.  --save writes the peaks of the images.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from saff import config, images
from saff.inference import predict, refine
from saff.metrics import HALF
from saff.network.shipped import load_shipped
from saff.quality import foreground_found, peak_confidence, prediction_quality, to_levels
from saff.storage import Folder
from saff.trained import load_trained
from saff.truth import read_truth

PERCENTILES = (0.5, 1, 2, 5, 50, 95, 98, 99)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--truth-format", choices=("voc", "binary"), default="binary")
    parser.add_argument("--network", help="output of a run, in place of the shipped network")
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    parser.add_argument("--save", type=Path, help="file for one line per image: name and peak")
    args = parser.parse_args()
    settings = config.default().inference
    if args.network:
        network = load_trained(Folder.at(args.network)).network
    else:
        network = load_shipped().network
    rows = []
    for path in sorted(args.images.iterdir())[:: args.every]:
        image = images.read(path)
        plain = predict(network, image, replace(settings, refinement="none"))
        levels = to_levels(refine(settings.refinement, plain, image))
        found = foreground_found(to_levels(plain), settings.foreground_found_above)
        iou = of_truth(levels, path, args) if args.truth else None
        rows.append(
            (path.name, peak_confidence(to_levels(plain)), found, prediction_quality(levels), iou)
        )
    names, peaks, found, quality, ious = zip(*rows, strict=True)
    if args.save:
        lines = (f"{name} {peak:.4f}\n" for name, peak in zip(names, peaks, strict=True))
        args.save.write_text("".join(lines))
    percentiles = np.percentile(peaks, PERCENTILES).round(3).tolist()
    report = {
        "images": len(rows),
        "nothing_found": found.count(False),
        "foreground_found_above": settings.foreground_found_above,
        "peak_percentiles": dict(zip(map(str, PERCENTILES), percentiles, strict=True)),
    }
    if args.truth:
        report["quality_rank_correlation"] = round(float(spearmanr(quality, ious)[0]), 3)
        of_empty = [iou for iou, there in zip(ious, found, strict=True) if not there]
        report["iou_of_masks_that_were_emptied"] = np.round(of_empty, 2).tolist()
    print(json.dumps(report, indent=1))


def of_truth(levels, path, args):
    """True IoU of the mask at one half, whether or not it was emptied."""
    data = (args.truth / f"{path.stem}.png").read_bytes()
    truth, valid = read_truth(data, args.truth_format)
    mask = (levels >= HALF) & valid
    return (mask & truth).sum() / max((mask | (truth & valid)).sum(), 1)


if __name__ == "__main__":
    main()
