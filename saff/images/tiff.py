"""TIFF files: which of their directories holds the picture, and what a decoder needs of it."""

import itertools
import operator
import struct
from collections.abc import Sequence

from PIL import TiffImagePlugin

from saff.images.directories import (
    ORIENTATION,
    Directory,
    Entry,
    Layout,
    read_directory,
    read_layout,
    walk_directories,
)
from saff.images.file import EXPECTED_LAYOUT, PictureFile, corrupt, truncated, unsupported

_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC = 256, 257, 259, 262
_SUBFILE, _OLD_SUBFILE, _DNG_VERSION = 254, 255, 50706
_SINGLE = {
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
_SEVERAL = {258, 338, 339}  # BitsPerSample, ExtraSamples, SampleFormat
_SEVERAL |= {292, 293, 347, *range(512, 522), *range(529, 533)}  # of fax, JPEG and YCbCr
_MANY = {273, 279, 324, 325, 320}  # offsets and sizes in bytes of strips, of tiles; ColorMap
"""Tags that describe pixels and may have several, or many."""
_PIXELS = dict.fromkeys([*_SINGLE, *_SEVERAL], 1024) | dict.fromkeys(_MANY, 2**18)
"""No picture has more values of these; Pillow takes some 100 bytes for each."""
_BYTES = (1, 2, 6, 7)
"""Types of values that take no more than their bytes."""
_KINDS = dict.fromkeys(
    (_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _DNG_VERSION), 4
)
"""Tags that say what a directory holds."""
_SENSOR_DATA = {32803, 34892}
"""Photometric interpretations: a colour filter array, and linear raw."""
_RAW_COMPRESSIONS = {32767, 32770, 34713, 65000, 65535}
"""Of Sony, Samsung, Nikon, Kodak and Pentax."""
_MOST_CHANNELS = 6
_LZMA = 34925
_REDUCED, _MASK, _DEPTH_MAP = 1, 4, 8
"""Bits of NewSubfileType."""


def read_tiff(data: bytes) -> PictureFile:
    """Keep the directory of the full picture and, of its entries, those that describe pixels."""
    layout = read_layout(data)
    directories = list(walk_directories(data, layout, _KINDS))
    if not directories or not directories[0].whole:
        raise truncated("TIFF")
    _refuse_sensor_data(data, directories)
    start = _find_picture(directories).start
    several = sum(map(_is_full, directories)) > 1
    picture = read_directory(data, layout, start, {**_PIXELS, ORIENTATION: 1})
    kept = dict(picture.entries)
    orientation = _one(kept.pop(ORIENTATION, None))  # or Pillow would apply it as well
    if not orientation:  # camera raw files give it in their first directory
        first = read_directory(data, layout, layout.start, {ORIENTATION: 1})
        orientation = _one(first.entries.get(ORIENTATION))
    file = _read_picture(data, layout, kept)
    data = _keep_directory(data, layout, start, kept)
    orientation = orientation if 1 <= orientation <= 8 else 1
    return file._replace(data=data, orientation=orientation, several=several)


def _one(entry: Entry | None) -> int:
    return entry.values[0] if entry and entry.number == 1 and entry.values else 0


def _refuse_sensor_data(data: bytes, directories: Sequence[Directory]) -> None:
    """Refuse camera raw files, whose other pictures are small or for display on the camera."""
    name = "a camera raw file"
    if data[8:10] == b"CR":
        name = "a Canon CR2 camera raw file"
    elif data[8:12] in (b"IIII", b"MMMM"):
        name = "a Phase One camera raw file"
    elif _DNG_VERSION in directories[0].entries:
        name = "a DNG camera raw file"
    raw = any(
        _SENSOR_DATA.intersection(directory.values(_PHOTOMETRIC))
        or _RAW_COMPRESSIONS.intersection(directory.values(_COMPRESSION))
        for directory in directories
    )
    if raw or name.startswith(("a Canon", "a Phase")):
        raise unsupported(f"{name}, whose full picture is sensor data", "a developed picture")


def _find_picture(directories: Sequence[Directory]) -> Directory:
    """Take the first directory, unless it is a thumbnail, a mask or the like.

    It is one if it says so, or if a larger picture lies inside it.
    """
    first = directories[0]
    inside = itertools.takewhile(operator.attrgetter("inner"), directories[1:])
    if larger := [d for d in inside if _is_full(d) and _area(d) > _area(first)]:
        return larger[0]
    if _is_full(first):
        return first
    for directory in directories:
        if _is_full(directory) and _area(directory) >= _area(first):
            return directory
    if not all(directory.whole for directory in directories):
        raise truncated("TIFF")
    raise unsupported("a TIFF file that holds only a thumbnail", "one that holds the full picture")


def _is_full(directory: Directory) -> bool:
    (kind, *_) = directory.values(_SUBFILE) or (0,)
    reduced = directory.values(_OLD_SUBFILE) == (2,)
    return directory.whole and not reduced and not kind & (_REDUCED | _MASK | _DEPTH_MAP)


def _area(directory: Directory) -> int:
    (width, *_), (height, *_) = directory.values(_WIDTH) or (0,), directory.values(_HEIGHT) or (0,)
    return width * height


def _read_picture(data: bytes, layout: Layout, kept: dict[int, Entry]) -> PictureFile:
    """Find what the entries say of the picture; refuse what no decoder gets right."""
    for tag, entry in kept.items():
        (kind,) = struct.unpack_from(layout.order + "H", entry.raw, 2)
        if not entry.whole:
            raise truncated("TIFF")
        if entry.number > _PIXELS[tag] and kind not in _BYTES:
            raise corrupt("TIFF", f"an entry of its directory has {entry.number} values")
        if tag in _SINGLE and (entry.number != 1 or not entry.values):
            raise corrupt("TIFF", f"{_SINGLE[tag]} is not one whole number")
    values = {tag: entry.values for tag, entry in kept.items()}
    if _WIDTH not in values or _HEIGHT not in values:
        raise corrupt("TIFF", "ImageWidth or ImageLength is missing")
    (width,), (height,) = values[_WIDTH], values[_HEIGHT]
    (photometric,) = values.get(_PHOTOMETRIC, (0,))
    (planes,) = values.get(284, (1,))
    (compression,) = values.get(_COMPRESSION, (1,))
    bits = values.get(258) or (1,)
    (channels,) = values.get(277, (len(bits),))
    sample_format = values.get(339) or (1,)
    if not set(bits) <= {1, 2, 4, 8, 16} or set(sample_format) != {1}:
        form = {1: "unsigned", 2: "signed", 3: "floating point"}.get(max(sample_format), "other")
        raise unsupported(
            f"a TIFF file of {max(bits)} bit {form} samples",
            "1, 2, 4, 8 or 16 bit unsigned samples",
        )
    if compression not in TiffImagePlugin.COMPRESSION_INFO:
        raise unsupported(
            f"a TIFF file of compression {compression}", "a common one (LZW, deflate, JPEG, ...)"
        )
    words = f"{channels} samples of {max(bits)} bits per pixel"
    words += f" (photometric interpretation {photometric})"
    bands = 1 if planes == 2 and photometric < 2 else 4 if planes == 2 else _MOST_CHANNELS
    if channels > bands:  # Pillow fails in ways of its own
        raise unsupported(f"a TIFF file of {words}", EXPECTED_LAYOUT)
    deep = max(bits) == 16 and photometric == 2
    if deep and compression == _LZMA:
        raise unsupported(
            "a TIFF file of 16 bit colour compressed by LZMA", "LZW, deflate or another compression"
        )
    if deep and planes == 2:  # neither Pillow nor OpenCV gets these right
        raise unsupported("a TIFF file of 16 bit colour planes", "interleaved samples")
    # Alpha that is premultiplied or unspecified is left to Pillow: right to one level of 255.
    straight = (2,) * (len(bits) - 3)
    deep = deep and values.get(338, straight) == straight
    offsets, sizes = values.get(273) or values.get(324), values.get(279) or values.get(325)
    ends = map(operator.add, offsets or (), sizes or ())
    whole = max(ends, default=0) <= len(data)
    (tile_width,), (tile_height,) = values.get(322, (0,)), values.get(323, (0,))
    if max(bits) == 16 and photometric == 0 and _PHOTOMETRIC in kept:
        # White is zero, which Pillow ignores at 16 bit, if it reads the file at all.
        black = struct.pack(layout.order + "HH" + layout.offset[1] + "H", 262, 3, 1, 1)
        kept[_PHOTOMETRIC] = Entry(black.ljust(layout.entry_size, b"\0"), 1, (1,), True)
    return PictureFile(
        "TIFF",
        data,
        width,
        height,
        whole,
        depth=max(bits),
        colour=photometric,
        deep_colour=deep,
        layout=words,
        block=(tile_width, tile_height),
    )


def _keep_directory(data: bytes, layout: Layout, start: int, kept: dict[int, Entry]) -> bytes:
    """Write a directory in place of the one that lies there, and make it the only one."""
    size = 8 if layout.big else 4
    directory = struct.pack(layout.order + ("Q" if layout.big else "H"), len(kept))
    directory += b"".join(kept[tag].raw for tag in sorted(kept)) + bytes(size)  # none follows
    data = data[:start] + directory + data[start + len(directory) :]
    if start == layout.start:
        return data
    return data[:size] + struct.pack(layout.offset, start) + data[2 * size :]
