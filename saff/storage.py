"""Files on this machine, in an object store, or wherever fsspec reaches: whole or not at all.

A request that a store refuses for the moment is repeated (:mod:`saff.retries`).
"""

import asyncio
import contextlib
import errno
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import pyarrow as pa
from fsspec.asyn import sync as fs_sync

from saff.access import ANYTHING, Access, too_large
from saff.addresses import S3, WEB, is_local, locate, redact, split_uri, uri_of
from saff.containers import split_member
from saff.errors import AddressError, SaffError, StorageError, UnreadableError
from saff.retries import BRIEF, call_with_retries, error_code, retry_limit

NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
OWN_WORDS = (SaffError, OSError, MemoryError, ValueError, TypeError, LookupError, pa.ArrowException)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
READERS = 16  # small files read at once
UPLOAD_BYTES = 16 * 2**20  # of a piece of a large object: little is sent again, few are made


def read_bytes(uri: str, access: Access = ANYTHING) -> bytes:
    """Read a whole file.

    Parameters
    ----------
    uri : str
        Path or URI; of S3, ``?versionId=`` at its end names a version of an object.  It may name a
        place inside a file, see :mod:`saff.containers`.
    access : Access
        Which addresses may be read, and how much.

    Raises
    ------
    RefusedAddressError
        If the address may not be read.
    UnreadableError
        If the store gives this one file to nobody who asks as we do, however often; no message
        repeats the signature of an address.
    OSError
        If it cannot be read now.
    """
    whole, member = split_member(uri)
    protocol, _ = split_uri(whole, signed=True)
    access.refuse_scheme(whole)
    if member is not None:
        if protocol in WEB:
            raise UnreadableError(
                "an image inside a file is read from a disk or an object store, not from the web"
            )
        fs, path = locate(whole, signed=True)
        found: bytes = with_retries(fs, member.read, fs, path, access)
        return found
    if protocol in WEB:
        try:
            from saff.web import download  # aiohttp's import takes a tenth of a second

            return call_with_retries(download, uri, access)
        except AddressError as error:
            raise type(error)(error.reason, error.status, redact(uri)) from None
    fs, path = locate(uri, signed=True)
    read = _read_object if protocol in S3 else _read_file
    data: bytes = with_retries(fs, read, fs, path, access)
    return data


def _read_file(fs: Any, path: str, access: Access) -> bytes:
    """Read a file whose size is known before."""
    size = os.stat(path).st_size if is_local(fs) else (fs.info(path).get("size") or 0)
    if size > access.largest:
        raise too_large(access, size)
    data: bytes = fs.cat_file(path)
    return data


def _read_object(fs: Any, path: str, access: Access) -> bytes:
    """Read an object of S3 as it arrives, so that size and time are bounded."""
    data: bytes = fs_sync(fs.loop, _get_object, fs, path, access)
    return data


async def _get_object(fs: Any, path: str, access: Access) -> bytes:
    bucket, key, _ = fs.split_path(path)  # without the version
    version = path.partition("?versionId=")[2]
    which = {"VersionId": version} if version else {}

    async def read() -> bytes:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **which)
        if answer["ContentLength"] > access.largest:
            raise too_large(access)
        async with answer["Body"] as body:
            return bytes(await body.read())

    try:
        return await asyncio.wait_for(read(), access.seconds)
    except asyncio.TimeoutError as error:
        raise TimeoutError(f"the store took longer than {access.seconds:g} s") from error


def with_retries(fs: Any, ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Ask a file system; one that is not this machine's own may need :func:`call_with_retries`.

    Raises
    ------
    OSError
        Also for errors of a client that are of a kind of its own.
    """
    if is_local(fs):
        return ask(*arguments, **options)
    try:
        return call_with_retries(ask, *arguments, **options)
    except OWN_WORDS:
        raise
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error


@contextmanager
def as_storage_error(uri: str) -> Iterator[None]:
    """Turn whatever a storage refuses into a StorageError that names the place.

    Each storage has exceptions of its own, not all of them an OSError.
    """
    try:
        yield
    except SaffError:
        raise
    except Exception as error:
        why = str(error) or type(error).__name__
        if isinstance(error, PermissionError) and "://" in uri:
            why += "; check the credentials"
        raise StorageError(f"no access to {uri}: {why}") from error


@contextmanager
def with_brief_retries(uri: str) -> Iterator[None]:
    """Be :func:`as_storage_error`, and soon: for what a person named, not for a task."""
    with as_storage_error(uri), retry_limit(BRIEF):
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
        """Whether a file exists."""
        self.fs.invalidate_cache()
        try:
            with_retries(
                self.fs, self.fs.info, f"{self.path}/{name}"
            )  # fs.exists may swallow any error
        except NO_FILE:
            return False
        return True

    def version(self, name: str) -> list[str]:
        """What changes when a file is replaced: its size, and its ETag or time of change."""
        self.fs.invalidate_cache()
        info = with_retries(self.fs, self.fs.info, f"{self.path}/{name}")
        return [str(info["size"]), str(info.get("ETag") or info.get("mtime") or "")]

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        data: bytes = with_retries(self.fs, self.fs.cat_file, f"{self.path}/{name}")
        return data

    def write(self, name: str, data: bytes, *, sync_name: bool = True) -> None:
        """Write a whole file; the option is that of :meth:`create`."""
        with self.replacing(name, sync_name=sync_name) as path, open(path, "wb") as file:
            file.write(data)

    @contextmanager
    def replacing(self, name: str, *, sync_name: bool = True) -> Iterator[str]:
        """Give a local path to write to; what it holds at the end becomes the file ``name``.

        If the block raises, nothing is left behind and an older file stays as it was.
        """
        target = f"{self.path}/{name}"
        if is_local(self.fs):
            with _scratch(os.path.dirname(target)) as draft, as_no_space_error(target):
                yield draft
                _to_disk(draft)
                os.replace(draft, target)  # atomic within a folder
                if sync_name:
                    _sync_folder(os.path.dirname(target))
        else:
            with as_no_space_error(tempfile.gettempdir()), _scratch() as draft:
                yield draft
                # an object appears when its upload is complete
                with_retries(self.fs, _put, self.fs, draft, target)

    def sync_names(self) -> None:
        """Have the names of the files of a local folder survive a power cut, where it can be."""
        if is_local(self.fs):
            _sync_folder(self.path)

    def create(self, name: str, data: bytes, *, sync_name: bool = True) -> None:
        """Write a whole file that nobody else has written; the same content is no conflict.

        Object stores that know ``If-None-Match`` exclude that two write at once.

        Parameters
        ----------
        name : str
            Of the file.
        data : bytes
            Its content.
        sync_name : bool
            Have the name survive a power cut; whoever writes many files calls :meth:`sync_names`
            once afterwards.

        Raises
        ------
        FileExistsError
            If it exists with another content.
        """
        target = f"{self.path}/{name}"
        with _scratch(self.path if is_local(self.fs) else None) as draft:
            with as_no_space_error(target), open(draft, "wb") as file:
                file.write(data)
                if is_local(self.fs):
                    file.flush()
                    os.fsync(file.fileno())
            try:
                if is_local(self.fs):
                    _link(draft, target)
                    if sync_name:
                        _sync_folder(os.path.dirname(target))
                elif self.exists(name):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
                else:
                    with_retries(self.fs, _put_new, self.fs, draft, target)
            except FileExistsError:
                if (
                    self.read(name) != data
                ):  # ours, where an answer was lost and the request repeated
                    raise

    def remove(self, name: str) -> None:
        """Remove a file; a missing one is no error."""
        self.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            with_retries(self.fs, self.fs.rm_file, f"{self.path}/{name}")

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


def _put_new(fs: Any, draft: str, target: str) -> None:
    """Upload a file unless it exists; a store that cannot check that takes it all the same."""
    try:
        _put(fs, draft, target, mode="create")
    except OSError as error:
        if error_code(error) != "NotImplemented":
            raise
        _put(fs, draft, target)


def _children(fs: Any, folder: str) -> Iterable[str]:
    """What is directly inside a folder; of S3, its objects alone, a page of them in memory."""
    if hasattr(fs, "call_s3"):
        return s3_objects(fs, folder, Delimiter="/")
    found: list[str] = with_retries(fs, fs.ls, folder, detail=False)
    fs.invalidate_cache()
    return found


@contextmanager
def as_no_space_error(place: str) -> Iterator[None]:
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
    """Have the content of a file survive a power cut, before the file gets its name."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: str) -> None:
    """Have the names in a folder survive a power cut; where folders cannot be synced, nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


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


def is_folder(fs: Any, path: str) -> bool:
    """Whether anything is below a path; s3fs itself would list all that is."""
    if not hasattr(fs, "call_s3"):
        return bool(with_retries(fs, fs.isdir, path))
    with contextlib.suppress(FileNotFoundError):  # no such bucket
        return next(s3_objects(fs, path, MaxKeys=1), None) is not None
    return False


def s3_objects(fs: Any, prefix: str, **how: Any) -> Iterator[str]:
    """Objects below a prefix as S3 lists them, sorted; s3fs itself would collect all of them."""
    bucket, _, key = prefix.partition("/")
    below: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", **how}
    page: dict[str, Any] = {"IsTruncated": True}
    while page["IsTruncated"]:
        token = page.get("NextContinuationToken")
        more = {"ContinuationToken": token} if token else {}
        page = with_retries(fs, fs.call_s3, "list_objects_v2", **below, **more)
        keys = (found["Key"] for found in page.get("Contents", ()))
        yield from (f"{bucket}/{key}" for key in keys if not key.endswith("/"))


def read_each(
    read: Callable[[Folder, str], Any], folder: Folder, names: Iterable[str]
) -> Iterator[Any]:
    """Read many files of a folder, a few at once, in their order; :func:`with_retries` for each."""
    names = iter(names)
    context = copy_context()  # threads have none of their caller's patience by themselves

    def ask(name: str) -> Any:
        return context.copy().run(with_retries, folder.fs, read, folder, name)

    with ThreadPoolExecutor(READERS) as pool:
        while some := list(islice(names, 4 * READERS)):
            yield from pool.map(ask, some)
