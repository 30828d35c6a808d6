"""Which images: sources listed or read, and the parts of an output's manifest.

An output prefix holds ``manifest/part-N.parquet`` (which images) and, per stage, a shard of the
same name (what was found).  A shard appears whole or not at all and its name says which images it
holds, so resuming is a comparison of two listings, and no image is ever there twice.
"""

import csv
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saff.errors import SaffError, SettingsError
from saff.ids import Ids
from saff.shards import MANIFEST, Row, read_column
from saff.storage import (
    Folder,
    as_storage_error,
    file_system,
    is_folder,
    is_local,
    locate,
    read_each,
    redact,
    s3_objects,
    split_uri,
    uri_of,
    with_brief_retries,
    with_retries,
)

STAGES = ("pseudo_labels/", "predictions/", "network/", "rounds/", "evaluation/", "report/")
OWN = ("run.json", "manifest/", *STAGES)  # what a run writes into its output
OF_MANIFEST = "manifest "
SMALLEST_PART, LARGEST_PART = 2, 1024  # images per part: little work lost, few files
PARTS_WANTED = 256  # enough to keep many workers busy to the end
LOOK_AHEAD = 65_536  # images listed before the size of a part is chosen


def list_images(source: str) -> Iterator[Row]:
    """List the images of a folder, prefix, glob or single file as manifest rows.

    Every file that is not hidden is listed: what is an image is decided by its content.

    Parameters
    ----------
    source : str
        ``photos/``, ``photos/**/*.jpg``, ``s3://bucket/prefix`` or one file.

    Returns
    -------
    rows : iterator of dict
        ``image_id`` (path below the folder, ``/`` separated) and ``uri``, sorted by id.

    Raises
    ------
    SettingsError
        If nothing is there, no file in it, or a folder in it cannot be listed.
    """
    fs, path = locate(source)
    path = path.rstrip("/") or "/"
    fs.invalidate_cache()
    with with_brief_retries(source):
        paths: Iterable[str]
        if is_folder(fs, path):
            root, paths = path, _files(fs, path)
        elif with_retries(fs, fs.isfile, path):
            root, paths = path.rpartition("/")[0], [path]
        elif any(c in path for c in "*?["):
            first = min(path.index(c) for c in "*?[" if c in path)
            root, paths = path[:first].rpartition("/")[0], sorted(_matches(fs, path))
        else:
            raise SettingsError(f"no images at {source}: no such file, folder or prefix")
    fs.invalidate_cache()  # an object store's listing holds far more than the names
    paths = _as_storage_errors(source, paths)
    ids = ((p[len(root.rstrip("/")) + 1 :], p) for p in paths)
    visible = ((_text(i), _text(uri_of(fs, p))) for i, p in ids if p == path or not _is_hidden(i))
    rows = ({"image_id": i, "uri": u} for i, u in visible)
    return _not_empty(rows, f"no images in {source}: it holds no files")


def _as_storage_errors(source: str, paths: Iterable[str]) -> Iterator[str]:
    with as_storage_error(source):
        yield from paths


def _files(fs: Any, folder: str) -> Iterator[str]:
    """Files below a folder, sorted, a page or a folder of them in memory."""
    if is_local(fs):
        return _local_files(folder)
    if hasattr(fs, "call_s3"):
        return s3_objects(fs, folder)
    return iter(sorted(_objects(with_retries(fs, fs.find, folder, detail=True))))


def _matches(fs: Any, pattern: str) -> list[str]:
    found = with_retries(fs, fs.glob, pattern, detail=True)
    return [p for p in found if fs.isfile(p)] if is_local(fs) else _objects(found)


def _objects(found: dict[str, Row]) -> list[str]:
    """Objects among what a store lists: neither prefixes nor the empty objects that mark them."""
    return [p for p, info in found.items() if info["type"] == "file" and not p.endswith("/")]


def _local_files(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Files below a local folder; links to folders are followed, but not in circles."""
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in sorted(visible, key=lambda e: f"{e.name}/" if e.is_dir() else e.name):
        if entry.is_dir():
            if os.path.realpath(entry.path) not in above:
                yield from _local_files(entry.path, above)
        elif entry.is_file() or entry.is_symlink():  # no pipes; a broken link becomes a row
            yield entry.path


def _text(name: str) -> str:
    """Show the bytes of a file name that is not UTF-8; such a file becomes a row with an error."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_hidden(image_id: str) -> bool:
    return any(part.startswith(".") for part in image_id.split("/"))


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
    return _not_empty(absolute, f"the manifest {source} has no rows")


def describe_source(uri: str, *, is_manifest: bool) -> str:
    """Say where images come from, as it stands in run.json: a manifest says so before its URI."""
    return f"{OF_MANIFEST}{uri}" if is_manifest else uri


def source_option(source: str) -> str:
    """Option of the command line that names a described source.

    >>> source_option("manifest s3://bucket/all.parquet")
    '--manifest s3://bucket/all.parquet'
    """
    uri = source.removeprefix(OF_MANIFEST)
    return f"{'--images' if uri == source else '--manifest'} {shlex.quote(uri)}"


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


def is_safe_id(image_id: object) -> bool:
    """Whether an image id is a relative path that stays inside a folder it is joined to."""
    if not isinstance(image_id, str) or not image_id or "\0" in image_id:
        return False
    return not any(step in ("", ".", "..") for step in image_id.split("/"))


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


def _not_empty(rows: Iterator[Row], message: str) -> Iterator[Row]:
    first = next(rows, None)
    if first is None:
        raise SettingsError(message)
    return chain([first], rows)


def extend_manifest(output: Folder, rows: Iterable[Row]) -> int:
    """Add the images that an output does not know yet to its manifest, in new parts.

    Parameters
    ----------
    output : Folder
        The run's output.
    rows : iterable of dict
        Manifest rows; ids unique.

    Returns
    -------
    added : int
        Number of images that were new.

    Raises
    ------
    SettingsError
        If an id comes twice, or another job takes images in at the same time.
    """
    folder = output / "manifest"
    names = folder.names(".parquet")
    fresh = new_rows(output, rows)
    buffer = list(islice(fresh, LOOK_AHEAD))
    size = min(max(len(buffer) // PARTS_WANTED, SMALLEST_PART), LARGEST_PART)
    if len(buffer) == LOOK_AHEAD:
        size = LARGEST_PART
    added = 0
    fresh = chain(buffer, fresh)
    free = (name for name in map(part_name, count(len(names))) if name not in names)
    while part := list(islice(fresh, size)):
        name, stream = next(free), pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(part, MANIFEST), stream, compression="zstd")
        try:
            folder.create(name, stream.getvalue().to_pybytes())
        except FileExistsError:
            raise SettingsError(
                f"another job takes images into {output.uri} at this moment: {name} appeared; wait "
                "until it is done, then run the same command again"
            ) from None
        added += len(part)
    return added


def part_name(number: int) -> str:
    """File name of the n-th part, in the manifest and in every stage."""
    return f"part-{number:07d}.parquet"


def part_number(name: str) -> int:
    """Give the number in a part's name; of other files, one that their name decides."""
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else 0


def new_rows(output: Folder, rows: Iterable[Row]) -> Iterator[Row]:
    """Those of some manifest rows whose images an output does not know yet; ids must be unique.

    What a run writes is no image, where its output lies inside their folder.
    """
    own = tuple(f"{output.uri}/{name}" for name in OWN)
    folder = output / "manifest"
    ids = Ids()
    read_ids = partial(read_column, column="image_id")
    for known in read_each(read_ids, folder, folder.names(".parquet")):
        ids.know(known)
    for row in rows:
        try:
            fresh = ids.name(row["image_id"])
        except KeyError:
            raise SettingsError(
                f"image_id {row['image_id']!r} comes twice; ids must be unique"
            ) from None
        if fresh and not row["uri"].startswith(own):
            yield row
