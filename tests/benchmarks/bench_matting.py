"""What soft edges do to cut-outs of a folder of images with masks, and what they cost; prints JSON.

python tests/benchmarks/bench_matting.py --images DIR --truth MASKS --truth-format binary --every 8

IoU and boundary F with the true mask, of the network's mask and of alpha at one half; CPU time of a
matte on one thread; and what importing pymatting costs once it is compiled.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from bench_label_image import machine

from saff import config, images
from saff.fused_prediction import predict_fused
from saff.matting import load_pymatting, matte
from saff.measures import boundary_f
from saff.network.shipped import load_shipped
from saff.quality import to_levels
from saff.threads import single_thread
from saff.truth import read_truth

COST = """
import time, saff.inference
start = time.process_time()
import pymatting
print(time.process_time() - start)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--truth-format", choices=("voc", "binary"), required=True)
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    args = parser.parse_args()
    load_pymatting()
    network, settings = load_shipped().network, config.default()
    pairs, times, nothing, refused = [], [], 0, 0
    for path in sorted(args.images.iterdir())[:: args.every]:
        image = images.read(path)
        truth, valid = read_truth((args.truth / f"{path.stem}.png").read_bytes(), args.truth_format)
        ((confidence, found),) = predict_fused(network, [image], settings, None)
        levels = to_levels(confidence)
        if not found:
            nothing += 1
            continue
        start = time.process_time()
        with single_thread():
            soft = matte(image, levels >= 128)
        times.append(time.process_time() - start)
        if soft is None:
            refused += 1
        else:
            masks = (levels >= 128, soft.alpha >= 128)
            pairs.append([measured(mask, truth, valid) for mask in masks])
    before, after = np.mean(pairs, axis=0).round(4).tolist()
    iou = np.array(pairs)[:, :, 0]
    seconds = [float(subprocess.check_output([sys.executable, "-c", COST])) for _ in range(3)]
    print(
        json.dumps(
            {
                "images": len(pairs) + refused + nothing,
                "nothing found": nothing,
                "without a matte": refused,
                "IoU and boundary F of the masks": before,
                "of alpha at one half": after,
                "images that lose more than .05 of IoU": int((iou[:, 1] < iou[:, 0] - 0.05).sum()),
                "images that gain more than .05 of IoU": int((iou[:, 1] > iou[:, 0] + 0.05).sum()),
                "cpu s of a matte, median and largest": [
                    round(statistics.median(times), 2),
                    round(max(times), 2),
                ],
                "cpu s of the import": round(statistics.median(seconds), 2),
                **machine(),
            },
            indent=1,
        )
    )


def measured(mask, truth, valid):
    kept, wanted = mask & valid, truth & valid
    iou = (kept & wanted).sum() / max((kept | wanted).sum(), 1)
    return iou, boundary_f(mask, truth, valid)


if __name__ == "__main__":
    main()
