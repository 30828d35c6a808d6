import numpy as np
import PIL.Image
import pytest

from saff.errors import SettingsError
from saff.pictures import encode_picture, picture, picture_format
from stored_runs import RNG, SHAPE, opened


def test_a_mask_is_black_and_white():
    confidence = np.array([[0, 127, 128, 255]], np.uint8)
    np.testing.assert_array_equal(picture("mask", confidence), [[0, 0, 255, 255]])
    np.testing.assert_array_equal(picture("confidence", confidence), confidence)


def test_a_cutout_is_the_image_with_the_confidence_as_alpha():
    image = RNG.integers(0, 256, (*SHAPE, 3), np.uint8)
    confidence = RNG.integers(0, 256, SHAPE, np.uint8)
    drawn = picture("cutout", confidence, image)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[..., :3], image)
    np.testing.assert_array_equal(drawn[..., 3], confidence)


def test_an_overlay_tints_the_foreground_darkens_the_rest_and_draws_the_border():
    image = np.full((40, 60, 3), 100, np.uint8)
    confidence = np.zeros((40, 60), np.uint8)
    confidence[10:30, 20:50] = 200
    before = image.copy(), confidence.copy()
    drawn = picture("overlay", confidence, image)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    inside, outside = drawn[12:28, 22:48], drawn[confidence == 0]
    colour = np.rint(0.45 * 100 + 0.55 * np.array([255, 40, 120]))
    np.testing.assert_array_equal(np.unique(inside.reshape(-1, 3), axis=0), [colour])
    np.testing.assert_array_equal(np.unique(outside.reshape(-1, 3), axis=0), [[45, 45, 45]])
    np.testing.assert_array_equal(drawn[10, 20:50], np.full((30, 3), 255))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(confidence, before[1])


def test_where_nothing_was_found_all_is_drawn_as_without_confidence():
    image = RNG.integers(0, 256, (*SHAPE, 3), np.uint8)
    confidence, none = RNG.integers(0, 256, SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    for what in ("mask", "overlay", "cutout"):
        drawn = picture(what, confidence, image, foreground_found=False)
        np.testing.assert_array_equal(drawn, picture(what, none, image))
    np.testing.assert_array_equal(
        picture("confidence", confidence, foreground_found=False), confidence
    )


@pytest.mark.parametrize("level", [0, 255])
def test_a_picture_without_a_border_is_drawn(level):
    drawn = picture("overlay", np.full((1, 1), level, np.uint8), np.zeros((1, 1, 3), np.uint8))
    assert drawn.shape == (1, 1, 3)


@pytest.mark.parametrize("what", ["overlay", "cutout"])
def test_a_picture_of_the_image_needs_it_in_its_size(what):
    confidence = np.zeros(SHAPE, np.uint8)
    for image in (None, np.zeros((9, 6, 3), np.uint8)):
        with pytest.raises(ValueError, match=f"a {what} needs the image, in the size"):
            picture(what, confidence, image)


# Files

CHANNELS = {"mask": 1, "confidence": 1, "overlay": 3, "cutout": 4}
LOSSLESS = {".png": "PNG", ".PNG": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}


def drawn_as(channels, shape=SHAPE):
    drawn = RNG.integers(0, 256, (*shape, channels), np.uint8)
    return drawn[..., 0] if channels == 1 else drawn


@pytest.mark.parametrize("what", CHANNELS)
@pytest.mark.parametrize("extension", LOSSLESS)
def test_a_file_is_of_the_format_of_its_name_and_keeps_every_value(what, extension, tmp_path):
    drawn = drawn_as(CHANNELS[what])
    path = tmp_path / f"a.b{extension}"
    path.write_bytes(encode_picture(drawn, picture_format(path.name, what)))
    with PIL.Image.open(path) as file:
        assert file.format == LOSSLESS[extension]
        found = np.asarray(file.convert("L") if what in ("mask", "confidence") else file)
    np.testing.assert_array_equal(found, drawn)


def test_an_overlay_may_be_jpeg_with_its_colours_at_full_resolution(tmp_path):
    drawn = np.zeros((32, 32, 3), np.uint8)
    drawn[:, ::2] = (255, 40, 120)  # columns of one pixel, whose colours half resolution would mix
    for name in ("a.jpg", "a.JPEG"):
        (tmp_path / name).write_bytes(encode_picture(drawn, picture_format(name, "overlay")))
        with PIL.Image.open(tmp_path / name) as file:
            assert file.format == "JPEG"
            found = np.asarray(file).astype(int)
        assert np.abs(found - drawn).max() < 40  # 4:2:0 gives differences above 100


@pytest.mark.parametrize(
    ("name", "what", "said"),
    [
        ("a.jpg", "mask", "a mask is not written as JPEG, which would change its values"),
        ("a.JPEG", "confidence", "a confidence is not written as JPEG, which would change"),
        ("a.jpg", "cutout", "a cutout is not written as JPEG, which has no transparency"),
        ("a.gif", "mask", r"a\.gif has the extension '\.gif'; name a file that ends in \.png"),
        ("a.png.", "mask", r"has the extension '\.'"),
        ("mask", "mask", "mask has no extension; name a file that ends in"),
        ("a.png/mask", "mask", "has no extension"),
    ],
)
def test_a_name_that_says_no_fitting_format_is_refused(name, what, said):
    with pytest.raises(SettingsError, match=said):
        picture_format(name, what)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_of_more_than_a_million_pixels_a_side_is_a_whole_file(channels, tmp_path):
    drawn = drawn_as(channels, (1, 1_000_001))
    (tmp_path / "a.png").write_bytes(encode_picture(drawn))
    np.testing.assert_array_equal(opened(tmp_path / "a.png"), drawn)


@pytest.mark.parametrize(("file_format", "side"), [("WEBP", 16_384), ("JPEG", 65_501)])
def test_a_picture_too_long_for_its_format_is_an_error(file_format, side):
    with pytest.raises(ValueError, match=f"a {file_format} file has at most .* choose PNG or TIFF"):
        encode_picture(drawn_as(3, (1, side)), file_format)
    assert encode_picture(drawn_as(3, (1, side - 1)), file_format)


@pytest.mark.parametrize("drawn", [np.zeros((2, 3, 2), np.uint8), np.zeros((2, 3)), np.zeros(3)])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_what_is_no_picture_is_an_error(drawn, file_format):
    with pytest.raises(ValueError, match=r"drawn must be uint8 \(H, W\), .* got .*\("):
        encode_picture(drawn, file_format)


def test_an_encoder_that_fails_is_an_error_and_no_empty_file(monkeypatch):
    monkeypatch.setattr("saff.pictures.LONGEST_SIDE_OF_CV2", 2_000_000)  # OpenCV then refuses
    with pytest.raises(ValueError, match="PNG encoder wrote nothing for a picture"):
        encode_picture(drawn_as(4, (1, 1_000_001)))
