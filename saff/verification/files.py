"""Parquet files that may be damaged: read as they are, or a :class:`DamagedError`."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from saff.addresses import is_local
from saff.layout import Stage
from saff.shards import (
    EMBEDDING,
    PREDICTIONS,
    PSEUDO_LABELS,
    WRITER,
    Row,
    is_embedding,
    open_writer,
    with_embedding,
)
from saff.storage import Folder, as_storage_error, with_retries

CHUNK = 2**20  # bytes compared at once
LARGEST_GROUP = 1024  # rows that are written, and so read, together


class DamagedError(ValueError):
    """A file that does not hold what it should."""


@contextmanager
def on_disk(folder: Folder, name: str) -> Iterator[str]:
    """Path of a file on this machine: so that what fails when it is parsed is the file's fault."""
    path = f"{folder.path}/{name}"
    if is_local(folder.fs):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="saff-") as scratch:
        with as_storage_error(f"{folder.uri}/{name}"):
            with_retries(folder.fs, folder.fs.get_file, path, f"{scratch}/copy")
        yield f"{scratch}/copy"


def stored_rows(
    folder: Folder, name: str, schema: pa.Schema, other: pa.Schema | None = None
) -> Iterator[Row]:
    """Rows of a Parquet file of exactly this schema or the other one, a few at a time.

    At the end the file is compared, byte by byte, with what its rows give when they are written
    again: so a flipped bit is found wherever it is, in a page, in the footer or between them.

    Raises
    ------
    DamagedError
        If it is no such file; before any row, where the schema is another.
    """
    with on_disk(folder, name) as path, tempfile.TemporaryFile() as again:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as table:
                found = table.schema_arrow
                if other is not None and found.equals(other):
                    schema = other
                if schema is PSEUDO_LABELS and (size := embedding_size(found)):
                    schema = with_embedding(size)
                if fault := schema_fault(found, schema):
                    raise DamagedError(fault)
                notes = {k.decode(): v.decode() for k, v in (found.metadata or {}).items()}
                with open_writer(again, schema, notes) as writer:
                    for number in range(table.num_row_groups):
                        if (rows := table.metadata.row_group(number).num_rows) > LARGEST_GROUP:
                            raise DamagedError(f"has {rows:,} rows in one group")
                        group = table.read_row_group(number)
                        group.validate(full=True)  # or a damaged list could end the process
                        writer.write_table(group)
                        yield from group.to_pylist()
                written_by = table.metadata.created_by
        except DamagedError:
            raise
        except Exception as error:  # damaged files make the reader raise nearly everything
            why = " ".join(str(error).split()) or type(error).__name__
            raise DamagedError(f"cannot be read: {why}") from error
        if notes.get("saff.writer") != written_by:
            raise DamagedError(
                f"says that {written_by!r} and {notes.get('saff.writer')!r} wrote it: it was "
                "changed"
            )
        if written_by == WRITER and not _same_bytes(path, again):
            raise DamagedError("does not have the bytes that its rows give: it was changed")


def _same_bytes(path: str, again: IO[bytes]) -> bool:
    again.seek(0)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            if again.read(len(chunk)) != chunk:
                return False
    return not again.read(1)


def schema_of(stage: str) -> pa.Schema:
    """Columns of a stage; what a network inferred has the same in every round, spread or not."""
    return PSEUDO_LABELS if stage == Stage.PSEUDO_LABELS else PREDICTIONS


def embedding_size(found: pa.Schema) -> int:
    """Length of the embeddings in a file; 0 if it has no column of that type."""
    place = found.get_field_index(EMBEDDING)
    if place < 0 or not is_embedding(found.field(place).type):
        return 0
    return int(found.field(place).type.list_size)


def schema_fault(found: pa.Schema, wanted: pa.Schema) -> str:
    """Say how a schema differs from the one that is wanted; empty if it does not."""
    if found.equals(wanted):
        return ""
    if missing := [name for name in wanted.names if name not in found.names]:
        return f"has no column {', '.join(missing)}"
    if unknown := [name for name in found.names if name not in wanted.names]:
        return f"has the unknown column {', '.join(unknown)}"
    for column in wanted:
        kind = found.field(found.names.index(column.name)).type
        if kind != column.type:
            return f"has a column {column.name} of type {kind}, expected {column.type}"
    return f"has its columns in the order {', '.join(found.names)}, not {', '.join(wanted.names)}"
