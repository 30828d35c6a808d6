"""Images inside tar files and Parquet tables, read by byte range and never unpacked.

An address of such an image is that of its file and what lies where in it::

    s3://bucket/train-0000.tar#offset=1536&size=48213
    /data/train-0000.parquet#group=3&row=17&column=image.bytes
"""

import json
import posixpath
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from saff.access import Access, too_large
from saff.errors import SettingsError, UnreadableError
from saff.retries import error_code

TAR, TABLE = ".tar", ".parquet"
PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
IN_TAR = re.compile(r"(.+\.tar)#offset=(\d+)&size=(\d+)", re.IGNORECASE)
IN_TABLE = re.compile(r"(.+\.parquet)#group=(\d+)&row=(\d+)&column=([^#&]+)", re.IGNORECASE)
EXTENSIONS = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif"),
        *("avif", "jp2", "j2k", "jpx", "heic", "heif"),
    )
)
"""Extensions of the files in a tar that are images; what lies beside them is data about them."""
BINARY_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes")
"""Names of columns of bytes that hold images, in the order in which they are looked for."""
HEADER_BYTES = 1 << 16  # read at once for the header of a file in a tar
KEPT_READERS = 2  # tables that a process holds open
ROWS_AT_ONCE = 8
PAST_THE_END = ("InvalidRange", 416)  # what an object store says of bytes that it does not have


class Member(Protocol):
    """A place inside a file."""

    def read(self, fs: Any, path: str, access: Access) -> bytes:
        """Read the image's bytes from that file."""
        ...


@dataclass(frozen=True, slots=True)
class InTar:
    """Bytes of a tar file.

    Attributes
    ----------
    offset, size : int
        Where they begin, and how many they are.
    """

    offset: int
    size: int

    def __str__(self) -> str:
        """What follows the file's own address."""
        return f"#offset={self.offset}&size={self.size}"

    def read(self, fs: Any, path: str, access: Access) -> bytes:
        """Read them in one request."""
        if self.size > access.largest:
            raise too_large(access, self.size)
        try:
            data: bytes = fs.cat_file(path, start=self.offset, end=self.offset + self.size)
        except (OSError, ValueError) as error:
            if error_code(error) not in PAST_THE_END:
                raise
            data = b""
        if len(data) != self.size:
            raise UnreadableError("its tar file ends early, or is not the one that was listed")
        return data


@dataclass(frozen=True, slots=True)
class InTable:
    """A value of a Parquet file.

    Attributes
    ----------
    group, row : int
        Row group, and row in it.
    column : str
        ``"image"``, or ``"image.bytes"`` inside a struct.
    """

    group: int
    row: int
    column: str

    def __str__(self) -> str:
        """What follows the file's own address."""
        return f"#group={self.group}&row={self.row}&column={quote(self.column, safe='.')}"

    def read(self, fs: Any, path: str, access: Access) -> bytes:
        """Read it; images in their order are read without reading any twice."""
        try:
            with _lock:
                value = _reader(fs, path, self).value(self.row)
        except (pa.ArrowException, LookupError, StopIteration) as error:
            _readers.clear()
            reason = str(error) or "it has no such row"
            raise UnreadableError(f"its Parquet file cannot be read: {reason}") from error
        if not isinstance(value, bytes):
            raise UnreadableError("its Parquet file holds no bytes for it")
        if len(value) > access.largest:
            raise too_large(access, len(value))
        return value


def split_member(uri: str) -> tuple[str, Member | None]:
    """Divide an address into that of a file and the place inside it, None for the whole file.

    Examples
    --------
    >>> split_member("/data/a.tar#offset=512&size=9")
    ('/data/a.tar', InTar(offset=512, size=9))
    >>> split_member("/data/cat#1.jpg")
    ('/data/cat#1.jpg', None)
    """
    if found := IN_TAR.fullmatch(uri):
        return found[1], InTar(int(found[2]), int(found[3]))
    if found := IN_TABLE.fullmatch(uri):
        return found[1], InTable(int(found[2]), int(found[3]), unquote(found[4]))
    return uri, None


# Tables that are open


@dataclass(slots=True)
class _Reader:
    """Values of one column of a row group, read forwards a few at a time."""

    open: Callable[[], Iterator[pa.RecordBatch]]
    batches: Iterator[pa.RecordBatch] = field(default_factory=lambda: iter(()))
    first: int = 0
    values: list[Any] = field(default_factory=list)

    def value(self, row: int) -> Any:
        """Value of a row; one before those at hand begins again."""
        if row < self.first or not self.values:
            self.batches, self.first, self.values = self.open(), 0, []
        while row >= self.first + len(self.values):
            self.first += len(self.values)
            self.values = _plain(next(self.batches).column(0))
        return self.values[row - self.first]


_readers: dict[tuple[str, int, str], _Reader] = {}
_lock = threading.Lock()


def _reader(fs: Any, path: str, place: InTable) -> _Reader:
    key = (f"{type(fs).__name__} {path}", place.group, place.column)
    if key not in _readers:
        while len(_readers) >= KEPT_READERS:
            del _readers[next(iter(_readers))]
        _readers[key] = _Reader(lambda: _batches(fs, path, place))
    return _readers[key]


def _batches(fs: Any, path: str, place: InTable) -> Iterator[pa.RecordBatch]:
    with fs.open(path, "rb") as file:
        table = pq.ParquetFile(file)
        yield from table.iter_batches(
            ROWS_AT_ONCE, row_groups=[place.group], columns=[place.column]
        )


def _plain(column: pa.Array) -> list[Any]:
    """Values of a column of bytes, or of the bytes of a struct."""
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise LookupError(f"a column of type {column.type} is none of images")  # nor unpickled
    values: list[Any] = column.to_pylist()
    return values


# What they hold


def list_tar(fs: Any, path: str) -> Iterator[tuple[str, InTar]]:
    """List the images of a tar file by name, with the bytes of each.

    An image is what has an image's extension.  Of files that have all but the extension in common,
    as in a WebDataset, ``KEY.jpg`` is the image and ``KEY.mask.png`` lies beside it.

    Raises
    ------
    SettingsError
        If it is no tar file.
    """
    try:
        with (
            fs.open(path, "rb", block_size=HEADER_BYTES) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            found = list(_images_in(tar))
    except (tarfile.TarError, EOFError) as error:
        raise SettingsError(f"{path} cannot be read as a tar file: {error}") from error
    keys = {key for name, _ in found for key, extension in (_key(name),) if "." not in extension}
    for name, place in found:
        key, extension = _key(name)
        if "." not in extension or key not in keys:
            yield name, place


def _images_in(tar: tarfile.TarFile) -> Iterator[tuple[str, InTar]]:
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # it would remember all
        name = member.name.removeprefix("./")
        if member.isreg() and name.rpartition(".")[2].lower() in EXTENSIONS:
            yield name, InTar(member.offset_data, member.size)


def _key(name: str) -> tuple[str, str]:
    """Key of a sample and extension of one of its files: they meet at the first dot of the name."""
    folder, last = posixpath.split(name)
    key, _, extension = last.partition(".")
    return posixpath.join(folder, key), extension


def list_table(fs: Any, path: str) -> Iterator[tuple[str | None, InTable]]:
    """List the images of a Parquet file, with the id that it gives each; None without ids.

    Raises
    ------
    SettingsError
        If it is no Parquet file, or has no column of images.
    """
    try:
        with fs.open(path, "rb") as file:
            table = pq.ParquetFile(file)
            column = image_column(table.schema_arrow)
            if column is None:
                raise SettingsError(
                    f"{path} has no column of images among {', '.join(table.schema_arrow.names)}; "
                    f"if it is a list of images: --manifest {path}"
                )
            has_ids = "image_id" in table.schema_arrow.names
            for group in range(table.num_row_groups):
                ids = _ids(table, group) if has_ids else iter(lambda: None, 0)
                for row in range(table.metadata.row_group(group).num_rows):
                    yield next(ids), InTable(group, row, column)
    except pa.ArrowException as error:
        raise SettingsError(f"{path} cannot be read as a Parquet file: {error}") from error


def _ids(table: pq.ParquetFile, group: int) -> Iterator[str | None]:
    for batch in table.iter_batches(1024, row_groups=[group], columns=["image_id"]):
        column = batch.column(0)
        if isinstance(column.type, pa.BaseExtensionType):  # it would be unpickled
            raise SettingsError(f"the column image_id is of type {column.type}, expected text")
        yield from (None if value is None else str(value) for value in column.to_pylist())


def image_column(schema: pa.Schema) -> str | None:
    """Column that holds images as files; None if there is none.

    It is the first that a Hugging Face data set calls an ``Image``, one of the name ``image`` first
    of all; without such words, a struct with ``bytes``, or bytes under a name such as ``jpg``.
    """
    pictures = [name for name in _hugging_face_images(schema) if name in schema.names]
    structs = [f.name for f in schema if pa.types.is_struct(f.type) and _has_bytes(f.type)]
    binary = [name for name in BINARY_NAMES if name in schema.names and _is_binary(schema, name)]
    for names in (pictures, structs, binary):
        if names:
            name = "image" if "image" in names else names[0]
            return f"{name}.bytes" if name in structs else name
    return None


def _hugging_face_images(schema: pa.Schema) -> list[str]:
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [name for name, feature in about.items() if feature.get("_type") == "Image"]
    except (LookupError, ValueError, TypeError, AttributeError):
        return []


def _has_bytes(kind: pa.StructType) -> bool:
    return bool("bytes" in kind.names and pa.types.is_binary(kind.field("bytes").type))


def _is_binary(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
