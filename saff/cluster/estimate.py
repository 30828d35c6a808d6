"""Estimate what a run will take, from a few of its images labelled on this machine."""

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TypeVar

import pyarrow as pa
from rich.filesize import decimal

from saff import layout
from saff.access import ANYTHING, Access
from saff.cluster.image_reading import ImageReader
from saff.cluster.image_rows import ALONE
from saff.cluster.labels import describe_run, label_row, label_schema
from saff.cluster.predictions import PredictPart
from saff.config import Config
from saff.kept import BY_DEFAULT, Large
from saff.labeling import load_models
from saff.layout import Stage
from saff.manifests import new_rows
from saff.plan import WHOLE, Share, plan_stage, require_manifest
from saff.progress import duration
from saff.runs import is_claimed
from saff.shards import MANIFEST, PREDICTIONS, Row, read_rows, write_rows
from saff.storage import Folder, as_storage_error, with_brief_retries

Item = TypeVar("Item")
SEED = 0  # of the choice of images
HOUR = 3600
SAMPLE = "sample.parquet"
STAGES = ("pseudo labels", "predictions")


@dataclass(frozen=True, slots=True)
class Sample:
    """Means over some images, each done on one core.

    Attributes
    ----------
    images : int
        How many.
    seconds : float
        To read and label or predict one, the models being loaded.
    read, written : float
        Bytes of an image, and of its row.
    """

    images: int
    seconds: float
    read: float
    written: float


def choose(rows: Iterable[Item], count: int) -> list[Item]:
    """Choose from a stream at random, each item as likely as any other: reservoir sampling."""
    draw = random.Random(SEED)
    chosen: list[Item] = []
    for number, row in enumerate(rows):
        if number < count:
            chosen.append(row)
        elif (place := draw.randrange(number + 1)) < count:
            chosen[place] = row
    return chosen


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage does to one image.

    Attributes
    ----------
    do : callable
        From a manifest row to the row that is stored.
    schema : pyarrow.Schema
        Columns of that row.
    """

    do: Callable[[Row], Row]
    schema: pa.Schema

    @classmethod
    def labelling(cls, config: Config, reader: ImageReader, kept: frozenset[Large]) -> "Work":
        """Label an image; the models are loaded."""
        load_models(config)

        def do(row: Row) -> Row:
            return label_row(row["image_id"], row["uri"], config, reader, kept)

        return cls(do, label_schema(config, kept))

    @classmethod
    def prediction(cls, config: Config, output: Folder, access: Access) -> "Work":
        """Predict an image with the network that comes with saff, which is loaded."""
        part = PredictPart(output, Stage.PREDICTIONS, None, config, access=access)
        return cls(lambda row: part.rows([row])[0], PREDICTIONS)


def measure(rows: Sequence[Row], work: Work, reader: ImageReader = ALONE) -> Sample:
    """Do some images, and keep nothing but how long it took and how large the results are.

    Parameters
    ----------
    rows : sequence of dict
        Manifest rows, at least one.
    work : Work
        What is done to each.
    reader : ImageReader
        Reads their files.

    Returns
    -------
    sample : Sample
        Images that fail count as they are: a run meets them, too.
    """
    work.do(rows[0])  # the first in a process takes longer
    start = time.perf_counter()
    done = [work.do(row) for row in rows]
    seconds = time.perf_counter() - start
    read = [len(reader.read(row["uri"])) for row in done if row["sha256"]]
    with TemporaryDirectory() as folder:
        write_rows(Folder.at(folder), SAMPLE, done, work.schema)
        written = os.path.getsize(os.path.join(folder, SAMPLE))
    count = len(rows)
    return Sample(count, seconds / count, sum(read) / count, written / count)


def describe_estimate(sample: Sample, left: int, cpus: int, price: float | None) -> str:
    """Say what is left to do takes; ``price`` is in dollars, of a CPU for an hour.

    >>> print(describe_estimate(Sample(8, 0.5, 200e3, 100e3), 1_000_000, 64, 0.02))
    8 images on one core of this machine: 0.50 s, 200.0 kB read and 100.0 kB written per image
    all of it: 138 h 53 min of CPU time, 2 h 10 min on 64 CPUs; 200.0 GB read, 100.0 GB written
    at $0.02 per CPU-hour: $2.78
    """
    seconds = sample.seconds * left
    read, written, all_read, all_written = (
        decimal(round(size * images))
        for images in (1, left)
        for size in (sample.read, sample.written)
    )
    lines = [
        f"{sample.images:,} images on one core of this machine: {sample.seconds:.2f} s, {read} "
        f"read and {written} written per image",
        f"all of it: {duration(seconds)} of CPU time, {duration(seconds / cpus)} on {cpus:,} CPUs; "
        f"{all_read} read, {all_written} written",
    ]
    if price is not None:
        lines.append(f"at ${price:g} per CPU-hour: ${seconds / HOUR * price:,.2f}")
    return "\n".join(lines)


def preview(
    source: str,
    rows: Iterable[Row],
    output: Folder,
    config: Config,
    *,
    retry_failed: bool = False,
    share: Share = WHOLE,
    sample: int = 0,
    cpus: int = 1,
    price: float | None = None,
    access: Access = ANYTHING,
    kept: frozenset[Large] = BY_DEFAULT,
    predict: bool = False,
) -> str:
    """Say what :func:`saff.cluster.label_corpus` would do, and refuse what it refuses.

    Parameters
    ----------
    source, rows, output, config, retry_failed, share
        As for :func:`saff.cluster.label_corpus`.
    sample : int
        Number of the images left that are labelled on this machine, to estimate time and size;
        0: none.
    cpus : int
        CPUs of the cluster that will label them.
    price : float, optional
        Dollars of one of them for an hour.
    access : Access
        What the addresses of the images may name.
    kept : frozenset of Large
        Large columns that are stored.
    predict : bool
        Estimate predictions, too, by the network that comes with saff.

    Returns
    -------
    text : str
        Lines for a person; nothing was written.
    """
    if share != WHOLE:
        require_manifest(output, source)
    is_claimed(output, describe_run(source, config, kept))
    with with_brief_retries(output.uri):
        now = plan_stage(output, retry_failed=retry_failed, share=share)
        then = plan_stage(output, Stage.PREDICTIONS, share=share) if predict else None
    names = dict.fromkeys(now.parts + (then.parts if then else []))
    parts, manifest = choose(names, sample), layout.manifest(output)
    each = -(-sample // max(len(parts), 1))  # images of a part: one, where there are enough parts
    known = [
        row for name in parts for row in choose(read_rows(manifest, name, MANIFEST.names), each)
    ]
    fresh = Counted(new_rows(output, rows) if share == WHOLE else ())
    with as_storage_error(output.uri):
        new = choose(fresh, sample)
    left = now.left + fresh.count
    text = (
        f"{now.images + fresh.count:,} images: {now.done - now.failed:,} labelled, "
        f"{now.failed:,} failed, {left:,} to do, into {output.uri}"
    )
    chosen, reader = choose(known + new, sample), ImageReader(access, output)
    if not chosen:
        return text
    labels = measure(chosen, Work.labelling(config, reader, kept), reader)
    estimates = [describe_estimate(labels, left, cpus, price)]
    if then:
        predictions = measure(chosen, Work.prediction(config, output, access), reader)
        estimates.append(describe_estimate(predictions, then.left + fresh.count, cpus, price))
        estimates = [f"{name}: {one}" for name, one in zip(STAGES, estimates, strict=True)]
    return "\n".join([text, *estimates])


class Counted:
    """Counts what passes through it."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows, self.count = rows, 0

    def __iter__(self) -> Iterator[Row]:
        """Give the rows."""
        for row in self.rows:
            self.count += 1
            yield row
