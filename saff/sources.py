"""Images that a folder, a prefix or a glob holds, listed as rows of a manifest."""

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from saff.addresses import is_local, locate, uri_of
from saff.errors import SettingsError
from saff.shards import Row
from saff.storage import as_storage_error, is_folder, s3_objects, with_brief_retries, with_retries

OF_MANIFEST = "manifest "


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the images of a run come from.

    Attributes
    ----------
    name : str
        As it stands in run.json.
    rows : iterable of dict
        Manifest rows, read once.
    """

    name: str
    rows: Iterable[Row]


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
    return not_empty(rows, f"no images in {source}: it holds no files")


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


def not_empty(rows: Iterator[Row], message: str) -> Iterator[Row]:
    """Rows as they are, or a SettingsError with that message if there is none."""
    first = next(rows, None)
    if first is None:
        raise SettingsError(message)
    return chain([first], rows)
