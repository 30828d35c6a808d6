"""One image to its row, whatever the stage: what is wrong with the image is in the row."""

import hashlib
from collections.abc import Callable

import pyarrow as pa

from saff import images
from saff.arrays import Image
from saff.cluster.faults import is_system_fault
from saff.cluster.image_reading import ImageReader
from saff.images import ImageError
from saff.shards import Row

ALONE = ImageReader()  # of an image that a caller names, with no others beside it
LABELING, INFERENCE = "labeling", "inference"  # a defect's error_kind is labeling_failed, ...


def image_row(
    manifest_row: Row,
    schema: pa.Schema,
    max_pixels: int,
    work: Callable[[Image], Row],
    reader: ImageReader = ALONE,
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
    reader : ImageReader
        Reads its file.

    Returns
    -------
    row : dict
        ``error`` and ``error_kind`` are None or tell what is wrong with the image.

    Raises
    ------
    OSError, MemoryError, SettingsError
        If the storage fails, or this machine cannot do the work: not the image's fault.
    """
    row, image = open_image(manifest_row, schema, max_pixels, reader)
    return row if image is None else row | run_on_image(work, image)


def begin_row(manifest_row: Row, schema: pa.Schema) -> Row:
    """Give a row of a stage of which only the image is known."""
    names = ("image_id", "uri")
    return dict.fromkeys(schema.names) | {name: manifest_row[name] for name in names}


def open_image(
    manifest_row: Row, schema: pa.Schema, max_pixels: int, reader: ImageReader = ALONE
) -> tuple[Row, Image | None]:
    """Read an image and begin its row; without an image, the row says what is wrong with it."""
    row = begin_row(manifest_row, schema)
    try:
        data = reader.read(row["uri"])
        row["sha256"] = hashlib.sha256(data).hexdigest()
        image = images.decode(data, max_pixels=max_pixels)
    except ImageError as error:
        return row | {"error": str(error), "error_kind": error.kind}, None
    row["height"], row["width"] = image.shape[:2]
    return row, image


def run_on_image(work: Callable[[Image], Row], image: Image, doing: str = LABELING) -> Row:
    """Run a stage's work on an image; no image may end a job, so a defect of ours is its error.

    Parameters
    ----------
    work : callable
        From the image to the columns that the stage adds.
    image : uint8 array of shape (H, W, 3)
        RGB.
    doing : str
        What the work is, :data:`LABELING` or :data:`INFERENCE`; names the kind of its failure.
    """
    try:
        return work(image)
    except Exception as error:
        if is_system_fault(error):
            raise
        text = f"{doing} failed: {type(error).__name__}: {error}"
        plain = text.encode("utf-8", "backslashreplace").decode()  # half surrogate pairs
        return {"error": plain, "error_kind": f"{doing}_failed"}
