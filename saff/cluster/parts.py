"""Parts of a run: the unit of work, of storage and of retrying, whatever the stage.

A task reads one part of the manifest, does its images one by one and writes the shard of the same
name.  A task that dies leaves nothing behind, one that runs twice writes the same bytes to the same
place; so whatever is killed, every image is there once.
"""

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch
from ray.exceptions import RayTaskError

from saff import images
from saff.arrays import Image
from saff.errors import SettingsError
from saff.images import ImageError
from saff.progress import Progress
from saff.storage import (
    Folder,
    Row,
    count_rows,
    is_local,
    locate,
    read_bytes,
    read_rows,
    write_rows,
)

MACHINES_FAULT = (OSError, MemoryError, torch.OutOfMemoryError, SettingsError)
NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
NO_FILE_CODES = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)  # links in a circle, sockets
MOST_BLOCKS = 10_000  # of Ray's plan; beyond, a task takes several parts one after the other


# One image


def image_row(
    manifest_row: Row, schema: pa.Schema, max_pixels: int, work: Callable[[Image], Row]
) -> Row:
    """Make an image's row of a stage; an image that is at fault gives a row that says so.

    Parameters
    ----------
    manifest_row : dict
        ``image_id`` and ``uri``.
    schema : pyarrow.Schema
        Columns of the row.
    max_pixels : int
        Images whose header announces more are refused.
    work : callable
        From the image to the columns that the stage adds.

    Returns
    -------
    row : dict
        ``error`` and ``error_kind`` are None or tell what is wrong with the image.

    Raises
    ------
    OSError, MemoryError, SettingsError
        If the storage fails, or this machine cannot do the work: not the image's fault.
    """
    row, image = open_image(manifest_row, schema, max_pixels)
    return row if image is None else row | guarded(work, image)


def open_image(manifest_row: Row, schema: pa.Schema, max_pixels: int) -> tuple[Row, Image | None]:
    """Read an image and begin its row; without an image, the row says what is wrong with it."""
    row: Row = dict.fromkeys(schema.names)
    row |= {name: manifest_row[name] for name in ("image_id", "uri")}
    try:
        data = _read(row["uri"])
        row["sha256"] = hashlib.sha256(data).hexdigest()
        image = images.decode(data, max_pixels=max_pixels)
    except ImageError as error:
        return row | {"error": str(error), "error_kind": error.kind}, None
    row["height"], row["width"] = image.shape[:2]
    return row, image


def guarded(work: Callable[[Image], Row], image: Image) -> Row:
    """Do the work; nothing an image holds may end a job, so a defect of ours is its error."""
    try:
        return work(image)
    except MACHINES_FAULT:
        raise
    except Exception as error:
        text = f"labeling failed: {type(error).__name__}: {error}"
        plain = text.encode("utf-8", "backslashreplace").decode()  # half surrogate pairs
        return {"error": plain, "error_kind": "labeling_failed"}


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


# One part


@dataclass(frozen=True, slots=True)
class Stage:
    """One kind of results of a run.

    Attributes
    ----------
    output : Folder
        The run's output.
    name : str
        ``"pseudo_labels"`` or ``"predictions"``, perhaps of a round.
    schema : pyarrow.Schema
        Of its shards.
    """

    output: Folder
    name: str
    schema: pa.Schema

    @property
    def folder(self) -> Folder:
        """Where its shards are."""
        return self.output / self.name

    def do_part(
        self, part: str, work: Callable[[list[Row]], Iterable[Row]], together: int = 1
    ) -> dict[str, Any]:
        """Write the shard of a part; rows of an older shard that succeeded are kept.

        Parameters
        ----------
        part : str
            Name of the part.
        work : callable
            From some of its manifest rows to a row for each, in their order.
        together : int
            Manifest rows that it is given at once, at most.
        """
        done = {}
        if self.folder.exists(part):
            rows = read_rows(self.folder, part)
            done = {row["image_id"]: row for row in rows if row["error_kind"] is None}
        manifest = read_rows(self.output / "manifest", part)
        chunks = iter(lambda: list(islice(manifest, together)), [])
        rows = chain.from_iterable(_with_kept(chunk, done, work) for chunk in chunks)
        count, failed = write_rows(self.folder, part, rows, self.schema)
        return {"part": part, "images": count, "failed": failed, "kept": len(done)}


def _with_kept(
    chunk: list[Row], done: dict[str, Row], work: Callable[[list[Row]], Iterable[Row]]
) -> Iterator[Row]:
    fresh = iter(work([row for row in chunk if row["image_id"] not in done]))
    for row in chunk:
        yield done.get(row["image_id"]) or next(fresh)


# The run


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has done and has to do.

    Attributes
    ----------
    images, done, failed : int
        In the manifest; done or failed before; failed among those.
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


def plan(output: Folder, stage: str = "pseudo_labels", *, retry_failed: bool = False) -> Plan:
    """Compare the manifest with the shards that are there.

    Parameters
    ----------
    output : Folder
        The run's output.
    stage : str
        Name of the folder of shards.
    retry_failed : bool
        Do parts again that hold failed images; their other rows are kept.
    """
    manifest, shards = output / "manifest", output / stage
    names, there = manifest.names(".parquet"), set(shards.names(".parquet"))
    with ThreadPoolExecutor(16) as pool:
        wanted = dict(zip(names, pool.map(partial(count_rows, manifest), names), strict=True))
        found = dict(zip(there, pool.map(partial(count_rows, shards), there), strict=True))
    missing = [n for n in names if n not in there]
    again = [n for n in names if n in there and found[n][1]] if retry_failed else []
    return Plan(
        images=sum(rows for rows, _ in wanted.values()),
        done=sum(rows for rows, _ in found.values()),
        failed=sum(failed for _, failed in found.values()),
        parts=missing + again,
        left=sum(wanted[n][0] for n in missing) + sum(found[n][1] for n in again),
    )


def count_done(what: str, todo: Plan, results: Iterable[dict[str, Any]]) -> None:
    """Wait for the results of parts, as :meth:`Stage.do_part` gives them, on a progress line."""
    with Progress(what, todo.left) as progress:
        for part in results:
            progress.advance(part["images"] - part["kept"], part["failed"])


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


def map_parts(
    task: Any, names: list[str], *, compute: Any = None, **resources: Any
) -> Iterator[dict[str, Any]]:
    """Run a task over parts with Ray Data, giving each one's result as it comes.

    Parameters
    ----------
    task : callable or class
        From ``{"part": name}`` to a dict; a class is made once in each actor of ``compute``.
    names : list of str
        Parts.
    compute : ray.data.ActorPoolStrategy, optional
        A pool of actors; without it, tasks.
    **resources
        ``num_cpus`` (1), ``num_gpus`` and what else Ray Data's ``map`` takes.

    Raises
    ------
    SettingsError
        If a task raised one; other faults of a task come as Ray gives them.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # they count blocks; ours counts images
    parts = ray.data.from_items(
        [{"part": name} for name in names], override_num_blocks=min(len(names), MOST_BLOCKS)
    )
    results = parts.map(task, compute=compute, **{"num_cpus": 1, **resources})
    for name in ("execution", "progress"):  # its own account of the plan, and that bars are off
        logging.getLogger(f"ray.data._internal.{name}").setLevel(logging.ERROR)
    try:
        yield from results.iter_rows()
    except RayTaskError as error:
        if isinstance(error.cause, SettingsError):
            raise error.cause from None
        raise
