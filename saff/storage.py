"""Where runs live: manifests, Parquet shards and run.json, local or ``s3://`` alike.

An output prefix holds ``manifest/part-N.parquet`` (which images) and, per stage, a shard of the
same name (what was found).  A shard appears whole or not at all and its name says which images it
holds, so resuming is a comparison of two listings, and no image is ever there twice.
"""

import contextlib
import csv
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, count, islice
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from saff.errors import SettingsError, StorageError
from saff.ids import Ids
from saff.retries import BRIEF, code_of, patience_of, patiently

Row = dict[str, Any]

MANIFEST = pa.schema([("image_id", pa.string()), ("uri", pa.string())])
PSEUDO_LABELS = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("sha256", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("confidence", pa.binary()),
        ("pseudo_label", pa.binary()),
        ("superpixels", pa.binary()),
        ("features", pa.list_(pa.float32())),
        ("weights", pa.list_(pa.float64())),
        ("seeds_foreground", pa.int32()),
        ("seeds_background", pa.int32()),
        ("fallback", pa.string()),
        ("quality", pa.float64()),
        ("error", pa.string()),
        ("error_kind", pa.string()),
    ]
)

PREDICTIONS = pa.schema(
    [
        PSEUDO_LABELS.field(name)
        for name in (
            "image_id",
            "uri",
            "sha256",
            "height",
            "width",
            "confidence",
            "pseudo_label",
            "error",
            "error_kind",
        )
    ]
)

LOCAL = LocalFileSystem()
NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
OWN_WORDS = (OSError, MemoryError, ValueError, TypeError, LookupError, pa.ArrowException)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
STAGES = ("pseudo_labels/", "predictions/", "network/", "rounds/", "evaluation/", "report/")
OWN = ("run.json", "manifest/", *STAGES)  # what a run writes into its output
ROWS_PER_GROUP = 32  # rows a writer or reader holds at once; about 3 MB
SMALLEST_PART, LARGEST_PART = 2, 1024  # images per part: little work lost, few files
PARTS_WANTED = 256  # enough to keep many workers busy to the end
READERS = 16  # small files read at once
LOOK_AHEAD = 65_536  # images listed before the size of a part is chosen
UPLOAD_BYTES = 16 * 2**20  # of a piece of a large object: little is sent again, few are made
IDS_AT_ONCE = 65_536  # values of one column that a reader takes at once
TYPES = {field.name: field.type for schema in (MANIFEST, PSEUDO_LABELS) for field in schema}
# A user name before a web address, or a password before any place; "host:8080/a@b" has neither.
LOGIN = re.compile(
    r"https?://[^/?#]*@|[^:]+://(?!arn:|\[)[^/?#@:]*:(?!\d*(?:[/?#]|$))[^@]*@", re.IGNORECASE
)


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's own."""
    return isinstance(fs, LocalFileSystem)


def locate(uri: str, *, signed: bool = False) -> tuple[Any, str]:
    """Split a path or URI into its fsspec file system and the path on it.

    Parameters
    ----------
    uri : str
        Local path, or ``protocol://...``.
    signed : bool
        Let a web address have a query, as the pre-signed address of one image has; what a person
        names is written into run.json and told in messages.

    Raises
    ------
    SettingsError
        If it is empty, the protocol is unknown or its package is not installed, or it holds a
        password or such a query, which the message does not repeat.
    """
    protocol, rest = _split(uri, signed)
    fs = _file_system(protocol, uri)
    path = os.path.abspath(rest) if protocol == "file" else fs._strip_protocol(uri)
    return fs, path


def _split(uri: str, signed: bool) -> tuple[str, str]:
    """Protocol of a URI, ``file`` for a path, and what follows; refuses what would be stored."""
    if not uri:
        raise SettingsError("a path or URI is empty")
    protocol, _, rest = uri.partition("://")
    if not rest:
        protocol, rest = "file", uri
    if LOGIN.match(uri):
        raise SettingsError(
            f"a URI {protocol}://...@... holds a user name or password, which would be stored; "
            "give credentials in the environment or by the machine's role, and the URI without them"
        )
    if not signed and public(uri) != uri:
        raise SettingsError(
            f"{public(uri)} stands for an address with a query, which may be a signature and "
            "would be stored; name a folder or prefix, or list signed addresses of single images "
            "in a manifest"
        )
    return protocol, rest


def _file_system(protocol: str, uri: str) -> Any:
    if protocol == "file":
        return LOCAL  # asked for with every image
    try:
        return fsspec.filesystem(protocol)
    except Exception as error:  # every protocol raises its own
        raise SettingsError(f"cannot open {public(uri)}: {error}") from error


def public(uri: str) -> str:
    """Leave out of a URI what a message must not repeat: a login, and the query of a web address.

    >>> public("https://user:password@host/cat.jpg?signature=1")
    'https://...@host/cat.jpg?...'
    """
    protocol, separator, rest = uri.partition("://")
    if LOGIN.match(uri):
        rest = f"...@{rest.rpartition('@')[2]}"
    if protocol.lower() in ("http", "https") and "?" in rest:
        rest = f"{rest.partition('?')[0]}?..."
    return protocol + separator + rest


def uri_of(fs: Any, path: str) -> str:
    """Absolute path of a local file, ``protocol://path`` of any other."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises
    ------
    OSError
        If it cannot be read; of a signed address the message does not repeat the signature, and its
        cause is only a code.
    """
    fs, path = locate(uri, signed=True)
    try:
        data: bytes = asked(fs, fs.cat_file, path)
    except Exception as error:
        if public(uri) == uri or isinstance(error, FileNotFoundError | MemoryError):
            raise
        cause = error.__cause__ or error  # its text has the signature
        why = getattr(cause, "message", "") or type(cause).__name__
        raise OSError(f"no access to {public(uri)}: {why}") from Refusal(code_of(error))
    return data


class Refusal(Exception):
    """The code of a store's answer, without its words."""

    def __init__(self, status: str | int) -> None:
        super().__init__(str(status))
        self.status = status


def asked(fs: Any, ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Ask a file system; one that is not this machine's own may need :func:`patiently`.

    Raises
    ------
    OSError
        Also for errors of a client that are of a kind of its own.
    """
    if is_local(fs):
        return ask(*arguments, **options)
    try:
        return patiently(ask, *arguments, **options)
    except OWN_WORDS:
        raise
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error


@contextmanager
def telling(uri: str) -> Iterator[None]:
    """Turn whatever a storage refuses into a SettingsError that names the place.

    Each storage has exceptions of its own, not all of them an OSError.
    """
    try:
        yield
    except SettingsError:
        raise
    except Exception as error:
        why = str(error) or type(error).__name__
        if isinstance(error, PermissionError) and "://" in uri:
            why += "; check the credentials"
        raise SettingsError(f"no access to {uri}: {why}") from error


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Be :func:`telling`, and soon: for what a person named, not for a task."""
    with telling(uri), patience_of(BRIEF):
        yield


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder or prefix; writes into it are whole or not at all.

    Attributes
    ----------
    fs : fsspec.AbstractFileSystem
        Picklable.
    path : str
        On ``fs``, without a slash at its end.
    """

    fs: Any
    path: str

    @classmethod
    def at(cls, uri: str) -> "Folder":
        """Folder of that path or URI; it need not exist."""
        fs, path = locate(uri)
        return cls(fs, path.rstrip("/") or "/")

    def __truediv__(self, name: str) -> "Folder":
        """Folder inside this one."""
        return Folder(self.fs, f"{self.path}/{name}")

    @property
    def uri(self) -> str:
        """Path or URI, as a person would type it."""
        return uri_of(self.fs, self.path)

    def names(self, suffix: str) -> list[str]:
        """Sorted names of the files directly inside but for hidden ones; [] without the folder."""
        self.fs.invalidate_cache()
        try:
            found = _children(self.fs, self.path)
        except FileNotFoundError:
            return []
        names = (p.rstrip("/").rsplit("/", 1)[-1] for p in found)
        return sorted(n for n in names if n.endswith(suffix) and not n.startswith("."))

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        self.fs.invalidate_cache()
        try:
            asked(self.fs, self.fs.info, f"{self.path}/{name}")  # fs.exists may swallow any error
        except NO_FILE:
            return False
        return True

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        data: bytes = asked(self.fs, self.fs.cat_file, f"{self.path}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file."""
        with self.replacing(name) as path, open(path, "wb") as file:
            file.write(data)

    @contextmanager
    def replacing(self, name: str) -> Iterator[str]:
        """Give a local path to write to; what it holds at the end becomes the file ``name``.

        If the block raises, nothing is left behind and an older file stays as it was.
        """
        target = f"{self.path}/{name}"
        if is_local(self.fs):
            parent = os.path.dirname(target)
            os.makedirs(parent, exist_ok=True)
            draft = f"{parent}/.{os.path.basename(name)}.{uuid.uuid4().hex}.tmp"
            try:
                with telling_no_space(target):
                    yield draft
                    _to_disk(draft)
                    os.replace(draft, target)  # atomic within a folder
            finally:
                if os.path.exists(draft):
                    os.remove(draft)
        else:
            with telling_no_space(tempfile.gettempdir()), _scratch() as draft:
                yield draft
                # an object appears when its upload is complete
                asked(self.fs, _put, self.fs, draft, target)

    def create(self, name: str, data: bytes) -> None:
        """Write a whole file that nobody else has written; the same content is no conflict.

        Raises
        ------
        FileExistsError
            If it is there with another content.  Stores that cannot tell overwrite it.
        """
        target = f"{self.path}/{name}"
        with _scratch(self.path if is_local(self.fs) else None) as draft:
            with telling_no_space(target), open(draft, "wb") as file:
                file.write(data)
            try:
                if is_local(self.fs):
                    _to_disk(draft)
                    _link(draft, target)
                else:
                    asked(self.fs, _put, self.fs, draft, target, mode="create")
            except FileExistsError:
                if self.read(name) != data:  # ours, where an answer was lost and it was asked again
                    raise

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        self.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            asked(self.fs, self.fs.rm_file, f"{self.path}/{name}")

    def sweep(self) -> None:
        """Remove drafts that a killed process left; only when nobody is writing."""
        if is_local(self.fs) and os.path.isdir(self.path):
            for draft in glob.glob(f"{glob.escape(self.path)}/.*.tmp"):
                os.remove(draft)


def _put(fs: Any, draft: str, target: str, **how: str) -> None:
    """Upload a file; to S3, a large one goes piece by piece."""
    pieces = {"chunksize": UPLOAD_BYTES} if "s3" in fs.protocol else {}
    try:
        fs.put_file(draft, target, **pieces, **how)
    except FileNotFoundError as error:
        answer = getattr(error.__cause__, "response", {})
        if answer.get("Error", {}).get("Code") != "NoSuchUpload":
            raise
        # the upload was completed and the answer lost, or it was aborted: begin a new one
        raise OSError(f"the server no longer knows the upload of {target}") from error


def _children(fs: Any, folder: str) -> Iterable[str]:
    """What is directly inside a folder; of S3, its objects alone, a page of them in memory."""
    if hasattr(fs, "call_s3"):
        return _s3_objects(fs, folder, Delimiter="/")
    found: list[str] = asked(fs, fs.ls, folder, detail=False)
    fs.invalidate_cache()
    return found


@contextmanager
def telling_no_space(place: str) -> Iterator[None]:
    """Turn a full disk into a StorageError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise StorageError(
            f"no space left to write {place}; free some and run the same command again, it "
            "continues where it stopped"
        ) from error


def _link(draft: str, target: str) -> None:
    """Give a file its name if nothing else has it."""
    try:
        os.link(draft, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.exists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.replace(draft, target)


def _to_disk(path: str) -> None:
    """Have a file survive a power cut, as its name will."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _scratch(beside: str | None = None) -> Iterator[str]:
    """Path for a file of this process that is gone afterwards, at the latest when it is missed."""
    if beside is not None:
        os.makedirs(beside, exist_ok=True)
        draft = f"{beside}/.{uuid.uuid4().hex}.tmp"
        try:
            yield draft
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(draft)
        return
    _remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=f"saff-{os.getpid()}-") as folder:
        yield f"{folder}/draft"


@cache
def _remove_leftovers() -> None:
    """Remove, once, the scratch of processes that are no more: one that is killed leaves it."""
    for folder in glob.glob(f"{glob.escape(tempfile.gettempdir())}/saff-*-*"):
        number = os.path.basename(folder).split("-")[1]
        if number.isdecimal() and _is_gone(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's
        return False
    return False


# Manifests


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
    with reaching(source):
        paths: Iterable[str]
        if asked(fs, fs.isdir, path):
            root, paths = path, _files(fs, path)
        elif asked(fs, fs.isfile, path):
            root, paths = path.rpartition("/")[0], [path]
        elif any(c in path for c in "*?["):
            first = min(path.index(c) for c in "*?[" if c in path)
            root, paths = path[:first].rpartition("/")[0], sorted(_matches(fs, path))
        else:
            raise SettingsError(f"no images at {source}: no such file, folder or prefix")
    fs.invalidate_cache()  # an object store's listing holds far more than the names
    paths = _told(source, paths)
    ids = ((p[len(root.rstrip("/")) + 1 :], p) for p in paths)
    visible = ((_text(i), _text(uri_of(fs, p))) for i, p in ids if p == path or not _is_hidden(i))
    rows = ({"image_id": i, "uri": u} for i, u in visible)
    return _not_empty(rows, f"no images in {source}: it holds no files")


def _told(source: str, paths: Iterable[str]) -> Iterator[str]:
    with telling(source):
        yield from paths


def _files(fs: Any, folder: str) -> Iterator[str]:
    """Files below a folder, sorted, a page or a folder of them in memory."""
    if is_local(fs):
        return _local_files(folder)
    if hasattr(fs, "call_s3"):
        return _s3_objects(fs, folder)
    return iter(sorted(_objects(asked(fs, fs.find, folder, detail=True))))


def _matches(fs: Any, pattern: str) -> list[str]:
    found = asked(fs, fs.glob, pattern, detail=True)
    return [p for p in found if fs.isfile(p)] if is_local(fs) else _objects(found)


def _objects(found: dict[str, Row]) -> list[str]:
    """Objects among what a store lists: neither prefixes nor the empty objects that mark them."""
    return [p for p, info in found.items() if info["type"] == "file" and not p.endswith("/")]


def _s3_objects(fs: Any, prefix: str, **how: str) -> Iterator[str]:
    """Objects below a prefix as S3 lists them, sorted; s3fs itself would collect all of them."""
    bucket, _, key = prefix.partition("/")
    below = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", **how}
    page: Row = {"IsTruncated": True}
    while page["IsTruncated"]:
        token = page.get("NextContinuationToken")
        more = {"ContinuationToken": token} if token else {}
        page = asked(fs, fs.call_s3, "list_objects_v2", **below, **more)
        keys = (found["Key"] for found in page.get("Contents", ()))
        yield from (f"{bucket}/{key}" for key in keys if not key.endswith("/"))


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
    with reaching(source):
        if asked(fs, fs.isdir, path):
            base, tables = path, [f"{path}/{n}" for n in Folder(fs, path).names(".parquet")]
        elif asked(fs, fs.isfile, path):
            base, tables = path.rpartition("/")[0], [path]
        else:
            raise SettingsError(f"no manifest at {source}")
    rows = chain.from_iterable(_manifest_rows(fs, table, source) for table in tables)
    absolute = ({**r, "uri": _absolute(fs, base, r["uri"])} for r in rows)
    return _not_empty(absolute, f"the manifest {source} has no rows")


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
                    shown = public(uri) if isinstance(uri, str) else uri
                    raise SettingsError(
                        f"the manifest {source} has the row image_id={row['image_id']!r}, "
                        f"uri={shown!r}: {fault}"
                    )
                yield {"image_id": row["image_id"], "uri": row["uri"]}
    except SettingsError:
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
        protocol, _ = _split(row["uri"], signed=True)
        if protocol not in protocols:
            _file_system(protocol, row["uri"])
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
    for known in each(read_ids, folder, folder.names(".parquet")):
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


# Shards


def each(read: Callable[[Folder, str], Any], folder: Folder, names: Iterable[str]) -> Iterator[Any]:
    """Read many files of a folder, a few at once, in their order; :func:`asked` for each."""
    names = iter(names)
    context = copy_context()  # threads have none of their caller's patience by themselves

    def ask(name: str) -> Any:
        return context.copy().run(asked, folder.fs, read, folder, name)

    with ThreadPoolExecutor(READERS) as pool:
        while some := list(islice(names, 4 * READERS)):
            yield from pool.map(ask, some)


def read_column(folder: Folder, name: str, column: str) -> list[Any]:
    """One column of a Parquet file; errors as of :func:`read_rows`."""
    batches = _batches(folder, name, [column], IDS_AT_ONCE)
    return [value for batch in batches for value in batch.column(column).to_pylist()]


def read_rows(folder: Folder, name: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a Parquet file, a few at a time.

    Raises
    ------
    SettingsError
        If the file is damaged, or its columns are not of the types that are written here.
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
                if field.type != TYPES.get(field.name):
                    expected = TYPES.get(field.name, "no such column")
                    raise ValueError(
                        f"column {field.name} is of type {field.type}, expected {expected}"
                    )
            batch.validate(full=True)  # text is UTF-8, lists end where they may
            yield batch


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of a run; what is wrong in it, not in the storage, is told by name."""
    with folder.fs.open(f"{folder.path}/{name}", "rb") as file:
        try:
            yield pq.ParquetFile(file)
        except Exception as error:
            ends_early = type(error) is OSError and error.errno is None  # Arrow's
            if not (ends_early or isinstance(error, pa.ArrowException | ValueError | LookupError)):
                raise
            raise SettingsError(
                f"{(folder / name).uri} is damaged or not of this version of saff: {error}; put "
                "back a copy of it, or remove it if it holds results, and they are made again"
            ) from error


def read_all_rows(folder: Folder, name: str, columns: Sequence[str] | None = None) -> list[Row]:
    """Rows of a Parquet file at once, as a task reads them that can wait for its storage."""
    rows: list[Row] = asked(folder.fs, lambda: list(read_rows(folder, name, columns)))
    return rows


def write_rows(
    folder: Folder, name: str, rows: Iterable[Row], schema: pa.Schema
) -> tuple[int, int]:
    """Write a shard as it is computed, so that it appears whole or not at all.

    Returns
    -------
    rows, failed : int
        Rows written, and how many of them hold an error.
    """
    written = failed = 0
    rows = iter(rows)
    with folder.replacing(name) as path, pq.ParquetWriter(path, schema, compression="zstd") as out:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            out.write_table(pa.Table.from_pylist(group, schema))
            written += len(group)
            failed += sum(row["error_kind"] is not None for row in group)
    return written, failed


def count_rows(folder: Folder, name: str) -> tuple[int, int]:
    """Rows of a shard and how many hold an error, from its footer alone.

    Raises
    ------
    SettingsError
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


# run.json


def with_digest(content: Row) -> Row:
    """Add ``digest``, the SHA-256 that sums up what decides a result, in hexadecimal."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return content | {"digest": digest}


def claim(output: Folder, run: dict[str, Any]) -> None:
    """Bind an output to a run, or check that it is bound to the same one.

    Parameters
    ----------
    output : Folder
        The run's output.
    run : dict
        What decides the content; ``digest`` sums it up, ``source`` says which images.

    Raises
    ------
    SettingsError
        If the output belongs to another run, naming the difference, or cannot be written.
    """
    if is_claimed(output, run):
        return
    with reaching(output.uri):
        try:
            output.create("run.json", (json.dumps(run, indent=2) + "\n").encode())
        except FileExistsError:  # another job was faster
            if not is_claimed(output, run):
                raise


def is_claimed(output: Folder, run: dict[str, Any]) -> bool:
    """Whether an output is bound to a run; False for a new one.

    Raises
    ------
    SettingsError
        If it is bound to another run.
    """
    other = _load_run(output)
    if other is not None and (differences := sorted(_differences(other, run))):
        raise SettingsError(
            f"{output.uri} belongs to another run: {'; '.join(differences)}; "
            "choose another output, or the settings it has"
        )
    return other is not None


def read_run(output: Folder) -> dict[str, Any]:
    """Read an output's run.json.

    Raises
    ------
    SettingsError
        If there is none, so that the folder is no run, or it is damaged.
    """
    run = _load_run(output)
    if run is None:
        raise SettingsError(f"{output.uri} is not the output of a run: it has no run.json")
    return run


def _load_run(output: Folder) -> dict[str, Any] | None:
    with reaching(output.uri):
        text = output.read("run.json") if output.exists("run.json") else None
    if text is None:
        return None
    try:
        run = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{output.uri}/run.json is damaged: {error}") from error
    if not isinstance(run, dict):
        raise SettingsError(f"{output.uri}/run.json is damaged: expected a JSON object")
    return run


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {*there, *here} - {"digest"}:
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
    elif there != here:
        yield f"{name} is {there!r} there and {here!r} here"
