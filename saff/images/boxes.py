"""Files made of boxes, each with its length and name: AVIF and HEIC."""

import contextlib
import importlib.util
import io
import itertools
import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

import PIL.Image
from PIL import AvifImagePlugin

from saff.images.av1 import find_frame_sizes
from saff.images.blame import blame
from saff.images.file import PictureFile, check_size, truncated, unsupported

_MOST_SAMPLES = 1000
"""A picture of tiles has dozens of items."""


class Box(NamedTuple):
    """One box: ``end`` may lie beyond the end of a file that was cut."""

    name: bytes
    start: int
    end: int


def walk_boxes(data: bytes) -> Iterator[Box]:
    """Give the outer boxes of a file, in order, as far as their names are names."""
    position = 0
    while position + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, position + 8)
            head = 16
        elif size == 0:  # up to the end
            size = len(data) - position
        if size < head or not all(32 <= byte < 127 for byte in name):
            return
        yield Box(name, position + head, position + size)
        position += size


def read_brands(data: bytes) -> set[bytes]:
    """Give the brands of an ISO base media file: what it says that it is; none for another."""
    if data[4:8] != b"ftyp":
        return set()
    size = max(16, min(int.from_bytes(data[:4], "big"), 4096))
    names = data[8:12] + data[16:size]
    return {names[at : at + 4] for at in range(0, len(names) - 3, 4)}


def read_avif(data: bytes) -> PictureFile:
    """Find sizes; hide EXIF, of which Pillow might warn and which AVIF overrules."""
    if not AvifImagePlugin.SUPPORTED:
        raise unsupported("an AVIF file", "a Pillow that reads AVIF (install pillow>=11.3)")
    file = _read_container("AVIF", data)
    samples = itertools.islice(_find_samples(data), _MOST_SAMPLES)
    frames = (size for sample in samples for size in find_frame_sizes(sample))
    return file._replace(block=max(itertools.chain([file.block], frames), key=math.prod))


def read_heic(data: bytes) -> PictureFile:
    """Find sizes in a HEIC file, if pillow-heif is installed to decode it."""
    if importlib.util.find_spec("pillow_heif") is None:
        raise unsupported(
            "a HEIC file", "pillow-heif to read it (pip install 'saff[heic]'), or JPEG or PNG data"
        )
    return _read_container("HEIC", data)


def measure(file: PictureFile) -> PictureFile:
    """Find the size of the main picture, which is one of several, perhaps cropped and turned."""
    with blame(file):
        if file.format == "AVIF":
            width, height = AvifImagePlugin.AvifImageFile(io.BytesIO(file.data)).size
        else:
            import pillow_heif

            width, height = pillow_heif.open_heif(file.data).size
    return file._replace(width=width, height=height)


def decode_heic(data: bytes, max_pixels: int) -> PIL.Image.Image:
    """Decode the main picture of a HEIC file, turned as its boxes say."""
    import pillow_heif

    picture = pillow_heif.open_heif(data)
    width, height = picture.size
    check_size(width, height, max_pixels)
    pixels, stride = picture.data, picture.stride
    width, height = picture.size  # may be another once it is decoded
    check_size(width, height, max_pixels)
    return PIL.Image.frombytes(picture.mode, picture.size, pixels, "raw", picture.mode, stride)


def _read_container(name: str, data: bytes) -> PictureFile:
    """Find the largest size of any item or track."""
    largest = (0, 0)
    whole = True
    visible = bytearray(data)
    for box in walk_boxes(data):
        whole = box.end <= len(data)
        if box.name not in (b"meta", b"moov"):
            continue
        largest = max(itertools.chain([largest], _find_sizes(data, box)), key=math.prod)
        body = data[box.start : box.end]
        visible[box.start : box.end] = body.replace(b"Exif", b"none")
    if largest == (0, 0):
        article = "an" if name == "AVIF" else "a"
        what = f"{article} {name} file without a still picture"
        raise unsupported(what, "one that has a picture") if whole else truncated(name)
    return PictureFile(name, bytes(visible), 0, 0, whole, block=largest)


def _find_sizes(data: bytes, box: Box) -> Iterator[tuple[int, int]]:
    """Give the sizes of all items (``ispe``) and tracks (``tkhd``) inside a box."""
    end = min(box.end, len(data))
    at = box.start
    while (at := data.find(b"ispe", at, end - 16) + 4) > 3:
        width, height = struct.unpack_from(">II", data, at + 4)
        yield width, height
    at = box.start
    while (at := data.find(b"tkhd", at, end - 80) + 4) > 3:
        (size,) = struct.unpack_from(">I", data, at - 8)
        if at + size - 8 <= end and size >= 92:
            width, height = struct.unpack_from(">II", data, at + size - 16)
            yield width >> 16, height >> 16


def _find_samples(data: bytes) -> Iterator[memoryview]:
    """Give the data of all items (``iloc``), and from the first chunk of tracks (``stco``)."""
    for box in walk_boxes(data):
        if box.name == b"meta":
            yield from _find_items(data[box.start : box.end], data)
        elif box.name == b"moov":
            body = data[box.start : box.end]
            for name, code in ((b"stco", ">I"), (b"co64", ">Q")):
                at = -1
                while (at := body.find(name, at + 1, len(body) - 16)) >= 0:
                    (start,) = struct.unpack_from(code, body, at + 12)
                    yield memoryview(data)[start:]


def _find_items(meta: bytes, data: bytes) -> Iterator[memoryview]:
    inside = meta[meta.find(b"idat") + 4 :]
    left = 4 * len(data)  # items may share their bytes
    at = -1
    while (at := meta.find(b"iloc", at + 1)) >= 0:
        with contextlib.suppress(IndexError, struct.error):  # the word may be part of a text
            for method, extents in _read_item_places(memoryview(meta)[at + 4 :]):
                source = inside if method == 1 else data
                pieces = [source[start:][: length or None] for start, length in extents]
                left -= sum(map(len, pieces))
                if left < 0:
                    return
                yield memoryview(b"".join(pieces))


def _read_item_places(body: memoryview) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Give for each item where offsets count from, and start and length of its pieces."""
    version, sizes = body[0], struct.unpack_from(">H", body, 4)[0]
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    position = 6

    def take(size: int) -> int:
        nonlocal position
        position += size
        if position > len(body):
            raise IndexError(position)
        return int.from_bytes(body[position - size : position], "big")

    for _ in range(take(4 if version > 1 else 2)):
        take(4 if version > 1 else 2)  # its number
        method = take(2) & 15 if version else 0
        take(2)  # the file that holds it
        base = take(base_size)
        extents = []
        for _ in range(take(2)):
            take(index_size)
            extents.append((base + take(offset_size), take(length_size)))
        yield method, extents
