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


def fix_checksums(data):
    """Give every chunk of a damaged PNG file the checksum of what it holds now."""
    fixed = bytearray(data)
    position = 8
    while position + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, position)
        end = position + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[position + 4 : end]))
        position = end + 4
    return bytes(fixed)


def box(name, body=b""):
    return struct.pack(">I4s", 8 + len(body), name) + body


class Tiff:
    """Writes directories one after the other; they may refer to any other, by number."""

    def __init__(self, order="<", big=False):
        self.order, self.big = order, big
        self.offset = order + ("Q" if big else "I")
        version = struct.pack(order + "H", 43 if big else 42)
        self.data = bytearray(b"II" if order == "<" else b"MM") + version
        if big:
            self.data += struct.pack(order + "HH", 8, 0)
        self.first = len(self.data)
        self.data += struct.pack(self.offset, 0)
        self.starts, self.links = [], []

    def put(self, body):
        at = len(self.data)
        self.data += body
        return at

    def directory(self, array, *, following=None, inside=(), **more):
        """Add a picture with tags ``t254=...``; ``following`` and ``inside`` are numbers."""
        at = self.put(array.astype(array.dtype.newbyteorder(self.order)).tobytes())
        height, width, channels = array.shape if array.ndim == 3 else (*array.shape, 1)
        tags = {256: width, 257: height, 258: (8 * array.itemsize,) * channels, 259: 1}
        tags |= {262: 2 if channels == 3 else 1, 273: at, 277: channels, 278: height}
        tags |= {279: array.nbytes} | {int(tag[1:]): value for tag, value in more.items()}
        tags = {tag: value for tag, value in tags.items() if value is not None}
        if inside:
            tags[330] = tuple(0 for _ in inside)
        field = struct.calcsize(self.offset)
        kind, code = (16, "Q") if self.big else (4, "I")
        entries = b""
        start = None
        for tag, value in sorted(tags.items()):
            values = value if isinstance(value, tuple) else (value,)
            body = struct.pack(f"{self.order}{len(values)}{code}", *values)
            if len(body) > field:
                place = self.put(body)
                body = struct.pack(self.offset, place)
                if tag == 330:
                    self.links += [(place + n * field, to) for n, to in enumerate(inside)]
            elif tag == 330:
                start = len(entries) + struct.calcsize(self.order + "HH" + self.offset[1])
            entries += struct.pack(self.order + "HH" + self.offset[1], tag, kind, len(values))
            entries += body
        count = struct.pack(self.order + ("Q" if self.big else "H"), len(tags))
        self.starts.append(self.put(count + entries))
        if start is not None:
            self.links.append((self.starts[-1] + len(count) + start, inside[0]))
        self.links.append((self.put(bytes(field)), following))
        return self

    def bytes(self, first=0):
        for place, to in [(self.first, first), *self.links]:
            where = 0 if to is None else self.starts[to] if to < len(self.starts) else to
            struct.pack_into(self.offset, self.data, place, where)
        return bytes(self.data)


def drawn_files():
    """Give small files of every format that is read, and of some that are not, by name."""
    rows, columns = np.mgrid[:21, :34]
    rgb = np.stack([columns * 7, rows * 12, rows * 6 + columns * 3], axis=-1).astype(np.uint8)
    grey, half = rgb[..., 2], rgb[::2, ::2]
    rgba = np.dstack([rgb, (255 - columns * 7).astype(np.uint8)])
    deep = np.random.default_rng(5).integers(0, 2**16, (21, 34, 4)).astype(np.uint16)
    others = [PIL.Image.fromarray(255 - rgb), PIL.Image.fromarray(rgb // 2)]
    frames = {"save_all": True, "append_images": others}
    files = {
        "jpeg": pillow(rgb, "JPEG", exif=exif(6)),
        "jpeg progressive": pillow(rgb, "JPEG", progressive=True),
        "jpeg cmyk": pillow(rgb, "JPEG", "CMYK"),
        "jpeg grey": pillow(grey, "JPEG"),
        "jpeg restarts": pillow(rgb, "JPEG", restart_marker_blocks=2),
        "jpeg without end": pillow(rgb, "JPEG")[:-2],
        "jpeg progressive without end": pillow(rgb, "JPEG", progressive=True)[:-2],
        "png": pillow(rgb, "PNG", exif=exif(3, ">")),
        "png palette": pillow(rgb, "PNG", "P"),
        "png 1 bit": pillow(rgb, "PNG", "1"),
        "png alpha": pillow(rgba, "PNG"),
        "png grey alpha": pillow(rgb, "PNG", "LA"),
        "png 16 bit": png(deep[..., 0], 0),
        "png 16 bit rgb": png(deep[..., :3], 2, chunk(b"tRNS", deep[0, 0, :3].tobytes())),
        "png 4 bit": small_png(grey.astype(int) // 16, 4, 0, chunk(b"tRNS", b"\0\3")),
        "png texts": png(rgb, 2, *[chunk(b"tEXt", b"k\0v")] * 20, chunk(b"zTXt", b"k\0\0x")),
        "png animated": pillow(rgb, "PNG", **frames),
        "webp": pillow(rgb, "WEBP", exif=exif(6)),
        "webp lossless": pillow(rgba, "WEBP", lossless=True),
        "webp animated": pillow(rgb, "WEBP", **frames),
        "gif": pillow(rgb, "GIF", comment=b"a comment"),
        "gif animated": pillow(rgb, "GIF", **frames),
        "bmp": pillow(rgb, "BMP"),
        "bmp palette": pillow(rgb, "BMP", "P"),
        "bmp 1 bit": pillow(rgb, "BMP", "1"),
        "bmp alpha": pillow(rgba, "BMP"),
        "tiff": pillow(rgb, "TIFF"),
        "tiff fax": pillow(rgb, "TIFF", "1", compression="group4"),
        "tiff pages": pillow(rgb, "TIFF", **frames),
        "tiff tiles": tiff(rgb, tile=(16, 16), compression="zlib", predictor=True),
        "tiff 16 bit": tiff(deep[..., :3], byteorder=">"),
        "tiff 16 bit grey": tiff(deep[..., 0], photometric="miniswhite", byteorder=">"),
        "tiff 4 bit": small_tiff(grey.astype(int) // 16, 4, 1, ">", orientation=6),
        "tiff big": tiff(rgb, bigtiff=True),
        "tiff thumbnail": Tiff(">").directory(half, t254=1, inside=[1]).directory(rgb).bytes(),
        "tiff chain": Tiff().directory(half, t254=1, following=1).directory(rgb, t274=3).bytes(),
        "tiff big thumbnail": Tiff("<", True)
        .directory(half, t254=1, inside=[1, 2])
        .directory(half, t254=1)
        .directory(rgb)
        .bytes(),
        "tiff raw": Tiff().directory(half, t254=1, inside=[1]).directory(grey, t262=32803).bytes(),
        "avif": pillow(rgb, "AVIF", speed=10, exif=exif(6)[6:]),
        "avif alpha": pillow(rgba, "AVIF", speed=10),
        "avif animated": pillow(rgb, "AVIF", speed=10, **frames),
        "jp2": pillow(rgb, "JPEG2000"),
        "jp2 grey": pillow(grey, "JPEG2000", irreversible=True, quality_layers=[10]),
        "jp2 stream": pillow(rgba, "JPEG2000", no_jp2=True, tile_size=(16, 16)),
        "jp2 blocks": pillow(rgb, "JPEG2000", precinct_size=(64, 64), codeblock_size=(16, 16)),
        "ppm": pillow(rgb, "PPM"),
        "ico": pillow(rgb, "ICO"),
        "svg": b"<?xml version='1.0'?><!-- a drawing --><svg xmlns='http://www.w3.org/2000/svg'/>",
        "html": b"<!doctype html><html><body>404</body></html>",
        "mp4": box(b"ftyp", b"isom\0\0\0\1isommp41") + box(b"moov", bytes(60)),
    }
    for name in ("lzw", "packbits", "zstd", "lzma", "deflate", "jpeg"):
        options = {"compression": f"tiff_{name}" if name in ("lzw", "deflate") else name}
        files[f"tiff {name}"] = pillow(rgb, "TIFF", **options)
    try:
        import pillow_heif
    except ImportError:
        return files
    for name, array in (("heic", rgb), ("heic alpha", rgba), ("heic grey", grey)):
        buffer = io.BytesIO()
        pillow_heif.from_pillow(PIL.Image.fromarray(array)).save(buffer, quality=50)
        files[name] = buffer.getvalue()
    return files
