"""Estimate what a run will take, from a few of its images labelled on this machine."""

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.filesize import decimal

from saff import layout
from saff.access import ANYTHING, Access
from saff.cluster.image_reading import ImageReader
from saff.cluster.image_rows import ALONE
from saff.cluster.labels import describe_run, label_row
from saff.config import Config
from saff.kept import ALL, Large
from saff.labeling import load_models
from saff.manifests import new_rows
from saff.plan import WHOLE, Share, plan_stage, require_manifest
from saff.progress import duration
from saff.runs import is_claimed
from saff.shards import MANIFEST, Row, read_rows
from saff.storage import Folder, as_storage_error, with_brief_retries

Item = TypeVar("Item")
SEED = 0  # of the choice of images
HOUR = 3600


@dataclass(frozen=True, slots=True)
class Sample:
    """Means over some images, each labelled on one core.

    Attributes
    ----------
    images : int
        How many.
    seconds : float
        To read and label one, the models being loaded.
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


def measure(
    rows: Sequence[Row],
    config: Config,
    reader: ImageReader = ALONE,
    kept: frozenset[Large] = ALL,
) -> Sample:
    """Label some images, and keep nothing but how long it took and how large they are.

    Parameters
    ----------
    rows : sequence of dict
        Manifest rows, at least one.
    config : Config
        Settings.
    reader : ImageReader
        Reads their files.
    kept : frozenset of Large
        Large columns that are stored.

    Returns
    -------
    sample : Sample
        Images that fail count as they are: a run meets them, too.
    """
    load_models(config)
    label_row(**rows[0], config=config, reader=reader)  # the first in a process takes longer
    seconds = read = written = 0.0
    for row in rows:
        start = time.perf_counter()
        labelled = label_row(row["image_id"], row["uri"], config, reader, kept)
        seconds += time.perf_counter() - start
        written += sum(len(v) for v in labelled.values() if isinstance(v, bytes))
        read += len(reader.read(row["uri"])) if labelled["sha256"] else 0
    count = len(rows)
    return Sample(count, seconds / count, read / count, written / count)


def describe_estimate(sample: Sample, left: int, cpus: int, price: float | None) -> str:
    """Say what is left to do takes; ``price`` is in dollars, of a CPU for an hour.

    >>> print(describe_estimate(Sample(8, 0.5, 200e3, 100e3), 1_000_000, 64, 0.02))
    8 images on one core of this machine: 0.50 s, 200.0 kB read and 100.0 kB written per image
    all of it: 138.9 CPU-hours, 2 h 10 min on 64 CPUs; 200.0 GB read, 100.0 GB written
    at $0.02 per CPU-hour: $2.78
    """
    hours = sample.seconds * left / HOUR
    read, written, all_read, all_written = (
        decimal(round(size * images))
        for images in (1, left)
        for size in (sample.read, sample.written)
    )
    lines = [
        f"{sample.images:,} images on one core of this machine: {sample.seconds:.2f} s, {read} "
        f"read and {written} written per image",
        f"all of it: {hours:,.1f} CPU-hours, {duration(hours * HOUR / cpus)} on {cpus:,} CPUs; "
        f"{all_read} read, {all_written} written",
    ]
    if price is not None:
        lines.append(f"at ${price:g} per CPU-hour: ${hours * price:,.2f}")
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
    kept: frozenset[Large] = ALL,
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
    manifest = layout.manifest(output)
    parts = choose(now.parts, sample)  # of one image each: enough of them for a sample
    known = [row for name in parts for row in choose(read_rows(manifest, name, MANIFEST.names), 1)]
    fresh = Counted(new_rows(output, rows) if share == WHOLE else ())
    with as_storage_error(output.uri):
        new = choose(fresh, sample)
    left = now.left + fresh.count
    text = (
        f"{now.images + fresh.count:,} images: {now.done - now.failed:,} labelled, "
        f"{now.failed:,} failed, {left:,} to do, into {output.uri}"
    )
    chosen, reader = choose(known + new, sample), ImageReader(access, output)
    return (
        f"{text}\n{describe_estimate(measure(chosen, config, reader, kept), left, cpus, price)}"
        if chosen
        else text
    )


class Counted:
    """Counts what passes through it."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows, self.count = rows, 0

    def __iter__(self) -> Iterator[Row]:
        """Give the rows."""
        for row in self.rows:
            self.count += 1
            yield row
