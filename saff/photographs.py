"""The photographs that stored rows were made from, read again; those that are lost are counted."""

import errno
import hashlib
import time
from collections import Counter, defaultdict
from dataclasses import replace
from urllib.parse import urlsplit

from saff import images
from saff.access import ANYTHING, TOO_LARGE, Access
from saff.arrays import Image
from saff.retries import BRIEF, FINAL_CODES, error_code, retry_limit
from saff.shards import Row
from saff.storage import NO_FILE, read_bytes

SECONDS_LOST = 3 * BRIEF  # waiting for a server that gives no answer, before it is given up
DEADLINE = 60.0  # seconds that one photograph may take from a server
GONE = (  # what a local file system says of one path, not of the disk
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,  # links in a circle
    errno.ENAMETOOLONG,
    errno.ENXIO,  # a socket
    errno.EACCES,
    errno.EPERM,
)


class Photographs:
    """Reads the photographs of stored rows and counts those that cannot be shown any more.

    No photograph keeps the others from being read.  A server that fails is given ten seconds, then
    each of its photographs is requested once, for at most a minute.  A server that has given no
    answer for thirty seconds in all gets no further request.

    Attributes
    ----------
    access : Access
        What their addresses may name.
    gone : int
        Photographs that are not there, or may not be read: no file, a broken link, an answer such
        as 403, 404 or 410.
    changed : int
        Photographs whose content is not the one that was labelled.
    unreachable : int
        Photographs whose server or disk failed.
    """

    def __init__(self, access: Access = ANYTHING) -> None:
        self.access = access
        self.gone = self.changed = self.unreachable = 0
        self._failing: Counter[str] = Counter()  # failures of a server since its last photograph
        self._seconds_lost: dict[str, float] = defaultdict(float)

    @property
    def lost(self) -> int:
        """How many photographs could not be shown."""
        return self.gone + self.changed + self.unreachable

    def describe(self) -> str:
        """Say how many photographs were left out, and why; empty if none was.

        Examples
        --------
        >>> photographs = Photographs()
        >>> photographs.gone, photographs.changed = 1, 2
        >>> photographs.describe()
        '1 photograph is gone, 2 photographs have changed'
        """
        counts = (
            (self.gone, "is gone", "are gone"),
            (self.changed, "has changed", "have changed"),
            (self.unreachable, "cannot be reached", "cannot be reached"),
        )
        return ", ".join(
            f"{count:,} photograph{'s' if count > 1 else ''} {many if count > 1 else one}"
            for count, one, many in counts
            if count
        )

    def read_file(self, row: Row) -> bytes | None:
        """Read the file of a row's photograph as it is; None, and counted, where it is lost."""
        data = self._read(row["uri"])
        if data is not None and row["sha256"] != hashlib.sha256(data).hexdigest():
            self.changed += 1
            return None
        return data

    def read(self, row: Row) -> Image | None:
        """Read the photograph of a row that has a result; None, and counted, where it is lost."""
        data = self.read_file(row)
        if data is None:
            return None
        image = _decode_same(row, data)
        if image is None:
            self.changed += 1
        return image

    def _read(self, uri: str) -> bytes | None:
        server = _server_of(uri)
        if self._seconds_lost[server] >= SECONDS_LOST:
            self.unreachable += 1
            return None
        start = time.monotonic()
        try:
            with retry_limit(0 if self._failing[server] else BRIEF):
                data = read_bytes(uri, replace(self.access, seconds=DEADLINE))
        except ValueError:  # an address that is none, or that may not be used
            self.gone += 1
        except OSError as error:
            code = error_code(error)
            if code == TOO_LARGE:
                self.changed += 1
                return None
            own = isinstance(error, (*NO_FILE, PermissionError)) or error.errno in GONE
            if own or code in FINAL_CODES:
                self.gone += 1
                return None
            self.unreachable += 1
            self._failing[server] += 1
            if not code and server:
                self._seconds_lost[server] += max(BRIEF, time.monotonic() - start)
        else:
            self._failing[server], self._seconds_lost[server] = 0, 0.0
            return data
        return None


def _server_of(uri: str) -> str:
    """Server or bucket of an address; empty for a file of this machine."""
    try:
        return urlsplit(uri).netloc if "://" in uri else ""
    except ValueError:
        return ""


def _decode_same(row: Row, data: bytes) -> Image | None:
    """Decode a photograph that was labelled, in the size that it had then."""
    size = (row["height"], row["width"])
    try:
        image = images.decode(data, max_pixels=size[0] * size[1])
    except images.ImageError:  # another version of the decoder
        return None
    return image if image.shape[:2] == size else None
