"""What a stored row holds: its maps, and the image that it was made from."""

import errno
import hashlib
from collections.abc import Iterator

import numpy as np

from saff import images
from saff.access import ANYTHING, Access
from saff.arrays import AnyArray, Image
from saff.errors import SettingsError, StorageError
from saff.layout import PART_SUFFIX, ROUND_LABELS, Stage
from saff.runs import read_run
from saff.shards import Row, read_all_rows
from saff.storage import NO_FILE, Folder, read_bytes


def rows_of(output: Folder, stage: str, columns: list[str] | None = None) -> Iterator[Row]:
    """Rows of a stage, part by part.

    Raises
    ------
    SettingsError
        If the output is no run, or the stage holds nothing yet.
    """
    names = parts_of(output, stage)
    return (row for name in names for row in read_all_rows(output / stage, name, columns))


def parts_of(output: Folder, stage: str) -> list[str]:
    """Names of the parts of a stage; errors as of :func:`rows_of`."""
    read_run(output)
    names = (output / stage).names(PART_SUFFIX)
    if not names:
        raise SettingsError(f"{output.uri} has no {stage} yet; run that job first")
    return names


def with_answer(columns: list[str], stage: str) -> list[str]:
    """Columns of a stage to read, and whether an image has any foreground where a row says so.

    Examples
    --------
    >>> with_answer(["confidence"], "pseudo_labels"), with_answer(["confidence"], "predictions")
    (['confidence'], ['confidence', 'foreground_found'])
    """
    of_network = stage.rpartition("/")[2] in (Stage.PREDICTIONS, ROUND_LABELS)
    return [*columns, "foreground_found"] if of_network else columns


def has_foreground(row: Row) -> bool:
    """Whether a row's mask may hold foreground: False where a network found none."""
    return row.get("foreground_found") is not False


def levels_of(row: Row) -> AnyArray:
    """Confidence map of a row, or its mask as 0 and 255 where the run keeps no more of it."""
    if row["confidence"] is not None:
        return decode_map(row, "confidence")
    levels: AnyArray = decode_map(row, "pseudo_label") * np.uint8(255)
    return levels


def original(row: Row, access: Access = ANYTHING) -> Image | None:
    """Image of a labelled row, or None where its file is gone or not the one that was labelled."""
    try:
        data = read_bytes(row["uri"], access)
    except OSError as error:
        if isinstance(error, NO_FILE) or error.errno == errno.ELOOP:  # links in a circle
            return None
        raise
    if row["sha256"] != hashlib.sha256(data).hexdigest():
        return None
    return images.decode(data, max_pixels=row["height"] * row["width"])


def decode_map(row: Row, column: str) -> AnyArray:
    """Decode one of a row's maps; as large as its image, whatever limit the run had.

    Raises
    ------
    StorageError
        If it is damaged: no fault of the image, but of what is stored.
    """
    try:
        return images.decode_png(row[column], max_pixels=row["height"] * row["width"])
    except images.ImageError as error:
        raise StorageError(
            f"the {column} of {row['image_id']} is damaged ({error}); saff verify names the part; "
            "remove that file and run its job again"
        ) from error
