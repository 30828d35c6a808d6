"""Where everything lies inside an OUTPUT: the one place that spells its paths.

::

    OUTPUT/run.json                        what decides the content: settings, weights, source
    OUTPUT/manifest/part-0000000.parquet   which images; _source.json beside: where they come from
    OUTPUT/addresses/part-*.parquet        corrected addresses of images, see saff.manifests
    OUTPUT/pseudo_labels/part-*.parquet    what was found, one part for each part of the manifest
    OUTPUT/predictions/part-*.parquet      likewise; _run.json beside: what decides it
    OUTPUT/network/                        a trained network, see saff.trained
    OUTPUT/rounds/1/                       network, predictions and labels of an earlier round
    OUTPUT/evaluation/STAGE/               figures against true masks
    OUTPUT/report/index.html
    OUTPUT/review/                         all images, the worst first; marks of a person
    OUTPUT/_leases/STAGE/                  which jobs are at work on a stage

A folder of parts holds Parquet files only, but for names that begin with ``_`` or ``.``, which
readers of Parquet data sets pass over.
"""

import re
from enum import Enum
from itertools import count

from saff.storage import Folder

MANIFEST = "manifest"
RUN = "run.json"
STAGE_RUN = "_run.json"
SOURCE = "_source.json"
LEASES = "_leases"  # of an output: which jobs are at work
ADDRESSES = "addresses"
NOTES = ".begun"  # in a folder of parts: a note for each part that is being worked on
PART_SUFFIX = ".parquet"
ROUND_LABELS = "labels"  # of a round: its predictions spread, for the next network to learn from


class Stage(str, Enum):
    """Results of a run: what the method says of each image, or what the trained network says."""

    PSEUDO_LABELS = "pseudo_labels"
    PREDICTIONS = "predictions"

    __str__ = str.__str__  # so that it can stand in a path


LEARNABLE = re.compile(rf"{Stage.PSEUDO_LABELS}|rounds/\d+/{ROUND_LABELS}")
"""Folders of parts that a network can learn from."""
OWN_NAMES = (
    RUN,
    f"{MANIFEST}/",
    f"{ADDRESSES}/",
    f"{LEASES}/",
    *(f"{stage}/" for stage in Stage),
    "network/",
    "rounds/",
    "evaluation/",
    "report/",
    "review/",
)
"""What a run writes into its output; none of it is an image to label."""


def manifest(output: Folder) -> Folder:
    """Folder of the parts that say which images an output holds results of."""
    return output / MANIFEST


def addresses(output: Folder) -> Folder:
    """Folder of the addresses that images were given after they were taken in."""
    return output / ADDRESSES


def network(home: Folder) -> Folder:
    """Folder of the trained network of an output, or of one of its rounds."""
    return home / "network"


def evaluation(output: Folder, stage: str) -> Folder:
    """Folder of the figures of a stage."""
    return output / "evaluation" / stage


def report(output: Folder) -> Folder:
    """Folder of the report."""
    return output / "report"


def review(output: Folder) -> Folder:
    """Folder of the ranking of all images and of what a person said of them."""
    return output / "review"


def leases(output: Folder, stage: str) -> Folder:
    """Folder of the leases on a stage: which jobs are at work on it."""
    return output / LEASES / stage.replace("/", "-")


def run_file(folder: Folder) -> str:
    """Name of the file that says what decides a folder's content."""
    holds_parts = folder.path.rpartition("/")[2] in (*Stage, ROUND_LABELS)
    return STAGE_RUN if holds_parts else RUN


def round_home(number: int) -> str:
    """Folder of a round before the last: its network, predictions and labels.

    Round 0 has no training: its predictions are those of the network that the first one starts
    from.
    """
    return f"rounds/{number}"


def within(home: str, name: str) -> str:
    """Path of a folder inside the folder of a round, or inside the output itself."""
    return f"{home}/{name}" if home else name


def begun_rounds(output: Folder) -> list[str]:
    """Folders of the rounds before the last that have begun: ``rounds/0``, ``rounds/1``, ..."""
    found: list[str] = []
    for number in count(0):
        home = round_home(number)
        folders = (output / home / name for name in ("network", Stage.PREDICTIONS, ROUND_LABELS))
        if any(folder.exists(run_file(folder)) for folder in folders):
            found.append(home)
        elif number:  # a run that starts from ImageNet has no round 0
            return found
    raise AssertionError("an output has finitely many rounds")


def part_name(number: int) -> str:
    """File name of the n-th part, in the manifest and in every stage."""
    return f"part-{number:07d}{PART_SUFFIX}"


def part_number(name: str) -> int:
    """Give the number in a part's name; of other files, one that their name decides."""
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else 0
