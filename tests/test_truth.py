"""True masks: each kind of file gives what a viewer shows, or the refusal that names a way out."""

import io
import re
import struct
import unicodedata
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given, settings, strategies as st

from saff.errors import SettingsError
from saff.images import encode_png
from saff.truth import Masks, read_mask, read_truth

H, W = 24, 30
ROWS, COLUMNS = np.mgrid[:H, :W]
DISC = (ROWS - 10) ** 2 + (COLUMNS - 13) ** 2 < 49
VOC = {0: (0, 0, 0), 1: (128, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
"""Some of the colours that the VOC development kit gives to class numbers."""


def soft(top=255):
    """The disc with outlines of one pixel between black and white: what drawing tools write."""
    distance = np.hypot(ROWS - 10, COLUMNS - 13) - 7
    return np.rint(np.clip(0.5 - distance, 0, 1) * top)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def packed(rows, depth):
    """Scanlines without a filter, samples of any depth."""
    lines = b""
    for row in rows:
        flat = np.asarray(row).ravel()
        if depth == 16:
            lines += b"\0" + flat.astype(">u2").tobytes()
        else:
            bits = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
            lines += b"\0" + np.packbits(bits).tobytes()
    return lines


ADAM7 = [
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
]


def png(samples, depth=8, colour=0, *chunks, interlaced=False):
    """Write a PNG file: colour type 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    samples = np.asarray(samples)
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    lines = b"".join(
        packed(samples[top::down, left::right], depth) for top, left, down, right in passes
    )
    header = struct.pack(">IIBBBBB", *samples.shape[1::-1], depth, colour, 0, 0, interlaced)
    parts = (
        chunk(b"IHDR", header),
        *chunks,
        chunk(b"IDAT", zlib.compress(lines)),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette(*colours):
    return chunk(b"PLTE", np.array(colours, np.uint8).tobytes())


def saved(array, file_format, **options):
    file = io.BytesIO()
    image = array if isinstance(array, PIL.Image.Image) else PIL.Image.fromarray(array)
    image.save(file, file_format, **options)
    return file.getvalue()


def grey(values, dtype=np.uint8):
    return np.asarray(values).astype(dtype)


def rgba(colours, alpha):
    return png(np.dstack([np.broadcast_to(colours, (*alpha.shape, 3)), alpha]), 8, 6)


def assert_disc(data, truth_format="binary"):
    truth = read_truth(data, truth_format)
    np.testing.assert_array_equal(truth.mask, DISC, strict=True)
    assert truth.valid.dtype == bool
    assert truth.valid.all()


def refusal(data, truth_format="binary"):
    with pytest.raises(SettingsError) as raised:
        read_truth(data, truth_format)
    assert " at 0x" not in str(raised.value)
    return str(raised.value)


# Black and white


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("depth", "level"),
    [
        (1, 1),
        (2, 1),
        (2, 3),
        (4, 1),
        (4, 15),
        (8, 1),
        (8, 15),
        (8, 255),
        (16, 1),
        (16, 255),
        (16, 65535),
    ],
)
def test_black_and_one_other_level_are_read_at_every_depth(depth, level, interlaced):
    assert_disc(png(DISC * level, depth, interlaced=interlaced))


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("level", [1, 255])
def test_lossless_formats_are_read(file_format, level):
    assert_disc(saved(grey(DISC * level), file_format))
    if level == 255:
        assert_disc(saved(DISC, file_format))  # one bit


@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
def test_a_tiff_is_read_as_it_is_shown(photometric):
    stored = ~DISC if photometric == 0 else DISC
    options = {"compression": "group4", "tiffinfo": {262: photometric}}
    image = PIL.Image.fromarray(stored if photometric else ~stored)
    file = io.BytesIO()
    image.save(file, "TIFF", **options)
    with PIL.Image.open(io.BytesIO(file.getvalue())) as shown:
        np.testing.assert_array_equal(read_truth(file.getvalue()).mask, np.asarray(shown))


@pytest.mark.parametrize(("depth", "top"), [(4, 15), (8, 255), (16, 65535)])
def test_soft_outlines_are_cut_at_half_of_the_full_range(depth, top):
    levels = soft(top)
    expected = levels * 2 >= top
    assert len(np.unique(levels)) > 2
    np.testing.assert_array_equal(read_truth(png(levels, depth)).mask, expected)
    np.testing.assert_array_equal(read_truth(png(levels, depth), "half").mask, expected)


def test_127_is_dark_and_128_is_light():
    mask = read_truth(encode_png(np.array([[0, 127, 128, 255]], np.uint8))).mask
    assert mask.tolist() == [[False, False, True, True]]


def test_noise_near_black_and_white_is_allowed():
    noise = np.random.default_rng(0).integers(0, 15, (H, W))
    levels = np.where(DISC, 255 - noise, noise)
    levels[0, 0] = 100  # as compression leaves it on an outline
    assert_disc(encode_png(grey(levels)))


@pytest.mark.parametrize(
    ("depth", "level"), [(8, 0), (8, 1), (8, 255), (16, 255), (16, 65535), (1, 1)]
)
def test_a_mask_of_one_level_is_all_or_nothing(depth, level):
    mask = read_truth(png(np.full((H, W), level), depth)).mask
    assert mask.all() if level else not mask.any()


def test_grey_saved_as_colour_or_with_a_grey_palette_is_grey():
    level = grey(DISC * 255)
    assert_disc(saved(np.dstack([level] * 3), "PNG"))
    assert_disc(png(np.dstack([DISC * 65535] * 3), 16, 2))
    assert_disc(png(DISC * 1, 8, 3, palette((0, 0, 0), (255, 255, 255))))
    assert_disc(png(DISC * 1, 1, 3, palette((0, 0, 0), (255, 255, 255))))
    assert_disc(png(~DISC * 1, 1, 3, palette((255, 255, 255), (0, 0, 0))))  # what a viewer shows
    assert_disc(png(DISC * 2, 2, 3, palette((0, 0, 0), (9, 9, 9), (1, 1, 1), (7, 7, 7))))


def test_an_inverted_mask_is_read_as_it_is_shown():
    np.testing.assert_array_equal(read_truth(saved(grey(~DISC * 255), "PNG")).mask, ~DISC)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_to_photographs(orientation):
    upright = PIL.Image.fromarray(grey(DISC * 255))
    turned = {
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_90,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turned[orientation]) if orientation > 1 else upright
    exif = PIL.Image.Exif()
    exif[274] = orientation
    assert_disc(saved(stored, "PNG", exif=exif))
    assert_disc(saved(stored, "PNG", exif=exif), "half")


# Black and white, refused


def three_tones(*levels):
    values = np.full((H, W), levels[0])
    values[2:10, 3:12], values[12:20, 14:26] = levels[1], levels[2]
    return grey(values)


@pytest.mark.parametrize(
    ("values", "expected", "option"),
    [
        (three_tones(0, 128, 255), "areas of the levels 0, 128, 255", "half"),
        (three_tones(0, 85, 170), "areas of the levels 0, 85, 170", "half"),
        (three_tones(0, 150, 255), "areas of the levels 0, 150, 255", "half"),
        (three_tones(0, 23, 255), "areas of the levels 0, 23, 255", "voc"),
        (three_tones(0, 1, 255), "levels are 0, 1, 255, which look like class numbers", "voc"),
        (three_tones(0, 15, 255), "levels are 0, 15, 255, which look like class numbers", "voc"),
        (three_tones(0, 1, 2), "levels, 0, 1, 2 of 255, are all dark", "voc"),
        (np.where(DISC, 2, 1), "levels, 1, 2 of 255, are all dark", "nonzero"),
        (np.where(DISC, 255, 200), "levels, 200, 255 of 255, are all light", "half"),
        (np.where(DISC, 255, 1), "levels are 1, 255, which look like class numbers", "voc"),
        (np.full((H, W), 128), "every pixel of it has the level 128 of 255", "half"),
    ],
)
def test_what_is_not_black_and_white_is_refused_with_the_option(values, expected, option):
    said = refusal(encode_png(grey(values)))
    assert expected in said
    assert option in said


def test_class_numbers_of_4_and_16_bit_are_refused():
    assert "areas of the levels 0, 1, 15 of 15" in refusal(png(three_tones(0, 1, 15), 4))
    numbers = np.where(DISC, 65535, three_tones(0, 7, 9).astype(int))
    assert "levels are 0, 7, 9, 65535, which look like" in refusal(png(numbers, 16))
    eight_bits_in_sixteen = refusal(png(soft(255), 16))
    assert "of 65535, are all dark" in eight_bits_in_sixteen


def test_half_takes_any_grey_level():
    levels = np.arange(256).reshape(16, 16)
    np.testing.assert_array_equal(read_truth(encode_png(grey(levels)), "half").mask, levels >= 128)
    mask = read_truth(encode_png(three_tones(0, 128, 255)), "half").mask
    np.testing.assert_array_equal(mask, three_tones(0, 1, 1) > 0)


@pytest.mark.parametrize("file_format", ["JPEG", "WebP", "JPEG 2000"])
@pytest.mark.parametrize("truth_format", ["binary", "half", "voc", "nonzero", "alpha"])
def test_lossy_files_are_refused(file_format, truth_format):
    data = saved(grey(DISC * 255), file_format.replace(" ", ""))
    assert refusal(data, truth_format) == (
        f"it is a {file_format} file, whose compression may change values; save it as PNG"
    )


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "PNG"])
@pytest.mark.parametrize("truth_format", ["binary", "half", "voc", "nonzero", "alpha"])
def test_a_file_of_several_pictures_is_refused(file_format, truth_format):
    first, second = (PIL.Image.fromarray(grey(mask)) for mask in (DISC * 255, ~DISC * 255))
    data = saved(first, file_format, save_all=True, append_images=[second])
    assert "it holds several pictures, pages or frames" in refusal(data, truth_format)


def test_a_thumbnail_beside_a_mask_is_no_second_picture():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(grey(DISC * 255), subifds=1)
        writer.write(grey(DISC * 255)[::2, ::2], subfiletype=1)
        writer.write(grey(DISC * 255)[::3, ::3], subfiletype=1)
    assert_disc(file.getvalue())


@pytest.mark.parametrize("end", [b";", b"", b"!", b"!\xfe\3abc\0"])
def test_what_follows_a_frame_and_is_no_frame_does_not_matter(end):
    data = saved(PIL.Image.fromarray(grey(DISC * 255)), "GIF")
    assert_disc(data.removesuffix(b";") + end)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "image is empty"),
        (b"<html>not found</html>", "image is an HTML page"),
        (encode_png(grey(DISC))[:50], "truncated PNG file"),
        (saved(PIL.Image.new("CMYK", (3, 3)), "TIFF"), "CMYK samples"),
    ],
)
def test_files_that_are_no_masks_are_explained(data, said):
    for truth_format in ("binary", "voc"):
        assert said in refusal(data, truth_format)


def test_an_unknown_format_is_refused():
    assert refusal(encode_png(grey(DISC)), "coco") == (
        "a truth format is one of binary, half, voc, nonzero, alpha; got 'coco'"
    )


def test_a_mask_that_announces_too_much_is_refused_before_it_is_decoded():
    data = encode_png(grey(DISC))
    with pytest.raises(SettingsError, match=f"= {H * W} pixels; expected at most"):
        read_truth(data, max_pixels=H * W - 1)
    assert read_truth(data, max_pixels=H * W).mask.any()


# Colours


def in_colours(foreground, background=(0, 0, 0)):
    return np.where(DISC[..., None], foreground, background).astype(np.uint8)


@pytest.mark.parametrize("colour", [(250, 50, 83), (0, 0, 255), (0, 1, 0)])
def test_colours_are_refused_and_read_as_nonzero(colour):
    indexed = png(DISC * 1, 8, 3, palette((0, 0, 0), colour))
    for data in (saved(in_colours(colour), "PNG"), indexed):
        assert f"it holds colours such as {colour}; --truth-format nonzero" in refusal(data)
        assert f"colours such as {colour}" in refusal(data, "half")
        assert_disc(data, "nonzero")


def test_a_coloured_background_is_never_guessed():
    data = saved(in_colours((250, 50, 83), (61, 245, 61)), "PNG")
    assert "colours such as (61, 245, 61)" in refusal(data)
    assert "no pixel of it is black" in refusal(data, "nonzero")


def test_instance_numbers_are_read_as_nonzero():
    for depth in (8, 16):
        numbers = np.where(DISC, 1 + COLUMNS // 2, 0)
        assert_disc(png(numbers, depth), "nonzero")
        assert "all dark" in refusal(png(numbers, depth))
    everything = np.full((H, W), 9)
    assert read_truth(png(everything), "nonzero").mask.all()


# Transparency


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (250, 50, 83)])
def test_a_mask_in_the_alpha_channel_is_read(colour):
    assert_disc(rgba(colour, DISC * 255))
    assert_disc(rgba(colour, DISC * 100))  # a translucent layer
    assert_disc(rgba(colour, DISC * 255), "alpha")
    hidden = np.where(DISC[..., None], colour, (0, 0, 0))
    assert_disc(png(np.dstack([hidden, DISC * 255]), 8, 6))  # black where nobody sees it


def test_alpha_of_every_kind_is_read():
    level = DISC * 255
    white = np.full((H, W), 255)
    assert_disc(png(np.dstack([white, level]), 8, 4))
    assert_disc(png(np.dstack([white * 257] * 3 + [level * 257]), 16, 6))
    clear_background = (palette((0, 0, 0), (255, 255, 255)), chunk(b"tRNS", b"\0"))
    assert_disc(png(DISC * 1, 8, 3, *clear_background))
    assert_disc(png(level, 8, 0, chunk(b"tRNS", b"\0\0")))  # black is clear
    np.testing.assert_array_equal(read_truth(rgba((255, 255, 255), soft())).mask, soft() >= 128)


def test_opaque_alpha_changes_nothing():
    opaque = np.full((H, W), 255)
    assert_disc(png(np.dstack([DISC * 255] * 3 + [opaque]), 8, 6))
    assert_disc(png(np.dstack([DISC * 1, opaque]), 8, 4))
    assert "colours" in refusal(png(np.dstack([in_colours((9, 8, 7)), opaque]), 8, 6))


def test_alpha_that_agrees_with_the_levels_is_read():
    premultiplied = grey(soft())
    layers = [premultiplied] * 4
    np.testing.assert_array_equal(read_truth(png(np.dstack(layers), 8, 6)).mask, soft() >= 128)


def photograph(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3))


@pytest.mark.parametrize(
    "data",
    [
        png(np.dstack([photograph(), DISC * 255]), 8, 6),
        png(np.dstack([np.where(DISC, 255, 0)] * 3 + [np.where(ROWS < 5, 0, 255)]), 8, 6),
        png(np.dstack([~DISC * 255] * 3 + [DISC * 255]), 8, 6),  # black disc, white hidden
    ],
    ids=["cut-out", "clear margin", "black on hidden white"],
)
def test_transparency_that_says_something_else_is_refused(data):
    assert "--truth-format alpha takes the opaque pixels" in refusal(data)
    for truth_format in ("half", "nonzero"):
        assert "it is partly transparent; --truth-format alpha" in refusal(data, truth_format)


def test_cut_outs_are_read_as_alpha():
    assert_disc(png(np.dstack([photograph(), DISC * 255]), 8, 6), "alpha")
    edges = read_truth(png(np.dstack([photograph(), soft()]), 8, 6), "alpha")
    np.testing.assert_array_equal(edges.mask, soft() >= 128)
    nothing = read_truth(rgba((1, 2, 3), np.zeros((H, W))), "alpha")
    assert not nothing.mask.any()


@pytest.mark.parametrize("alpha", [0, 127])
def test_a_mask_that_is_transparent_all_over_is_refused(alpha):
    assert "all of it is transparent" in refusal(rgba((255, 255, 255), np.full((H, W), alpha)))


def test_alpha_of_an_opaque_mask_is_refused():
    for data in (encode_png(grey(DISC * 255)), rgba((9, 9, 9), np.full((H, W), 255))):
        assert "no pixel of it is transparent" in refusal(data, "alpha")


# Class numbers

CLASSES = np.select([DISC, ROWS > 20, COLUMNS > 26], [15, 255, 1])
NOT_VOID = CLASSES != 255


def assert_classes(data, valid=NOT_VOID):
    truth = read_truth(data, "voc")
    np.testing.assert_array_equal(truth.mask, (CLASSES > 0) & NOT_VOID, strict=True)
    np.testing.assert_array_equal(truth.valid, valid, strict=True)


@pytest.mark.parametrize("depth", [8, 16])
def test_class_numbers_are_read_as_grey_levels(depth):
    assert_classes(png(CLASSES, depth))
    assert_classes(png(np.dstack([CLASSES] * 3), depth, 2))


@pytest.mark.parametrize(("depth", "number"), [(1, 1), (2, 3), (4, 15), (4, 1)])
def test_class_numbers_are_never_scaled(depth, number):
    assert_disc(png(DISC * number, depth), "voc")
    colours = [(i, 0, 0) for i in range(2**depth)]
    assert_disc(png(DISC * number, depth, 3, palette(*colours)), "voc")


def test_class_numbers_are_read_as_palette_indices():
    for colours in ([(i, i, i) for i in range(256)], [(255 - i, i, 3) for i in range(256)]):
        assert_classes(png(CLASSES, 8, 3, palette(*colours)))
    short = [(0, 0, 0), *((i, 9, 9) for i in range(1, 21))]
    assert_classes(png(CLASSES, 8, 3, palette(*short)))  # no colour for 255


def test_the_colours_of_voc_are_read_whatever_their_index():
    shown = np.zeros((H, W, 3), np.uint8)
    for number, colour in VOC.items():
        shown[number == CLASSES] = colour
    assert_classes(saved(shown, "PNG"))
    with PIL.Image.fromarray(shown).quantize(8) as reduced:  # indices as an optimiser numbers them
        assert len(np.unique(np.asarray(reduced))) == 4
        assert_classes(saved(reduced, "PNG"))


def test_the_palette_of_voc_is_the_one_of_its_development_kit():
    for number, colour in VOC.items():
        if number not in (0, 255):
            assert_disc(saved(in_colours(colour), "PNG"), "voc")
    assert not read_truth(saved(in_colours(VOC[255]), "PNG"), "voc").valid[DISC].any()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png([[0, 21, 254, 3]]), "it holds 21, 254, expected 0 (background), 1..20"),
        (png(DISC * 15 * 257, 16), "it holds 3855, expected"),
        (saved(in_colours((250, 50, 83)), "PNG"), "colours such as (250, 50, 83), which is no"),
        (png(DISC * 1, 8, 3, palette((0, 0, 0), (0, 0, 0))), "all of its 2 numbers in one colour"),
        (
            png(~DISC * 1, 8, 3, palette((9, 250, 9), (0, 0, 0))),
            "shows number 1 in the colour that PASCAL VOC gives to 0",
        ),
        (png(np.dstack([DISC * 15, ~DISC * 255]), 8, 4), "classes are transparent"),
    ],
)
def test_class_masks_that_cannot_be_used_are_explained(data, said):
    assert said in refusal(data, "voc")


def test_a_clear_background_behind_classes_is_allowed():
    assert_disc(png(np.dstack([DISC * 15, DISC * 255]), 8, 4), "voc")


def test_palettes_that_show_nothing_are_refused():
    assert "all of its 2 numbers in one colour" in refusal(
        png(DISC * 1, 8, 3, palette((0, 0, 0), (0, 0, 0)))
    )
    beyond = png(DISC * 7, 8, 3, palette((0, 0, 0), (255, 255, 255)))
    assert "its number 7 has no colour in its palette of 2" in refusal(beyond)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["binary", "half", "voc", "nonzero", "alpha"]))
def test_damaged_files_are_refused_and_nothing_else(seed, truth_format):
    rng = np.random.default_rng(seed)
    kinds = [png(rng.integers(0, 21, (9, 11))), png(rng.integers(0, 256, (9, 11, 4)), 8, 6)]
    kinds.append(png(rng.integers(0, 3, (9, 11)), 2, 3, palette((0, 0, 0), (1, 2, 3), (9, 9, 9))))
    data = bytearray(kinds[rng.integers(3)])
    for place in rng.integers(8, len(data), 3):
        data[place] ^= 1 << int(rng.integers(8))
    try:
        truth = read_truth(bytes(data), truth_format, max_pixels=10**6)
    except SettingsError:
        return
    assert truth.mask.shape == truth.valid.shape
    assert (truth.mask.dtype, truth.valid.dtype) == (bool, bool)


# A folder of masks


def a_folder(path, *names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(encode_png(grey(DISC * 255)))
    return str(path)


def claimed(path, *images):
    masks = Masks(str(path))
    for image in images:
        masks.claim(image)
    return masks


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.jpg", "a.png"),
        ("dogs/a.jpg", "dogs/a.png"),
        ("dogs/a.jpg", "a.png"),
        ("dogs/a.jpg", "dogs/a.jpg.png"),
        ("dogs/a.jpg", "a.jpg.png"),
        ("a.jpg", "a.PNG"),
        ("a.JPG", "a.bmp"),
        ("a.jpg", "a.gif"),
        ("a.jpg", "a.Tif"),
        ("a.jpg", "a.tiff"),
        ("0.5", "0.5.png"),
        (
            unicodedata.normalize("NFD", "été/müller.jpg"),
            unicodedata.normalize("NFC", "été/müller.png"),
        ),
        (unicodedata.normalize("NFC", "müller.jpg"), unicodedata.normalize("NFD", "müller.png")),
        ("s3://bucket/photos/a.jpg", "a.png"),
    ],
)
def test_a_mask_is_found(tmp_path, image, mask):
    masks = claimed(a_folder(tmp_path, mask, "other.png"), image)
    assert masks.find(image) == mask
    assert masks.unused(3) == (1, ["other.png"])
    assert read_mask(masks.folder, mask, "binary").mask.any()


def test_the_whole_id_comes_before_its_last_part_and_the_name_with_its_extension_first(tmp_path):
    names = ["dogs/a.jpg.png", "dogs/a.png", "a.jpg.png", "a.png"]
    a_folder(tmp_path, *names)
    for name in names:
        assert claimed(tmp_path, "dogs/a.jpg").find("dogs/a.jpg") == name
        (tmp_path / name).unlink()
        a_folder(tmp_path, "other.png")
    assert claimed(tmp_path, "dogs/a.jpg").find("dogs/a.jpg") is None


def test_masks_are_found_as_export_names_them(tmp_path):
    masks = claimed(a_folder(tmp_path, "a.jpg.png", "a.png.png"), "a.jpg", "a.png")
    assert [masks.find(name) for name in ("a.jpg", "a.png")] == ["a.jpg.png", "a.png.png"]
    assert masks.conflicts(5) == (0, [])


def test_a_mask_is_never_used_for_two_images(tmp_path):
    masks = claimed(a_folder(tmp_path, "a.png", "b.png"), "x/a.jpg", "y/a.jpg", "z/a.jpg", "b.jpg")
    assert masks.find("x/a.jpg") is None
    assert masks.find("b.jpg") == "b.png"
    named = ["a.png would be the mask of x/a.jpg, y/a.jpg and 1 more"]
    assert masks.conflicts(5) == (3, named)


def test_an_image_that_is_not_measured_does_not_compete(tmp_path):
    masks = Masks(a_folder(tmp_path, "a.png", "b.png"))
    assert masks.claim("a.json", measured=False)
    assert masks.claim("a.jpg")
    assert masks.claim("b.txt", measured=False)
    assert masks.find("a.jpg") == "a.png"
    assert masks.conflicts(5) == (0, [])
    assert masks.unused(5) == (0, [])


def test_two_masks_of_one_image_are_named(tmp_path):
    masks = claimed(a_folder(tmp_path, "a.png", "a.bmp", "b.png"), "a.jpg", "b.jpg")
    assert masks.find("a.jpg") is None
    count, (named,) = masks.conflicts(5)
    assert count == 1
    assert re.fullmatch(r"a\.(png|bmp) and a\.(png|bmp) are both masks of a\.jpg", named)


def test_files_that_are_not_read_are_named(tmp_path):
    a_folder(tmp_path, "a.png")
    (tmp_path / "b.npy").touch()
    (tmp_path / "a.jpg").touch()
    masks = claimed(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    assert masks.count() == 1
    assert masks.find("a.jpg") == "a.png"  # a photograph beside its mask is none
    assert [masks.unread(f"{name}.jpg") for name in "bc"] == ["b.npy", None]


def test_a_place_without_masks_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.jpg").touch()
    (tmp_path / "file.png").touch()
    for name in ("missing", "empty", "others", "file.png"):
        with pytest.raises(SettingsError, match=f"no masks at {tmp_path}/{name}: "):
            Masks(str(tmp_path / name))


def test_a_mask_that_is_gone_is_a_fault_of_the_mask(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    masks = claimed(tmp_path, "a.jpg")
    with pytest.raises(SettingsError, match="it is gone, or a broken link"):
        read_mask(masks.folder, masks.find("a.jpg"), "binary")


def test_hidden_files_are_no_masks(tmp_path):
    masks = claimed(a_folder(tmp_path, "a.png", "._a.png", ".cache/a.png"), "a.jpg")
    assert (masks.count(), masks.find("a.jpg")) == (1, "a.png")
