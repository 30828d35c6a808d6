"""A small labelling run and its rows, as several test files make and compare them."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from saff import config

ROOT = Path(__file__).parent.parent
JOB = [sys.executable, str(ROOT / "jobs" / "pseudo_labels.py")]
SETTINGS = {"encoder_side": 64, "superpixel_count": 60, "network_share": 0.0}
SMALL = dataclasses.replace(config.default(), **SETTINGS)


def comparable(rows):
    """Rows by image id, with values that compare as a whole; each image once."""
    rows = [{k: np.asarray(v).tolist() for k, v in row.items()} for row in rows]
    assert len({r["image_id"] for r in rows}) == len(rows), "an image has two rows"
    return {r["image_id"]: r for r in rows}


def stored(output, stage="pseudo_labels"):
    """All rows of a stage of an output, as ``comparable`` gives them."""
    from saff.shards import read_rows
    from saff.storage import Folder

    folder = Folder.at(str(output)) / stage
    return comparable(r for name in folder.names(".parquet") for r in read_rows(folder, name))


def run(images, output, settings=SMALL, **options):
    """Label a folder of images on the Ray that this process has joined."""
    from saff.cluster import label_corpus
    from saff.sources import list_images
    from saff.storage import Folder

    return label_corpus(
        str(images), list_images(str(images)), Folder.at(str(output)), settings, **options
    )


def parts_of(output):
    """Files of the parts that an output holds labels of."""
    return sorted((output / "pseudo_labels").glob("part-*.parquet"))


def write_settings(folder):
    """Write the settings of such a run to a file."""
    path = folder / "small.json"
    path.write_text(json.dumps(SETTINGS))
    return path
