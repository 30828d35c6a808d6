import copy
import io
import itertools
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from image_files import chunk, exif, packed, pillow, png, small_png, small_tiff, tiff
from saff.images import (
    ImageError,
    decode,
    decode_png,
    decoding,
    encode_png,
    read,
    read_samples,
    signatures,
)

KINDS = {
    "empty",
    "not_an_image",
    "unsupported",
    "truncated",
    "corrupt",
    "no_pixels",
    "too_many_pixels",
}
HEIGHT, WIDTH = 21, 34
RNG = np.random.default_rng(7)
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([COLUMNS * 7, ROWS * 12, ROWS * 6 + COLUMNS * 3], axis=-1).astype(np.uint8)
NOISE = RGB.copy()  # smooth with a patch that lossy codecs would blur
NOISE[4:9, 3:20] = RNG.integers(0, 256, (5, 17, 3))
ALPHA = (255 - COLUMNS * 7).astype(np.uint8)
ALPHA[:, :2] = 0
RGBA = np.dstack([NOISE, ALPHA])
GREY = NOISE[..., 0]
DEEP = RNG.integers(0, 2**16, (HEIGHT, WIDTH, 4)).astype(np.uint16)
DEEP[0, :4] = [[0] * 4, [128] * 4, [129] * 4, [65535] * 4]  # 128 / 257 rounds down, 129 / 257 up
PALETTE = RNG.integers(0, 256, (256, 3)).astype(np.uint8)
JPEG_LEVELS = 5  # error of quality 95 without subsampling on a ramp: see its test


# ---- Files as real encoders write them, and the pixels a person would see ------------------------


def palette_image(transparency=None):
    image = PIL.Image.fromarray(GREY)
    image.putpalette(PALETTE.tobytes())
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def grey_to_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def over_white(colour, alpha, full=255):
    """Composite in float64 with one rounding; no sample of these files lies at a half."""
    alpha = alpha.astype(float)[..., None] / full
    return np.round((colour / full * alpha + 1 - alpha) * 255).astype(np.uint8)


def rounded(deep):
    return np.round(deep / 257).astype(np.uint8)


BITS = ((NOISE[..., 1] > 120) * 255).astype(np.uint8)
OPAQUE = np.full((HEIGHT, WIDTH), 255, np.uint8)
PALETTE_ALPHA = bytes(range(0, 256, 2)) + bytes([255] * 128)
DEEP_KEY = chunk(b"tRNS", DEEP[3, 5, :3].astype(">u2").tobytes())
DEEP_GREY_KEY = chunk(b"tRNS", DEEP[3, 5, :1].astype(">u2").tobytes())
KEYED = rounded(DEEP[..., :3])
KEYED[3, 5] = 255
GREY_KEYED = grey_to_rgb(rounded(DEEP[..., 0]))
GREY_KEYED[DEEP[..., 0] == DEEP[3, 5, 0]] = 255
PLANES = np.ascontiguousarray(np.moveaxis(NOISE, -1, 0))
GIF_KEYED = np.where(GREY[..., None] == GREY[0, 0], 255, PALETTE[GREY]).astype(np.uint8)

LOSSLESS = {
    "png rgb": (pillow(NOISE, "PNG"), NOISE),
    "png grey": (pillow(GREY, "PNG"), grey_to_rgb(GREY)),
    "png 1 bit": (pillow(BITS, "PNG", "1"), grey_to_rgb(BITS)),
    "png palette": (pillow(palette_image(), "PNG"), PALETTE[GREY]),
    "png palette alpha": (
        pillow(palette_image(), "PNG", transparency=PALETTE_ALPHA),
        over_white(PALETTE[GREY], np.frombuffer(PALETTE_ALPHA, np.uint8)[GREY]),
    ),
    "png grey alpha": (
        pillow(np.dstack([GREY, ALPHA]), "PNG"),
        over_white(grey_to_rgb(GREY), ALPHA),
    ),
    "png rgb alpha": (pillow(RGBA, "PNG"), over_white(NOISE, ALPHA)),
    "png 16 bit grey": (pillow(DEEP[..., 0], "PNG"), grey_to_rgb(rounded(DEEP[..., 0]))),
    "png 16 bit grey key": (png(DEEP[..., 0], 0, DEEP_GREY_KEY), GREY_KEYED),
    "png 16 bit rgb": (png(DEEP[..., :3], 2), rounded(DEEP[..., :3])),
    "png 16 bit rgb key": (png(DEEP[..., :3], 2, DEEP_KEY), KEYED),
    "png 16 bit grey alpha": (
        png(DEEP[..., 2:], 4),
        over_white(DEEP[..., [2, 2, 2]], DEEP[..., 3], 65535),
    ),
    "png 16 bit rgb alpha": (png(DEEP, 6), over_white(DEEP[..., :3], DEEP[..., 3], 65535)),
    "webp": (pillow(NOISE, "WEBP", lossless=True), NOISE),
    "webp alpha": (pillow(RGBA, "WEBP", lossless=True, exact=True), over_white(NOISE, ALPHA)),
    "bmp": (pillow(NOISE, "BMP"), NOISE),
    "bmp grey": (pillow(GREY, "BMP"), grey_to_rgb(GREY)),
    "bmp palette": (pillow(palette_image(), "BMP"), PALETTE[GREY]),
    "bmp 1 bit": (pillow(BITS, "BMP", "1"), grey_to_rgb(BITS)),
    "gif": (pillow(palette_image(), "GIF"), PALETTE[GREY]),
    "gif key": (pillow(palette_image(), "GIF", transparency=int(GREY[0, 0])), GIF_KEYED),
    "tiff": (pillow(NOISE, "TIFF"), NOISE),
    "tiff lzw": (pillow(NOISE, "TIFF", compression="tiff_lzw"), NOISE),
    "tiff deflate": (pillow(NOISE, "TIFF", compression="tiff_adobe_deflate"), NOISE),
    "tiff packbits": (pillow(NOISE, "TIFF", compression="packbits"), NOISE),
    "tiff palette": (pillow(palette_image(), "TIFF"), PALETTE[GREY]),
    "tiff fax": (pillow(BITS, "TIFF", "1", compression="group4"), grey_to_rgb(BITS)),
    "tiff rgb alpha": (pillow(RGBA, "TIFF"), over_white(NOISE, ALPHA)),
    "tiff tiles": (tiff(NOISE, tile=(16, 16)), NOISE),
    "tiff planes": (tiff(PLANES, photometric="rgb", planarconfig="separate"), NOISE),
    "tiff big-endian": (tiff(NOISE, byteorder=">"), NOISE),
    "bigtiff": (tiff(NOISE, bigtiff=True), NOISE),
    "tiff white is zero": (tiff(255 - GREY, photometric="miniswhite"), grey_to_rgb(GREY)),
    "tiff 16 bit grey": (tiff(DEEP[..., 0]), grey_to_rgb(rounded(DEEP[..., 0]))),
    "tiff 16 bit grey big-endian": (
        tiff(DEEP[..., 0], byteorder=">"),
        grey_to_rgb(rounded(DEEP[..., 0])),
    ),
    "tiff 16 bit white is zero": (
        tiff(DEEP[..., 0], photometric="miniswhite"),
        255 - grey_to_rgb(rounded(DEEP[..., 0])),
    ),
    "tiff 16 bit rgb": (tiff(DEEP[..., :3]), rounded(DEEP[..., :3])),
    "tiff 16 bit rgb big-endian deflate": (
        tiff(DEEP[..., :3], byteorder=">", compression="zlib"),
        rounded(DEEP[..., :3]),
    ),
    "tiff 16 bit rgb alpha": (
        tiff(DEEP, photometric="rgb", extrasamples=["unassalpha"]),
        over_white(DEEP[..., :3], DEEP[..., 3], 65535),
    ),
}
LOSSY = {
    "jpeg": pillow(RGB, "JPEG", quality=95, subsampling=0),
    "jpeg progressive": pillow(RGB, "JPEG", quality=95, subsampling=0, progressive=True),
    "jpeg rgb": pillow(RGB, "JPEG", quality=95, keep_rgb=True),
    "jpeg cmyk": pillow(RGB, "JPEG", "CMYK", quality=95, subsampling=0),
    "webp lossy": pillow(RGB, "WEBP", quality=95),
    "tiff jpeg": pillow(RGB, "TIFF", compression="jpeg", quality=95),
}
FILES = {name: file for name, (file, _) in LOSSLESS.items()} | LOSSY


def attempt(file, **options):
    """Decode; return the one exception that is allowed. Warnings are errors here, too."""
    try:
        return decode(file, **options)
    except ImageError as error:
        return error


every_file = pytest.mark.parametrize("name", FILES)


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_give_the_pixels_that_went_in(name):
    file, expected = LOSSLESS[name]
    np.testing.assert_array_equal(decode(file), expected)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_files_come_close(name):
    # JPEG at quality 95 quantises the few coefficients of a ramp in steps of 2 to 10, an eighth of
    # which is seen in a pixel; conversion to YCbCr and back rounds twice. WebP halves the chroma's
    # resolution as well, which costs up to one pixel's step of this ramp: 12 levels.
    error = np.abs(decode(LOSSY[name]).astype(int) - RGB)
    assert error.max() <= (12 if name == "webp lossy" else JPEG_LEVELS)
    assert error.mean() <= 2


def test_grey_jpeg_has_equal_channels():
    image = decode(pillow(RGB[..., 0], "JPEG", quality=95))
    assert np.abs(image.astype(int) - RGB[..., :1]).max() <= JPEG_LEVELS
    assert (image == image[..., :1]).all()


def test_progressive_and_baseline_hold_the_same_coefficients():
    np.testing.assert_array_equal(decode(LOSSY["jpeg progressive"]), decode(LOSSY["jpeg"]))


def test_cmyk_is_inverted_as_adobe_writes_it():
    red = np.broadcast_to(np.uint8([200, 20, 30]), (16, 16, 3))
    file = pillow(red, "JPEG", "CMYK", quality=100)
    assert b"Adobe" in file
    assert np.abs(decode(file).astype(int) - [200, 20, 30]).max() <= 3  # rounding, twice


@every_file
def test_arrays_are_the_callers_to_write(name):
    image = decode(FILES[name])
    assert image.dtype == np.uint8
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.flags.c_contiguous
    assert image.flags.owndata
    assert image.flags.writeable


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1)])
@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "TIFF", "JPEG", "WEBP"])
def test_tiny_and_thin_images(shape, file_format):
    flat = np.full((*shape, 3), 77, np.uint8)
    image = decode(pillow(flat, file_format))
    assert image.shape == flat.shape
    assert np.abs(image.astype(int) - 77).max() <= 2  # one grey through YCbCr of video range


@pytest.mark.parametrize("name", ["jpeg", "png rgb", "webp", "bmp", "gif", "tiff"])
@pytest.mark.parametrize("extension", ["", ".jpg", ".txt", ".tar.gz"])
def test_extensions_do_not_matter(name, extension, tmp_path):
    path = tmp_path / f"photo # 50% ü{extension}"
    path.write_bytes(FILES[name])
    np.testing.assert_array_equal(read(path), decode(FILES[name]))
    np.testing.assert_array_equal(read(str(path)), decode(FILES[name]))


def test_a_missing_file_is_not_the_images_fault(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.jpg")


def test_read_keeps_to_the_limit(tmp_path):
    (tmp_path / "a").write_bytes(FILES["bmp"])
    with pytest.raises(ImageError, match="max_pixels=5"):
        read(tmp_path / "a", max_pixels=5)


def test_threads_do_not_disturb_each_other():
    names = list(FILES) * 3
    with ThreadPoolExecutor(4) as pool:
        for name, image in zip(names, pool.map(lambda n: decode(FILES[n]), names), strict=True):
            np.testing.assert_array_equal(image, decode(FILES[name]))


# ---- Orientation ---------------------------------------------------------------------------------

UPRIGHT = {  # what the stored rows and columns become, by the EXIF standard's table
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def oriented(carrier, orientation, order="<"):
    block = exif(orientation, order)
    if carrier == "jpeg":
        return pillow(RGB, "JPEG", quality=95, exif=block)
    if carrier == "png":
        return pillow(NOISE, "PNG", exif=block)
    if carrier == "png 16 bit":
        return png(DEEP[..., :3], 2, chunk(b"eXIf", block[6:]))
    if carrier == "webp":
        return pillow(NOISE, "WEBP", lossless=True, exif=block)
    compression = "zlib" if "deflate" in carrier else None
    tags = [(274, "H", 1, orientation, True)]
    return tiff(
        NOISE, extratags=tags, byteorder=order, compression=compression, bigtiff="big" in carrier
    )


CARRIERS = ["jpeg", "png", "png 16 bit", "webp", "tiff", "tiff deflate"]


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("carrier", "order"), [*itertools.product(CARRIERS, "<>"), ("bigtiff", "<")]
)
def test_orientation_is_applied_once(carrier, orientation, order):
    stored = decode(oriented(carrier, 1))
    image = decode(oriented(carrier, orientation, order))
    np.testing.assert_array_equal(image, UPRIGHT[orientation](stored))
    assert image.flags.c_contiguous
    assert image.flags.writeable


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_agrees_with_pillow(orientation):
    file = oriented("png", orientation)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(file)))
    np.testing.assert_array_equal(decode(file), np.asarray(expected))


@pytest.mark.parametrize(
    "block",
    [
        exif(0),
        exif(9),
        exif(6)[:12],
        exif(6)[:20],
        b"Exif\0\0",
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        exif(6).replace(b"\x12\x01\x03\0\x01", b"\x12\x01\x02\0\x01"),  # of type ASCII
        exif(6).replace(b"\x12\x01\x03\0\x01", b"\x12\x01\x03\0\x09"),  # nine of them
    ],
)
@pytest.mark.parametrize("carrier", ["jpeg", "png", "webp"])
def test_broken_exif_leaves_the_image_as_stored(carrier, block):
    options = {"lossless": True} if carrier == "webp" else {}
    plain = decode(pillow(RGB, carrier, **options))
    np.testing.assert_array_equal(decode(pillow(RGB, carrier, exif=block, **options)), plain)


# ---- Metadata and further frames do not matter ---------------------------------------------------


def exif_that_pillow_warns_of():
    entry = struct.pack("<HHII", 271, 2, 10_000, 26)  # Make: 10,000 characters that are not there
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def test_pillow_itself_would_warn_of_the_metadata_below():
    # The test after this one proves something only as long as this holds.
    with pytest.warns(UserWarning, match="Tag data larger"):
        PIL.Image.open(io.BytesIO(pillow(RGB, "JPEG", exif=exif_that_pillow_warns_of()))).getexif()


SECOND_APNG = chunk(b"acTL", struct.pack(">II", 1, 0)) * 2  # Pillow warns of the second
BAD_PROFILE = chunk(b"iCCP", b"name\0\x05nonsense")
LONG_TEXT = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(3_000_000)))
BAD_TEXT = chunk(b"tEXt", b"key\0value")[:-1] + b"!"  # its checksum


@pytest.mark.parametrize("extra", [SECOND_APNG, BAD_PROFILE, LONG_TEXT, BAD_TEXT])
def test_broken_png_metadata_costs_nothing(extra):
    np.testing.assert_array_equal(decode(png(NOISE, 2, extra)), NOISE)
    np.testing.assert_array_equal(decode_png(png(NOISE, 2, extra)), NOISE)


def test_broken_jpeg_metadata_costs_nothing():
    plain = decode(LOSSY["jpeg"])
    segments = [b"\xff\xe1" + struct.pack(">H", 2 + len(exif_that_pillow_warns_of()))]
    segments[0] += exif_that_pillow_warns_of()
    segments += [b"\xff\xed\0\x20Photoshop 3.0\0" + b"8BIM" * 4]
    segments += [b"\xff\xe2\0\x0eMPF\0MM\0*\0\0\0\x08", b"\xff\xfe\0\x05abc", b"junk"]
    segments += [b"\xff\xff"]
    for count in range(1, len(segments) + 1):
        file = b"\xff\xd8" + b"".join(segments[:count]) + LOSSY["jpeg"][2:] + b"trailing"
        np.testing.assert_array_equal(decode(file), plain)


def test_broken_tiff_metadata_costs_nothing():
    make = struct.pack("<HHI", 271, 2, 10)
    file = tiff(NOISE, extratags=[(271, "s", 10, b"nine char\0", True)])
    file = file.replace(make, struct.pack("<HHI", 271, 2, 99_999))
    with pytest.warns(UserWarning, match="Tag data larger"):  # as above
        PIL.Image.open(io.BytesIO(file))
    np.testing.assert_array_equal(decode(file), NOISE)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_taken(file_format):
    first, second = (PIL.Image.fromarray(a).convert("P") for a in (GREY, 255 - GREY))
    options = {"lossless": True} if file_format == "WEBP" else {}
    file = pillow(first, file_format, save_all=True, append_images=[second], **options)
    assert PIL.Image.open(io.BytesIO(file)).n_frames == 2
    np.testing.assert_array_equal(decode(file), grey_to_rgb(GREY))


def test_a_gif_frame_beyond_the_screen_is_kept():
    file = bytearray(pillow(palette_image(), "GIF"))
    file[6:10] = struct.pack("<HH", 1, 1)
    np.testing.assert_array_equal(decode(bytes(file)), PALETTE[GREY])


# ---- Refusals ------------------------------------------------------------------------------------


def announcing(name, width, height):
    """Change the size in the header of a real file."""
    file = bytearray(FILES[name.removesuffix(" frame")])
    if name.startswith("png"):
        file[16:24] = struct.pack(">II", width, height)
        file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    elif name == "gif frame":
        at = file.index(struct.pack("<HHHH", 0, 0, WIDTH, HEIGHT))
        file[at + 4 : at + 8] = struct.pack("<HH", width, height)
    elif name == "gif":
        file[6:10] = struct.pack("<HH", width, height)
    elif name == "bmp":
        file[18:26] = struct.pack("<ii", width, height)
    elif name == "jpeg":
        frame = file.index(b"\xff\xc0")
        file[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    elif name == "webp lossy":
        file[26:30] = struct.pack("<HH", width, height)
    elif name == "webp":
        file[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    elif name == "webp alpha":  # VP8X when there is EXIF
        file = bytearray(pillow(RGBA, "WEBP", lossless=True, exif=exif(1)))
        assert file[12:16] == b"VP8X"
        file[24:30] = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    else:
        entry = {"tiff": "<HHII", "bigtiff": "<HHQQ"}[name]
        for tag, value in ((256, width), (257, height)):
            kinds = [kind for kind in (3, 4) if struct.pack("<HHI", tag, kind, 1) in file]
            at = file.index(struct.pack("<HHI", tag, kinds[0], 1))
            file[at : at + struct.calcsize(entry)] = struct.pack(entry, tag, 4, 1, value)
    return bytes(file)


SIZED = {
    "png rgb": 60_000,
    "gif": 60_000,
    "gif frame": 60_000,
    "bmp": 60_000,
    "jpeg": 60_000,
    "webp": 16_383,
    "webp lossy": 16_383,
    "webp alpha": 16_384,
    "tiff": 60_000,
    "bigtiff": 60_000,
}


@pytest.mark.parametrize("name", SIZED)
def test_bombs_are_refused_before_anything_is_decoded(name, monkeypatch):
    def decoder(*_):
        pytest.fail("a decoder was called")

    monkeypatch.setattr(decoding, "_DECODERS", dict.fromkeys(decoding._DECODERS, decoder))
    side = SIZED[name]
    expected = (
        f"^image announces {side} x {side} = {side * side} pixels; "
        "expected at most max_pixels=100000000, shrink it or raise the limit$"
    )
    with pytest.raises(ImageError, match=expected) as caught:
        decode(announcing(name, side, side))
    assert caught.value.kind == "too_many_pixels"


@every_file
def test_the_limit_counts_pixels_inclusively(name):
    assert decode(FILES[name], max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    expected = rf"^image announces {WIDTH} x {HEIGHT} = {HEIGHT * WIDTH} pixels; .*max_pixels=713"
    with pytest.raises(ImageError, match=expected) as caught:
        decode(FILES[name], max_pixels=HEIGHT * WIDTH - 1)
    assert caught.value.kind == "too_many_pixels"


@every_file
def test_pillows_own_limit_does_not_leak(name, monkeypatch):
    expected = decode(FILES[name])
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)  # it would warn
    np.testing.assert_array_equal(decode(FILES[name]), expected)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)  # it would raise its own error
    outcome = attempt(FILES[name])
    if isinstance(outcome, ImageError):  # WebP since Pillow 13, which checks while it opens
        assert name.startswith("webp")
        assert outcome.kind == "too_many_pixels"
        assert "fewer than PIL.Image.MAX_IMAGE_PIXELS" in str(outcome)
    else:
        np.testing.assert_array_equal(outcome, expected)


@pytest.mark.parametrize("name", ["png rgb", "gif", "bmp", "jpeg", "webp lossy", "tiff"])
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(name, size):
    file = announcing(name, *size)
    if name == "gif":  # its frame has a size of its own
        at = file.index(struct.pack("<HHHH", 0, 0, WIDTH, HEIGHT))
        file = file[: at + 4] + struct.pack("<HH", *size) + file[at + 8 :]
    expected = f"^image announces {size[0]} x {size[1]} pixels; expected at least 1 x 1$"
    with pytest.raises(ImageError, match=expected) as caught:
        decode(file)
    assert caught.value.kind == "no_pixels"


def twelve_bit_jpeg():
    file = bytearray(FILES["jpeg"])
    file[file.index(b"\xff\xc0") + 4] = 12
    return bytes(file)


def odd_compression():
    file = FILES["tiff"]
    return file.replace(struct.pack("<HHIH", 259, 3, 1, 1), struct.pack("<HHIH", 259, 3, 1, 9999))


SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'
DEEP_PLANES = np.ascontiguousarray(np.moveaxis(DEEP[..., :3], -1, 0))
REFUSED = [
    (b"", "empty", "image is empty: 0 bytes"),
    (b"A recipe for soup.\n" * 200, "not_an_image", "image is text"),
    ("Rezept für Suppe".encode(), "not_an_image", "image is text"),
    (b"BM is how this text begins", "not_an_image", "image is text"),
    (b"<!DOCTYPE html><p>404", "not_an_image", "image is an HTML page"),
    (b"\n<HTML><body>Sign in", "not_an_image", "image is an HTML page"),
    (bytes(5000), "not_an_image", "image is zeros"),
    (b"\x93\x01\x02\x03" * 99, "not_an_image", "image is data of no known format"),
    (b"PK\3\4....", "not_an_image", "image is a ZIP archive"),
    (b"\x1f\x8b\x08....", "not_an_image", "image is a gzip archive"),
    (pickle.dumps([1]), "not_an_image", "image is data of no known format"),
    (SVG, "unsupported", "image is an SVG drawing"),
    (tiff(GREY.astype(np.float32)), "unsupported", "a TIFF file of 32 bit floating point samples"),
    (tiff(GREY.astype(np.int16)), "unsupported", "a TIFF file of 16 bit signed samples"),
    (tiff(GREY.astype(np.uint32)), "unsupported", "a TIFF file of 32 bit unsigned samples"),
    (
        tiff(DEEP_PLANES, photometric="rgb", planarconfig="separate"),
        "unsupported",
        "a TIFF file of 16 bit colour planes",
    ),
    (
        tiff(DEEP[..., :3], compression="lzma"),
        "unsupported",
        "a TIFF file of 16 bit colour compressed by LZMA",
    ),
    (odd_compression(), "unsupported", "a TIFF file of compression 9999"),
    (twelve_bit_jpeg(), "unsupported", "a JPEG file of 12 bit samples"),
    (b"\xff\xd8\xff\xd9", "corrupt", "damaged or unusual JPEG file: it has no picture"),
    (b"GIF89a\5\0\5\0\0\0\0;", "corrupt", "GIF file: it has no frame"),
    (b"RIFF\4\0\0\0WEBP", "corrupt", "WebP file: it has no picture"),
    (FILES["webp"][:-2], "truncated", "truncated WebP file"),
    (tiff(RGB, bigtiff=True, byteorder=">"), "unsupported", "image is a big-endian BigTIFF file"),
    (
        FILES["png rgb"].replace(b"IDAT", b"IDAU"),
        "corrupt",
        "PNG file: the checksum of a chunk is wrong",
    ),
    (
        png(NOISE, 2).replace(b"IHDR", b"CgBI"),
        "unsupported",
        "a PNG file in Apple's CgBI variant",
    ),
    (
        png(NOISE, 2).replace(b"IHDR", b"IHDX"),
        "corrupt",
        "PNG file: its first chunk is not IHDR",
    ),
]


@pytest.mark.parametrize(("file", "kind", "message"), REFUSED, ids=[r[2] for r in REFUSED])
def test_refusals_are_named(file, kind, message):
    with pytest.raises(ImageError, match=message) as caught:
        decode(file)
    assert caught.value.kind == kind
    assert "; expected " in str(caught.value)
    with pytest.raises(ImageError) as again:
        decode(bytes(bytearray(file)))
    assert str(again.value) == str(caught.value)


HEADERS = {  # bytes up to the first pixel
    "png rgb": 33,
    "bmp": 54,
    "gif": 13,
    "webp": 25,
    "jpeg": FILES["jpeg"].index(b"\xff\xda") + 14,
    "tiff 16 bit rgb": 8,
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_alone_is_a_truncated_file(name):
    format_name = name.split()[0].upper().replace("WEBP", "WebP")
    message = (
        f"^image is a truncated {format_name} file: it ends before its last pixel; "
        "expected a whole file, fetch it again$"
    )
    with pytest.raises(ImageError, match=message) as caught:
        decode(FILES[name][: HEADERS[name]])
    assert caught.value.kind == "truncated"


@pytest.mark.parametrize("name", FILES)
def test_half_a_file_is_refused(name):
    with pytest.raises(ImageError) as caught:
        decode(FILES[name][: len(FILES[name]) // 2])
    assert caught.value.kind == "truncated"


@every_file
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_cut_files_are_refused_or_complete(name, data):
    file = FILES[name]
    length = data.draw(st.integers(0, len(file) - 1) | st.integers(len(file) - 20, len(file) - 1))
    outcome = attempt(file[:length])
    if isinstance(outcome, ImageError):
        assert outcome.kind in {"truncated", "not_an_image", "empty"}
    else:  # all pixels lie before the cut
        np.testing.assert_array_equal(outcome, decode(file))


@every_file
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_damaged_files_raise_nothing_else(name, data):
    file = bytearray(FILES[name])
    position = st.integers(0, len(file) - 1) | st.integers(0, 200)
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(position) % len(file)] = data.draw(st.integers(0, 255))
    outcome = attempt(bytes(file), max_pixels=100_000)
    if isinstance(outcome, ImageError):
        assert outcome.kind in KINDS
    else:
        assert outcome.dtype == np.uint8
        assert outcome.shape[2:] == (3,)


SIGNATURE_TABLES = [*signatures.READ, *signatures.PICTURES, *signatures.NO_PICTURES]
SIGNATURES = [*SIGNATURE_TABLES, b"RIFF\xff\0\0\0WEBPVP8 ", b"\xff\xd8\xff\xc0"]


@settings(max_examples=300, deadline=None)
@given(head=st.sampled_from([b"", *SIGNATURES]), tail=st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(head, tail):
    outcome = attempt(head + tail, max_pixels=100_000)
    if isinstance(outcome, ImageError):
        assert outcome.kind in KINDS
        assert " at 0x" not in str(outcome)


@given(kind=st.sampled_from(sorted(KINDS)), message=st.text("aü:%\n\\"))
def test_errors_travel_between_processes(kind, message):
    error = ImageError(kind, message)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is ImageError
        assert (other.kind, str(other)) == (kind, message)
    assert isinstance(error, ValueError)


def test_memory_is_the_machines_fault(monkeypatch):
    def decoder(*_):
        raise MemoryError

    monkeypatch.setattr(decoding, "_DECODERS", {"PNG": decoder})
    with pytest.raises(MemoryError):
        decode(FILES["png rgb"])


# ---- Maps as PNG ---------------------------------------------------------------------------------

sides = st.integers(1, 9)
maps = st.one_of(
    hnp.arrays(np.uint8, st.tuples(sides, sides)),
    hnp.arrays(np.uint16, st.tuples(sides, sides)),
    hnp.arrays(np.uint8, st.tuples(sides, sides, st.just(3))),
)


@settings(max_examples=150)
@given(array=maps, flip=st.booleans())
@example(array=np.arange(2**16, dtype=np.uint16).reshape(256, 256), flip=False)
def test_maps_come_back_exactly(array, flip):
    array = array[::-1, ::-1] if flip else array
    file = encode_png(array)
    assert file == encode_png(array.copy())
    restored = decode_png(file)
    assert restored.dtype == array.dtype
    assert restored.dtype.isnative
    assert restored.flags.writeable
    np.testing.assert_array_equal(restored, array)
    other_reader = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(
        other_reader[..., ::-1] if array.ndim == 3 else other_reader, array
    )


@pytest.mark.parametrize("shape", [(1, 1_000_001), (1_000_001, 1)])
def test_maps_longer_than_libpng_allows(shape):
    array = (np.arange(1_000_001) % 65_521).astype(np.uint16).reshape(shape)
    np.testing.assert_array_equal(decode_png(encode_png(array)), array)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((2, 3)),
            r"array must be uint8 or uint16 \(H, W\) .* got float64 of shape \(2, 3\)",
        ),
        (np.zeros((2, 3, 4), np.uint8), r"got uint8 of shape \(2, 3, 4\)"),
        (np.zeros((2, 3, 3), np.uint16), r"got uint16 of shape \(2, 3, 3\)"),
        (np.zeros(3, np.uint8), r"got uint8 of shape \(3,\)"),
        (np.zeros((2, 3), bool), r"got bool of shape \(2, 3\)"),
        (np.zeros((0, 3), np.uint8), r"array must have at least one pixel, got shape \(0, 3\)"),
    ],
)
def test_arrays_that_are_no_maps(array, message):
    with pytest.raises(ValueError, match=message):
        encode_png(array)


@pytest.mark.parametrize(
    ("file", "kind", "message"),
    [
        (b"", "empty", "0 bytes"),
        (b"nonsense", "not_an_image", "text"),
        (FILES["jpeg"], "unsupported", "^map is a JPEG file; expected PNG$"),
        (FILES["png 1 bit"], "unsupported", "of bit depth 1 and colour type 0; expected 8 or 16"),
        (FILES["png palette"], "unsupported", "of bit depth 8 and colour type 3"),
        (FILES["png rgb alpha"], "unsupported", "of bit depth 8 and colour type 6"),
        (FILES["png 16 bit rgb"], "unsupported", "of bit depth 16 and colour type 2"),
        (FILES["png rgb"][:200], "truncated", "truncated PNG"),
        (announcing("png rgb", 60_000, 60_000), "too_many_pixels", "60000 x 60000"),
    ],
)
def test_files_that_are_no_maps(file, kind, message):
    with pytest.raises(ImageError, match=message) as caught:
        decode_png(file)
    assert caught.value.kind == kind


@pytest.mark.parametrize("array", [GREY[:9, :9], DEEP[:9, :9, 0], NOISE[:9, :9]])
def test_one_wrong_byte_never_gives_another_map(array):
    file = bytearray(encode_png(array))
    refused = 0
    for position, flip in itertools.product(range(len(file)), (0x01, 0x80, 0xFF)):
        file[position] ^= flip
        try:
            restored = decode_png(bytes(file), max_pixels=1000)
        except ImageError:
            refused += 1
        else:
            np.testing.assert_array_equal(restored, array)
        file[position] ^= flip
    assert refused >= 3 * (len(file) - 12)  # all but in the empty chunk at the end


def test_sixteen_bits_become_eight_by_rounding():
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(
        decode(encode_png(every))[..., 0], (every.astype(int) + 128) // 257
    )


def test_every_signature_is_known_once():
    pairs = itertools.permutations(SIGNATURE_TABLES, 2)
    assert not [(a, b) for a, b in pairs if a.startswith(b)]


# ---- Samples as they are stored ------------------------------------------------------------------


def levels(bits, seed=0):
    """Every level of so many bits, in an order of its own, on sides that fill no byte."""
    rng = np.random.default_rng(seed)
    every = rng.permutation(2 ** min(bits, 8)) if bits <= 8 else rng.integers(0, 2**bits, 256)
    return np.resize(np.append(every, 2**bits - 1), (37, 11)).astype(int)


BIT_DEPTHS = pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])


@BIT_DEPTHS
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["png", "png key", "tiff", "tiff white is zero"])
def test_grey_samples_of_every_depth_are_not_scaled(bits, order, kind):
    values = levels(bits)
    if kind.startswith("tiff"):
        stored = values if kind == "tiff" else 2**bits - 1 - values
        photometric = 1 if kind == "tiff" else 0
        if bits < 8:
            file = small_tiff(stored, bits, photometric, order)
        else:
            names = {0: "miniswhite", 1: "minisblack"}
            typed = stored.astype(f"u{bits // 8}")
            file = tiff(typed, photometric=names[photometric], byteorder=order)
    else:
        key = [chunk(b"tRNS", struct.pack(">H", 1))] if kind == "png key" else []
        file = (
            small_png(values, bits, 0, *key)
            if bits < 8
            else png(values.astype(f"u{bits // 8}"), 0, *key)
        )
    samples = read_samples(file)
    assert (samples.mode, samples.bits, samples.palette) == ("grey", bits, None)
    assert samples.values.dtype == (np.uint16 if bits == 16 else np.uint8)
    np.testing.assert_array_equal(samples.values, values)
    if kind == "png key":
        np.testing.assert_array_equal(samples.alpha == 0, values == 1)
        assert set(np.unique(samples.alpha)) <= {0, np.iinfo(samples.alpha.dtype).max}
    else:
        assert samples.alpha is None


PALETTE_KINDS = ["png", "png alpha", "tiff <", "tiff >", "bmp", "gif"]


@pytest.mark.parametrize(
    ("kind", "bits"),
    [pair for pair in itertools.product(PALETTE_KINDS, [1, 2, 4, 8]) if pair != ("bmp", 2)],
)
def test_palette_indices_stay_indices(kind, bits):
    values = levels(bits)
    palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3)).astype(np.uint8)
    alpha = None
    if kind.startswith("png"):
        chunks = [chunk(b"PLTE", palette.tobytes())]
        if kind == "png alpha":
            chunks += [chunk(b"tRNS", b"\x07\xff\x80"[: 2**bits])]
            alpha = np.append(np.uint8([7, 255, 128])[: 2**bits], np.full(256, 255))[values]
        file = small_png(values, bits, 3, *chunks)
    elif kind.startswith("tiff"):
        file = small_tiff(values, bits, 3, kind[-1], palette)
    elif kind == "bmp":
        rows = packed(values[::-1], bits)
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
        colours = np.pad(palette[:, ::-1], ((0, 0), (0, 1))).tobytes()
        info = struct.pack("<IiiHHIIiiII", 40, *values.shape[::-1], 1, bits, *[0] * 4, 2**bits, 0)
        start = 14 + len(info) + len(colours)
        head = b"BM" + struct.pack("<IHHI", start + rows.size, 0, 0, start)
        file = head + info + colours + rows.tobytes()
    else:
        image = PIL.Image.fromarray(values.astype(np.uint8))
        image.putpalette(palette.tobytes())
        file = pillow(image, "GIF", optimize=False)
    samples = read_samples(file)
    assert samples.mode == "palette"
    assert samples.bits == (8 if kind == "gif" else bits)
    np.testing.assert_array_equal(samples.values, values)
    np.testing.assert_array_equal(samples.palette[: 2**bits], palette)
    if alpha is None:
        assert samples.alpha is None
    else:
        np.testing.assert_array_equal(samples.alpha, alpha)
    shown = samples.palette[samples.values]
    np.testing.assert_array_equal(
        decode(file), shown if alpha is None else over_white(shown, alpha)
    )


STORED = {  # colour and alpha, as they went in
    "png rgb": (NOISE, None),
    "png grey alpha": (GREY, ALPHA),
    "png rgb alpha": (NOISE, ALPHA),
    "png 16 bit rgb": (DEEP[..., :3], None),
    "png 16 bit rgb key": (DEEP[..., :3], np.where(np.indices(GREY.shape).sum(0) < 0, 0, 65535)),
    "png 16 bit grey alpha": (DEEP[..., 2], DEEP[..., 3]),
    "png 16 bit rgb alpha": (DEEP[..., :3], DEEP[..., 3]),
    "webp": (NOISE, None),
    "webp alpha": (NOISE, ALPHA),
    "bmp": (NOISE, None),
    "bmp grey": (GREY, None),
    "bmp 1 bit": (BITS // 255, None),
    "tiff fax": (BITS // 255, None),
    "tiff": (NOISE, None),
    "tiff rgb alpha": (NOISE, ALPHA),
    "tiff planes": (NOISE, None),
    "tiff 16 bit rgb big-endian deflate": (DEEP[..., :3], None),
    "tiff 16 bit rgb alpha": (DEEP[..., :3], DEEP[..., 3]),
}
STORED["png 16 bit rgb key"][1][3, 5] = 0


@pytest.mark.parametrize("name", STORED)
def test_samples_and_alpha_are_what_was_stored(name):
    values, alpha = STORED[name]
    samples = read_samples(FILES[name])
    assert samples.format == decode_name(name)
    assert samples.mode == ("colour" if values.ndim == 3 else "grey")
    assert samples.bits == (16 if "16 bit" in name else 1 if values.max() == 1 else 8)
    np.testing.assert_array_equal(samples.values, values)
    assert samples.values.flags.c_contiguous
    assert (samples.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(samples.alpha, alpha)


def decode_name(name):
    word = name.split()[0]
    return {"webp": "WebP", "bigtiff": "TIFF"}.get(word, word.upper())


@every_file
def test_samples_agree_with_the_picture(name):
    if name == "jpeg cmyk":
        with pytest.raises(ImageError, match=r"a JPEG file of CMYK samples; expected grey, pal"):
            read_samples(FILES[name])
        return
    samples = read_samples(FILES[name])
    shown = samples.values
    if samples.mode == "palette":
        shown = samples.palette[shown]
    elif samples.mode == "grey":
        shown = grey_to_rgb(np.round(shown * (255 / (2**samples.bits - 1))).astype(np.uint8))
    elif samples.bits == 16:
        shown = rounded(shown)
    if samples.alpha is not None:
        full = np.iinfo(samples.alpha.dtype).max
        exact = samples.values if samples.bits == 16 else shown
        exact = exact if exact.ndim == 3 else grey_to_rgb(exact)
        shown = over_white(exact, samples.alpha, full)
    np.testing.assert_array_equal(decode(FILES[name]), shown)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_samples_are_turned_as_the_picture_is(orientation, bits):
    values = levels(bits)
    block = chunk(b"eXIf", exif(orientation)[6:])
    file = (
        small_png(values, bits, 0, block)
        if bits == 4
        else png(values.astype(f"u{bits // 8}"), 0, block)
    )
    samples = read_samples(file)
    np.testing.assert_array_equal(samples.values, UPRIGHT[orientation](values))
    assert samples.values.flags.c_contiguous
    turned = read_samples(small_tiff(levels(4), 4, 1, ">", orientation=orientation))
    np.testing.assert_array_equal(turned.values, UPRIGHT[orientation](levels(4)))
    masked = read_samples(pillow(RGBA, "PNG", exif=exif(orientation)))
    np.testing.assert_array_equal(masked.alpha, UPRIGHT[orientation](ALPHA))


def test_a_mask_has_no_more_pixels_than_the_limit():
    with pytest.raises(ImageError, match=r"announces 34 x 21 = 714 pixels; .*max_pixels=713"):
        read_samples(FILES["png grey"], max_pixels=713)
