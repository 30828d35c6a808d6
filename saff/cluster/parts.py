"""The part: unit of work, of storage and of retrying, whatever the stage.

A task reads one part of the manifest, does its images one by one and writes the part of the same
name in the folder of a stage.  A task that dies leaves nothing behind, one that runs twice writes
the same bytes to the same place; so whatever is killed, every image has one row.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from saff.cluster import quarantine
from saff.cluster.image_rows import begin_row
from saff.cluster.metrics import count_part
from saff.cluster.quarantine import Note, begin
from saff.manifests import read_part
from saff.retries import BRIEF, retry_limit
from saff.shards import Row, read_all_rows, write_rows
from saff.storage import Folder


@dataclass(frozen=True, slots=True)
class PartWriter:
    """Writes the parts of a stage.

    Attributes
    ----------
    output : Folder
        The run's output.
    name : str
        ``"pseudo_labels"`` or ``"predictions"``, perhaps of a round.
    schema : pyarrow.Schema
        Columns of its parts.
    """

    output: Folder
    name: str
    schema: pa.Schema

    @property
    def folder(self) -> Folder:
        """Folder of its parts."""
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
        part, start = task["part"], time.monotonic()
        failures: Counter[str] = Counter()
        note = begin(self.folder, part, task.get("job", ""))
        try:
            count, failed, kept = self._write(part, work, together, note, failures)
        except Exception:  # reported by itself: no process has died
            with suppress(Exception), retry_limit(BRIEF):
                note.done()
            raise
        note.done()
        count_part(self.name, count - kept, failures, time.monotonic() - start)
        return {"part": part, "images": count, "failed": failed, "kept": kept}

    def _write(
        self,
        part: str,
        work: Callable[[list[Row]], Iterable[Row]],
        together: int,
        note: Note,
        failures: Counter[str],
    ) -> tuple[int, int, int]:
        done = {}
        if self.folder.exists(part):
            rows = read_all_rows(self.folder, part)
            done = {row["image_id"]: row for row in rows if row["error_kind"] is None}
        manifest = iter(read_part(self.output, part))
        chunks = iter(lambda: list(islice(manifest, 1 if note.again else together)), [])
        fresh = chain.from_iterable(self._rows(chunk, done, work, note) for chunk in chunks)
        counted = _counted(fresh, failures)
        return *write_rows(self.folder, part, counted, self.schema), len(done)

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


def _counted(rows: Iterable[Row], failures: Counter[str]) -> Iterator[Row]:
    """Rows as they are; those that hold an error are counted by its kind."""
    for row in rows:
        if row["error_kind"] is not None:
            failures[row["error_kind"]] += 1
        yield row
