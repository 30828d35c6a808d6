"""Maps as PNG files, for storage: exact, grey of 8 or 16 bit or RGB of 8 bit."""

import io

import cv2
import numpy as np
import PIL.Image

from saff.arrays import AnyArray
from saff.errors import ImageError
from saff.images.blame import blame
from saff.images.decoding import load
from saff.images.file import DEFAULT_MAX_PIXELS
from saff.images.headers import read_header


def encode_png(array: AnyArray) -> bytes:
    """Write a map as PNG, for :func:`decode_png`; equal arrays give equal bytes.

    Parameters
    ----------
    array : uint8 or uint16 array of shape (H, W), or uint8 array of shape (H, W, 3)
        A grey map of 8 or 16 bit, or an RGB picture.

    Returns
    -------
    data : bytes
        The PNG file.

    Raises
    ------
    ValueError
        If shape or dtype is none of these, or the array has no pixels.
    """
    array = np.asarray(array)
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    if not grey and not (array.shape[2:] == (3,) and array.ndim == 3 and array.dtype == np.uint8):
        raise ValueError(
            "array must be uint8 or uint16 (H, W) or uint8 (H, W, 3), "
            f"got {array.dtype} of shape {array.shape}"
        )
    if array.size == 0:
        raise ValueError(f"array must have at least one pixel, got shape {array.shape}")
    if max(array.shape) > 1_000_000:  # libpng's limit for a side, to which Pillow does not keep
        buffer = io.BytesIO()
        PIL.Image.fromarray(array).save(buffer, "PNG")
        return buffer.getvalue()
    samples = np.ascontiguousarray(array if grey else array[..., ::-1])  # OpenCV writes BGR
    # Runs of differences to the row above: on maps 3x faster than zlib's default, and no larger.
    options = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    options += [19, 32]  # IMWRITE_PNG_FILTER and _UP, names that older OpenCV lacks (and ignores)
    _, encoded = cv2.imencode(".png", samples, options)
    return encoded.tobytes()


def decode_png(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> AnyArray:
    """Read a map written by :func:`encode_png`.

    Parameters
    ----------
    data : bytes
        A PNG of 8 or 16 bit grey or 8 bit RGB samples.
    max_pixels : int
        As in :func:`decode`.

    Returns
    -------
    array : uint8 or uint16 array of shape (H, W), or uint8 array of shape (H, W, 3)
        The samples as they were written, writable.

    Raises
    ------
    ImageError
        If the data is not such a PNG, is damaged or announces too many pixels.
    """
    file = read_header(data, max_pixels)
    if file.format != "PNG":
        raise ImageError("unsupported", f"map is a {file.format} file; expected PNG")
    if (file.depth, file.colour) not in ((8, 0), (16, 0), (8, 2)):
        raise ImageError(
            "unsupported",
            f"map is a PNG of bit depth {file.depth} and colour type {file.colour}; "
            "expected 8 or 16 bit grey or 8 bit RGB",
        )
    with blame(file):
        samples = np.array(load(file, max_pixels))
    return samples.astype(np.uint16, copy=False) if file.depth == 16 else samples
