"""What Ray maps: one part of the manifest in, one shard out.

A part is the unit of work, of storage and of retrying: a task reads it, labels its images one by
one and writes the shard of the same name.  A task that dies leaves nothing behind, one that runs
twice writes the same bytes to the same place; so whatever is killed, every image is there once.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data

import saff
from saff import images
from saff.arrays import Image
from saff.backends import identity
from saff.config import Config
from saff.errors import SettingsError
from saff.images import ImageError
from saff.labeling import LabeledImage, label_image, load_models
from saff.progress import Progress
from saff.storage import (
    PSEUDO_LABELS,
    Folder,
    Row,
    claim,
    count_rows,
    extend_manifest,
    is_claimed,
    is_local,
    locate,
    new_rows,
    reaching,
    read_bytes,
    read_rows,
    write_rows,
)

STAGE = "pseudo_labels"
NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
NO_FILE_CODES = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)  # links in a circle, sockets
MOST_BLOCKS = 10_000  # of Ray's plan; beyond, a task takes several parts one after the other


# One image


def label_row(image_id: str, uri: str, config: Config) -> Row:
    """Label one image of a manifest; an image that is at fault gives a row that says so.

    Parameters
    ----------
    image_id, uri : str
        A manifest row.
    config : Config
        Settings.

    Returns
    -------
    row : dict
        All columns of ``storage.PSEUDO_LABELS``; ``error`` and ``error_kind`` are None or tell
        what is wrong with the image.

    Raises
    ------
    OSError, MemoryError, SettingsError
        If the storage fails, or this machine cannot do the work: not the image's fault.
    """
    row: Row = dict.fromkeys(PSEUDO_LABELS.names)
    row |= {"image_id": image_id, "uri": uri}
    try:
        data = _read(uri)
        row["sha256"] = hashlib.sha256(data).hexdigest()
        image = images.decode(data, max_pixels=config.max_pixels)
        row["height"], row["width"] = image.shape[:2]
        return row | _label(image, config)
    except ImageError as error:
        return row | {"error": str(error), "error_kind": error.kind}


def _label(image: Image, config: Config) -> Row:
    """Label an image; nothing it holds may end a job, so a defect of ours is an ImageError too."""
    try:
        return encode_label(label_image(image, config))
    except (OSError, MemoryError, SettingsError):
        raise
    except Exception as error:
        text = f"labeling failed: {type(error).__name__}: {error}"
        plain = text.encode("utf-8", "backslashreplace").decode()  # half surrogate pairs
        raise ImageError("labeling_failed", plain) from error


def _read(uri: str) -> bytes:
    """Read an image's bytes; only what is wrong with this one file is an ImageError."""
    try:
        return read_bytes(uri)
    except OSError as error:
        if isinstance(error, NO_FILE) or error.errno in NO_FILE_CODES:
            raise ImageError("not_found", "there is no file at the image's uri") from error
        if isinstance(error, PermissionError) and is_local(locate(uri)[0]):
            raise ImageError("not_readable", "no right to read the image's file") from error
        raise  # an object store refuses credentials, not single images


def encode_label(labeled: LabeledImage) -> Row:
    """Columns of a labelled image: maps as PNG, numbers as lists."""
    confidence = np.rint(labeled.confidence * 255).astype(np.uint8)
    return {
        "confidence": images.encode_png(confidence),
        "pseudo_label": images.encode_png(labeled.pseudo_label),
        "superpixels": images.encode_png(labeled.superpixels.astype(np.uint16)),
        "features": labeled.features.ravel(),
        "weights": [*labeled.weights, labeled.bias],
        "seeds_foreground": labeled.seeds_foreground,
        "seeds_background": labeled.seeds_background,
        "fallback": labeled.fallback,
    }


# One part


@dataclass(frozen=True, slots=True)
class LabelPart:
    """Label the images of one part; a callable that Ray maps over part names.

    Attributes
    ----------
    output : Folder
        The run's output.
    config : Config
        Settings.
    """

    output: Folder
    config: Config

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of ``row["part"]``; rows of an older shard that succeeded are kept."""
        name = row["part"]
        stage = self.output / STAGE
        done = {}
        if stage.exists(name):
            done = {r["image_id"]: r for r in read_rows(stage, name) if r["error_kind"] is None}
        rows = (
            done.get(m["image_id"]) or label_row(m["image_id"], m["uri"], self.config)
            for m in read_rows(self.output / "manifest", name)
        )
        count, failed = write_rows(stage, name, rows, PSEUDO_LABELS)
        return {"part": name, "images": count, "failed": failed, "kept": len(done)}


# The run


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has done and has to do.

    Attributes
    ----------
    images, done, failed : int
        In the manifest; labelled or failed before; failed among those.
    parts : list of str
        Parts to do now.
    left : int
        Images to do now.
    """

    images: int
    done: int
    failed: int
    parts: list[str]
    left: int

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"{self.images:,} images: {self.done - self.failed:,} labelled, "
            f"{self.failed:,} failed, {self.left:,} to do in {len(self.parts):,} parts"
        )


def describe_run(source: str, config: Config) -> Row:
    """Sum up what decides a run's content; loads the models, so that a bad one stops here."""
    models = load_models(config)
    label_image(
        np.zeros((32, 32, 3), np.uint8), config, models
    )  # settings that cannot work together
    content = {
        "saff": saff.__version__,
        "config": json.loads(config.to_json()),
        "weights": {
            kind: identity(getattr(models, kind)) for kind in ("encoder", "saliency", "edges")
        },
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return content | {"digest": digest, "source": source}


def plan(output: Folder, *, retry_failed: bool = False) -> Plan:
    """Compare the manifest with the shards that are there.

    Parameters
    ----------
    output : Folder
        The run's output.
    retry_failed : bool
        Do parts again that hold failed images; their other rows are kept.
    """
    manifest, stage = output / "manifest", output / STAGE
    names, there = manifest.names(".parquet"), set(stage.names(".parquet"))
    with ThreadPoolExecutor(16) as pool:
        wanted = dict(zip(names, pool.map(partial(count_rows, manifest), names), strict=True))
        found = dict(zip(there, pool.map(partial(count_rows, stage), there), strict=True))
    missing = [n for n in names if n not in there]
    again = [n for n in names if n in there and found[n][1]] if retry_failed else []
    return Plan(
        images=sum(rows for rows, _ in wanted.values()),
        done=sum(rows for rows, _ in found.values()),
        failed=sum(failed for _, failed in found.values()),
        parts=missing + again,
        left=sum(wanted[n][0] for n in missing) + sum(found[n][1] for n in again),
    )


def label_corpus(
    source: str,
    rows: Iterable[Row],
    output: Folder,
    config: Config,
    *,
    retry_failed: bool = False,
) -> Plan:
    """Label every image of a source that the output does not hold yet.

    Parameters
    ----------
    source : str
        Where the images come from, as it stands in run.json.
    rows : iterable of dict
        The source's manifest rows.
    output : Folder
        Where to; belongs to one configuration.
    config : Config
        Settings.
    retry_failed : bool
        Try images again that failed before.

    Returns
    -------
    plan : Plan
        What the output holds at the end.

    Raises
    ------
    SettingsError
        If the output belongs to another run or a setting cannot work; nothing was started.
    """
    claim(output, describe_run(source, config))
    extend_manifest(output, rows)
    todo = plan(output, retry_failed=retry_failed)
    if todo.parts:
        start_ray()
        with Progress("label", todo.left) as progress:
            for part in map_parts(LabelPart(output, config), todo.parts):
                progress.advance(part["images"] - part["kept"], part["failed"])
        for folder in (output / "manifest", output / STAGE):
            folder.sweep()
    return plan(output)


def start_ray() -> None:
    """Join the cluster that ``RAY_ADDRESS`` names, as for a submitted job, or start one here.

    A cluster that merely runs, or ran, on this machine is not joined: what a killed one leaves
    behind would be waited for.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = None if os.environ.get("RAY_ADDRESS") else "local"
    ray.init(address, logging_level=logging.WARNING, log_to_driver=False)


def map_parts(task: LabelPart, names: list[str]) -> Iterator[dict[str, Any]]:
    """Run a task over parts with Ray Data, giving each one's result as it comes."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # they count blocks; ours counts images
    parts = ray.data.from_items(
        [{"part": name} for name in names], override_num_blocks=min(len(names), MOST_BLOCKS)
    )
    results = parts.map(task, num_cpus=1)
    for name in ("execution", "progress"):  # its own account of the plan, and that bars are off
        logging.getLogger(f"ray.data._internal.{name}").setLevel(logging.ERROR)
    yield from results.iter_rows()


def preview(
    source: str,
    rows: Iterable[Row],
    output: Folder,
    config: Config,
    *,
    retry_failed: bool = False,
) -> str:
    """Say what :func:`label_corpus` would do, and refuse what it refuses; writes nothing."""
    is_claimed(output, describe_run(source, config))
    with reaching(output.uri):
        now = plan(output, retry_failed=retry_failed)
        new = sum(1 for _ in new_rows(output, rows))
    return (
        f"{now.images + new:,} images: {now.done - now.failed:,} labelled, {now.failed:,} failed, "
        f"{now.left + new:,} to do, into {output.uri}"
    )
