"""Readers that find size and orientation before anything is decoded, and the readers' table.

They also cut out comments, thumbnails, colour profiles and animation: a broken comment must not
cost a photograph, and Pillow's warnings cannot be silenced for one thread alone.
"""

import struct
import zlib
from collections.abc import Callable

from saff.errors import ImageError
from saff.images.boxes import measure, read_avif, read_heic
from saff.images.directories import read_orientation
from saff.images.file import PictureFile, check_size, corrupt, truncated, unsupported
from saff.images.jpeg import read_jpeg
from saff.images.jpeg2000 import read_jpeg_2000
from saff.images.signatures import name_format
from saff.images.tiff import read_tiff


def read_header(data: bytes, max_pixels: int) -> PictureFile:
    """Name the format, find size and orientation, cut out metadata; check the size."""
    name = name_format(data)
    try:
        file = _READERS[name](data)
    except (struct.error, IndexError, OverflowError) as error:  # the header points past the end
        raise truncated(name) from error
    width, height = file.block
    most = max(4 * max_pixels, _LARGE_BLOCK)
    if width * height > most:
        raise ImageError(
            "too_many_pixels",
            f"image announces a piece of {width} x {height} pixels; "
            f"expected at most {most}, save it in smaller ones or raise max_pixels",
        )
    if name in ("AVIF", "HEIC"):
        file = measure(file)
    check_size(file.width, file.height, max_pixels)
    return file


_LARGE_BLOCK = 2**20
"""Pixels: a small picture may be stored in a larger tile, or cropped from a larger picture."""


def _read_png(data: bytes) -> PictureFile:
    """Keep the critical chunks and transparency, once their checksums are seen to be right."""
    first, width, height, depth, colour = struct.unpack_from(">4sIIBB", data, 12)
    if first == b"CgBI":
        raise unsupported("a PNG file in Apple's CgBI variant", "a standard PNG file")
    if first != b"IHDR":
        raise corrupt("PNG", "its first chunk is not IHDR")
    kept = bytearray(data[:8])
    key: tuple[int, ...] = ()
    channels = {0: 1, 2: 3}.get(colour, 0)
    orientation, frames = 1, 1
    position = 8
    view = memoryview(data)
    whole = False
    while not whole and position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length  # length, name, body, checksum
        critical = not name[0] & 0x20  # a capital letter
        if critical or name in (b"tRNS", b"eXIf"):
            right = _is_right(view[position + 4 : end]) if end <= len(data) else True
            if name == b"eXIf":
                if right and orientation == 1:
                    orientation = read_orientation(data[position + 8 : end - 4])
            elif not right:
                raise corrupt("PNG", "the checksum of a chunk is wrong")
            else:
                kept += view[position:end]
            if name == b"tRNS" and channels and length >= 2 * channels and end <= len(data):
                key = struct.unpack_from(f">{channels}H", data, position + 8)
        elif name == b"acTL" and 20 <= end - position <= len(data) - position:
            (frames,) = struct.unpack_from(">I", data, position + 8)
        whole = name == b"IEND" and end <= len(data)
        position = end
    return PictureFile(
        "PNG",
        bytes(kept),
        width,
        height,
        whole,
        orientation,
        depth,
        colour,
        deep_colour=depth == 16 and colour != 0,
        key=key,
        several=frames > 1,
    )


def _is_right(chunk: memoryview) -> bool:
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")


def _read_webp(data: bytes) -> PictureFile:
    """Find the canvas and the EXIF chunk; the rest does not disturb the decoder."""
    (size,) = struct.unpack_from("<I", data, 4)
    sides: tuple[int, ...] = ()
    orientation = 1
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        body = position + 8
        if name == b"EXIF" and orientation == 1:
            orientation = read_orientation(data[body : body + length])
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
        raise truncated("WebP") if len(data) < size + 8 else corrupt("WebP", "it has no picture")
    width, height = sides
    return PictureFile("WebP", data, width, height, len(data) >= size + 8, orientation)


def _read_bmp(data: bytes) -> PictureFile:
    size, _, _, header = struct.unpack_from("<IIII", data, 2)
    layout = "<HHHH" if header == 12 else "<iiHH"
    width, height, _, depth = struct.unpack_from(layout, data, 18)
    whole = len(data) >= size
    return PictureFile(
        "BMP", data, width, abs(height), whole, depth=depth if depth in (1, 4) else 8
    )


def _read_gif(data: bytes) -> PictureFile:
    """Keep the first frame, which may exceed the screen, and what says how it is shown."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _gif_palette_size(flags)
    kept = bytearray(data[:position])
    while data[position] == 0x21:  # an extension
        end = _gif_blocks_end(data, position + 2)
        if data[position + 1] == _GRAPHIC_CONTROL:
            kept += data[position:end]
        position = end
    if data[position] != 0x2C:
        raise corrupt("GIF", "it has no frame")
    left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, position + 1)
    width, height = max(width, left + columns), max(height, top + rows)
    try:
        end = _gif_blocks_end(data, position + 11 + _gif_palette_size(flags))
    except IndexError:
        return PictureFile("GIF", bytes(kept + data[position:]), width, height, whole=False)
    several = _gif_has_frame(data, end)
    return PictureFile(
        "GIF", bytes(kept + data[position:end] + b";"), width, height, several=several
    )


def _gif_has_frame(data: bytes, position: int) -> bool:
    """Whether a frame follows, after any extensions; what is broken there does not matter."""
    try:
        while data[position] == 0x21:
            position = _gif_blocks_end(data, position + 2)
        return data[position] == 0x2C
    except IndexError:
        return False


_GRAPHIC_CONTROL = 0xF9


def _gif_palette_size(flags: int) -> int:
    return 3 * 2 ** (1 + flags % 8) if flags & 0x80 else 0


def _gif_blocks_end(data: bytes, position: int) -> int:
    while data[position]:
        position += 1 + data[position]
    return position + 1


_READERS: dict[str, Callable[[bytes], PictureFile]] = {
    "JPEG": read_jpeg,
    "PNG": _read_png,
    "WebP": _read_webp,
    "BMP": _read_bmp,
    "TIFF": read_tiff,
    "GIF": _read_gif,
    "AVIF": read_avif,
    "HEIC": read_heic,
    "JPEG 2000": read_jpeg_2000,
}
