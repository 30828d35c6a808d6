"""What is known of a file before anything is decoded, and the words for what is wrong with it."""

from typing import NamedTuple

from saff.errors import ImageError

DEFAULT_MAX_PIXELS = 100_000_000
"""Most pixels an image may announce: 300 MB as RGB, more than cameras have."""
EXPECTED_LAYOUT = "grey, palette, RGB, YCbCr, Lab or CMYK samples"


class PictureFile(NamedTuple):
    """What a reader finds without decoding."""

    format: str
    data: bytes
    """The file as its decoder gets it: one picture, without metadata."""
    width: int
    height: int
    whole: bool = True
    """False if the file ends before its format says that it does."""
    orientation: int = 1
    """EXIF orientation, 1 .. 8."""
    depth: int = 8
    """Bits per sample (PNG, TIFF, BMP, JPEG 2000)."""
    colour: int = 0
    """PNG colour type or TIFF photometric interpretation."""
    deep_colour: bool = False
    """16 bit samples in several channels, of which Pillow would drop the lower 8 bits."""
    key: tuple[int, ...] = ()
    """The level or colour of a PNG file that is transparent."""
    block: tuple[int, int] = (0, 0)
    """Width and height of the largest piece that is decoded at once, where it may exceed the
    picture: a tile of a TIFF file, a picture before it is cropped."""
    layout: str = ""
    """The samples of a TIFF file in words, should Pillow not know them."""
    several: bool = False
    """Whether other pictures follow the one that is read: pages of TIFF, frames of GIF or PNG."""
    endless: bytes = b""
    """A JPEG file without an end: whole only if nothing that follows changes the picture."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture of no pixels, or of more than the caller allows."""
    if width < 1 or height < 1:
        raise ImageError(
            "no_pixels", f"image announces {width} x {height} pixels; expected at least 1 x 1"
        )
    if width * height > max_pixels:
        raise ImageError(
            "too_many_pixels",
            f"image announces {width} x {height} = {width * height} pixels; "
            f"expected at most max_pixels={max_pixels}, shrink it or raise the limit",
        )


def unsupported(what: str, expected: str) -> ImageError:
    """Name a picture of a format or variant that is not read."""
    return ImageError("unsupported", f"image is {what}; expected {expected}, convert it")


def truncated(name: str) -> ImageError:
    """Name a file that was cut."""
    return ImageError(
        "truncated",
        f"image is a truncated {name} file: it ends before its last pixel; "
        "expected a whole file, fetch it again",
    )


def corrupt(name: str, reason: str) -> ImageError:
    """Name a file that contradicts its own format."""
    return ImageError(
        "corrupt",
        f"image is a damaged or unusual {name} file: {reason}; "
        "expected one that Pillow decodes, fetch or save it again",
    )
