"""Parquet files of a run: columns, and rows read a few at a time with types that are known."""

import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saff import __version__
from saff.errors import StorageError
from saff.storage import Folder, with_retries

Row = dict[str, Any]
MANIFEST = pa.schema([("image_id", pa.string()), ("uri", pa.string())])
LISTED = pa.schema([*MANIFEST, ("columns", pa.string())])
"""A part of the manifest whose list has further columns that are kept, as JSON."""
IMAGE_AND_MASK = [  # what the rows of every stage begin with
    ("image_id", pa.string()),
    ("uri", pa.string()),
    ("sha256", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("confidence", pa.binary()),
    ("pseudo_label", pa.binary()),
]
ERROR = [("error", pa.string()), ("error_kind", pa.string())]  # and end with
PSEUDO_LABELS = pa.schema(
    [
        *IMAGE_AND_MASK,
        ("superpixels", pa.binary()),
        ("features", pa.list_(pa.float32())),
        ("weights", pa.list_(pa.float64())),
        ("seeds_foreground", pa.int32()),
        ("seeds_background", pa.int32()),
        ("fallback", pa.string()),
        ("quality", pa.float64()),
        *ERROR,
    ]
)
PREDICTIONS = pa.schema(
    [
        *IMAGE_AND_MASK,
        ("quality", pa.float64()),
        ("foreground_found", pa.bool_()),
        *ERROR,
    ]
)
EMBEDDING = "embedding"
"""A vector of an image, L2-normalised: a column of runs that keep it, of the encoder's length."""
ROWS_PER_GROUP = 32  # rows a writer or reader holds at once; about 3 MB
IDS_AT_ONCE = 65_536  # values of one column that a reader takes at once
SCHEMAS = (LISTED, PSEUDO_LABELS, PREDICTIONS)
TYPES = {field.name: field.type for schema in SCHEMAS for field in schema}


def with_embedding(size: int) -> pa.Schema:
    """Columns of pseudo labels with an embedding of so many numbers."""
    place = PSEUDO_LABELS.get_field_index("error")
    return PSEUDO_LABELS.insert(place, pa.field(EMBEDDING, pa.list_(pa.float16(), size)))


def is_embedding(kind: pa.DataType) -> bool:
    """Whether a column's type is that of embeddings, of whatever length."""
    return bool(pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float16())


def read_column(folder: Folder, name: str, column: str) -> list[Any]:
    """One column of a Parquet file; errors as of :func:`read_rows`."""
    batches = _batches(folder, name, [column], IDS_AT_ONCE)
    return [value for batch in batches for value in batch.column(column).to_pylist()]


def read_rows(folder: Folder, name: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a Parquet file, a few at a time.

    Raises
    ------
    StorageError
        If the file is damaged, or its columns are not of the types that this module writes.
    """
    for batch in _batches(folder, name, columns, ROWS_PER_GROUP):
        yield from batch.to_pylist()


def _batches(
    folder: Folder, name: str, columns: Sequence[str] | None, size: int
) -> Iterator[pa.RecordBatch]:
    """Rows whose types are known: those that Ray registers with Arrow would be unpickled."""
    with _opened(folder, name) as table:
        for batch in table.iter_batches(size, columns=columns):
            found = batch.schema.names
            if sorted(found) != sorted(columns or set(found)):
                raise ValueError(f"it has the columns {found}, expected {list(columns or TYPES)}")
            for field in batch.schema:
                if field.name == EMBEDDING and is_embedding(field.type):
                    continue
                if field.type != TYPES.get(field.name):
                    expected = TYPES.get(field.name, "no such column")
                    raise ValueError(
                        f"column {field.name} is of type {field.type}, expected {expected}"
                    )
            batch.validate(full=True)  # text is UTF-8, lists end where they may
            yield batch


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of a run; damage in it, not in the storage, is reported by name."""
    with folder.fs.open(f"{folder.path}/{name}", "rb") as file:
        try:
            yield pq.ParquetFile(file, page_checksum_verification=True)
        except Exception as error:
            ends_early = type(error) is OSError and error.errno is None  # Arrow's
            if not (ends_early or isinstance(error, pa.ArrowException | ValueError | LookupError)):
                raise
            raise StorageError(
                f"{(folder / name).uri} is damaged or not of this version of saff: {error}; put "
                "back a copy of it, or remove it if it holds results, and they are made again"
            ) from error


def read_all_rows(folder: Folder, name: str, columns: Sequence[str] | None = None) -> list[Row]:
    """Rows of a Parquet file at once, as a task reads them that can wait for its storage."""
    rows: list[Row] = with_retries(folder.fs, lambda: list(read_rows(folder, name, columns)))
    return rows


WRITER = f"parquet-cpp-arrow version {pa.__version__}"  # as Arrow names itself in a footer


@cache
def processor() -> str:
    """Kind of this machine's processor, as far as it decides the last bits of a sum."""
    import torch

    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def open_writer(
    path: Any, schema: pa.Schema, metadata: dict[str, str] | None = None
) -> pq.ParquetWriter:
    """Open a Parquet file to write: compressed, with a checksum for each page.

    The metadata of its schema say which versions wrote it.

    Parameters
    ----------
    path : str or file
        Where to.
    schema : pyarrow.Schema
        Columns.
    metadata : dict of str to str, optional
        What else they say.
    """
    versions = {"saff.version": __version__, "saff.writer": WRITER}
    return pq.ParquetWriter(
        path,
        schema.with_metadata(versions | (metadata or {})),
        compression="zstd",
        write_page_checksum=True,
    )


def write_rows(
    folder: Folder, name: str, rows: Iterable[Row], schema: pa.Schema
) -> tuple[int, int]:
    """Write a shard as it is computed, so that it appears whole or not at all.

    Rows of an image are the same on processors of the same kind; on others the last bits of a sum
    may differ.  So the file says on which kind it was written.

    Returns
    -------
    rows, failed : int
        Rows written, and how many of them hold an error.
    """
    written = failed = 0
    rows, notes = iter(rows), {"saff.processor": processor()}
    with folder.replacing(name) as path, open_writer(path, schema, notes) as out:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            out.write_table(pa.Table.from_pylist(group, schema))
            written += len(group)
            failed += sum(row["error_kind"] is not None for row in group)
    return written, failed


def count_rows(folder: Folder, name: str) -> tuple[int, int]:
    """Rows of a shard and how many hold an error, from its footer alone.

    Raises
    ------
    StorageError
        If the footer is damaged.
    """
    with _opened(folder, name) as table:
        footer = table.metadata
        if "error_kind" not in footer.schema.names:
            return footer.num_rows, 0
        column = footer.schema.names.index("error_kind")
        groups = (footer.row_group(g).column(column) for g in range(footer.num_row_groups))
        fine = 0
        for group in groups:
            if group.statistics is None:
                raise ValueError("its footer does not count the errors")
            fine += group.statistics.null_count
        return footer.num_rows, footer.num_rows - fine
