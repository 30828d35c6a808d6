"""Parts of a run: the unit of work, of storage and of retrying, whatever the stage.

A task reads one part of the manifest, does its images one by one and writes the shard of the same
name.  A task that dies leaves nothing behind, one that runs twice writes the same bytes to the same
place; so whatever is killed, every image is there once.
"""

import logging
import os
import shlex
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import ray
import ray.data

from saff.cluster import quarantine
from saff.cluster.faults import CatchFaults, CatchFaultsActor, raise_fault
from saff.cluster.image_rows import begin_row
from saff.cluster.quarantine import Note, begin
from saff.cluster.watchdog import ending_after, watched
from saff.errors import SettingsError
from saff.manifests import part_number
from saff.progress import PATIENCE, Progress
from saff.retries import BRIEF, retry_limit
from saff.shards import Row, count_rows, read_all_rows, write_rows
from saff.sources import source_option
from saff.storage import Folder, read_each, with_brief_retries

# What a worker asks of its node, of this alone: encoding starts no GPU node, a GPU no CPU node.
ON_CPU = {"CPU": 1.0}
ON_GPU = {"CPU": 0.0, "GPU": 1.0}
START_SECONDS = 180.0  # for Ray to start here, or to be joined
MOST_BLOCKS = 10_000  # of Ray's plan; beyond, a task takes several parts one after the other


@dataclass(frozen=True, slots=True)
class StageWriter:
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
        self, task: dict[str, Any], work: Callable[[list[Row]], Iterable[Row]], together: int = 1
    ) -> dict[str, Any]:
        """Write the shard of a part; rows of an older shard that succeeded are kept.

        Parameters
        ----------
        task : dict
            ``part``, its name, and perhaps ``job``, as :func:`map_parts` gives them.
        work : callable
            From some of its manifest rows to a row for each, in their order.
        together : int
            Manifest rows that it is given at once, at most.
        """
        part = task["part"]
        note = begin(self.folder, part, task.get("job", ""))
        try:
            count, failed, kept = self._write(part, work, together, note)
        except Exception:  # told by itself: no process has died
            with suppress(Exception), retry_limit(BRIEF):
                note.done()
            raise
        note.done()
        return {"part": part, "images": count, "failed": failed, "kept": kept}

    def _write(
        self, part: str, work: Callable[[list[Row]], Iterable[Row]], together: int, note: Note
    ) -> tuple[int, int, int]:
        done = {}
        if self.folder.exists(part):
            rows = read_all_rows(self.folder, part)
            done = {row["image_id"]: row for row in rows if row["error_kind"] is None}
        manifest = iter(read_all_rows(self.output / "manifest", part))
        chunks = iter(lambda: list(islice(manifest, 1 if note.again else together)), [])
        fresh = chain.from_iterable(self._rows(chunk, done, work, note) for chunk in chunks)
        return *write_rows(self.folder, part, fresh, self.schema), len(done)

    def _rows(
        self,
        chunk: list[Row],
        done: dict[str, Row],
        work: Callable[[list[Row]], Iterable[Row]],
        note: Note,
    ) -> Iterator[Row]:
        """Rows of some images in their order: kept ones, those left out, and fresh ones."""
        aside = {i: self._left_out(row) for row in chunk if (i := row["image_id"]) in note.at_fault}
        aside |= done
        left = [row for row in chunk if row["image_id"] not in aside]
        if note.again and left:
            note.at(left[0]["image_id"])
        fresh = iter(work(left))
        for row in chunk:
            yield aside.get(row["image_id"]) or next(fresh)

    def _left_out(self, manifest_row: Row) -> Row:
        row = begin_row(manifest_row, self.schema)
        return row | {"error": quarantine.ERROR, "error_kind": quarantine.KIND}


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


@dataclass(frozen=True, slots=True)
class Share:
    """One of several equal shares of a run's parts, so that several jobs can do one run.

    Attributes
    ----------
    number, of : int
        From 1; ``Share(2, 4)`` is the second of four.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.number <= self.of:
            raise SettingsError(
                f"a share is i/n with 1 <= i <= n, as 2/4; got {self.number}/{self.of}"
            )

    @classmethod
    def read(cls, text: str) -> "Share":
        """From ``"2/4"``."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal()):
            raise SettingsError(f"a share is i/n with 1 <= i <= n, as 2/4; got {text!r}")
        return cls(int(number), int(of))

    def holds(self, part: str) -> bool:
        """Whether a part belongs to this share, by its number."""
        return part_number(part) % self.of == self.number - 1


WHOLE = Share()


def refuse_empty(output: Folder, source: str) -> None:
    """Refuse to do a share of a run whose images were not taken in before, by ``saff manifest``.

    Several jobs that listed the images at the same time would not agree on the parts.
    """
    with with_brief_retries(output.uri):
        parts = (output / "manifest").names(".parquet")
    if not parts:
        raise SettingsError(
            f"{output.uri} has no images yet, and a share takes none in; first, once: "
            f"saff manifest {source_option(source)} --output {shlex.quote(output.uri)}"
        )


def plan(
    output: Folder,
    stage: str = "pseudo_labels",
    *,
    retry_failed: bool = False,
    share: Share = WHOLE,
) -> Plan:
    """Compare the manifest with the shards that are there.

    Parameters
    ----------
    output : Folder
        The run's output.
    stage : str
        Name of the folder of shards.
    retry_failed : bool
        Do parts again that hold failed images; their other rows are kept.
    share : Share
        Only these parts of the manifest.
    """
    manifest, shards = output / "manifest", output / stage
    names, there = (
        [name for name in folder.names(".parquet") if share.holds(name)]
        for folder in (manifest, shards)
    )
    wanted = dict(zip(names, read_each(count_rows, manifest, names), strict=True))
    found = dict(zip(there, read_each(count_rows, shards, there), strict=True))
    missing = [n for n in names if n not in found]
    again = [n for n in names if n in found and found[n][1]] if retry_failed else []
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


def start_ray(address: str | None = None) -> None:
    """Join the cluster that ``address`` or, as for a submitted job, ``RAY_ADDRESS`` names.

    Without either, start one here.
    A cluster that merely runs, or ran, on this machine is not joined: what a killed one leaves
    behind would be waited for.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or (None if os.environ.get("RAY_ADDRESS") else "local")
    with ending_after(START_SECONDS):
        ray.init(address, logging_level=logging.WARNING, log_to_driver=False)


def gpus_to_use(workers: int | None, gpus: int | None) -> int:
    """Choose on how many GPUs to work, one a worker; Ray has been started.

    Parameters
    ----------
    workers, gpus : int, optional
        As asked for; without ``gpus``, all that are there, if they are enough for the workers.

    Raises
    ------
    SettingsError
        If GPUs are asked for where there are none, or the numbers do not fit each other.
    """
    there = int(_resources().get("GPU", 0))
    grows = bool(os.environ.get("RAY_ADDRESS"))  # a cluster may start the nodes that are asked for
    if gpus is None:
        gpus = there if workers is None else min(there, workers) if there >= workers else 0
        if not there and workers is None and grows:
            raise SettingsError(
                "this cluster has no GPU now, and may start some or not; name --gpus N to have "
                "them started, or --gpus 0 to work on CPUs"
            )
    if gpus < 0:
        raise SettingsError(f"expected at least 0 GPUs, got {gpus}")
    if gpus > there and not grows:
        raise SettingsError(
            f"{gpus} GPUs were asked for and this machine has {there}; leave --gpus out to work "
            "on what there is"
        )
    if gpus and workers is not None and workers != gpus:
        raise SettingsError(f"a worker has one GPU: {workers} workers do not fit {gpus} GPUs")
    return gpus


def pool_size(workers: int | None, gpus: int | None) -> tuple[int, bool]:
    """Choose the number of workers of a pool, and whether each has a GPU.

    Raises
    ------
    SettingsError
        Also if a cluster has no nodes for work yet, so that a number must be named.
    """
    gpus = gpus_to_use(workers, gpus)
    count = gpus or workers or cpus_there()
    if not count:
        raise SettingsError(
            "the cluster has no node for work yet, so it does not tell how many workers to start; "
            "name --gpus or --workers"
        )
    return count, gpus > 0


def cpus_there() -> int:
    """CPUs that Ray gives out on the nodes that are there now."""
    return int(_resources().get("CPU", 0))


def _resources() -> dict[str, float]:
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return there


def map_parts(
    task: Any,
    names: list[str],
    *,
    compute: Any = None,
    patience: float = PATIENCE,
    worker: Mapping[str, float] = ON_CPU,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Run a task over parts with Ray Data, giving each one's result as it comes.

    Parameters
    ----------
    task : callable or class
        From ``{"part": name, "job": id}`` to a dict; a class is made once in each actor of
        ``compute``.
    names : list of str
        Parts.
    compute : ray.data.ActorPoolStrategy, optional
        A pool of actors; without it, tasks.
    patience : float
        Seconds without any part done after which the job ends.
    worker : mapping of str to float
        What each task or actor asks of its node, :data:`ON_CPU` or :data:`ON_GPU`.
    **options
        What else Ray Data's ``map`` takes.

    Raises
    ------
    SaffError
        If a task met what is no image's fault, or nothing moves; a defect of ours comes as Ray
        gives it.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # they count blocks; ours counts images
    job = uuid.uuid4().hex
    parts = ray.data.from_items(
        [{"part": name, "job": job} for name in names],
        override_num_blocks=min(len(names), MOST_BLOCKS),
    )
    asked_for = {"num_cpus": worker["CPU"], "num_gpus": worker.get("GPU", 0)}
    how: dict[str, Any] = {"compute": compute, **asked_for, **options}
    catching: Any = CatchFaults(task)
    if isinstance(task, type):
        catching, given = CatchFaultsActor, how.get("fn_constructor_args", ())
        how["fn_constructor_args"] = (task, *given)
    results = parts.map(catching, **how)
    for name in ("execution", "progress"):  # its own account of the plan, and that bars are off
        logging.getLogger(f"ray.data._internal.{name}").setLevel(logging.ERROR)
    for result in watched(results.iter_rows(), patience * -(-len(names) // MOST_BLOCKS)):
        raise_fault(result)
        yield result
