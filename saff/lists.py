"""Lists of images that a person or a program wrote: CSV and Parquet, read as manifest rows."""

import csv
import os
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saff.addresses import file_system, locate, redact, split_uri, uri_of
from saff.errors import SaffError, SettingsError
from saff.ids import is_safe_id
from saff.shards import MANIFEST, Row
from saff.sources import not_empty
from saff.storage import Folder, is_folder, with_brief_retries, with_retries


def read_manifest(source: str) -> Iterator[Row]:
    """Read manifest rows from a Parquet or CSV file, or a folder of Parquet files.

    Parameters
    ----------
    source : str
        With columns ``image_id`` and ``uri``; others are ignored.  A relative ``uri`` counts from
        the manifest's own folder.

    Returns
    -------
    rows : iterator of dict
        ``image_id`` and ``uri``, absolute.

    Raises
    ------
    SettingsError
        If it is missing or unreadable, lacks a column or rows, or an id is empty or leads outside
        its folder.
    """
    fs, path = locate(source)
    fs.invalidate_cache()
    with with_brief_retries(source):
        if is_folder(fs, path):
            base, tables = path, [f"{path}/{n}" for n in Folder(fs, path).names(".parquet")]
        elif with_retries(fs, fs.isfile, path):
            base, tables = path.rpartition("/")[0], [path]
        else:
            raise SettingsError(f"no manifest at {source}")
    rows = chain.from_iterable(_manifest_rows(fs, table, source) for table in tables)
    absolute = ({**r, "uri": _absolute(fs, base, r["uri"])} for r in rows)
    return not_empty(absolute, f"the manifest {source} has no rows")


def _manifest_rows(fs: Any, path: str, source: str) -> Iterator[Row]:
    is_csv = path.lower().endswith(".csv")
    protocols: set[str] = set()
    how = {"mode": "r", "encoding": "utf-8-sig", "newline": ""} if is_csv else {"mode": "rb"}
    try:
        with fs.open(path, **how) as file:
            columns, batches = _csv(file) if is_csv else _parquet(file)
            if missing := [c for c in MANIFEST.names if c not in columns]:
                raise SettingsError(
                    f"the manifest {source} has no column {' and no column '.join(missing)}; "
                    f"it has {', '.join(columns) or 'none'}"
                )
            for row in chain.from_iterable(batches):
                if fault := _fault(row, protocols):
                    uri = row["uri"]
                    shown = redact(uri) if isinstance(uri, str) else uri
                    raise SettingsError(
                        f"the manifest {source} has the row image_id={row['image_id']!r}, "
                        f"uri={shown!r}: {fault}"
                    )
                yield {"image_id": row["image_id"], "uri": row["uri"]}
    except SaffError:
        raise
    except Exception as error:  # damaged files make the reader raise nearly everything
        raise SettingsError(f"the manifest {source} cannot be read: {error}") from error


def _csv(file: Any) -> tuple[Sequence[str], Iterator[list[Row]]]:
    reader = csv.DictReader(file)
    return reader.fieldnames or [], iter(lambda: list(islice(reader, 1024)), [])


def _parquet(file: Any) -> tuple[Sequence[str], Iterator[list[Row]]]:
    table = pq.ParquetFile(file)
    columns = table.schema_arrow.names
    wanted = [c for c in MANIFEST.names if c in columns]
    return columns, (_plain_rows(b) for b in table.iter_batches(1024, columns=wanted))


def _plain_rows(batch: pa.RecordBatch) -> list[Row]:
    """Rows of numbers and text: the types that Ray registers with Arrow would be unpickled."""
    for field in batch.schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if isinstance(kind, pa.BaseExtensionType) or kind.num_fields:
            raise ValueError(f"column {field.name} is of type {field.type}, expected text")
    rows: list[Row] = batch.to_pylist()
    return rows


def _fault(row: Row, protocols: set[str]) -> str:
    """What is wrong with a manifest row; empty for a good one, whose protocol is then known."""
    if not is_safe_id(row["image_id"]):
        return "image_id must be a relative path without '..'"
    if not isinstance(row["uri"], str) or "\0" in row["uri"]:
        return "uri must be a path or URI"
    try:
        protocol, _ = split_uri(row["uri"], signed=True)
        if protocol not in protocols:
            file_system(protocol, row["uri"])
            protocols.add(protocol)
    except SettingsError as error:
        return str(error)
    return ""


def _absolute(fs: Any, base: str, uri: str) -> str:
    if "://" in uri or os.path.isabs(uri):
        return uri
    return uri_of(fs, os.path.normpath(f"{base}/{uri}"))
