"""A folder or prefix that an export writes into: nothing outside it, and no file is lost."""

import errno
import os
from collections.abc import Callable

from saff.addresses import is_local
from saff.errors import StorageError
from saff.overwriting import Inode, inode_of
from saff.retries import BAD_ADDRESS, error_code
from saff.storage import Folder, as_storage_error, with_brief_retries

FAILURES = 3  # uploads that fail one after the other, before the store is at fault
OF_ONE_KEY = ("KeyTooLongError", BAD_ADDRESS)  # what an object store says of one name
THERE_ALREADY = "a file with another content exists; --overwrite replaces it"
OF_ONE_NAME = (  # what a file system says of one path, not of the disk
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.EILSEQ,
    errno.EINVAL,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
)


class TargetFolder:
    """Folder or prefix that files are written into, none of them outside it.

    Parameters
    ----------
    to : Folder
        Made if it does not exist.
    overwrite : bool
        Replace files that are there, but none that this export has written itself: two names may
        lead to one file.
    """

    def __init__(self, to: Folder, *, overwrite: bool) -> None:
        self.to, self.overwrite = to, overwrite
        self._written: set[Inode | None] = set()
        self._folders: dict[str, Folder] = {}  # whose new names are not synced yet
        self._uploaded = False
        self._failures = 0  # uploads that failed, one after the other
        self._failure: StorageError | None = None
        if is_local(to.fs):
            with as_storage_error(to.path):
                os.makedirs(to.path, exist_ok=True)
                if not os.access(to.path, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, "no right to write into this folder")
        self._root = os.path.realpath(to.path).rstrip("/")

    def write(self, name: str, data: bytes) -> str:
        """Write a file whole; give the reason why this one cannot be written, or nothing."""
        below, _, last = name.rpartition("/")
        folder = self.to / below if below else self.to
        write = folder.write if self.overwrite else folder.create
        if not is_local(self.to.fs):
            return self._upload(write, last, data)
        path = f"{folder.path}/{last}"
        try:
            if hindrance := self._hindrance(folder.path, path):
                return hindrance
            write(last, data, sync_name=False)
            self._folders[folder.path] = folder
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno not in OF_ONE_NAME:
                raise StorageError(f"no access to {path}: {error}") from error
            return _why_not(error, folder.path, path)
        if self.overwrite:
            self._written.add(inode_of(path))
        return ""

    def _hindrance(self, folder: str, path: str) -> str:
        if not f"{os.path.realpath(folder)}/".startswith(f"{self._root}/"):
            return "a link in its folder leads outside; remove the link"
        if os.path.islink(path):
            return "a link is in its place; remove the link"
        if self._written and (inode := inode_of(path)) and inode in self._written:
            return "another image of this export has the same file"
        return ""

    def _upload(self, write: Callable[[str, bytes], None], name: str, data: bytes) -> str:
        try:
            with with_brief_retries(f"{self.to.uri}/{name}"):
                write(name, data)
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError):
                return THERE_ALREADY
            cause = error.__cause__
            if cause is not None and error_code(cause) in OF_ONE_KEY:
                return str(cause)
            self._failures, self._failure = self._failures + 1, error
            if isinstance(cause, PermissionError) or self._failures == FAILURES:
                raise
            return str(error)
        self._uploaded, self._failures = True, 0
        return ""

    def close(self) -> None:
        """Sync the names of the files; raise what a store has refused if it has taken nothing."""
        for folder in self._folders.values():
            with as_storage_error(folder.path):
                folder.sync_names()
        if self._failure is not None and not self._uploaded:
            raise self._failure


def _why_not(error: Exception, folder: str, path: str) -> str:
    """Say in words why a file cannot be written."""
    blocked = os.path.lexists(folder) and not os.path.isdir(folder)
    if blocked or isinstance(error, NotADirectoryError):
        return "a file or a broken link is in the place of its folder"
    if os.path.isdir(path):
        return "a folder is in its place"
    if isinstance(error, FileExistsError):
        return THERE_ALREADY
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
