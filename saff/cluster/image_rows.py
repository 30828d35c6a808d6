"""One image to its row, whatever the stage: what is wrong with the image is in the row."""

import errno
import hashlib
import os
from collections.abc import Callable
from urllib.parse import urlsplit

import pyarrow as pa

from saff import images
from saff.addresses import is_local, locate
from saff.arrays import Image
from saff.cluster.faults import is_system_fault
from saff.images import ImageError
from saff.retries import BAD_ADDRESS, FINAL_CODES, UNAUTHORISED, error_code
from saff.shards import Row
from saff.storage import NO_FILE, read_bytes

LARGEST_FILE = 2 * 2**30  # bytes; no image of max_pixels is larger
NO_FILE_CODES = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)  # links in a circle, sockets


def image_row(
    manifest_row: Row, schema: pa.Schema, max_pixels: int, work: Callable[[Image], Row]
) -> Row:
    """Make an image's row of a stage; an image that is at fault gives a row that says so.

    Parameters
    ----------
    manifest_row : dict
        ``image_id`` and ``uri``.
    schema : pyarrow.Schema
        Columns of the row.
    max_pixels : int
        Images whose header announces more are refused.
    work : callable
        From the image to the columns that the stage adds.

    Returns
    -------
    row : dict
        ``error`` and ``error_kind`` are None or tell what is wrong with the image.

    Raises
    ------
    OSError, MemoryError, SettingsError
        If the storage fails, or this machine cannot do the work: not the image's fault.
    """
    row, image = open_image(manifest_row, schema, max_pixels)
    return row if image is None else row | guarded(work, image)


def begin_row(manifest_row: Row, schema: pa.Schema) -> Row:
    """Give a row of a stage of which only the image is known."""
    names = ("image_id", "uri")
    return dict.fromkeys(schema.names) | {name: manifest_row[name] for name in names}


def open_image(manifest_row: Row, schema: pa.Schema, max_pixels: int) -> tuple[Row, Image | None]:
    """Read an image and begin its row; without an image, the row says what is wrong with it."""
    row = begin_row(manifest_row, schema)
    try:
        data = _read(row["uri"])
        row["sha256"] = hashlib.sha256(data).hexdigest()
        image = images.decode(data, max_pixels=max_pixels)
    except ImageError as error:
        return row | {"error": str(error), "error_kind": error.kind}, None
    row["height"], row["width"] = image.shape[:2]
    return row, image


def guarded(work: Callable[[Image], Row], image: Image) -> Row:
    """Do the work; nothing an image holds may end a job, so a defect of ours is its error."""
    try:
        return work(image)
    except Exception as error:
        if is_system_fault(error):
            raise
        text = f"labeling failed: {type(error).__name__}: {error}"
        plain = text.encode("utf-8", "backslashreplace").decode()  # half surrogate pairs
        return {"error": plain, "error_kind": "labeling_failed"}


def _read(uri: str) -> bytes:
    """Read an image's bytes; only what is wrong with this one file is an ImageError."""
    fs, path = locate(uri, signed=True)
    try:
        urlsplit(uri)
    except ValueError as error:
        raise ImageError("not_readable", "the image's uri is no address") from error
    try:
        if is_local(fs) and (size := os.stat(path).st_size) > LARGEST_FILE:
            raise ImageError("not_an_image", f"a file of {size:,} bytes is no image")
        return read_bytes(uri)
    except OSError as error:
        if isinstance(error, NO_FILE) or error.errno in NO_FILE_CODES:
            raise ImageError("not_found", "there is no file at the image's uri") from error
        if isinstance(error, PermissionError) and is_local(fs):
            raise ImageError("not_readable", "no right to read the image's file") from error
        code = error_code(error)
        if code in FINAL_CODES and code != UNAUTHORISED:
            why = f"the store does not give this image out ({code})"
            raise ImageError("not_readable", why) from error
        raise  # an object store refuses credentials, not single images
    except ValueError as error:
        if error_code(error) != BAD_ADDRESS:
            raise
        raise ImageError("not_readable", "the image's uri is no address") from error
