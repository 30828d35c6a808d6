"""Directories of TIFF files, and of EXIF blocks, which are TIFF files inside others."""

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

ORIENTATION = 274
SUB_DIRECTORIES = 330
_MOST_DIRECTORIES = 64
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_SIZES |= {17: 8, 18: 8}
"""Bytes of a value of each type."""
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


class Layout(NamedTuple):
    """How numbers are written in a file, and where its first directory lies."""

    order: str
    big: bool
    start: int

    @property
    def offset(self) -> str:
        """The format of an offset or a count of values."""
        return self.order + ("Q" if self.big else "I")

    @property
    def entry_size(self) -> int:
        """Bytes of an entry of a directory."""
        return 20 if self.big else 12

    @property
    def entry(self) -> np.dtype[np.void]:
        """The fields of an entry but its last, which holds its values, or their offset."""
        size = "u8" if self.big else "u4"
        fields = [("tag", self.order + "u2"), ("type", self.order + "u2")]
        return np.dtype([*fields, ("count", self.order + size), ("field", f"V{size[1]}")])


class Entry(NamedTuple):
    """A line of a directory."""

    raw: bytes
    """As it stands in the file."""
    number: int
    """How many values it has."""
    values: tuple[int, ...]
    """The first of them; empty unless they are unsigned whole numbers."""
    whole: bool
    """False if the values lie beyond the end of the file."""


class Directory(NamedTuple):
    """The entries that were looked for, and where the next directory lies; 0 for none."""

    start: int
    entries: Mapping[int, Entry] = {}
    following: int = 0
    whole: bool = True
    """False if the directory lies beyond the end of the file."""
    inner: bool = False
    """Whether it lies inside another one."""

    def values(self, tag: int) -> tuple[int, ...]:
        """Give the values of an entry; none if it is missing or holds no whole numbers."""
        return self.entries[tag].values if tag in self.entries else ()


def read_layout(data: bytes) -> Layout:
    """Read the header of a TIFF file."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    return Layout(order, big, start)


def read_directory(data: bytes, layout: Layout, start: int, tags: Mapping[int, int]) -> Directory:
    """Read the first entry of each tag, up to the number of values that is given for it."""
    count_format = layout.order + ("Q" if layout.big else "H")
    begin = start + struct.calcsize(count_format)
    if begin > len(data):
        return Directory(start, whole=False)
    (count,) = struct.unpack_from(count_format, data, start)
    end = begin + count * layout.entry_size
    if end > len(data):
        return Directory(start, whole=False)
    entries: dict[int, Entry] = {}
    lines = np.frombuffer(data, layout.entry, count, begin)
    numbers = np.flatnonzero(np.isin(lines["tag"], list(tags)))
    _, first = np.unique(lines["tag"][numbers], return_index=True)
    for number in numbers[first].tolist():
        tag = int(lines["tag"][number])
        raw = data[begin + number * layout.entry_size :][: layout.entry_size]
        if int(lines["type"][number]) in _SIZES:
            entries[tag] = _read_entry(data, layout, raw, tags[tag])
    next_field = data[end : end + struct.calcsize(layout.offset)]
    following = int.from_bytes(next_field, "little" if layout.order == "<" else "big")
    return Directory(start, entries, following)


def _read_entry(data: bytes, layout: Layout, raw: bytes, most: int) -> Entry:
    kind, count = struct.unpack_from(layout.order + "H" + layout.offset[1], raw, 2)
    field = raw[12:] if layout.big else raw[8:]
    size = count * _SIZES[kind]
    code = _WHOLE_NUMBERS.get(kind)
    if size <= len(field):
        start, source = 0, field
    else:  # then the field says where the values are
        (start,) = struct.unpack(layout.offset, field)
        source = data
    if start + size > len(source):
        return Entry(raw, count, (), whole=False)
    number = min(count, most) if code else 0
    return Entry(
        raw, count, struct.unpack_from(f"{layout.order}{number}{code or 'B'}", source, start), True
    )


def walk_directories(data: bytes, layout: Layout, tags: Mapping[int, int]) -> Iterator[Directory]:
    """Give the first directory, those inside it, the next one, those inside that, and so on.

    Each is given once, however they refer to each other, and no more than 64 of them.
    """
    waiting = [(layout.start, False)]
    known = {0}
    while waiting and len(known) <= _MOST_DIRECTORIES:
        start, inner = waiting.pop()
        if start in known:
            continue
        known.add(start)
        wanted = {**tags, SUB_DIRECTORIES: _MOST_DIRECTORIES}
        directory = read_directory(data, layout, start, wanted)._replace(inner=inner)
        yield directory
        waiting.append((directory.following, inner))
        waiting += [(place, True) for place in reversed(directory.values(SUB_DIRECTORIES))]


def read_orientation(exif: bytes) -> int:
    """Find the orientation, 1 .. 8, in an EXIF block; 1 if it is missing or the block is broken.

    Whatever else the block holds, broken or not, does not matter.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    layout = read_layout(exif.ljust(8, b"\0"))
    begin = layout.start + 2
    (count,) = struct.unpack(layout.order + "H", exif[layout.start : begin].ljust(2, b"\0"))
    count = min(count, max(0, len(exif) - begin) // layout.entry_size)
    if count == 0:
        return 1
    lines = np.frombuffer(exif, layout.entry, count, begin)
    for line in lines[(lines["tag"] == ORIENTATION) & (lines["count"] == 1)][:16]:
        code = _WHOLE_NUMBERS.get(int(line["type"]), "")
        if code and _SIZES[int(line["type"])] <= 4:
            (value,) = struct.unpack_from(layout.order + code, line["field"].tobytes())
            if 1 <= value <= 8:
                return int(value)
    return 1
