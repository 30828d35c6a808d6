"""A file's bytes to pixels: the header is read, Pillow decodes, samples become RGB."""

import dataclasses
import io
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from saff.arrays import AnyArray, Image
from saff.images.blame import blame
from saff.images.boxes import decode_heic
from saff.images.directories import read_orientation
from saff.images.file import (
    DEFAULT_MAX_PIXELS,
    PictureFile,
    check_size,
    truncated,
    unsupported,
)
from saff.images.headers import read_header
from saff.images.jpeg import CONTINUATIONS
from saff.images.samples import Samples, stored_samples, to_rgb


def read(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """Read and decode a local image file.

    Parameters
    ----------
    path : str or os.PathLike
        The file; its extension does not matter.
    max_pixels : int
        As in :func:`decode`.

    Returns
    -------
    image : uint8 array of shape (H, W, 3)
        As from :func:`decode`.

    Raises
    ------
    OSError
        If the file cannot be read: not the image's fault.
    ImageError
        As from :func:`decode`.
    """
    return decode(Path(path).read_bytes(), max_pixels=max_pixels)


def decode(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """Decode a file of a picture as a person would see it.

    Parameters
    ----------
    data : bytes
        The whole file.
    max_pixels : int
        Images that announce more pixels are refused before they are decoded.

    Returns
    -------
    image : uint8 array of shape (H, W, 3)
        RGB in [0, 255], EXIF orientation applied, C-contiguous, writable, owned by the caller.

    Raises
    ------
    ImageError
        If the image is at fault; ``kind`` says how. No bytes raise anything else, except
        ``MemoryError``: below ``max_pixels``, too little memory is the machine's fault.
    """
    file = read_header(data, max_pixels)
    with blame(file):
        picture = load(file, max_pixels)
        rgb = to_rgb(file, picture)
    return np.require(_UPRIGHT[_orientation(file, picture)](rgb), np.uint8, ["C", "W", "O"])


def read_samples(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Samples:
    """Read the samples of a mask as they are stored: class 15 of a 4 bit PNG is 15.

    Parameters
    ----------
    data : bytes
        The whole file.
    max_pixels : int
        As in :func:`decode`.

    Returns
    -------
    samples : Samples
        The values with their meaning; EXIF orientation applied, as :func:`decode` does, so that a
        mask fits the image that carries the same tag. A TIFF file in which white is zero is
        turned round, so that 0 is black in all of them.

    Raises
    ------
    ImageError
        As from :func:`decode`; ``unsupported`` for CMYK and Lab samples, which are no RGB, and
        for AVIF and HEIC, which are lossy.

    Examples
    --------
    >>> from saff.images import encode_png
    >>> samples = read_samples(encode_png(np.eye(2, dtype=np.uint16) * 300))
    >>> samples.mode, samples.bits, samples.values.tolist(), samples.alpha
    ('grey', 16, [[300, 0], [0, 300]], None)
    """
    file = read_header(data, max_pixels)
    if file.format in ("AVIF", "HEIC"):
        raise unsupported(
            f"a mask in an {file.format} file, whose samples are not exact",
            "PNG, TIFF, BMP, GIF, WebP, JPEG 2000 or JPEG data",
        )
    with blame(file):
        picture = load(file, max_pixels)
        samples = stored_samples(file, picture)
    upright = _UPRIGHT[file.orientation]
    values = np.ascontiguousarray(upright(samples.values))
    alpha = None if samples.alpha is None else np.ascontiguousarray(upright(samples.alpha))
    return dataclasses.replace(samples, values=values, alpha=alpha, several=file.several)


def load(file: PictureFile, max_pixels: int) -> PIL.Image.Image:
    """Decode all pixels of the first picture, in whatever mode Pillow finds natural."""
    picture = _decode(file, file.data, max_pixels)
    for more in CONTINUATIONS if file.endless else ():
        other = _decode(file, file.endless + more, max_pixels)
        if not np.array_equal(np.asarray(picture), np.asarray(other)):
            raise truncated(file.format)
    if file.format == "BMP" and picture.mode == "RGBA" and not picture.getchannel("A").getbbox():
        return picture.convert("RGB")  # most programs write zeros where they mean no alpha
    return picture


def _decode(file: PictureFile, data: bytes, max_pixels: int) -> PIL.Image.Image:
    if file.format == "HEIC":
        return decode_heic(data, max_pixels)
    picture = _DECODERS[file.format](io.BytesIO(data))
    check_size(*picture.size, max_pixels)  # should Pillow see another size than the reader
    if file.format == "TIFF":  # given its pixels, Pillow does not check a limit of its own
        picture.im = PIL.Image.new(picture.mode, picture.size).im
    picture.load()
    return picture


def _orientation(file: PictureFile, picture: PIL.Image.Image) -> int:
    """Orientation of the pixels: Pillow gives that of an AVIF file's boxes as EXIF."""
    if file.format == "AVIF":
        return read_orientation(picture.info.get("exif", b""))
    return file.orientation


# Not through PIL.Image.open: it warns of sizes by a limit that is global to the process.
_DECODERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
}


_UPRIGHT: dict[int, Callable[[AnyArray], AnyArray]] = {
    1: lambda image: image,
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.flip(image, -1),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.flip(cv2.transpose(image), -1),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
"""EXIF orientation to what brings the stored rows and columns upright."""
