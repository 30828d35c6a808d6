"""Masks per second and core of each format of an export; prints JSON.

One part of a run with maps of 500 x 375 pixels: a large component and some small ones, PNG files
about as large as those of photographs' maps (17 kB); beside them JPEG files of noise.  CPU time of
this process on one thread, reading the part and writing the files on a local disk included, medians
of five rounds after a warm-up.
"""

import hashlib
import io
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from bench_label_image import machine

from saff.exports import FORMATS
from saff.exports.run import Export
from saff.exports.shapes import connected_components
from saff.images import encode_png
from saff.pictures import mask_from
from saff.runs import claim
from saff.shards import PSEUDO_LABELS, write_rows
from saff.storage import Folder
from saff.threads import single_thread

ROUNDS, IMAGES, DISTINCT = 5, 512, 64
HEIGHT, WIDTH = 375, 500


def a_map(seed):
    """A confidence map with one large component and a few small ones."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    map_ = 255.0 * (((rows - 180) / rng.integers(60, 120)) ** 2 + ((columns - 230) / 150) ** 2 < 1)
    for _ in range(rng.integers(0, 8)):
        cv2.circle(map_, tuple(map(int, rng.integers(0, HEIGHT, 2))), 6, 255.0, cv2.FILLED)
    regions = rng.normal(0, 25, (18, 24))  # levels differ from superpixel to superpixel
    map_ += cv2.resize(regions, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    soft = cv2.GaussianBlur(map_, (0, 0), 2.5)
    return np.clip(soft, 0, 255).astype(np.uint8)


def a_photograph(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 5, WIDTH // 5, 3), np.uint8)
    stream = io.BytesIO()
    pixels = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    PIL.Image.fromarray(pixels).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def a_run(home):
    """A run of one part; gives what its rows are like."""
    output = Folder.at(str(home / "run"))
    claim(output, {"saff": "0.2.0", "config": {}, "digest": "0" * 64})
    maps = [a_map(seed) for seed in range(DISTINCT)]
    files = [a_photograph(seed) for seed in range(DISTINCT)]
    rows = []
    for number in range(IMAGES):
        confidence, file = maps[number % DISTINCT], files[number % DISTINCT]
        path = home / f"{number:04}.jpg"
        path.write_bytes(file)
        row = dict.fromkeys(PSEUDO_LABELS.names)
        row |= {"image_id": path.name, "uri": str(path), "height": HEIGHT, "width": WIDTH}
        row |= {"sha256": hashlib.sha256(file).hexdigest(), "confidence": encode_png(confidence)}
        rows.append(row | {"quality": 0.5})
    write_rows(output / "pseudo_labels", "part-0000000.parquet", rows, PSEUDO_LABELS)
    components = [len(connected_components(mask_from(confidence, 0.5))) for confidence in maps]
    kilobytes = [len(row["confidence"]) / 1000 for row in rows]
    return output, {
        "kB of a map": round(statistics.mean(kilobytes), 1),
        "kB of a photograph": round(statistics.mean(map(len, files)) / 1000, 1),
        "components": round(statistics.mean(components), 1),
    }


def masks_per_second(output, to, form):
    """Median and spread over the rounds."""
    rates = []
    for _ in range(ROUNDS + 1):
        shutil.rmtree(to, ignore_errors=True)
        export = Export(output=output, to=Folder.at(str(to)), format=form)
        export.claim()
        (task,) = export.tasks(export.plan().parts)
        start = time.process_time()
        export.do_part(task)
        rates.append(IMAGES / (time.process_time() - start))
    rates = sorted(rates[1:])
    return {"median": round(statistics.median(rates)), "range": [round(rates[0]), round(rates[-1])]}


def main():
    with tempfile.TemporaryDirectory() as home, single_thread():
        output, about = a_run(Path(home))
        rates = {
            form: masks_per_second(output, Path(home) / "to", form)
            for form in FORMATS
            if form not in ("overlay", "cutout")
        }
    print(
        json.dumps(
            {"benchmark": "export, 500 x 375", "masks_per_s": rates, **about, **machine()}, indent=1
        )
    )


if __name__ == "__main__":
    main()
