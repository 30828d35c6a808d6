"""Bytes to RGB array; every refusal has a name.

A corpus of millions of files holds web pages called ``cat.jpg``, half downloads, scans with 16 bit
samples and photographs that only their EXIF tag turns upright. :func:`decode` gives the picture as
a person would see it, or an :class:`ImageError` whose ``kind`` can be counted, in four steps:

1. The first bytes name the format; extensions are never looked at.
2. A reader for that format finds the announced size and the EXIF orientation before anything is
   decoded. It also cuts out comments, thumbnails, colour profiles and animation: a broken comment
   must not cost a photograph, and Pillow's warnings cannot be silenced for one thread alone.
3. Pillow decodes what is left. Accepted is a file with every pixel of its first picture.
4. The samples become 8 bit RGB.

Where formats leave a choice: of several frames or pages the first is taken; alpha is composited
over white, because transparent pixels carry arbitrary colours; 16 bit samples are divided by 257
and rounded, never clipped; colour profiles are ignored (CMYK is converted without one); orientation
is EXIF's, XMP's is ignored.

:func:`encode_png` and :func:`decode_png` are for the maps that storage keeps: exact, 8 or 16 bit.
"""

import contextlib
import dataclasses
import io
import operator
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import PIL.Image
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from saff.arrays import AnyArray, Image

DEFAULT_MAX_PIXELS = 100_000_000
"""Most pixels an image may announce: 300 MB as RGB, more than cameras have."""

_EXPECTED = "expected JPEG, PNG, WebP, BMP, TIFF or GIF data"


class ImageError(ValueError):
    """An image that cannot be used, through its own fault.

    Parameters
    ----------
    kind : str
        One of ``empty``, ``not_an_image`` (a web page, text, an archive, ...), ``unsupported`` (a
        picture, but of a format or variant that is not read), ``truncated``, ``corrupt``,
        ``no_pixels`` and ``too_many_pixels``.
    message : str
        What came, what was expected and what to do; the same on every run.

    Examples
    --------
    >>> try:
    ...     decode(b"")
    ... except ImageError as error:
    ...     print(error.kind)
    empty
    """

    kind: str

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.kind, str(self))


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
    """Decode a JPEG, PNG, WebP, BMP, TIFF or GIF file as a person would see it.

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
    file = _inspect(data, max_pixels)
    with _blame(file):
        picture = _load(file, max_pixels)
        if file.deep_colour:
            rgb = _from_deep_colour(file)
        elif picture.mode.startswith("I"):  # 16 bit grey: "I;16", "I;16B" or, in old Pillow, "I"
            rgb = _from_deep_grey(file, picture)
        else:
            rgb = _from_pillow(picture)
    return np.require(_UPRIGHT[file.orientation](rgb), np.uint8, ["C", "W", "O"])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """The numbers that a file stores for its pixels, never scaled, and what they mean."""

    format: str
    """``PNG``, ``TIFF``, ``BMP``, ``GIF``, ``WebP`` or ``JPEG``; JPEG and most WebP are lossy."""
    mode: Literal["grey", "palette", "colour"]
    """What ``values`` are: levels from black to white, indices into ``palette``, or RGB."""
    bits: int
    """Bits per value, 1 to 16: values lie in 0 .. 2**bits - 1."""
    values: AnyArray
    """uint8 or, above 8 bits, uint16: (H, W), or (H, W, 3) for colour. 0 is black."""
    palette: AnyArray | None = None
    """uint8 (N, 3), RGB; an index may lie beyond it in a damaged file."""
    alpha: AnyArray | None = None
    """uint8 or uint16 (H, W) if the file has transparency: 0 is clear, the type's maximum opaque.
    A transparent palette entry or colour key counts as well."""


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
        As from :func:`decode`; ``unsupported`` for CMYK and Lab samples, which are no RGB.

    Examples
    --------
    >>> samples = read_samples(encode_png(np.eye(2, dtype=np.uint16) * 300))
    >>> samples.mode, samples.bits, samples.values.tolist(), samples.alpha
    ('grey', 16, [[300, 0], [0, 300]], None)
    """
    file = _inspect(data, max_pixels)
    with _blame(file):
        picture = _load(file, max_pixels)
        samples = _deep_samples(file) if file.deep_colour else _stored_samples(file, picture)
    upright = _UPRIGHT[file.orientation]
    values = np.ascontiguousarray(upright(samples.values))
    alpha = None if samples.alpha is None else np.ascontiguousarray(upright(samples.alpha))
    return dataclasses.replace(samples, values=values, alpha=alpha)


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
    file = _inspect(data, max_pixels)
    if file.format != "PNG":
        raise ImageError("unsupported", f"map is a {file.format} file; expected PNG")
    if (file.depth, file.colour) not in ((8, 0), (16, 0), (8, 2)):
        raise ImageError(
            "unsupported",
            f"map is a PNG of bit depth {file.depth} and colour type {file.colour}; "
            "expected 8 or 16 bit grey or 8 bit RGB",
        )
    with _blame(file):
        samples = np.array(_load(file, max_pixels))
    return samples.astype(np.uint16, copy=False) if file.depth == 16 else samples


# ---- 1. The first bytes name the format ----------------------------------------------------------


class _File(NamedTuple):
    """What a reader finds without decoding."""

    format: str
    data: bytes
    """The file without its metadata."""
    width: int
    height: int
    whole: bool = True
    """False if the file ends before its format says it does."""
    orientation: int = 1
    """EXIF orientation, 1 .. 8."""
    depth: int = 8
    """Bits per sample (PNG, TIFF, BMP)."""
    colour: int = 0
    """PNG colour type or TIFF photometric interpretation."""
    deep_colour: bool = False
    """16 bit samples in several channels, of which Pillow would drop the lower 8 bits."""
    key: tuple[int, ...] = ()
    """The level or colour of a PNG that is transparent."""


_SIGNATURES = {
    b"\xff\xd8": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"BM": "BMP",
}
_REFUSED = {
    b"%PDF": ("unsupported", "a PDF document"),
    b"%!PS": ("unsupported", "a PostScript document"),
    b"\xc5\xd0\xd3\xc6": ("unsupported", "a PostScript document"),
    b"MM\0+": ("unsupported", "a big-endian BigTIFF file"),  # Pillow takes its offsets for 32 bit
    b"8BPS": ("unsupported", "a Photoshop document"),
    b"\0\0\1\0": ("unsupported", "an icon file"),
    b"\0\0\0\x0cjP  ": ("unsupported", "a JPEG 2000 file"),
    b"\xff\x4f\xff\x51": ("unsupported", "a JPEG 2000 file"),
    b"\0\0\0\x0cJXL ": ("unsupported", "a JPEG XL file"),
    b"\xff\x0a": ("unsupported", "a JPEG XL file"),
    b"PK\3\4": ("not_an_image", "a ZIP archive"),
    b"\x1f\x8b": ("not_an_image", "a gzip archive"),
}
_BRANDS = {b"avif": "an AVIF file", b"avis": "an AVIF file", b"mif1": "a HEIF file"}
_BRANDS |= dict.fromkeys((b"heic", b"heix", b"hevc", b"msf1"), "a HEIC file")


def _inspect(data: bytes, max_pixels: int) -> _File:
    """Name the format, find size and orientation, cut out metadata; check the size."""
    name = _format(data)
    try:
        file = _READERS[name](data)
    except (struct.error, IndexError, OverflowError) as error:  # the header points past the end
        raise _truncated(name) from error
    _check_size(file.width, file.height, max_pixels)
    return file


def _format(data: bytes) -> str:
    if not data:
        raise ImageError("empty", f"image is empty: 0 bytes; {_EXPECTED}")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature) and not (name == "BMP" and data[15:18].strip(b"\0")):
            return name  # a BMP's header has fewer than 256 bytes; other text may start with BM
    kind, what = _describe(data)
    raise ImageError(kind, f"image is {what}; {_EXPECTED}")


def _describe(data: bytes) -> tuple[str, str]:
    """Say in words what bytes that are no image are."""
    for signature, refusal in _REFUSED.items():
        if data.startswith(signature):
            return refusal
    if data[4:8] == b"ftyp":
        brand = _BRANDS.get(data[8:12])
        return ("unsupported", brand) if brand else ("not_an_image", "a video or audio file")
    head = data[:1024]
    if not head.strip(b"\0"):
        return "not_an_image", "zeros"
    if all(byte >= 32 or byte in b"\t\n\f\r" for byte in head):
        lower = head.lower()
        if b"<svg" in lower:
            return "unsupported", "an SVG drawing"
        if b"<html" in lower or b"<!doctype html" in lower:
            return "not_an_image", "an HTML page"
        return "not_an_image", "text"
    return "not_an_image", "data of no known format"


def _check_size(width: int, height: int, max_pixels: int) -> None:
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


def _unsupported(what: str, expected: str) -> ImageError:
    return ImageError("unsupported", f"image is {what}; expected {expected}, convert it")


def _truncated(name: str) -> ImageError:
    return ImageError(
        "truncated",
        f"image is a truncated {name} file: it ends before its last pixel; "
        "expected a whole file, fetch it again",
    )


def _corrupt(name: str, reason: str) -> ImageError:
    return ImageError(
        "corrupt",
        f"image is a damaged or unusual {name} file: {reason}; "
        "expected one that Pillow decodes, fetch or save it again",
    )


# ---- 2. A reader per format ----------------------------------------------------------------------


def _read_jpeg(data: bytes) -> _File:
    """Keep the segments a decoder needs: tables, frame, scans, JFIF (APP0) and Adobe (APP14)."""
    kept = [data[:2]]
    width = height = depth = 0
    orientation = 1
    position = 2
    while True:
        position = data.find(b"\xff", position)
        if position < 0:
            raise _truncated("JPEG")
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # no length follows
            position += 2
            continue
        if marker == 0xDA:  # start of the first scan; from here on everything is picture
            break
        if marker == 0xD9:
            raise _corrupt("JPEG", "it has no picture")
        (length,) = struct.unpack_from(">H", data, position + 2)
        if length < 2:
            raise _corrupt("JPEG", "a segment's length is wrong")
        segment = data[position : position + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and not depth:  # frame
            depth, height, width = struct.unpack_from(">BHH", segment, 4)
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0" and orientation == 1:
            orientation = _exif_orientation(segment[4:])
        if marker == 0xEE or not (0xE1 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
        position += 2 + length
    if depth == 0:
        raise _corrupt("JPEG", "it has no frame header")
    if depth != 8:
        raise _unsupported(f"a JPEG file of {depth} bit samples", "8 bit samples")
    kept.append(data[position:])
    whole = data.find(b"\xff\xd9", position) >= 0  # cannot occur inside a scan
    return _File("JPEG", b"".join(kept), width, height, whole, orientation)


def _read_png(data: bytes) -> _File:
    """Keep the critical chunks and transparency, once their checksums are seen to be right."""
    first, width, height, depth, colour = struct.unpack_from(">4sIIBB", data, 12)
    if first != b"IHDR":
        raise _corrupt("PNG", "its first chunk is not IHDR")
    view = memoryview(data)
    kept = [view[:8]]
    key: tuple[int, ...] = ()
    orientation = 1
    position = 8
    whole = False
    while not whole and position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length  # length, name, body, checksum
        critical = not name[0] & 0x20  # a capital letter
        if critical or name in (b"tRNS", b"eXIf"):
            if end <= len(data):
                (checksum,) = struct.unpack_from(">I", data, end - 4)
                if zlib.crc32(view[position + 4 : end - 4]) != checksum:
                    raise _corrupt("PNG", "the checksum of a chunk is wrong")
            if name == b"eXIf":
                orientation = _exif_orientation(data[position + 8 : end - 4])
            else:
                kept.append(view[position:end])
            channels = {0: 1, 2: 3}.get(colour, 0)
            if name == b"tRNS" and channels and length >= 2 * channels and end <= len(data):
                key = struct.unpack_from(f">{channels}H", data, position + 8)
        whole = name == b"IEND" and end <= len(data)
        position = end
    deep = depth == 16 and colour != 0
    data = b"".join(kept)
    return _File("PNG", data, width, height, whole, orientation, depth, colour, deep, key)


def _read_webp(data: bytes) -> _File:
    """Find the canvas and the EXIF chunk; the rest does not disturb the decoder."""
    (size,) = struct.unpack_from("<I", data, 4)
    sides: tuple[int, ...] = ()
    orientation = 1
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        body = position + 8
        if name == b"EXIF":
            orientation = _exif_orientation(data[body : body + length])
        elif sides:
            pass
        elif name == b"VP8X":
            canvas = struct.unpack_from("<3s3s", data, body + 4)
            sides = tuple(1 + int.from_bytes(side, "little") for side in canvas)
        elif name == b"VP8 ":
            sides = tuple(side & 0x3FFF for side in struct.unpack_from("<HH", data, body + 6))
        elif name == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, body + 1)
            sides = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        position = body + length + length % 2
    if not sides:
        raise _truncated("WebP") if len(data) < size + 8 else _corrupt("WebP", "it has no picture")
    width, height = sides
    return _File("WebP", data, width, height, len(data) >= size + 8, orientation)


def _read_bmp(data: bytes) -> _File:
    size, _, _, header = struct.unpack_from("<IIII", data, 2)
    layout = "<HHHH" if header == 12 else "<iiHH"
    width, height, _, depth = struct.unpack_from(layout, data, 18)
    whole = len(data) >= size
    return _File("BMP", data, width, abs(height), whole, depth=depth if depth in (1, 4) else 8)


def _read_gif(data: bytes) -> _File:
    """Walk the blocks as far as the first frame, which may exceed the screen."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _gif_palette_size(flags)
    while data[position] == 0x21:  # an extension
        position = _gif_blocks_end(data, position + 2)
    if data[position] != 0x2C:
        raise _corrupt("GIF", "it has no frame")
    left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, position + 1)
    width, height = max(width, left + columns), max(height, top + rows)
    try:
        _gif_blocks_end(data, position + 11 + _gif_palette_size(flags))
    except IndexError:
        return _File("GIF", data, width, height, whole=False)
    return _File("GIF", data, width, height)


def _gif_palette_size(flags: int) -> int:
    return 3 * 2 ** (1 + flags % 8) if flags & 0x80 else 0


def _gif_blocks_end(data: bytes, position: int) -> int:
    while data[position]:
        position += 1 + data[position]
    return position + 1


_ORIENTATION = 274
_TIFF_SINGLE = {
    256: "ImageWidth",
    257: "ImageLength",
    259: "Compression",
    262: "PhotometricInterpretation",
    266: "FillOrder",
    277: "SamplesPerPixel",
    278: "RowsPerStrip",
    284: "PlanarConfiguration",
    317: "Predictor",
    322: "TileWidth",
    323: "TileLength",
}
"""Tags that describe pixels and have one value."""
_TIFF_SEVERAL = {258, 338, 339, 320}  # BitsPerSample, ExtraSamples, SampleFormat, ColorMap
_TIFF_SEVERAL |= {273, 279, 324, 325}  # offsets and sizes in bytes: of strips, of tiles
_TIFF_SEVERAL |= {292, 293, 347, *range(512, 522), *range(529, 533)}  # of fax, JPEG and YCbCr
"""Tags that describe pixels and may have several."""
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}
_TIFF_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}


class _Entry(NamedTuple):
    """A line of a TIFF directory: ``values`` is empty unless they are unsigned whole numbers."""

    tag: int
    raw: bytes
    values: tuple[int, ...]


def _tiff_directory(data: bytes) -> tuple[str, bool, int]:
    """Find byte order, whether it is a BigTIFF, and the place of the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] == b"+\0"
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    return order, big, start


def _tiff_entries(data: bytes) -> Iterator[_Entry]:
    """Walk the first directory of a TIFF file, or of an EXIF block, which is a TIFF file inside."""
    order, big, start = _tiff_directory(data)
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    start += 8 if big else 2
    for position in range(start, start + count * entry.size, entry.size):
        tag, kind, number, field = entry.unpack_from(data, position)
        pixels = tag in _TIFF_SINGLE or tag in _TIFF_SEVERAL
        if not (pixels or tag == _ORIENTATION) or kind not in _TIFF_SIZES:
            continue
        size = number * _TIFF_SIZES[kind]
        if size > len(field):  # then the field says where they are
            (offset,) = struct.unpack(order + ("Q" if big else "I"), field)
            field = data[offset : offset + size]
        if size > len(field):
            raise _truncated("TIFF")
        code = _TIFF_WHOLE_NUMBERS.get(kind)
        values = struct.unpack_from(f"{order}{number}{code}", field) if code else ()
        yield _Entry(tag, data[position : position + entry.size], values)


def _read_tiff(data: bytes) -> _File:
    """Keep the first directory and, of its entries, those that describe pixels."""
    kept: dict[int, _Entry] = {}
    for entry in _tiff_entries(data):
        kept.setdefault(entry.tag, entry)
    values = {tag: entry.values for tag, entry in kept.items()}
    for tag, meaning in _TIFF_SINGLE.items():
        if tag in values and len(values[tag]) != 1:
            raise _corrupt("TIFF", f"{meaning} is not one whole number")
    if 256 not in values or 257 not in values:
        raise _corrupt("TIFF", "ImageWidth or ImageLength is missing")
    (width,), (height,) = values[256], values[257]
    (photometric,) = values.get(262, (0,))
    (planes,) = values.get(284, (1,))
    (compression,) = values.get(259, (1,))
    bits = values.get(258) or (1,)
    sample_format = values.get(339) or (1,)
    if not set(bits) <= {1, 2, 4, 8, 16} or set(sample_format) != {1}:
        form = {1: "unsigned", 2: "signed", 3: "floating point"}.get(max(sample_format), "other")
        raise _unsupported(
            f"a TIFF file of {max(bits)} bit {form} samples",
            "1, 2, 4, 8 or 16 bit unsigned samples",
        )
    if compression not in TiffImagePlugin.COMPRESSION_INFO:
        raise _unsupported(
            f"a TIFF file of compression {compression}", "a common one (LZW, deflate, JPEG, ...)"
        )
    deep = max(bits) == 16 and photometric == 2
    if deep and planes == 2:  # neither Pillow nor OpenCV gets these right
        raise _unsupported("a TIFF file of 16 bit colour planes", "interleaved samples")
    # Alpha that is premultiplied or unspecified is left to Pillow: right to one level of 255.
    straight = (2,) * (len(bits) - 3)
    deep = deep and values.get(338, straight) == straight
    offsets, sizes = values.get(273) or values.get(324), values.get(279) or values.get(325)
    ends = map(operator.add, offsets or (), sizes or ())
    whole = max(ends, default=0) <= len(data)

    orientation = _known_orientation(values.get(_ORIENTATION, ()))
    kept.pop(_ORIENTATION, None)  # or Pillow would apply it as well
    order, big, start = _tiff_directory(data)
    if max(bits) == 16 and photometric == 0:  # Pillow knows only black as zero at 16 bit
        black = struct.pack(order + ("HHQH" if big else "HHIH"), 262, 3, 1, 1)
        kept[262] = _Entry(262, black.ljust(20 if big else 12, b"\0"), (1,))
    directory = struct.pack(order + ("Q" if big else "H"), len(kept))
    directory += b"".join(kept[tag].raw for tag in sorted(kept)) + bytes(8 if big else 4)  # no next
    data = data[:start] + directory + data[start + len(directory) :]
    return _File("TIFF", data, width, height, whole, orientation, max(bits), photometric, deep)


def _exif_orientation(exif: bytes) -> int:
    """Find the orientation, 1 .. 8, in an EXIF block; 1 if it is missing or the block is broken."""
    exif = exif.removeprefix(b"Exif\0\0")
    try:
        for entry in _tiff_entries(exif) if exif[:4] in (b"II*\0", b"MM\0*") else ():
            if entry.tag == _ORIENTATION:
                return _known_orientation(entry.values)
    except (ImageError, struct.error, IndexError, OverflowError):
        pass
    return 1


def _known_orientation(values: tuple[int, ...]) -> int:
    return values[0] if len(values) == 1 and values[0] in _UPRIGHT else 1


_READERS: dict[str, Callable[[bytes], _File]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WebP": _read_webp,
    "BMP": _read_bmp,
    "TIFF": _read_tiff,
    "GIF": _read_gif,
}


# ---- 3. Pillow decodes, strictly -----------------------------------------------------------------

# Not through PIL.Image.open: it warns of sizes by a limit that is global to the process.
_DECODERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}


def _load(file: _File, max_pixels: int) -> ImageFile:
    """Decode all pixels of the first picture, in whatever mode Pillow finds natural."""
    picture = _DECODERS[file.format](io.BytesIO(file.data))
    _check_size(*picture.size, max_pixels)  # should Pillow see another size than the reader
    if file.format == "TIFF":  # given its pixels, Pillow does not check a limit of its own
        picture.im = PIL.Image.new(picture.mode, picture.size).im
    picture.load()
    return picture


@contextlib.contextmanager
def _blame(file: _File) -> Iterator[None]:
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
        if not file.whole or "truncated" in str(error).lower():
            raise _truncated(file.format) from error
        reason = str(error) if " " in str(error) else "its parts do not fit together"
        raise _corrupt(file.format, reason) from error


# ---- 4. Samples become 8 bit RGB -----------------------------------------------------------------


def _from_pillow(picture: PIL.Image.Image) -> AnyArray:
    """8 bit samples of any mode, composited over white: (H, W, 3)."""
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        picture = white
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _from_deep_grey(file: _File, picture: PIL.Image.Image) -> AnyArray:
    """16 bit grey, perhaps with one transparent level: (H, W, 3)."""
    samples = np.asarray(picture).astype(np.uint16, copy=False)  # from big-endian or 32 bit
    grey = _to_8_bit(samples)
    if file.format == "TIFF" and file.colour == 0:  # white is zero
        grey = cv2.bitwise_not(grey)
    if "transparency" in picture.info:
        grey[samples == picture.info["transparency"]] = 255
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def _read_deep_colour(file: _File) -> AnyArray:
    """16 bit RGB or RGBA: uint16 (H, W, 3 or 4). Pillow has seen that every pixel is there."""
    if not file.whole:  # OpenCV is stricter than Pillow, and loud about it
        raise _truncated(file.format)
    try:
        samples = cv2.imdecode(np.frombuffer(file.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _corrupt(file.format, "OpenCV cannot read its 16 bit samples") from error
    if samples is None or samples.dtype != np.uint16 or samples.shape[2:] not in ((3,), (4,)):
        raise _corrupt(file.format, "OpenCV cannot read its 16 bit samples")
    code = cv2.COLOR_BGR2RGB if samples.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(samples, code)


def _from_deep_colour(file: _File) -> AnyArray:
    """16 bit RGB, perhaps with alpha: (H, W, 3)."""
    samples = _read_deep_colour(file)
    if samples.shape[2] == 3:
        return _to_8_bit(samples)
    pixels = samples.reshape(-1, 4)
    colours = np.empty((len(pixels), 3), np.uint8)
    for start in range(0, len(pixels), 2**20):  # a part at a time: 32 bit samples are large
        part = pixels[start : start + 2**20].astype(np.uint32)
        alpha = part[:, 3:]
        blend = part[:, :3] * alpha + 65535 * (65535 - alpha)  # at most 65535**2 < 2**32
        colours[start : start + 2**20] = np.round(blend / (65535 * 257))
    return colours.reshape(*samples.shape[:2], 3)


def _stored_samples(file: _File, picture: PIL.Image.Image) -> Samples:
    """Samples of up to 8 bits, and 16 bit grey, as the file has them."""
    if picture.mode in _LIKE_RGB:
        picture = picture.convert(_LIKE_RGB[picture.mode])
    if picture.mode not in _STORED_MODES:
        raise _unsupported(
            f"a {file.format} file of {picture.mode} samples", "grey, palette or RGB samples"
        )
    stored = np.array(picture)
    bits, alpha = file.depth, None
    if picture.mode in ("LA", "PA", "RGBA"):
        stored, alpha = stored[..., :-1], stored[..., -1]
        stored = stored[..., 0] if stored.shape[2] == 1 else stored
    if picture.mode in ("P", "PA"):
        palette = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
        alpha = _palette_alpha(picture, stored) if alpha is None else alpha
        return Samples(
            format=file.format,
            mode="palette",
            bits=bits,
            values=stored,
            palette=palette,
            alpha=alpha,
        )
    if bits == 16:
        stored = stored.astype(np.uint16, copy=False)  # from big-endian or 32 bit
        if file.format == "TIFF" and file.colour == 0:  # white is zero
            stored = ~stored
    elif picture.mode == "1":
        stored, bits = stored.astype(np.uint8), 1
    elif picture.mode == "L" and file.format in ("PNG", "TIFF"):
        stored //= 255 // (2**bits - 1)  # by which Pillow multiplied
    if file.key:
        alpha = _key_alpha(stored, file.key)
    elif file.format == "GIF" and "transparency" in picture.info:
        alpha = _key_alpha(stored, (picture.info["transparency"],))
    mode: Literal["grey", "colour"] = "colour" if stored.ndim == 3 else "grey"
    return Samples(format=file.format, mode=mode, bits=bits, values=stored, alpha=alpha)


_LIKE_RGB = {"La": "LA", "RGBa": "RGBA", "YCbCr": "RGB", "RGBX": "RGB"}
_STORED_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L"}


def _key_alpha(stored: AnyArray, key: tuple[int, ...]) -> AnyArray:
    """Make the one transparent level or colour clear and everything else opaque."""
    clear = (stored.reshape(*stored.shape[:2], -1) == np.array(key)).all(axis=2)
    return np.where(clear, 0, np.iinfo(stored.dtype).max).astype(stored.dtype)


def _palette_alpha(picture: PIL.Image.Image, indices: AnyArray) -> AnyArray | None:
    """Look up the alpha of palette entries: of one clear entry, or of the first few."""
    clear = picture.info.get("transparency")
    if clear is None:
        return None
    levels = np.full(256, 255, np.uint8)
    if isinstance(clear, bytes):
        levels[: len(clear)] = np.frombuffer(clear, np.uint8)[:256]
    else:
        levels[clear] = 0
    return levels[indices]


def _deep_samples(file: _File) -> Samples:
    """16 bit samples of several channels."""
    samples = _read_deep_colour(file)
    colour, alpha = samples[..., :3], samples[..., 3] if samples.shape[2] == 4 else None
    if file.format == "PNG" and file.colour == 4:  # grey and alpha
        return Samples(format="PNG", mode="grey", bits=16, values=colour[..., 0], alpha=alpha)
    return Samples(format=file.format, mode="colour", bits=16, values=colour, alpha=alpha)


def _to_8_bit(samples: AnyArray) -> AnyArray:
    """Divide 16 bit samples by 257 and round: 65535 becomes 255."""
    return cv2.convertScaleAbs(samples, alpha=1 / 257)


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
