"""Reading an image of a run; when that fails, whose fault it is: its address, its store or ours.

An address that fails becomes a row with an error, and the rest is done.  A store of which nothing
can be read ends the job: rows with errors for all of its images would hide a bad hour.  One worker
cannot tell a dead server from its own network, so it asks others before it judges: other addresses
of the same store, then other stores, both from the manifest of the run.
"""

import errno
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from saff import layout
from saff.access import ANYTHING, TOO_LARGE, Access
from saff.addresses import S3, WEB, is_local, locate, redact, split_uri
from saff.containers import split_member
from saff.errors import AddressError, ImageError, RefusedAddressError, StorageError, UnreadableError
from saff.layout import PART_SUFFIX
from saff.manifests import read_part
from saff.retries import BAD_ADDRESS, FINAL_CODES, UNAUTHORISED, error_code, retry_limit
from saff.storage import NO_FILE, Folder, read_bytes, with_retries
from saff.web import answers, store_of

QUICK_SECONDS, QUICK_TRIES = 60.0, 5  # for one address, before others are asked
SILENT_SECONDS = 600.0  # for which a server that was found silent is tried only once per address
PROBE_SECONDS = 15.0
GLANCE_SECONDS = 5.0  # for an address of a server that was found silent
PROBES = 3  # other addresses, and other stores, that are asked
FEW = 8  # addresses: a store of fewer is one of many that a list of the web names
SAMPLE_PARTS = 8  # of the manifest, to know which stores its images are in
DENIED = frozenset({"AccessDenied", "403", "Forbidden"})  # S3's, also for what is not there
REFUSALS = frozenset({401, 403})  # web servers', also for all of their addresses
NO_FILE_CODES = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)  # links in a circle, sockets


@dataclass(slots=True)
class Store:
    """What this process knows of a web server or a bucket.

    Attributes
    ----------
    good : str
        The address that was read last.
    silent : float
        When it was found to give no answer, by the clock of :func:`time.monotonic`.
    refused : int
        Addresses that it has refused since it gave one.
    """

    good: str = ""
    silent: float = -math.inf
    refused: int = 0

    def is_silent(self) -> bool:
        """Whether it was found silent and has not answered since."""
        return time.monotonic() - self.silent < SILENT_SECONDS

    def gave(self, uri: str) -> None:
        """Note that an address was read."""
        self.good, self.silent, self.refused = uri, -math.inf, 0


@dataclass(frozen=True, slots=True)
class Sample:
    """Addresses in some parts of a manifest, by store; paths of this machine are under ``""``."""

    counts: Counter[str] = field(default_factory=Counter)
    uris: dict[str, list[str]] = field(default_factory=dict)

    def others(self, store: str, uri: str) -> list[str]:
        """Other addresses of a store, spread over the sample."""
        return _spread([one for one in self.uris.get(store, []) if one != uri], FEW)

    def elsewhere(self, store: str) -> list[str]:
        """An address of each other web server."""
        return [uris[0] for name, uris in self.uris.items() if name not in ("", store)]

    def share(self, store: str) -> float:
        """Share of the addresses that are of a store."""
        return self.counts[store] / max(self.counts.total(), 1)


_stores: dict[str, Store] = defaultdict(Store)


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Reads the images of a run.

    Attributes
    ----------
    access : Access
        Which addresses may be read, and how much.
    output : Folder, optional
        Of the run; without it, nothing but an answer can say that an address is at fault.
    """

    access: Access = ANYTHING
    output: Folder | None = None

    def read(self, uri: str) -> bytes:
        """Read an image's bytes.

        Raises
        ------
        ImageError
            If only this image cannot be read; its kind says why.
        StorageError
            If nothing of its store can be read.
        OSError
            If this machine or its storage fails.
        """
        if not uri:
            raise ImageError("not_readable", "the list gives no address for this image")
        protocol, _ = split_uri(uri, signed=True)
        try:
            if protocol in WEB:
                return self._read_web(uri)
            if protocol in S3:
                return self._read_object(uri)
            return self._read_file(uri)
        except RefusedAddressError as error:
            raise ImageError("not_allowed", str(error)) from error
        except UnreadableError as error:
            kind = "not_an_image" if error.status == TOO_LARGE else "not_readable"
            raise ImageError(kind, error.reason) from error

    def _read_file(self, uri: str) -> bytes:
        fs, _ = locate(uri, signed=True)
        try:
            return read_bytes(uri, self.access)
        except UnreadableError:
            raise
        except OSError as error:
            _refuse_missing(error)
            if isinstance(error, PermissionError) and is_local(fs):
                raise ImageError("not_readable", "no right to read the image's file") from error
            _refuse_final(error)
            raise
        except ValueError as error:
            _refuse_final(error)
            raise

    # The web

    def _read_web(self, uri: str) -> bytes:
        name = store_of(uri)
        store = _stores[name]
        access, seconds, tries = self.access, QUICK_SECONDS, float(QUICK_TRIES)
        if self.output is None:
            seconds, tries = math.inf, math.inf
        elif store.is_silent():
            access, tries = replace(access, seconds=min(access.seconds, GLANCE_SECONDS)), 1
        try:
            with retry_limit(seconds, tries):
                data = read_bytes(uri, access)
        except UnreadableError as error:
            if error.status in REFUSALS:
                store.refused += 1
                self._refuse_closed_store(uri, name, error)
            raise
        except AddressError as error:
            if self.output is None:
                raise
            data = self._after_silence(uri, name, error)
        except FileNotFoundError as error:
            raise _missing() from error
        store.gave(uri)
        return data

    def _after_silence(self, uri: str, name: str, error: AddressError) -> bytes:
        """Find out who is at fault for an address that gave no answer, or none that lasts."""
        store, sample = _stores[name], self._sample()
        silence = ImageError("unreachable", f"its server gives no answer: {error.reason}")
        if store.is_silent():
            raise silence from error
        ask = [one for one in (store.good, *sample.others(name, uri)) if one and one != uri]
        if self._any_answers(ask[:PROBES]):
            words = f"its server fails at this image alone: {error.reason}"
            raise ImageError("not_readable", words) from error
        if self._is_one_of_many(name, sample):
            store.silent = time.monotonic()
            raise silence from error
        try:
            return read_bytes(uri, self.access)  # for as long as any storage is asked
        except FileNotFoundError as last:
            raise _missing() from last
        except UnreadableError:
            raise
        except AddressError as last:
            raise StorageError(
                f"{name} cannot be reached ({last.reason}): {redact(uri)} and others there were "
                "tried; most images of this run are there, or no other server of it answers "
                "either; once it answers, the same command continues"
            ) from None

    def _is_one_of_many(self, name: str, sample: Sample) -> bool:
        """Whether a silent server is one among others that answer, so that the network is not."""
        elsewhere = sample.elsewhere(name)
        mostly = sample.share(name) > 0.5
        if not elsewhere:  # nobody to ask: files of this machine, or this server alone
            return not mostly
        if mostly and sample.counts[name] >= FEW:  # a bad hour of the one store of this run
            return False
        good = [store.good for other, store in _stores.items() if store.good and other != name]
        return self._any_answers([*good[:PROBES], *elsewhere[:PROBES]])

    def _any_answers(self, uris: Iterable[str]) -> bool:
        return any(
            answers(uri, self.access, PROBE_SECONDS)
            if split_uri(uri, signed=True)[0] in WEB
            else self._gives(uri)
            for uri in uris
        )

    def _refuse_closed_store(self, uri: str, name: str, error: UnreadableError) -> None:
        """End the job if a server refuses all that is asked of it, and most images are there."""
        if _stores[name].refused < FEW or self.output is None:
            return
        sample = self._sample()
        if sample.share(name) <= 0.5 or any(map(self._gives, sample.others(name, uri))):
            _stores[name].refused = 0
            return
        raise StorageError(
            f"{name} refuses every image that was asked for ({error.status}), {redact(uri)} the "
            "last; if their addresses were signed and have expired, name a list with new ones: "
            "what is done stays, and the others are read from there"
        )

    # S3

    def _read_object(self, uri: str) -> bytes:
        bucket = _bucket_of(uri)
        try:
            data = read_bytes(uri, self.access)
        except UnreadableError:
            raise
        except OSError as error:
            _refuse_missing(error)
            code = str(error_code(error))
            if code not in DENIED or self.output is None:
                _refuse_final(error)
                raise
            if self._bucket_gives(uri, bucket):
                raise ImageError(
                    "not_readable",
                    f"the store refuses this object, or has none of this name ({code}); it gives "
                    "out others of its bucket",
                ) from error
            raise StorageError(
                f"no access to {redact(uri)}: {code}, nor to any other object of s3://{bucket} "
                "that was tried; check the credentials and what their user may read"
            ) from error
        except ValueError as error:
            _refuse_final(error)
            raise
        _stores[f"s3://{bucket}"].gave(uri)
        return data

    def _bucket_gives(self, uri: str, bucket: str) -> bool:
        name = f"s3://{bucket}"
        known = [_stores[name].good] if _stores[name].good else []
        return any(map(self._gives, [*known, *self._sample().others(name, uri)]))

    def _gives(self, uri: str) -> bool:
        """Whether an address can be read at this moment."""
        try:
            with retry_limit(0):
                if split_uri(uri, signed=True)[0] in S3:
                    fs, path = locate(split_member(uri)[0], signed=True)
                    bucket, key, _ = fs.split_path(path)
                    with_retries(fs, fs.call_s3, "head_object", Bucket=bucket, Key=key)
                else:
                    read_bytes(uri, self.access)
        except (OSError, ValueError):
            return False
        return True

    def _sample(self) -> Sample:
        return Sample() if self.output is None else sample_manifest(self.output)


def _missing() -> ImageError:
    return ImageError("not_found", "there is no file at the image's uri")


def _refuse_missing(error: OSError) -> None:
    if isinstance(error, NO_FILE) or error.errno in NO_FILE_CODES:
        raise _missing() from error


def _refuse_final(error: OSError | ValueError) -> None:
    """Raise an ImageError for what a store says of one address."""
    code = error_code(error)
    if code == BAD_ADDRESS:
        raise ImageError("not_readable", "the image's uri is no address") from error
    if isinstance(error, OSError) and code in FINAL_CODES and code != UNAUTHORISED:
        words = f"the store does not give this image out ({code})"
        raise ImageError("not_readable", words) from error


def _bucket_of(uri: str) -> str:
    return split_uri(uri, signed=True)[1].partition("/")[0]


def _store_name(uri: str) -> str:
    try:
        protocol, _ = split_uri(uri, signed=True)
    except ValueError:
        return ""
    if protocol in WEB:
        return store_of(uri)
    return f"s3://{_bucket_of(uri)}" if protocol in S3 else ""


def _spread(items: list[str], count: int) -> list[str]:
    """At most so many of some items, at even distances."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


@lru_cache(maxsize=2)
def sample_manifest(output: Folder) -> Sample:
    """Addresses in a few parts of a run's manifest, spread over it."""
    names = layout.manifest(output).names(PART_SUFFIX)
    sample = Sample()
    for name in _spread(names, SAMPLE_PARTS):
        for uri in (row["uri"] for row in read_part(output, name) if row["uri"]):
            store = _store_name(uri)
            sample.counts[store] += 1
            sample.uris.setdefault(store, []).append(uri)
    return sample
