"""Whatever a decoder raises becomes the image's own fault, by name."""

import contextlib
from collections.abc import Iterator

import PIL.Image

from saff.errors import ImageError
from saff.images.file import EXPECTED_LAYOUT, PictureFile, corrupt, truncated, unsupported


@contextlib.contextmanager
def blame(file: PictureFile) -> Iterator[None]:
    """Turn whatever a decoder raises into the image's own fault."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ImageError(
            "too_many_pixels",
            f"image announces {file.width} x {file.height} pixels; "
            "expected fewer than PIL.Image.MAX_IMAGE_PIXELS, shrink it or raise that limit",
        ) from error
    except Exception as error:  # plugins raise whatever the bytes lead them to
        if file.format == "TIFF" and isinstance(error, SyntaxError):
            raise unsupported(f"a TIFF file of {file.layout}", EXPECTED_LAYOUT) from error
        if file.format == "BMP" and str(error).startswith("Unsupported BMP"):
            raise unsupported(
                f"a BMP file of an {str(error).lower().replace(' bmp', '', 1)}",
                "1, 4, 8, 16, 24 or 32 bits per pixel, plain or run-length encoded",
            ) from error
        if file.format == "HEIC" and isinstance(error, SyntaxError):
            raise unsupported(
                "a HEIF file of another kind than HEIC", "HEVC or a format that is read"
            ) from error
        if not file.whole or "truncated" in str(error).lower():
            raise truncated(file.format) from error
        reason = " ".join(str(error).split())  # one line
        reason = reason if " " in reason else "its parts do not fit together"
        raise corrupt(file.format, reason) from error
