"""What is pasted is labelled where it lies, and every change is a function of a seed."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from saff.augmentation import blur, can_be_pasted, paste, recolour

SIDE = 48


def thing(shape=(60, 80), box=(20, 40, 30, 55)):
    """A red box with a sure label on a black image."""
    pixels = np.zeros((*shape, 4), np.uint8)
    top, bottom, left, right = box
    pixels[top:bottom, left:right] = (250, 10, 10, 250)
    return pixels


def crop(level=0):
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    return image, np.full((SIDE, SIDE), level, np.uint8), np.zeros((SIDE, SIDE), bool)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_pasted_pixels_are_foreground_and_the_others_stay(seed):
    image, confidence, valid = crop()
    found, label, inside = paste(image, confidence, valid, thing(), np.random.default_rng(seed))
    assert (found.dtype, label.dtype, inside.dtype) == (np.uint8, np.uint8, bool)
    red = found[..., 0].astype(int) - found[..., 1] > 200
    assert (label[red] > 200).all()
    assert inside[red].all()
    far = label == 0
    np.testing.assert_array_equal(found[far], image[far])
    assert red.sum() > 5
    assert not image[..., 0].max() > 90  # what was given is not written to


def test_a_foreground_that_is_there_stays_beside_the_pasted_one():
    image, confidence, valid = crop(level=255)
    _, label, _ = paste(image, confidence, valid, thing(), np.random.default_rng(1))
    assert label.min() == 255


@pytest.mark.parametrize(
    ("box", "level", "is_good"),
    [
        ((20, 40, 30, 55), 250, True),
        ((20, 22, 30, 32), 250, False),  # too small
        ((0, 60, 0, 80), 250, False),  # the whole image
        ((0, 30, 10, 60), 250, False),  # on the border
        ((20, 40, 30, 55), 170, False),  # not sure
    ],
)
def test_only_sure_and_compact_foregrounds_are_pasted(box, level, is_good):
    confidence = np.zeros((60, 80), np.uint8)
    top, bottom, left, right = box
    confidence[top:bottom, left:right] = level
    assert can_be_pasted(confidence) is is_good
    assert can_be_pasted(np.zeros((0, 0), np.uint8)) is False


@pytest.mark.parametrize("change", [recolour, blur])
def test_the_same_seed_gives_the_same_picture_and_another_one_another(change, photographs):
    image = photographs["chelsea"]
    found = [change(image, np.random.default_rng(seed)) for seed in (3, 3, *range(12))]
    np.testing.assert_array_equal(found[0], found[1])
    assert len({picture.tobytes() for picture in found}) > 4
    assert {(picture.shape, picture.dtype) for picture in found} == {(image.shape, image.dtype)}


def test_colours_change_by_one_matrix_so_flat_areas_stay_flat():
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 3:] = (200, 50, 90)
    for seed in range(20):
        changed = recolour(image, np.random.default_rng(seed))
        assert (changed[:, :3] == changed[0, 0]).all()
        assert (changed[:, 3:] == changed[0, 3]).all()
