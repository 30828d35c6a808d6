"""Runs for tests, written row by row as a job would: labels, predictions, trainings."""

import csv
import hashlib
import os

import numpy as np
import PIL.Image

from saff.images import decode_png, encode_png
from saff.runs import claim
from saff.shards import PREDICTIONS, PSEUDO_LABELS, read_rows, write_rows
from saff.storage import Folder

STAGE = "pseudo_labels"
RNG = np.random.default_rng(3)
SHAPE = (6, 9)


def labelled(folder, image_id, confidence=None, content=None, **changes):
    """A row as a run writes it, for an image that is there."""
    shape = SHAPE if confidence is None else confidence.shape
    if content is None:
        content = encode_png(RNG.integers(0, 256, (*shape, 3), np.uint8))
    path = folder / "photos" / hashlib.sha256(image_id.encode()).hexdigest()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    if confidence is None:
        confidence = RNG.integers(0, 256, shape, np.uint8)
    row = dict.fromkeys(PSEUDO_LABELS.names)
    row |= {"image_id": image_id, "uri": str(path), "sha256": hashlib.sha256(content).hexdigest()}
    row |= {"height": shape[0], "width": shape[1], "confidence": encode_png(confidence)}
    row |= {"superpixels": encode_png(np.zeros(shape, np.uint16)), "features": [0.5] * 4}
    row |= {"weights": [0.25] * 5, "seeds_foreground": 3, "seeds_background": 4, "fallback": ""}
    return row | changes


def failed(image_id, kind="truncated", error="image is a truncated JPEG file"):
    row = dict.fromkeys(PSEUDO_LABELS.names)
    return row | {"image_id": image_id, "uri": "/x", "error": error, "error_kind": kind}


def a_run(folder, rows, shard=4):
    """A finished run of these rows, ``shard`` of them in a shard."""
    output = Folder.at(str(folder / "run"))
    claim(output, {"saff": "0.2.0", "config": {"gamma": 1.6}, "digest": "0f" * 32})
    for start in range(0, len(rows), shard):
        name = f"part-{start // shard:07d}.parquet"
        write_rows(output / STAGE, name, rows[start : start + shard], PSEUDO_LABELS)
    return output


def maps_of(output):
    stage = output / STAGE
    rows = [row for name in stage.names(".parquet") for row in read_rows(stage, name)]
    return {r["image_id"]: decode_png(r["confidence"]) for r in rows if r["confidence"]}


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def opened(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def predicted(row, **changes):
    """A row of predictions for the image of a labelled row."""
    confidence = RNG.integers(0, 256, (row["height"], row["width"]), np.uint8)
    kept = {name: row.get(name) for name in PREDICTIONS.names}
    answer = {"pseudo_label": None, "quality": 0.5, "foreground_found": True}
    return kept | {"confidence": encode_png(confidence)} | answer | changes


def write_predictions(output, rows, shard=4):
    for start in range(0, len(rows), shard):
        name = f"part-{start // shard:07d}.parquet"
        write_rows(output / "predictions", name, rows[start : start + shard], PREDICTIONS)


def write_csv(output, name, lines):
    path = output.path + "/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def write_steps(output, name, steps, loss=0.5):
    names = ("step", "loss", "accuracy", "learning_rate", "gradient_norm", "samples", "seconds")
    lines = [(n, loss / n, 0.75, 0.01, 1.0, 8, 0.25) for n in range(1, steps + 1)]
    write_csv(
        output, name + "/metrics.csv", [dict(zip(names, line, strict=True)) for line in lines]
    )


def truths(shape=SHAPE):
    """Truth with foreground, some of it void."""
    truth = RNG.random(shape) < 0.4
    truth[0, :3] = True
    valid = RNG.random(shape) < 0.9
    valid[0, :3] = True
    return truth, valid


def write_truth(path, truth, valid, truth_format):
    path.parent.mkdir(parents=True, exist_ok=True)
    if truth_format == "binary":
        path.write_bytes(encode_png(np.where(truth, 200, 30).astype(np.uint8)))
        return np.ones_like(valid)
    classes = np.where(truth, RNG.integers(1, 21, truth.shape), 0)
    mask = PIL.Image.fromarray(np.where(valid, classes, 255).astype(np.uint8), "L")
    mask.putpalette(bytes(range(256)) * 3)
    mask.save(path)
    return valid
