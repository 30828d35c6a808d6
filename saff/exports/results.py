"""One stored row as an export shows it: its mask, its confidence, its photograph."""

from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np

from saff.addresses import redact
from saff.arrays import AnyArray
from saff.errors import ImageError
from saff.images.signatures import name_format
from saff.pictures import mask_from
from saff.rows import has_foreground, levels_of
from saff.shards import Row

LABEL = "foreground"  # the one category of every annotation file
EXTENSIONS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WebP": "webp",
    "BMP": "bmp",
    "TIFF": "tif",
    "GIF": "gif",
    "AVIF": "avif",
    "JPEG 2000": "jp2",
    "HEIC": "heic",
}
"""Extension of a photograph's file, by the format that its content has."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides an annotation beside the row.

    Attributes
    ----------
    threshold : float
        Confidence in [0, 1] from which a pixel is foreground.
    smallest : int
        Pixels of the smallest connected part that becomes an object.
    url_prefix : str
        What stands before an image's id in files that name photographs by their address; empty:
        the address from which the run read the image.
    """

    threshold: float = 0.5
    smallest: int = 1
    url_prefix: str = ""


@dataclass(frozen=True)
class Result:
    """A row that has a result.

    Attributes
    ----------
    row : dict
        With ``image_id``, ``uri``, ``sha256``, ``height``, ``width``, ``confidence``,
        ``pseudo_label``, ``quality``.
    stem : str
        Name of its files without their extension; no other image of the export has it.
    settings : Settings
        Threshold and the like.
    photograph : bytes
        The photograph's file as it is; empty where the format needs none.
    columns : dict
        Further columns of the list of images that the run keeps.
    """

    row: Row
    stem: str
    settings: Settings = Settings()
    photograph: bytes = b""
    columns: Row = field(default_factory=dict)

    @property
    def image_id(self) -> str:
        """Id of the image."""
        return str(self.row["image_id"])

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.row["height"], self.row["width"]

    @property
    def quality(self) -> float | None:
        """How far the mask can be trusted, in [0, 1], rounded; None in runs without it."""
        quality = self.row.get("quality")
        return None if quality is None else round(quality, 4)

    @cached_property
    def mask(self) -> AnyArray:
        """Foreground, bool (H, W); empty where the network found none.

        Raises
        ------
        StorageError
            If the stored map is damaged, or not of the size of its row.
        """
        confidence = levels_of(self.row)
        if confidence.shape != self.shape:
            raise ValueError(f"its map is of shape {confidence.shape}, its row says {self.shape}")
        found: AnyArray = mask_from(confidence, self.settings.threshold) & has_foreground(self.row)
        return found

    @property
    def mask_png(self) -> bytes:
        """The mask as a PNG file of 0 and 255."""
        _, data = cv2.imencode(".png", self.mask.view(np.uint8) * np.uint8(255))
        return data.tobytes()

    @property
    def url(self) -> str:
        """Address of the photograph, without what must not be repeated."""
        prefix = self.settings.url_prefix
        return f"{prefix}{self.image_id}" if prefix else redact(self.row["uri"])

    @property
    def extension(self) -> str:
        """Extension of the photograph's file, by its content."""
        try:
            return EXTENSIONS[name_format(self.photograph)]
        except ImageError as error:
            raise ValueError(f"its photograph is no image: {error}") from error
