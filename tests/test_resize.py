"""Sizes and pixels, compared with each formula written out in a loop or as OpenCV has it."""

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st

from saff.resize import repeat, resize, sample, shrink, shrunk_size, size_in_multiples

SIDES = st.integers(1, 70)
SEEDS = st.integers(0, 2**32 - 1)


def random_image(seed, height, width, *channels):
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    side=st.integers(1, 900),
    multiple=st.sampled_from([1, 8, 16, 32]),
)
def test_multiples_near_a_side(height, width, side, multiple):
    found = size_in_multiples((height, width, 3), side, multiple)
    assert all(n >= multiple and n % multiple == 0 for n in found)
    assert abs(max(found) - max(side, multiple)) <= max(multiple / 2, 1)
    assert (found[0] >= found[1]) == (height >= width) or found[0] == found[1]


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), side=st.integers(1, 5000))
def test_a_shrunk_size_is_within_the_side_and_keeps_the_aspect(height, width, side):
    found = shrunk_size((height, width), side)
    if max(height, width) <= side:
        assert found == (height, width)
    else:
        assert max(found) == side
        for new, old in zip(found, (height, width), strict=True):
            assert abs(new - old * side / max(height, width)) <= 0.5 or new == 1


@given(
    seed=SEEDS, height=SIDES, width=SIDES, side=SIDES, channels=st.sampled_from([(), (3,), (4,)])
)
def test_shrinking_averages_pixels(seed, height, width, side, channels):
    pixels = random_image(seed, height, width, *channels)
    found = shrink(pixels, side)
    if side >= max(height, width):
        assert found is pixels
        return
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    np.testing.assert_array_equal(found, cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def test_shrinking_by_a_whole_number_is_the_mean_of_each_block():
    pixels = random_image(0, 12, 20, 3)
    blocks = pixels.reshape(3, 4, 5, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(shrink(pixels, 5), blocks, atol=0.5)  # rounded to whole levels


@given(
    seed=SEEDS,
    sizes=st.tuples(SIDES, SIDES, SIDES, SIDES),
    average=st.sampled_from([None, True, False]),
)
def test_resizing_averages_where_pixels_get_fewer_unless_it_is_decided(seed, sizes, average):
    height, width, *size = sizes
    pixels = random_image(seed, height, width).astype(np.float32) / 255
    found = resize(pixels, tuple(size), average=average)
    averages = size[0] * size[1] < height * width if average is None else average
    method = cv2.INTER_AREA if averages else cv2.INTER_LINEAR
    expected = cv2.resize(pixels, (size[1], size[0]), interpolation=method)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.reshape(size))
    if tuple(size) == (height, width):
        assert found is pixels


@given(seed=SEEDS, sizes=st.tuples(SIDES, SIDES, SIDES, SIDES))
def test_pixels_are_repeated_and_sampled(seed, sizes):
    (h, w, height, width), rng = sizes, np.random.default_rng(seed)
    labels = rng.integers(0, 9, (h, w), np.int32)
    repeated, sampled = repeat(labels, (height, width)), sample(labels, (height, width))
    for row in range(height):
        for column in range(width):
            assert repeated[row, column] == labels[row * h // height, column * w // width]
            nearest = int((row + 0.5) * h / height), int((column + 0.5) * w / width)
            assert sampled[row, column] == labels[nearest]


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_label_map_comes_back_whole_from_its_own_enlargement(factor):
    labels = np.arange(20, dtype=np.int32).reshape(4, 5)
    enlarged = repeat(labels, (4 * factor, 5 * factor))
    np.testing.assert_array_equal(sample(enlarged, (4, 5)), labels)
