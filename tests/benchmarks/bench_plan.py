"""What ``saff plan`` predicts against what a run then takes; prints JSON.

    python tests/benchmarks/bench_plan.py FOLDER [FOLDER ...] [--sample 20] [--images 400]

For each folder of images: the estimate from a sample, then the labels and the predictions of all of
them on the CPUs of this machine.  Ratios are of the estimate to what was measured.  A run's time is
counted from its first finished part, so that the start of Ray and of its workers is left out, as it
is in the estimate.
"""

import argparse
import json
import os
import random
import tempfile
from pathlib import Path

from bench_label_image import machine

from saff import config
from saff.access import ANYTHING
from saff.cluster import label_corpus
from saff.cluster.estimate import Work, choose, measure
from saff.cluster.image_rows import ALONE
from saff.cluster.predictions import predict_corpus
from saff.kept import BY_DEFAULT
from saff.layout import PART_SUFFIX, Stage
from saff.shards import count_rows
from saff.sources import list_images
from saff.storage import Folder

DEFAULT = config.default()


def finished(folder):
    """Seconds and bytes for each image, of the parts after the first."""
    paths = [Path(folder.path, name) for name in folder.names(PART_SUFFIX)]
    paths.sort(key=lambda path: path.stat().st_mtime)
    rows = [count_rows(folder, path.name)[0] for path in paths]
    seconds = paths[-1].stat().st_mtime - paths[0].stat().st_mtime
    return seconds / sum(rows[1:]), sum(path.stat().st_size for path in paths) / sum(rows)


def compare(folder, given, cpus, temporary):
    """Estimate and measure both stages of one folder."""
    rows = list(list_images(str(folder)))
    rows = sorted(random.Random(1).sample(rows, min(given.images, len(rows))), key=str)
    output = Folder.at(str(temporary))
    chosen = choose(rows, given.sample)
    works = {
        Stage.PSEUDO_LABELS: Work.labelling(DEFAULT, ALONE, BY_DEFAULT),
        Stage.PREDICTIONS: Work.prediction(DEFAULT, output, ANYTHING),
    }
    estimates = {stage: measure(chosen, work) for stage, work in works.items()}
    label_corpus(str(folder), iter(rows), output, DEFAULT)
    predict_corpus(output, None, DEFAULT, gpus=0)
    read = sum(os.path.getsize(row["uri"]) for row in rows) / len(rows)
    figures = {"folder": folder.parent.name, "images": len(rows)}
    for stage, estimate in estimates.items():
        seconds, written = finished(output / stage)
        figures[str(stage)] = {
            "seconds an image and core, estimated and measured": [
                round(estimate.seconds, 4),
                round(seconds * cpus, 4),
            ],
            "time": round(estimate.seconds / (seconds * cpus), 3),
            "read": round(estimate.read / read, 3),
            "written": round(estimate.written / written, 3),
        }
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--sample", type=int, default=20)
    parser.add_argument("--images", type=int, default=400, help="of each folder, drawn at random")
    given = parser.parse_args()
    cpus = os.cpu_count()
    with tempfile.TemporaryDirectory() as temporary:
        figures = [
            compare(folder, given, cpus, Path(temporary, str(number)))
            for number, folder in enumerate(given.folders)
        ]
    print(json.dumps({"machine": machine(), "sample": given.sample, "sets": figures}, indent=1))


if __name__ == "__main__":
    main()
