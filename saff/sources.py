"""Images that a folder, a prefix or a glob holds, listed as rows of a manifest."""

import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from saff.access import ANYTHING, OF_MANIFEST, Access
from saff.addresses import is_local, locate, uri_of
from saff.containers import PACKED_TARS, TABLE, TAR, InTable, InTar, list_table, list_tar
from saff.errors import SettingsError
from saff.ids import is_safe_id
from saff.shards import Row
from saff.storage import (
    READERS,
    Folder,
    as_storage_error,
    is_folder,
    s3_objects,
    with_brief_retries,
    with_retries,
)

OF_DISKS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")
BESIDE_IMAGES = (  # ends of names: labels, notes and tables that lie among images
    *(".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".txt", ".md", ".csv", ".tsv"),
    *(".parquet", ".xmp", ".ini", ".db", ".log"),
)
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the images of a run come from.

    Attributes
    ----------
    name : str
        As it stands in run.json.
    rows : iterable of dict
        Manifest rows, read once.
    access : Access
        What their addresses may name.
    """

    name: str
    rows: Iterable[Row]
    access: Access = ANYTHING


def list_images(source: str, output: Folder | None = None) -> Iterator[Row]:
    """List the images of a folder, prefix, glob or single file as manifest rows.

    Every file is listed whose name is not hidden and is not that of a file beside images (labels,
    notes, tables): what is an image is decided by its content.  Links to folders are followed, so
    that a photograph which is reached by two paths is two images.  Of a tar file its images are
    listed, and of a Parquet file that is named itself or by a glob; see :mod:`saff.containers`.

    Parameters
    ----------
    source : str
        ``photos/``, ``photos/**/*.jpg``, ``s3://bucket/prefix/*.tar`` or one file.
    output : Folder, optional
        Of the run; what lies in it is left out, however it is reached.

    Returns
    -------
    rows : iterator of dict
        ``image_id`` (path below the folder, ``/`` separated) and ``uri``, sorted by the file.

    Raises
    ------
    SettingsError
        If nothing is there, no file in it, a folder in it cannot be listed, or it is the output.
    """
    fs, path = locate(source)
    path = path.rstrip("/") or "/"
    without = _left_out(fs, path, output)
    fs.invalidate_cache()
    named = paths_are_one = False
    with with_brief_retries(source):
        paths: Iterable[str]
        if is_folder(fs, path):
            root, paths = path, files_below(fs, path, without)
        elif with_retries(fs, fs.isfile, path):
            root, paths = path.rpartition("/")[0], [path]
            named = paths_are_one = True
        elif any(c in path for c in "*?["):
            first = min(path.index(c) for c in "*?[" if c in path)
            root, paths = path[:first].rpartition("/")[0], sorted(_matches(fs, path, without))
            named = path.lower().endswith(BESIDE_IMAGES)
        else:
            raise SettingsError(f"no images at {source}: no such file, folder or prefix")
    fs.invalidate_cache()  # an object store's listing holds far more than the names
    paths = _as_storage_errors(source, paths)
    ids = ((p[len(root.rstrip("/")) + 1 :], p) for p in paths)
    visible = ((_text(i), _text(uri_of(fs, p))) for i, p in ids if p == path or not _is_hidden(i))
    rows = ({"image_id": i, "uri": u} for i, u in visible)
    images = rows if named else _without_others(rows, source)
    images = _unpacked(images, is_one=paths_are_one, source=source)
    return not_empty(images, f"no images in {source}: it holds no files")


def _left_out(fs: Any, path: str, output: Folder | None) -> str:
    """Path of an output that lies in a folder of images; empty if none does.

    Raises
    ------
    SettingsError
        If the output is the folder of images itself: what is exported into it would be images.
    """
    if output is None or type(fs) is not type(output.fs):
        return ""
    if is_local(fs):
        path, without = os.path.realpath(path), os.path.realpath(output.path)
    else:
        without = output.path
    if path == without:
        raise SettingsError(
            f"the output {output.uri} is the folder of the images itself; name a folder in it or "
            "beside it"
        )
    return "" if _is_below(path, without) else without  # images in a folder of the output


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _without_others(rows: Iterable[Row], source: str) -> Iterator[Row]:
    """Leave out files that lie beside images by their names, and log how many they were."""
    others: Counter[str] = Counter()
    for row in rows:
        suffix = os.path.splitext(row["image_id"])[1].lower()
        if suffix in BESIDE_IMAGES:
            others[suffix] += 1
        else:
            yield row
    if others:
        counted = ", ".join(f"{suffix} {count:,}" for suffix, count in sorted(others.items()))
        LOG.warning(
            "%s: %s files are no images by their names and left out: %s",
            source,
            f"{others.total():,}",
            counted,
        )


def _unpacked(rows: Iterable[Row], *, is_one: bool, source: str) -> Iterator[Row]:
    """Rows as they are, but for tar files and tables, in whose place come the images in them.

    An image's id is the file's, without its extension, and the name in it.  Of one file that was
    named, and of a table that gives ids of its own, it is the name alone.
    """
    for row, tar in _with_tars(iter(rows)):
        uri, name = row["uri"], row["image_id"]
        stem, extension = os.path.splitext(name)
        if name.lower().endswith(PACKED_TARS):
            raise SettingsError(
                f"{uri} is a compressed tar file, of which no single image can be read; name tar "
                "files that are not compressed"
            )
        if extension.lower() not in (TAR, TABLE):
            yield row
            continue
        within = "" if is_one else f"{stem}/"
        count = 0
        found = _images_in_table(uri) if tar is None else tar
        for number, (own, place) in enumerate(found):
            has_place = own is None or tar is not None  # in the file; else an id of the table's
            inner = f"{number:08}" if own is None else own
            image_id = _text(f"{within}{inner}" if has_place else inner)
            if not is_safe_id(image_id):
                raise SettingsError(
                    f"{uri} holds an image named {image_id!r}; expected a relative path "
                    "without '..'"
                )
            count += 1
            yield {"image_id": image_id, "uri": f"{uri}{place}"}
        if not count:
            LOG.warning("%s: no images in %s", source, uri)


def _with_tars(rows: Iterator[Row]) -> Iterator[tuple[Row, list[tuple[str, InTar]] | None]]:
    """Rows in their order, those of tar files with what they hold; several are listed at once."""
    context = copy_context()  # threads have none of their caller's patience by themselves
    with ThreadPoolExecutor(READERS) as pool:
        while some := list(islice(rows, 4 * READERS)):
            listings = [
                pool.submit(context.copy().run, _images_in_tar, row["uri"])
                if row["image_id"].lower().endswith(TAR)
                else None
                for row in some
            ]
            for row, listing in zip(some, listings, strict=True):
                yield row, None if listing is None else listing.result()


def _images_in_tar(uri: str) -> list[tuple[str, InTar]]:
    fs, path = locate(uri)
    with as_storage_error(uri):
        found: list[tuple[str, InTar]] = with_retries(fs, lambda: list(list_tar(fs, path)))
    return found


def _images_in_table(uri: str) -> Iterator[tuple[str | None, InTable]]:
    fs, path = locate(uri)
    with as_storage_error(uri):
        yield from list_table(fs, path)


def _as_storage_errors(source: str, paths: Iterable[str]) -> Iterator[str]:
    with as_storage_error(source):
        yield from paths


def files_below(fs: Any, folder: str, without: str = "") -> Iterator[str]:
    """Files below a folder, sorted, a page or a folder of them in memory.

    Parameters
    ----------
    fs : fsspec.AbstractFileSystem
        Where it is.
    folder : str
        Path on ``fs``.
    without : str
        Real path of a folder that is left out, links to it and into it included.
    """
    if is_local(fs):
        return _local_files(folder, without)
    if hasattr(fs, "call_s3"):
        found: Iterable[str] = s3_objects(fs, folder)
    else:
        found = sorted(_objects(with_retries(fs, fs.find, folder, detail=True)))
    return (path for path in found if not (without and _is_below(path, without)))


def _matches(fs: Any, pattern: str, without: str) -> list[str]:
    found = with_retries(fs, fs.glob, pattern, detail=True)
    if not is_local(fs):
        return [p for p in _objects(found) if not (without and _is_below(p, without))]
    files = [path for path in found if fs.isfile(path)]
    return [p for p in files if not (without and _is_below(os.path.realpath(p), without))]


def _objects(found: dict[str, Row]) -> list[str]:
    """Objects among what a store lists: neither prefixes nor the empty objects that mark them."""
    return [p for p, info in found.items() if info["type"] == "file" and not p.endswith("/")]


def _local_files(folder: str, without: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Files below a local folder; links to folders are followed, but not in circles."""
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in sorted(visible, key=lambda e: f"{e.name}/" if e.is_dir() else e.name):
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real in above or (without and _is_below(real, without)) or _is_of_disk(entry):
                continue
            yield from _local_files(entry.path, without, above)
        elif entry.is_symlink():  # a broken link becomes a row
            if not (without and _is_below(os.path.realpath(entry.path), without)):
                yield entry.path
        elif entry.is_file():  # no pipes
            yield entry.path


def _is_of_disk(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is one that a file system keeps for itself, and nobody else may list."""
    return entry.name in OF_DISKS and not os.access(entry.path, os.R_OK | os.X_OK)


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
