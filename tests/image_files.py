"""Image files as real programs write them, and as only the standards describe them."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import tifffile


def pillow(array, file_format, mode=None, **options):
    image = array if isinstance(array, PIL.Image.Image) else PIL.Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, file_format, **options)
    return buffer.getvalue()


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(samples, colour_type, *chunks):
    """Write what Pillow cannot: any colour type at 16 bit, any chunks."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, samples.itemsize * 8, colour_type, 0, 0, 0)
    big = samples.astype(samples.dtype.newbyteorder(">"))
    rows = b"".join(b"\0" + row.tobytes() for row in big)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def exif(orientation, order="<"):
    entry = struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0)
    head = b"II*\0" if order == "<" else b"MM\0*"
    block = head + struct.pack(order + "IH", 8, 1) + entry + struct.pack(order + "I", 0)
    return b"Exif\0\0" + block


def packed(values, bits):
    """Rows of samples of 1 to 16 bits, the first bit first, each row filled up to a byte."""
    rows = values.reshape(len(values), -1)
    parts = rows[..., None] >> np.arange(bits)[::-1] & 1
    return np.packbits(parts.reshape(len(rows), -1).astype(np.uint8), axis=1)


def small_png(values, bits, colour_type, *chunks):
    """A PNG of fewer than 8 bits per sample."""
    header = struct.pack(">IIBBBBB", *values.shape[::-1], bits, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in packed(values, bits))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def small_tiff(values, bits, photometric, order, palette=None, orientation=1):
    """A TIFF of fewer than 8 bits per sample, which tifffile writes only with another package."""
    pixels = packed(values, bits).tobytes()
    colours = (
        b"" if palette is None else (palette.T.astype(int) * 257).astype(order + "u2").tobytes()
    )
    height, width = values.shape
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, bits), (259, 3, 1, 1)]
    entries += [(262, 3, 1, photometric), (273, 4, 1, 8), (274, 3, 1, orientation)]
    entries += [(277, 3, 1, 1), (278, 3, 1, height), (279, 4, 1, len(pixels))]
    if colours:
        entries += [(320, 3, len(colours) // 2, 8 + len(pixels))]
    start = 8 + len(pixels) + len(colours)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        field = struct.pack(order + ("H" if (kind, count) == (3, 1) else "I"), value)
        directory += struct.pack(order + "HHI", tag, kind, count) + field.ljust(4, b"\0")
    return head + pixels + colours + directory + bytes(4)
