"""How well embeddings find altered copies of photographs, and group photographs by class.

    python tests/benchmarks/near_duplicates.py --images DIR --count 200 --copies 30
    python tests/benchmarks/near_duplicates.py --classes VOC

The first takes every n-th JPEG file of a folder and alters some of them in six ways; it prints the
recall of copies and the number of other pairs for several least similarities, and the most similar
of the other pairs, to be looked at.  The second takes images of VOC whose mask shows one class:
how often the nearest other image shows it, too, and how well 20 clusters fit the classes.
"""

import argparse
import json
import random
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from scipy.cluster.vq import kmeans2

from saff import config, images
from saff.labeling import label_image

LEAST = (0.75, 0.8, 0.85, 0.9, 0.95)


def jpeg(pixels, quality=90):
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def cropped(pixels):
    top, left = (side // 20 for side in pixels.shape[:2])
    return pixels[top : len(pixels) - top, left : pixels.shape[1] - left]


ALTERED = {
    "half the size": lambda p: jpeg(cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=3)),
    "mirrored": lambda p: jpeg(np.ascontiguousarray(p[:, ::-1])),
    "JPEG of quality 20": lambda p: jpeg(p, 20),
    "a tenth cut off": lambda p: jpeg(cropped(p)),
    "brighter": lambda p: jpeg(cv2.convertScaleAbs(p, alpha=1.2, beta=15)),
    "grey": lambda p: jpeg(cv2.cvtColor(p, cv2.COLOR_BGR2GRAY)),
}


def embeddings(files):
    """Vectors of the bytes of some images, as a run stores them."""
    vectors = [label_image(images.decode(data), config.default()).embedding for data in files]
    return np.array(vectors).astype(np.float16).astype(np.float32)


def find_copies(folder, count, copies):
    paths = sorted(folder.rglob("*.jpg"))
    paths = paths[:: len(paths) // count][:count]
    names, files = [path.stem for path in paths], [path.read_bytes() for path in paths]
    origin = list(range(count))
    for number, place in enumerate(random.Random(17).sample(range(count), copies)):
        how = list(ALTERED)[number % len(ALTERED)]
        pixels = cv2.imdecode(np.frombuffer(files[place], np.uint8), cv2.IMREAD_COLOR)
        names.append(f"{paths[place].stem}, {how}")
        files.append(ALTERED[how](pixels))
        origin.append(place)
    vectors = embeddings(files)
    first, second = np.triu_indices(len(files), 1)
    similarity = (vectors @ vectors.T)[first, second]
    same = np.array(origin)[first] == np.array(origin)[second]
    for how in ALTERED:
        rows = [i for i in np.flatnonzero(same) if names[second[i]].endswith(f", {how}")]
        found = [round(float(similarity[i]), 3) for i in rows]
        print(json.dumps({"altered": how, "least": min(found), "most": max(found)}))
    for least in LEAST:
        recall = float((similarity[same] >= least).mean())
        others = int((similarity[~same] >= least).sum())
        print(json.dumps({"least": least, "recall": round(recall, 3), "other_pairs": others}))
    for i in np.argsort(np.where(same, 1, -similarity))[:5]:
        pair = [names[first[i]], names[second[i]]]
        print(json.dumps({"other_pair": pair, "similarity": round(float(similarity[i]), 3)}))


def group_classes(voc):
    files, classes = [], []
    for path in sorted((voc / "images").glob("*.jpg")):
        mask = np.array(PIL.Image.open(voc / "masks" / f"{path.stem}.png"))
        found = np.setdiff1d(mask, (0, 255))
        if len(found) == 1:
            files.append(path.read_bytes())
            classes.append(int(found[0]))
    vectors, classes = embeddings(files), np.array(classes)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    nearest = float((classes[similarity.argmax(axis=1)] == classes).mean())
    purity = []
    for seed in range(5):
        cluster = kmeans2(vectors, 20, minit="++", seed=seed)[1]
        sizes = [np.bincount(classes[cluster == c]).max() for c in np.unique(cluster)]
        purity.append(sum(sizes) / len(classes))
    figures = {"nearest_of_same_class": round(nearest, 3), "purity": round(np.mean(purity), 3)}
    print(json.dumps({"images": len(classes), **figures}))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--copies", type=int, default=30)
    parser.add_argument("--classes", type=Path)
    words = parser.parse_args()
    if words.images:
        find_copies(words.images, words.count, words.copies)
    if words.classes:
        group_classes(words.classes)


if __name__ == "__main__":
    main()
