"""Which files are pictures, and which picture of a file is taken; docs/formats.md decides."""

import io
import struct
import sys

import numpy as np
import PIL.Image
import pytest

from image_files import Tiff, box, chunk, exif, pillow, png, small_png, tiff
from saff.images import ImageError, decode, read_samples
from saff.images.av1 import find_frame_sizes

HEIGHT, WIDTH = 33, 50
RNG = np.random.default_rng(11)
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
PICTURE = np.stack([COLUMNS * 5, ROWS * 7, ROWS * 3 + COLUMNS * 2], axis=-1).astype(np.uint8)
GREY = PICTURE[..., 2]
THUMBNAIL = np.full((11, 17, 3), 200, np.uint8)


def refusal(file, **options):
    with pytest.raises(ImageError) as caught:
        decode(file, **options)
    return caught.value.kind, str(caught.value)


def attempt(file):
    """Give the picture, or the kind of refusal."""
    try:
        return decode(file)
    except ImageError as error:
        return error.kind


# ---- What is no picture, or none that is read ----------------------------------------------------


def ftyp(major, *others):
    return box(b"ftyp", major + bytes(4) + b"".join([major, *others]))


UNSUPPORTED = {
    "a PBM, PGM or PPM file": [
        pillow(GREY, "PPM"),
        pillow(PICTURE, "PPM"),
        pillow(GREY > 90, "PPM"),
        b"P2\n# a comment\n2 2 255\n1 2 3 4\n",
        b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\nabcd",
    ],
    "a PFM file": [b"PF\n2 1\n-1.0\n" + bytes(24), b"Pf\n2 1\n-1.0\n" + bytes(8)],
    "a DICOM file": [bytes(128) + b"DICM" + bytes(40), b"a preamble".ljust(128) + b"DICM\2\0"],
    "a FITS file": [b"SIMPLE  =                    T".ljust(80) + b"END".ljust(80)],
    "a Canon CR3 camera raw file": [ftyp(b"crx ", b"isom"), ftyp(b"isom", b"crx ")],
    "a Canon CRW camera raw file": [b"II\x1a\0\0\0HEAPCCDR\2\0"],
    "a Fujifilm RAF camera raw file": [b"FUJIFILMCCD-RAW 0201FF"],
    "an Olympus ORF camera raw file": [b"IIRO\x08\0\0\0", b"MMOR\0\0\0\x08", b"IIRS\x08\0\0\0"],
    "a Panasonic RW2 camera raw file": [b"IIU\0\x18\0\0\0"],
    "a Sigma X3F camera raw file": [b"FOVb\0\0\3\0"],
    "a Minolta MRW camera raw file": [b"\0MRM\0\0\1\0"],
    "an SVG drawing": [
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"\xef\xbb\xbf<svg><!-- <html> --></svg>",
        b"<!-- " + b"a long licence " * 200 + b"-->\n<svg></svg>",
        b"\xff\xfe" + "<svg></svg>".encode("utf-16-le"),
    ],
    "a PDF document": [b"%PDF-1.7\n"],
    "a PostScript document": [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xc5\xd0\xd3\xc6\x20\0\0\0"],
    "a Photoshop document": [b"8BPS\0\1", b"8BPS\0\2"],
    "a GIMP XCF document": [b"gimp xcf v011\0"],
    "a DjVu document": [b"AT&TFORM\0\0\0\x08DJVU"],
    "an OpenEXR file": [b"\x76\x2f\x31\x01\2\0\0\0"],
    "a Radiance HDR file": [b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", b"#?RGBE\n"],
    "a JPEG XL file": [b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a\xfa\x1f"],
    "a JPEG XR file": [b"II\xbc\1\x20\0\0\0"],
    "an icon file": [pillow(PICTURE, "ICO"), pillow(PICTURE, "ICNS")],
    "a DirectDraw surface": [pillow(PICTURE, "DDS")],
    "a PCX file": [pillow(PICTURE, "PCX")],
    "an SGI file": [pillow(PICTURE, "SGI")],
    "a QOI file": [b"qoif\0\0\0\1\0\0\0\1\3\0"],
    "an XBM file": [pillow(GREY > 90, "XBM")],
    "an XPM file": [b"/* XPM */\nstatic char *x[] = {\n"],
    "a TGA file": [pillow(a, "TGA")[:cut] for a in (PICTURE, GREY) for cut in (None, -26)],
    "a Sun raster file": [b"\x59\xa6\x6a\x95\0\0\0\2"],
    "a Windows metafile": [b"\xd7\xcd\xc6\x9a\0\0", b"\1\0\0\0".ljust(40, b"\0") + b" EMF\0\0\1\0"],
    "an MNG animation": [b"\x8aMNG\r\n\x1a\n"],
    "an MP4 video": [ftyp(b"isom", b"mp41"), ftyp(b"mp42"), ftyp(b"M4V "), ftyp(b"3gp5")],
    "a QuickTime video": [ftyp(b"qt  "), box(b"moov"), box(b"wide") + box(b"mdat")],
    "a Matroska or WebM video": [b"\x1aE\xdf\xa3\x9fB\x86\x81\1"],
    "an AVI video": [b"RIFF\x10\0\0\0AVI LIST"],
    "a Flash video": [b"FLV\1\5"],
    "a Windows Media video": [b"0&\xb2u\x8ef\xcf\x11\xa6\xd9"],
    "an MPEG video": [b"\0\0\1\xba\x44", b"\0\0\1\xb3\x14", (b"G" + bytes(187)) * 3],
    "a big-endian BigTIFF file": [tiff(PICTURE, bigtiff=True, byteorder=">")],
    "a HEIC file": [ftyp(b"heix", b"mif1"), ftyp(b"hevc", b"msf1"), ftyp(b"mif2"), ftyp(b"heim")],
    "an AVIF file without a still picture": [ftyp(b"avif", b"mif1"), ftyp(b"mif1", b"avif")],
    "a PNG file in Apple's CgBI variant": [
        b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", b"\x50\0\x20\2") + png(PICTURE, 2)[8:]
    ],
}
NO_PICTURES = {
    "an audio file": [b"ID3\3\0", b"fLaC\0\0\0\x22", b"RIFF\x10\0\0\0WAVEfmt ", ftyp(b"M4A ")],
    "an Ogg audio or video file": [b"OggS\0\2"],
    "a ZIP archive": [b"PK\3\4...."],
    "the pointer that Git LFS puts in a file's place": [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
    ],
    "a gzip archive": [b"\x1f\x8b\x08...."],
    "a tar archive": [b"photos/".ljust(257, b"\0") + b"ustar\00000"],
    "a Parquet file": [b"PAR1\x15\4"],
    "an HTML page": [
        b"\xff\xfe" + "<html>".encode("utf-16-le"),
        b"<!doctype html>\n<p><svg></svg>",
        b"\n<HTML><body>Sign in",
    ],
    "an XML document": [b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'],
    "text": [
        b"P5 is a format\n",
        b"P1\n",
        b"GIF89 is not it",
        b"SIMPLE words",
        b"\xfe\xff" + "soup".encode("utf-16-be"),
        b"moo\n",
    ],
}


@pytest.mark.parametrize(
    ("kind", "what", "file"),
    [
        (kind, what, file)
        for kind, table in (("unsupported", UNSUPPORTED), ("not_an_image", NO_PICTURES))
        for what, files in table.items()
        for file in files
    ],
)
def test_what_is_not_read_has_its_right_name(kind, what, file, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    found, message = refusal(file)
    assert message.startswith(f"image is {what}; expected ")
    assert found == kind
    with pytest.raises(ImageError) as caught:
        read_samples(file)
    assert str(caught.value) == message


@pytest.mark.parametrize("bands", [2, 5, 7])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_bands_that_are_no_colours_are_counted(bands, bits, planes):
    shape = (HEIGHT, WIDTH, bands) if planes == "contig" else (bands, HEIGHT, WIDTH)
    samples = RNG.integers(0, 200, shape).astype(f"u{bits // 8}")
    file = tiff(samples, photometric="minisblack", planarconfig=planes)
    if (bands, bits, planes) == (2, 8, "contig"):  # Pillow takes the second for alpha
        assert decode(file).shape == (HEIGHT, WIDTH, 3)
        return
    kind, message = refusal(file)
    assert kind == "unsupported"
    assert f"a TIFF file of {bands} samples of {bits} bits per pixel" in message


# ---- TIFF: the full picture ----------------------------------------------------------------------


LAYOUTS = pytest.mark.parametrize(
    ("order", "big"), [("<", False), (">", False), ("<", True)], ids=["II", "MM", "BigTIFF"]
)


@LAYOUTS
@pytest.mark.parametrize("place", ["next", "inside", "second inside", "inside the next", "third"])
@pytest.mark.parametrize("mark", [{"t254": 1}, {"t255": 2}, {"t254": 3}, {"t254": 5}])
def test_a_thumbnail_is_not_taken_for_the_picture(order, big, place, mark):
    file = Tiff(order, big)
    small = {"next": {"following": 1}, "inside": {"inside": [1]}, "third": {"following": 2}}
    small |= {"second inside": {"inside": [2, 1]}, "inside the next": {"following": 2}}
    file.directory(THUMBNAIL, **mark, **small[place]).directory(PICTURE, t254=0)
    file.directory(THUMBNAIL + 9, t254=1, following=1 if place == "third" else None)
    if place == "inside the next":
        file = Tiff(order, big).directory(THUMBNAIL, **mark, following=2).directory(PICTURE)
        file.directory(THUMBNAIL + 9, t254=1, inside=[1])
    np.testing.assert_array_equal(decode(file.bytes()), PICTURE)
    np.testing.assert_array_equal(read_samples(file.bytes()).values, PICTURE)


@LAYOUTS
def test_a_first_picture_that_is_full_is_taken_whatever_follows(order, big):
    larger = np.zeros((80, 90, 3), np.uint8)
    file = Tiff(order, big).directory(PICTURE, following=1, inside=[2]).directory(larger)
    np.testing.assert_array_equal(decode(file.directory(THUMBNAIL, t254=1).bytes()), PICTURE)


@LAYOUTS
def test_a_first_picture_inside_which_a_larger_one_lies_is_a_thumbnail(order, big):
    file = Tiff(order, big).directory(THUMBNAIL, inside=[2, 1], following=3)
    file.directory(PICTURE).directory(THUMBNAIL[:5]).directory(THUMBNAIL + 9)
    np.testing.assert_array_equal(decode(file.bytes()), PICTURE)
    file = Tiff(order, big).directory(PICTURE, inside=[1]).directory(THUMBNAIL)
    np.testing.assert_array_equal(decode(file.bytes()), PICTURE)
    larger = np.zeros((80, 90, 3), np.uint8)
    file = Tiff(order, big).directory(PICTURE, inside=[1]).directory(larger, t254=1)
    np.testing.assert_array_equal(decode(file.bytes()), PICTURE)


@LAYOUTS
def test_pages_with_a_thumbnail_each_give_the_first_page(order, big):
    file = Tiff(order, big).directory(THUMBNAIL, t254=1, following=1)
    file.directory(PICTURE, t254=2, following=2).directory(THUMBNAIL, t254=1, following=3)
    larger = np.zeros((80, 90, 3), np.uint8)
    np.testing.assert_array_equal(decode(file.directory(larger, t254=2).bytes()), PICTURE)


@LAYOUTS
def test_of_several_full_pictures_the_first_in_the_order_of_the_file_is_taken(order, big):
    larger = np.zeros((80, 90, 3), np.uint8)
    inside = Tiff(order, big).directory(THUMBNAIL, t254=1, inside=[2, 1], following=1)
    inside.directory(larger).directory(PICTURE)
    np.testing.assert_array_equal(decode(inside.bytes()), PICTURE)
    before = Tiff(order, big).directory(THUMBNAIL, t254=1, inside=[1], following=2)
    before.directory(PICTURE).directory(larger)
    np.testing.assert_array_equal(decode(before.bytes()), PICTURE)


def test_a_second_thumbnail_without_a_mark_is_smaller_than_the_first():
    file = Tiff().directory(THUMBNAIL, t254=1, following=1).directory(THUMBNAIL[:5], following=2)
    np.testing.assert_array_equal(decode(file.directory(PICTURE).bytes()), PICTURE)


SENSOR = RNG.integers(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16)


@LAYOUTS
@pytest.mark.parametrize(
    ("what", "first", "tags"),
    [
        ("a camera raw file", {}, {"t262": 32803}),
        ("a camera raw file", {}, {"t262": 34892}),
        ("a camera raw file", {}, {"t262": 32803, "t259": 34713}),
        ("a camera raw file", {}, {"t259": 32767, "t262": None}),
        ("a DNG camera raw file", {"t50706": 0x401}, {"t262": 32803, "t259": 7}),
    ],
)
@pytest.mark.parametrize("place", ["following", "inside", "first"])
def test_sensor_data_is_refused_rather_than_its_preview_taken(order, big, what, first, tags, place):
    if place == "first":
        file = Tiff(order, big).directory(SENSOR, **tags, **first, inside=[1])
        file.directory(THUMBNAIL, t254=1)
    else:
        link = {"following": 1} if place == "following" else {"inside": [2, 1]}
        file = Tiff(order, big).directory(THUMBNAIL, t254=1, **first, **link)
        file.directory(SENSOR, **tags).directory(PICTURE, t254=1)  # its large preview
    kind, message = refusal(file.bytes())
    assert kind == "unsupported"
    assert message.startswith(f"image is {what}, whose full picture is sensor data; expected ")


def test_raw_files_whose_directories_do_not_show_it_are_known_by_their_head():
    for what, head in (("a Canon CR2", b"CR\2\0"), ("a Phase One", b"IIII")):
        file = Tiff()
        file.put(head + bytes(4))
        kind, message = refusal(file.directory(PICTURE).bytes())
        assert (kind, f"image is {what} camera raw file" in message) == ("unsupported", True)


@LAYOUTS
@pytest.mark.parametrize("link", [{}, {"following": 0}, {"inside": [0]}, {"following": 1}])
def test_a_thumbnail_alone_is_refused(order, big, link):
    file = Tiff(order, big).directory(THUMBNAIL, t254=1, **link)
    file.directory(THUMBNAIL, t254=1, following=0, inside=[1, 0])  # which refer to each other
    kind, message = refusal(file.bytes())
    assert kind == "unsupported"
    assert message.startswith("image is a TIFF file that holds only a thumbnail; expected one")


@LAYOUTS
@pytest.mark.parametrize("link", ["following", "inside"])
def test_a_file_cut_before_its_full_picture_is_truncated(order, big, link):
    to = {"following": 10**6} if link == "following" else {"inside": [10**6]}
    assert refusal(Tiff(order, big).directory(THUMBNAIL, t254=1, **to).bytes())[0] == "truncated"


def test_thousands_of_directories_cost_nothing():
    file = Tiff()
    for number in range(5000):
        file.directory(THUMBNAIL[:1, :1], t254=1, following=number + 1)
    file.directory(PICTURE)
    assert refusal(file.bytes())[0] == "unsupported"
    many = Tiff().directory(THUMBNAIL, t254=1, inside=[1] * 60_000).directory(PICTURE)
    np.testing.assert_array_equal(decode(many.bytes()), PICTURE)


@LAYOUTS
@pytest.mark.parametrize("tag", [256, 262, 273, 279, 320, 258])
def test_absurd_counts_are_refused(order, big, tag):
    file = Tiff(order, big).directory(PICTURE, **{f"t{tag}": (1,) * 300_000})
    kind, message = refusal(file.bytes())
    assert kind == "corrupt"
    assert "an entry of its directory has 300000 values" in message


def test_a_tile_far_larger_than_its_picture_is_refused():
    tags = {"t322": 40_000, "t323": 40_000, "t324": 8, "t325": 100, "t273": None, "t279": None}
    kind, message = refusal(Tiff().directory(PICTURE, t259=8, **tags).bytes(), max_pixels=10**6)
    assert kind == "too_many_pixels"
    assert message.startswith(
        "image announces a piece of 40000 x 40000 pixels; expected at most 4000000, "
    )


@LAYOUTS
@pytest.mark.parametrize("where", ["the picture", "the thumbnail"])
def test_orientation_is_that_of_the_picture_or_else_of_the_file(order, big, where):
    small, full = {"t274": 8}, {"t274": 3}
    if where == "the thumbnail":
        small, full = {"t274": 3}, {}
    file = Tiff(order, big).directory(THUMBNAIL, t254=1, **small, inside=[1])
    np.testing.assert_array_equal(
        decode(file.directory(PICTURE, **full).bytes()), PICTURE[::-1, ::-1]
    )


# ---- JPEG ----------------------------------------------------------------------------------------

JPEGS = {
    "baseline": pillow(PICTURE, "JPEG", quality=90),
    "fine": pillow(PICTURE, "JPEG", quality=98, subsampling=0),
    "optimized": pillow(PICTURE, "JPEG", optimize=True),
    "progressive": pillow(PICTURE, "JPEG", quality=90, progressive=True),
    "grey": pillow(GREY, "JPEG"),
    "grey progressive": pillow(GREY, "JPEG", progressive=True),
    "cmyk": pillow(PICTURE, "JPEG", "CMYK"),
    "rgb": pillow(PICTURE, "JPEG", keep_rgb=True),
    "restarts": pillow(PICTURE, "JPEG", restart_marker_blocks=2),
    "restarts each row": pillow(PICTURE, "JPEG", progressive=True, restart_marker_rows=1),
}


def in_separate_scans():
    """A baseline file of a scan for each component: three grey files of the same tables."""
    parts = [pillow(PICTURE[..., n], "JPEG", quality=90) for n in range(3)]
    scans = [part[part.index(b"\xff\xda") : -2] for part in parts]
    frame = parts[0].index(b"\xff\xc0")
    height, width = struct.unpack_from(">HH", parts[0], frame + 5)
    components = b"".join(bytes([n + 1, 0x11, 0]) for n in range(3))
    sof = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + components
    after = frame + 2 + struct.unpack_from(">H", parts[0], frame + 2)[0]
    head = parts[0][:frame] + sof + parts[0][after : parts[0].index(b"\xff\xda")]
    for n, scan in enumerate(scans):
        head += scan[:5] + bytes([n + 1]) + scan[6:]
    return head + b"\xff\xd9"


JPEGS["separate scans"] = in_separate_scans()
every_jpeg = pytest.mark.parametrize("name", JPEGS)


@every_jpeg
@pytest.mark.parametrize("end", [b"", b"\0\0", b"\xff", b"\0" * 5000, b"\xff" * 9 + b"\0" * 9])
def test_a_jpeg_without_its_end_is_read_if_every_pixel_is_there(name, end):
    file = JPEGS[name]
    assert file.endswith(b"\xff\xd9")
    np.testing.assert_array_equal(decode(file[:-2] + end), decode(file))


@every_jpeg
def test_a_jpeg_that_is_cut_is_truncated_or_whole(name):
    file, whole = JPEGS[name], decode(JPEGS[name])
    start = file.rindex(b"\xff\xda")
    refused = 0
    for length in [*range(start, len(file) - 2, 3), *range(len(file) - 40, len(file) - 2)]:
        for padding in (b"", bytes(300)):
            found = attempt(file[:length] + padding)
            refused += isinstance(found, str)
            assert isinstance(found, np.ndarray) or found == "truncated"
            np.testing.assert_array_equal(whole if isinstance(found, str) else found, whole)
    assert refused > 20


def test_a_last_sample_byte_of_ff_is_not_taken_for_half_a_marker():
    drawn = (
        pillow(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8), "JPEG", quality=95)
        for seed in range(5000)
    )
    file = next(file for file in drawn if file.endswith(b"\xff\0\xff\xd9"))
    np.testing.assert_array_equal(decode(file[:-2]), decode(file))


def test_a_progressive_jpeg_without_its_last_scans_is_truncated():
    file = JPEGS["progressive"]
    at = file.index(b"\xff\xda")
    scans = 0
    while (at := file.find(b"\xff\xda", at + 2)) > 0:
        scans += 1
        assert refusal(file[:at])[0] == "truncated"
    assert scans > 5


def test_a_jpeg_of_separate_scans_lacks_none():
    file = JPEGS["separate scans"]
    cut = [at for at in range(len(file)) if file[at : at + 2] == b"\xff\xda"]
    assert len(cut) == 3
    assert [refusal(file[:at])[0] for at in cut[1:]] == ["truncated"] * 2


def test_a_jpeg_that_gives_its_height_later_is_unsupported():
    file = JPEGS["baseline"]
    frame = file.index(b"\xff\xc0")
    without = file[: frame + 5] + b"\0\0" + file[frame + 7 :]
    height = b"\xff\xdc\0\4" + struct.pack(">H", HEIGHT)
    for data in (without[:-2] + height + b"\xff\xd9", without[:-2] + height):
        kind, message = refusal(data)
        assert kind == "unsupported"
        assert "a JPEG file that gives its height after its pixels (DNL); expected" in message
    assert refusal(without)[0] == "no_pixels"
    np.testing.assert_array_equal(decode(file[:-2] + height + b"\xff\xd9"), decode(file))


def test_thousands_of_scans_are_refused():
    file = JPEGS["progressive"]
    last = file[file.rindex(b"\xff\xda") : -2]
    kind, message = refusal(file[:-2] + last * 5000 + b"\xff\xd9")
    assert kind == "unsupported"
    assert "a JPEG file of 501" in message.replace("5010", "501")


def test_jpeg_ls_is_unsupported():
    file = pillow(PICTURE, "JPEG").replace(b"\xff\xc0", b"\xff\xf7", 1)
    assert refusal(file)[1].startswith("image is a JPEG-LS file; expected ")


def test_hierarchical_jpegs_are_unsupported():
    file = JPEGS["baseline"].replace(b"\xff\xc0", b"\xff\xc5")
    assert refusal(file)[1].startswith("image is a hierarchical JPEG file; expected ")


def test_cmyk_without_the_adobe_marker_is_inverted_all_the_same():
    red = np.broadcast_to(np.uint8([200, 20, 30]), (16, 16, 3))
    file = pillow(red, "JPEG", "CMYK", quality=100)
    at = file.index(b"\xff\xee")
    bare = file[:at] + file[at + 2 + struct.unpack_from(">H", file, at + 2)[0] :]
    assert b"Adobe" not in bare
    np.testing.assert_array_equal(decode(bare), decode(file))
    assert np.abs(decode(bare).astype(int) - [200, 20, 30]).max() <= 3  # rounding, twice


# ---- BMP -----------------------------------------------------------------------------------------

COLOURS = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def bmp(alpha, header, compression, upside_down=True):
    """A 32 bit BMP with a fourth byte of ``alpha`` for every pixel."""
    bgra = np.dstack([PICTURE[..., ::-1], np.broadcast_to(alpha, (HEIGHT, WIDTH))])
    rows = np.ascontiguousarray(bgra[::-1] if upside_down else bgra).astype(np.uint8).tobytes()
    height = HEIGHT if upside_down else -HEIGHT
    info = struct.pack(
        "<IiiHHIIiiII", header, WIDTH, height, 1, 32, compression, len(rows), *[0] * 4
    )
    info = (info + COLOURS).ljust(header, b"\0") if header > 40 else info
    info += COLOURS[:12] if (header, compression) == (40, 3) else b""
    start = 14 + len(info)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + rows


BMPS = [(40, 0), (40, 3), (56, 3), (108, 3), (124, 3), (124, 0), (108, 0)]


@pytest.mark.parametrize(("header", "compression"), BMPS)
@pytest.mark.parametrize("upside_down", [True, False])
@pytest.mark.parametrize("level", [0, 255])
def test_a_bmp_whose_alpha_is_all_zero_or_all_full_is_opaque(
    header, compression, upside_down, level
):
    file = bmp(level, header, compression, upside_down)
    np.testing.assert_array_equal(decode(file), PICTURE)
    samples = read_samples(file)
    np.testing.assert_array_equal(samples.values, PICTURE)
    assert samples.alpha is None or (level and samples.alpha.min() == 255)


@pytest.mark.parametrize("header", [56, 108, 124])
def test_alpha_that_varies_is_used(header):
    alpha = np.where(COLUMNS < 20, 0, 255)
    expected = np.where(alpha[..., None] == 0, 255, PICTURE)
    np.testing.assert_array_equal(decode(bmp(alpha, header, 3)), expected)
    np.testing.assert_array_equal(read_samples(bmp(alpha, header, 3)).alpha, alpha)


@pytest.mark.parametrize("header", [40, 124])
def test_the_fourth_byte_without_an_alpha_mask_is_no_alpha(header):
    np.testing.assert_array_equal(
        decode(bmp(RNG.integers(0, 256, (HEIGHT, WIDTH)), header, 0)), PICTURE
    )


def test_bmp_variants_that_are_not_read_are_unsupported():
    for compression in (4, 5):  # a JPEG or PNG file inside
        kind, message = refusal(bmp(0, 40, compression))
        assert (kind, "a BMP file of an unsupported compression" in message) == (
            "unsupported",
            True,
        )


# ---- EXIF ----------------------------------------------------------------------------------------


def exif_block(order, *entries, count=None):
    """An EXIF block of entries: tag, type, count and four bytes."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(order + "HHI4s", *entry) for entry in entries)
    number = len(entries) if count is None else count
    return b"Exif\0\0" + head + struct.pack(order + "IH", 8, number) + body + bytes(4)


def orientation_entry(order, value, kind=3):
    code = {1: "B", 3: "H", 4: "I"}[kind]
    return 274, kind, 1, struct.pack(order + code, value).ljust(4, b"\0")


ODD = {
    "beyond the end": (271, 2, 10_000, b"\xff\xff\xff\x7f"),
    "of no known type": (271, 99, 1, bytes(4)),
    "of type 0": (0, 0, 0, bytes(4)),
    "of absurd count": (282, 5, 2**32 - 1, b"\x10\0\0\0"),
    "strips that are not there": (273, 4, 9_999, b"\0\0\0\x10"),
    "a broken orientation": (274, 2, 9, b"\xff\xff\0\0"),
    "an orientation of 0": (274, 3, 1, bytes(4)),
    "a greater tag": (40_000, 3, 1, bytes(4)),
}


def carried(carrier, block):
    if carrier == "tiff":
        return None
    options = {"lossless": True} if carrier == "WEBP" else {}
    return pillow(PICTURE, carrier, exif=block, **options)


@pytest.mark.parametrize("carrier", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_orientation_is_found_behind_a_broken_entry(carrier, order, odd, kind):
    block = exif_block(order, ODD[odd], orientation_entry(order, 6, kind))
    plain = decode(pillow(PICTURE, carrier, **({"lossless": True} if carrier == "WEBP" else {})))
    np.testing.assert_array_equal(decode(carried(carrier, block)), np.rot90(plain, -1))


@pytest.mark.parametrize("order", "<>")
def test_orientation_is_found_in_a_directory_that_is_cut(order):
    entries = orientation_entry(order, 3), (306, 2, 20, bytes(4))
    block = exif_block(order, *entries, count=500)
    plain = decode(pillow(PICTURE, "JPEG"))
    np.testing.assert_array_equal(decode(carried("JPEG", block)), plain[::-1, ::-1])
    twice = carried("JPEG", block)
    broken = b"\xff\xe1\0\x0eExif\0\0II*\0\xff\xff"  # a first block that says nothing
    np.testing.assert_array_equal(decode(twice[:2] + broken + twice[2:]), plain[::-1, ::-1])


@pytest.mark.parametrize("odd", [(271, 2, 10_000, b"\xff\xff\xff\x7f"), (274, 3, 9_999, bytes(4))])
def test_a_broken_entry_of_a_tiff_costs_neither_picture_nor_orientation(odd):
    for order, big in (("<", False), (">", False), ("<", True)):
        file = Tiff(order, big).directory(PICTURE, t271=7, t274=3).bytes()
        size = "Q" if big else "I"
        old = struct.pack(
            order + "HH" + size, odd[0] if odd[0] == 271 else 274, 16 if big else 4, 1
        )
        new = struct.pack(order + "HH" + size, *odd[:3])
        assert file.count(old) == 1
        expected = PICTURE[::-1, ::-1] if odd[0] == 271 else PICTURE
        np.testing.assert_array_equal(decode(file.replace(old, new)), expected)


def test_a_png_with_a_damaged_exif_chunk_is_shown_as_stored():
    block = chunk(b"eXIf", exif(6)[6:])
    damaged = block[:-1] + bytes([block[-1] ^ 1])
    np.testing.assert_array_equal(decode(png(PICTURE, 2, damaged)), PICTURE)
    turned = np.rot90(PICTURE, -1)
    np.testing.assert_array_equal(decode(png(PICTURE, 2, damaged, block)), turned)
    prefixed = chunk(b"eXIf", exif(6))  # as some programs write it
    np.testing.assert_array_equal(decode(png(PICTURE, 2, prefixed)), turned)


# ---- PNG -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_level_of_any_depth_is_white(bits):
    values = np.arange(2**bits).repeat(3).reshape(2**bits, 3)
    key = 1 if bits == 1 else 2
    image = decode(small_png(values, bits, 0, chunk(b"tRNS", struct.pack(">H", key))))
    grey = values * (255 // (2**bits - 1))
    np.testing.assert_array_equal(image[..., 0], np.where(values == key, 255, grey))


def test_hundreds_of_thousands_of_chunks_cost_no_more_than_their_bytes():
    texts = chunk(b"tEXt", b"k\0v") * 200_000
    np.testing.assert_array_equal(decode(png(PICTURE, 2, texts)), PICTURE)
    image = png(PICTURE, 2)
    at = image.index(b"IDAT") - 4
    empty = chunk(b"IDAT", b"") + chunk(b"tEXt", b"k\0v")
    np.testing.assert_array_equal(decode(image[:at] + empty * 50_000 + image[at:]), PICTURE)


# ---- GIF and animations --------------------------------------------------------------------------


def test_a_gif_of_many_frames_and_comments_gives_its_first_frame():
    first, second = (PIL.Image.fromarray(array) for array in (GREY, 255 - GREY))
    file = pillow(first, "GIF", save_all=True, append_images=[second] * 20, optimize=False)
    expected = np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(file), expected)
    at = 13 + 3 * 256
    comment = b"!\xfe" + (b"\1x" * 100_000) + b"\0"
    np.testing.assert_array_equal(decode(file[:at] + comment * 3 + file[at:]), expected)


@pytest.mark.parametrize("file_format", ["AVIF", "PNG", "WEBP", "GIF"])
def test_an_animation_gives_its_first_frame(file_format):
    frames = [PIL.Image.fromarray(np.full((40, 60), level, np.uint8)) for level in (200, 30, 90)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    file = pillow(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert PIL.Image.open(io.BytesIO(file)).n_frames == 3
    assert np.abs(decode(file).astype(int) - 200).max() <= 2


# ---- AVIF, HEIC and JPEG 2000 --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_avif_is_read(mode):
    image = PIL.Image.fromarray(PICTURE).convert(mode)
    if mode == "RGBA":
        image.putalpha(PIL.Image.fromarray(np.where(COLUMNS < 25, 0, 255).astype(np.uint8)))
    expected = np.asarray(image.convert("RGB") if mode == "L" else PICTURE).astype(int)
    found = decode(pillow(image, "AVIF", quality=95, subsampling="4:4:4")).astype(int)
    assert found.shape == PICTURE.shape
    if mode == "RGBA":
        assert (found[:, :24] == 255).all()
        found, expected = found[:, 26:], expected[:, 26:]
    assert np.abs(found - expected).mean() <= 3  # lossy


def avif(**options):
    return pillow(PICTURE, "AVIF", quality=90, **options)


TURNED = {1: 0, 3: 2, 6: -1, 8: 1}


@pytest.mark.parametrize("orientation", TURNED)
def test_avif_is_turned_as_its_boxes_say_not_as_its_exif_says(orientation):
    plain = decode(avif())
    block = PIL.Image.Exif()
    block[274] = orientation
    turned = avif(exif=block.tobytes())  # Pillow writes a box for it
    np.testing.assert_array_equal(decode(turned), np.rot90(plain, TURNED[orientation]))


def test_broken_exif_in_avif_costs_nothing():
    file = avif(exif=exif_block("<", (305, 2, 4, b"abc\0")))
    entry = struct.pack("<HHI", 305, 2, 4)
    assert file.count(entry) == 1
    file = file.replace(entry, struct.pack("<HHI", 305, 2, 40_000))
    with pytest.warns(UserWarning, match="Tag data larger"):
        PIL.Image.open(io.BytesIO(file))
    np.testing.assert_array_equal(decode(file), decode(avif()))


def heic(image=PICTURE, **options):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(PIL.Image.fromarray(image)).save(buffer, quality=95, **options)
    return buffer.getvalue()


def test_heic_is_read_where_pillow_heif_is_installed(monkeypatch):
    for image in (PICTURE, GREY, np.dstack([PICTURE, np.full_like(GREY, 255)])):
        expected = image[..., :3] if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        assert np.abs(decode(heic(image)).astype(int) - expected).mean() <= 3
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    kind, message = refusal(heic_file := heic_bytes())
    assert kind == "unsupported"
    assert "pip install 'saff[heic]'" in message
    assert heic_file[4:8] == b"ftyp"


def heic_bytes():
    return ftyp(b"heic", b"mif1") + box(b"meta", bytes(40))


def test_heic_is_turned_as_its_boxes_say():
    plain, block = decode(heic()), PIL.Image.Exif()
    for orientation, quarter in TURNED.items():
        block[274] = orientation
        file = heic(exif=block.tobytes())
        assert np.abs(decode(file).astype(int) - np.rot90(plain, quarter)).mean() <= 3


@pytest.mark.parametrize("name", ["rgb", "grey", "alpha", "grey alpha", "code stream", "16 bit"])
def test_jpeg_2000_is_read(name):
    grey = np.repeat(GREY[..., None], 3, axis=2)
    alpha = np.where(COLUMNS < 25, 0, 255).astype(np.uint8)
    white = np.where(alpha[..., None] == 0, 255, PICTURE)
    deep = GREY.astype(np.uint16) * 257
    file, expected, stored = {
        "rgb": (pillow(PICTURE, "JPEG2000"), PICTURE, PICTURE),
        "grey": (pillow(GREY, "JPEG2000"), grey, GREY),
        "alpha": (pillow(np.dstack([PICTURE, alpha]), "JPEG2000"), white, PICTURE),
        "grey alpha": (
            pillow(np.dstack([GREY, alpha]), "JPEG2000"),
            np.where(alpha[..., None] == 0, 255, grey),
            GREY,
        ),
        "code stream": (pillow(PICTURE, "JPEG2000", no_jp2=True), PICTURE, PICTURE),
        "16 bit": (pillow(deep, "JPEG2000"), grey, deep),
    }[name]
    np.testing.assert_array_equal(decode(file), expected)
    samples = read_samples(file)
    assert (samples.format, samples.bits) == ("JPEG 2000", 16 if name == "16 bit" else 8)
    np.testing.assert_array_equal(samples.values, stored)
    if "alpha" in name:
        np.testing.assert_array_equal(samples.alpha, alpha)


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 9, 12])
def test_jpeg_2000_of_odd_depths(bits):
    values = (np.arange(HEIGHT * WIDTH) % 2**bits).reshape(HEIGHT, WIDTH)
    whole = 8 if bits < 8 else 16
    centred = values + 2 ** (whole - 1) - 2 ** (bits - 1)  # as the format stores unsigned samples
    file = bytearray(pillow(centred.astype(f"u{whole // 8}"), "JPEG2000", no_jp2=True))
    precision = file.index(b"\xff\x51") + 40
    assert file[precision] == whole - 1
    file[precision] = bits - 1
    samples = read_samples(bytes(file))
    assert (samples.bits, samples.mode) == (bits, "grey")
    np.testing.assert_array_equal(samples.values, values)
    if bits < 8:
        shown = values * 255 // (2**bits - 1)
    else:  # filled up to 16 bit by zeros, then rounded
        shown = np.round((values << 16 - bits) / 257)
    np.testing.assert_array_equal(decode(bytes(file))[..., 0], shown)


@pytest.mark.parametrize("name", ["avif", "heic", "jpeg 2000", "code stream"])
def test_cut_files_of_newer_formats_are_truncated(name):
    file = {
        "avif": avif,
        "heic": heic,
        "jpeg 2000": lambda: pillow(PICTURE, "JPEG2000"),
        "code stream": lambda: pillow(PICTURE, "JPEG2000", no_jp2=True),
    }[name]()
    whole = decode(file)
    for length in range(60, len(file) - 1, len(file) // 40 + 1):
        found = attempt(file[:length])
        assert isinstance(found, np.ndarray) or found == "truncated"
        np.testing.assert_array_equal(whole if isinstance(found, str) else found, whole)


@pytest.mark.parametrize("name", ["avif", "heic", "jpeg 2000"])
def test_the_announced_size_is_checked_before_newer_formats_are_decoded(name):
    file = {"avif": avif, "heic": heic, "jpeg 2000": lambda: pillow(PICTURE, "JPEG2000")}[name]()
    kind, message = refusal(file, max_pixels=HEIGHT * WIDTH - 1)
    assert (kind, f"image announces {WIDTH} x {HEIGHT}" in message) == ("too_many_pixels", True)
    assert decode(file, max_pixels=HEIGHT * WIDTH).shape == PICTURE.shape
    large = bytearray(file)
    if name == "jpeg 2000":
        at = large.index(b"\xff\x51") + 6
        large[at : at + 8] = struct.pack(">II", 60_000, 60_000)
        large[at + 16 : at + 24] = struct.pack(">II", 60_000, 60_000)
    else:
        at = large.index(b"ispe") + 8
        large[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    assert refusal(bytes(large))[0] == "too_many_pixels"


class Bits:
    """Writes numbers of any number of bits."""

    def __init__(self):
        self.text = ""

    def put(self, *pairs):
        for value, count in pairs:
            self.text += f"{value:0{count}b}"[-count:] if count else ""
        return self

    def bytes(self):
        text = self.text + "0" * (-len(self.text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def sequence_header(width, height, timing=False, model=False, points=1, delays=False):
    """The open bitstream unit that opens AV1 data, by the syntax of its standard."""
    bits = Bits().put((0, 3), (1, 1), (0, 1), (timing, 1))
    if timing:
        bits.put((1, 32), (30, 32), (1, 1), (0b00101, 5))  # one picture takes 4 ticks: 00 1 01
        bits.put((model, 1))
        if model:
            bits.put((9, 5), (1, 32), (9, 5), (9, 5))
    bits.put((delays, 1), (points - 1, 5))
    for point in range(points):
        level = 5 if point % 2 else 13
        bits.put((point, 12), (level, 5), *([(1, 1)] if level > 7 else []))
        if timing and model:
            bits.put((1, 1), (7, 10), (7, 10), (0, 1))
        if delays:
            bits.put((1, 1), (3, 4))
    bits.put((15, 4), (15, 4), (width - 1, 16), (height - 1, 16), (0x55, 8))
    body = bits.bytes()
    return bytes([0x0A, len(body)]) + body


@pytest.mark.parametrize("timing", [False, True])
@pytest.mark.parametrize("model", [False, True])
@pytest.mark.parametrize("points", [1, 4])
@pytest.mark.parametrize("delays", [False, True])
def test_the_size_of_av1_frames_is_found_behind_every_option(timing, model, points, delays):
    unit = sequence_header(40_001, 333, timing, model, points, delays)
    assert (
        list(find_frame_sizes(memoryview(b"\x12\0" + unit + b"\x16\x20\1x" + unit)))
        == [(40_001, 333)] * 2
    )


def test_av1_data_that_is_no_such_thing_ends():
    assert list(find_frame_sizes(memoryview(b""))) == []
    assert (
        list(find_frame_sizes(memoryview(b"\x12\0" * 30_000))) == []
    )  # more units than are looked at
    assert list(find_frame_sizes(memoryview(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff"))) == [
        (1, 1)
    ]


@pytest.mark.parametrize(
    ("animated", "place"), [(False, "items"), (True, "items"), (True, "track")]
)
def test_an_avif_file_of_larger_frames_than_announced_is_refused(animated, place):
    frames = [PIL.Image.new("RGB", (2000, 1500), colour) for colour in ("red", "blue")]
    more = {"save_all": True, "append_images": frames[1:]} if animated else {}
    file = bytearray(pillow(frames[0], "AVIF", speed=10, **more))
    at = -1
    while (at := file.find(b"ispe", at + 1)) >= 0:
        file[at + 8 : at + 16] = struct.pack(">II", 64, 64)
    at = -1
    while (at := file.find(b"tkhd", at + 1)) >= 0:
        size = struct.unpack_from(">I", file, at - 4)[0]
        file[at - 4 + size - 8 : at - 4 + size] = struct.pack(">II", 64 << 16, 64 << 16)
    if place == "track":  # an animation without a picture of its own
        file = file.replace(b"iloc", b"none")
    kind, message = refusal(bytes(file), max_pixels=10_000)
    assert kind == "too_many_pixels"
    assert message.startswith("image announces a piece of 2000 x 1500 pixels; expected at most ")


def test_a_heic_file_of_larger_frames_than_announced_is_refused():
    file = bytearray(heic(np.zeros((1500, 2000, 3), np.uint8)))
    at = -1
    while (at := file.find(b"ispe", at + 1)) >= 0:
        file[at + 8 : at + 16] = struct.pack(">II", 64, 64)
    assert refusal(bytes(file), max_pixels=10_000)[0] in ("corrupt", "too_many_pixels")


def test_masks_are_not_read_from_lossy_containers():
    for file in (avif(), heic()):
        with pytest.raises(ImageError, match=r"whose samples are not exact; expected PNG"):
            read_samples(file)


def test_a_jpeg_2000_file_of_tiny_blocks_is_refused():
    file = bytearray(pillow(PICTURE, "JPEG2000", no_jp2=True, precinct_size=(64, 64)))
    style = file.index(b"\xff\x52")
    sizes = style + 14
    assert file[style + 4] & 1
    assert file[sizes + file[style + 9]] == 0x66
    for at in range(sizes, sizes + file[style + 9] + 1):
        file[at] = 0x11  # precincts of 2 x 2 samples
    at = file.index(b"\xff\x51") + 6
    file[at : at + 8] = struct.pack(">II", 600, 600)
    file[at + 16 : at + 24] = struct.pack(">II", 600, 600)
    kind, message = refusal(bytes(file))
    assert kind == "unsupported"
    assert "code blocks and precincts; expected at most" in message


def test_a_jpeg_2000_file_of_tiny_tiles_is_refused():
    file = bytearray(pillow(PICTURE, "JPEG2000", no_jp2=True))
    at = file.index(b"\xff\x51") + 6
    file[at : at + 8] = struct.pack(">II", 1000, 1000)
    file[at + 16 : at + 24] = struct.pack(">II", 8, 8)
    assert refusal(bytes(file))[1].startswith("image is a JPEG 2000 file of 15625 tiles; ")
