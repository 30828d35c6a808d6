"""JPEG files: the segments that a decoder needs, and whether all pixels are there."""

import struct

from saff.images.directories import read_orientation
from saff.images.file import PictureFile, corrupt, truncated, unsupported

_SOI, _EOI, _SOS, _DNL = b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xdc"
_MOST_SCANS = 500
"""Progressive files have about ten. Each is a pass over all pixels, for a few bytes of file."""
_HIERARCHICAL = {0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF}
_PROGRESSIVE = {0xC2, 0xCA}
_RESTARTS = [bytes([0xFF, 0xD0 + n % 8]) for n in range(24)]
CONTINUATIONS = tuple(
    b"".join(bytes((first + 73 * n) % 255 for n in range(64)) + mark for mark in _RESTARTS) + _EOI
    for first in (0xB5, 0x4A, 0xE3, 0x1D)  # no two begin with the same bits
)
"""Data for blocks that are missing, which no two of these fill alike, and every restart marker."""


def read_jpeg(data: bytes) -> PictureFile:
    """Keep the segments a decoder needs: tables, frame, scans, JFIF (APP0) and Adobe (APP14)."""
    kept = [data[:2]]
    frame = b""
    orientation = 1
    position = 2
    while True:
        position = data.find(b"\xff", position)
        if position < 0:
            raise truncated("JPEG")
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # no length follows
            position += 2
            continue
        if marker == 0xDA:  # start of the first scan; from here on everything is picture
            break
        if marker == 0xF7:
            raise unsupported("a JPEG-LS file", "a baseline or progressive JPEG file")
        if marker == 0xD9:
            raise corrupt("JPEG", "it has no picture")
        (length,) = struct.unpack_from(">H", data, position + 2)
        if length < 2:
            raise corrupt("JPEG", "a segment's length is wrong")
        segment = data[position : position + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and not frame:
            frame = segment
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0" and orientation == 1:
            orientation = read_orientation(segment[4:])
        if marker == 0xEE or not (0xE1 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
        position += 2 + length
    if not frame:
        raise corrupt("JPEG", "it has no frame header")
    depth, height, width = struct.unpack_from(">BHH", frame, 4)
    if depth != 8:
        raise unsupported(f"a JPEG file of {depth} bit samples", "8 bit samples")
    if frame[1] in _HIERARCHICAL:
        raise unsupported("a hierarchical JPEG file", "a baseline or progressive one")
    tables, scans = b"".join(kept), data[position:]
    end = scans.find(_EOI)  # cannot occur inside a scan
    picture = scans if end < 0 else scans[:end]
    if height == 0 and _DNL in picture:
        raise unsupported(
            "a JPEG file that gives its height after its pixels (DNL)", "it in the frame header"
        )
    if picture.count(_SOS) > _MOST_SCANS:
        raise unsupported(
            f"a JPEG file of {picture.count(_SOS)} scans", f"at most {_MOST_SCANS} scans"
        )
    if end >= 0:
        return PictureFile("JPEG", tables + scans, width, height, True, orientation)
    return _read_endless(tables, frame, scans)._replace(orientation=orientation)


def _read_endless(tables: bytes, frame: bytes, scans: bytes) -> PictureFile:
    """Give an end to a file that has none; ``endless`` is for the check that it is whole.

    A decoder fills what is missing with grey. If no bit is missing, none of the continuations
    changes the picture; if some are, they become visible.
    """
    stripped = scans.rstrip(b"\0\xff")  # zeros where a download stopped, or half a marker
    if scans[len(stripped) :].startswith(b"\xff\0"):
        stripped += b"\xff\0"  # a sample
    _, height, width = struct.unpack_from(">BHH", frame, 4)
    if not _has_all_scans(frame, stripped):
        raise truncated("JPEG")
    file = PictureFile("JPEG", tables + stripped + _EOI, width, height, whole=False)
    return file._replace(endless=tables + stripped)


def _has_all_scans(frame: bytes, scans: bytes) -> bool:
    """Say whether every coefficient of every component has its lowest bit in some scan."""
    components = frame[10 : 10 + 3 * frame[9] : 3]
    missing = {component: set(range(64)) for component in components}
    at = scans.find(_SOS)
    while at >= 0:
        count = scans[at + 4] if at + 4 < len(scans) else 0
        band = scans[at + 5 + 2 * count : at + 8 + 2 * count]
        if len(band) == 3 and frame[1] not in _PROGRESSIVE:
            band = b"\0\x3f\0"
        if len(band) == 3 and band[2] % 16 == 0:
            for component in scans[at + 5 : at + 5 + 2 * count : 2]:
                missing.get(component, set()).difference_update(range(band[0], band[1] + 1))
        at = scans.find(_SOS, at + 2)
    return not any(missing.values())
