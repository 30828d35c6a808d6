"""JPEG 2000 files: the size in their code stream, and what decoding would cost beyond pixels."""

import struct
from collections.abc import Iterator

from PIL import features

from saff.images.boxes import walk_boxes
from saff.images.file import PictureFile, corrupt, truncated, unsupported

_SOC, _SIZ, _COD, _COC, _SOT, _SOD = 0xFF4F, 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_EOC = b"\xff\xd9"
_MOST_TILES = 8192
"""OpenJPEG takes some 9 kB for each."""
_FEWEST_SAMPLES = 64
"""Samples per code block or precinct, of which each takes OpenJPEG some 200 bytes."""
_MOST_LAYERS = 2**26
"""Layers times precincts of a tile."""


def read_jpeg_2000(data: bytes) -> PictureFile:
    """Find size and depth; refuse what would cost far more memory than its pixels."""
    if not features.check("jpg_2000"):
        raise unsupported("a JPEG 2000 file", "a Pillow that reads JPEG 2000")
    start = 0
    if not data.startswith(b"\xff\x4f"):
        streams = [box.start for box in walk_boxes(data) if box.name == b"jp2c"]
        if not streams:
            raise truncated("JPEG 2000")
        start = streams[0]
    if struct.unpack_from(">HH", data, start) != (_SOC, _SIZ):
        raise corrupt("JPEG 2000", "its code stream does not begin with its size")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    tile_width, tile_height, tile_left, tile_top = struct.unpack_from(">4I", data, start + 24)
    (components,) = struct.unpack_from(">H", data, start + 40)
    if not 1 <= components <= 4:
        raise unsupported(f"a JPEG 2000 file of {components} components", "1 to 4 components")
    if not tile_width or not tile_height or right <= tile_left or bottom <= tile_top:
        raise corrupt("JPEG 2000", "its tiles do not fit its size")
    tiles = -(-(right - tile_left) // tile_width), -(-(bottom - tile_top) // tile_height)
    if tiles[0] * tiles[1] > _MOST_TILES:
        raise unsupported(
            f"a JPEG 2000 file of {tiles[0] * tiles[1]} tiles", f"at most {_MOST_TILES}"
        )
    width, height = right - left, bottom - top
    _refuse_small_blocks(data, start, (width, height), tiles, components)
    depths = [1 + (bits & 0x7F) for bits in data[start + 42 : start + 42 + 3 * components : 3]]
    if data.find(_EOC, start) < 0:  # cannot occur before the end
        raise truncated("JPEG 2000")
    return PictureFile("JPEG 2000", data, width, height, depth=max(depths, default=8))


def _refuse_small_blocks(
    data: bytes, start: int, size: tuple[int, int], tiles: tuple[int, int], components: int
) -> None:
    """Refuse code blocks and precincts of a few samples: kilobytes that ask for gigabytes."""
    allowed = 65_536 + size[0] * size[1] * components // _FEWEST_SAMPLES
    for layers, levels, block, precincts in _coding_styles(data, start):
        count = most = 0
        for level in range(min(levels, 32) + 1):
            exponents = precincts[level] if level < len(precincts) else (15, 15)
            blocks = precinct = 1
            for side, edge, along, exponent in zip(size, block, tiles, exponents, strict=True):
                length = -(-side // 2 ** (levels - level))
                precinct *= -(-length // 2**exponent) + along
                blocks *= -(-length // 2 ** min(edge, exponent)) + along
            count += components * (precinct + blocks)
            most = max(most, precinct // (tiles[0] * tiles[1]) * components)
        if count > allowed or layers * most > _MOST_LAYERS:
            raise unsupported(
                f"a JPEG 2000 file of {count} code blocks and precincts", f"at most {allowed}"
            )


def _coding_styles(
    data: bytes, start: int
) -> Iterator[tuple[int, int, tuple[int, int], list[tuple[int, int]]]]:
    """Give layers, levels, log2 of the sides of code blocks, and of precincts of each level."""
    position, part = start + 2, start
    layers = 1
    while position + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == _SOT:
            part = position
        if marker == _SOD:  # samples, up to the next part
            (size,) = struct.unpack_from(">I", data, part + 6)
            if size < position + 2 - part:  # 0: up to the end
                return
            position = part + size
            continue
        body = data[position + 4 : position + 2 + length]
        if marker == _COD and len(body) >= 10:
            (layers,) = struct.unpack_from(">H", body, 2)
            yield layers, body[5], _block(body[6:8]), _precincts(body[0], body[10:])
        elif marker == _COC and len(body) >= 7:
            yield layers, body[2], _block(body[3:5]), _precincts(body[1], body[7:])
        elif marker < 0xFF00 or length < 2:
            return
        position += 2 + length


def _block(sides: bytes) -> tuple[int, int]:
    return 2 + sides[0] % 16, 2 + sides[1] % 16


def _precincts(style: int, sizes: bytes) -> list[tuple[int, int]]:
    return [(size & 15, size >> 4) for size in sizes[:33]] if style & 1 else []
