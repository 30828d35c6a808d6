"""The size of the frames in AV1 data, which an AVIF file may announce otherwise."""

from collections.abc import Iterator

_SEQUENCE_HEADER = 1
_MOST_UNITS = 1000


def find_frame_sizes(data: memoryview) -> Iterator[tuple[int, int]]:
    """Give width and height of every sequence header among the open bitstream units of a sample."""
    position = 0
    for _ in range(_MOST_UNITS):
        if position >= len(data):
            return
        head = data[position]
        position += 2 if head & 4 else 1  # with its extension
        size = len(data) - position
        if head & 2:
            size, position = _read_leb128(data, position)
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            yield _read_size(bytes(data[position : position + min(size, 256)]))
        position += size


def _read_leb128(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 56, 7):
        byte = data[position] if position < len(data) else 0
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, position


class _Bits:
    """Reads numbers of any number of bits, the first bit first; zeros behind the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> int:
        first, last = self.position // 8, (self.position + count + 7) // 8
        self.position += count
        window = int.from_bytes(self.data[first:last].ljust(last - first, b"\0"), "big")
        return window >> (8 * last - self.position) & (1 << count) - 1


def _read_size(header: bytes) -> tuple[int, int]:
    """Read a sequence header as far as the largest width and height of its frames."""
    bits = _Bits(header)
    bits.take(4)  # profile, still picture
    if bits.take(1):  # of a reduced header
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = 1 + bits.take(4), 1 + bits.take(4)
    return 1 + bits.take(width_bits), 1 + bits.take(height_bits)


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            zeros = 0
            while zeros < 32 and not bits.take(1):
                zeros += 1
            bits.take(zeros)
        if bits.take(1):  # a decoder model
            delay_bits = 1 + bits.take(5)
            bits.take(42)
    delays = bits.take(1)
    for _ in range(1 + bits.take(5)):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if delays and bits.take(1):
            bits.take(4)
