"""What a stored row holds: its maps, and the image that it was made from."""

import hashlib

from saff import images
from saff.arrays import AnyArray, Image
from saff.errors import StorageError
from saff.shards import Row
from saff.storage import read_bytes


def original(row: Row) -> Image | None:
    """Image of a labelled row, or None where its file is gone or not the one that was labelled."""
    try:
        data = read_bytes(row["uri"])
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
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
            f"the {column} of {row['image_id']} is damaged ({error}); saff verify names its shard: "
            "remove that, and the job that made it makes it again"
        ) from error
