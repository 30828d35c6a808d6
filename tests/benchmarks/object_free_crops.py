"""Cut crops without an object out of photographs: nothing in them by network and by label.

python tests/benchmarks/object_free_crops.py --images DIR [DIR ...] --to CROPS

No mask chooses them.  A crop is a square of .35 to .6 of the shorter side, anywhere where all of
its pixels are below .1 in what the network predicts for the whole photograph, and below .5 in its
pseudo label.  Look at them: both may overlook an object.  With --truth (and one folder of images)
true masks decide in place of both.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from saff import config, images
from saff.inference import predict
from saff.labeling import label_image
from saff.network.shipped import load_shipped
from saff.truth import read_truth

SIDES = (0.35, 0.6)  # of the shorter side
EMPTY = 0.1  # confidence of the network below which a pixel is no foreground
SEED = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--truth", type=Path, help="masks of the images, in place of both")
    parser.add_argument("--truth-format", choices=("voc", "binary"), default="binary")
    args = parser.parse_args()
    rng = np.random.default_rng(SEED)
    paths = sorted(path for folder in args.images for path in folder.iterdir())
    args.to.mkdir(parents=True, exist_ok=True)
    maps = of_truth(args) if args.truth else of_network_and_label()
    found = 0
    for number in rng.permutation(len(paths)):
        image = images.read(paths[number])
        side = int(rng.uniform(*SIDES) * min(image.shape[:2]))
        free = np.ones(image.shape[:2], bool)
        for empty in maps:  # the next one only where the last one leaves a place
            free &= empty(image, paths[number])
            place = draw(free, side, rng)
            if place is None:
                break
        else:
            top, left = place
            crop = np.ascontiguousarray(image[top : top + side, left : left + side])
            (args.to / f"{paths[number].stem}.png").write_bytes(images.encode_png(crop))
            found += 1
        if found == args.count:
            break
    print(f"{found} crops in {args.to}")


def of_truth(args):
    def background(image, path):
        data = (args.truth / f"{path.stem}.png").read_bytes()
        truth, valid = read_truth(data, args.truth_format)
        return ~truth & valid

    return [background]


def of_network_and_label():
    network, settings = load_shipped().network, config.default()
    return [
        lambda image, path: predict(network, image, settings.inference) < EMPTY,
        lambda image, path: label_image(image, settings).pseudo_label == 0,
    ]


def draw(free, side, rng):
    """Corner of one of the squares that are free, or None."""
    taken = cv2.integral((~free).astype(np.uint8))
    inside = taken[side:, side:] - taken[:-side, side:] - taken[side:, :-side]
    corners = np.argwhere(inside + taken[:-side, :-side] == 0)
    return rng.choice(corners) if len(corners) else None


if __name__ == "__main__":
    main()
