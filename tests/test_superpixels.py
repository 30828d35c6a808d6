import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import ndimage
from skimage import data
from skimage.measure import label

from oracles import (
    border_lengths_superpixels_oracle,
    border_strength_superpixels_oracle,
    neighbours_superpixels_oracle,
)
from saff.superpixels import (
    border_lengths,
    border_strength,
    neighbours,
    pooling,
    region_means,
    slic,
)

EPSILON = np.finfo(np.float64).eps
SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=50, deadline=None)
PHOTOS = ("astronaut", "chelsea", "coffee")


def texture(seed, height, width):
    """Give a random picture: noise, blobs, two colours, or one."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(4)
    if kind == 0:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == 1:
        coarse = rng.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
        return cv2.resize(coarse, (width, height))
    if kind == 2:
        return np.uint8(255) * rng.integers(0, 2, (height, width, 1), np.uint8).repeat(3, axis=2)
    return np.full((height, width, 3), rng.integers(256), dtype=np.uint8)


def regions(seed, height, width, most=6):
    """Give a random label map, 0 .. R-1, none missing; its regions may be in pieces."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, most, (height, width))
    return np.unique(labels, return_inverse=True)[1].reshape(height, width).astype(np.int32)


def assert_partition(superpixels, image):
    assert superpixels.dtype == np.int32
    assert superpixels.shape == image.shape[:2]
    assert superpixels.flags.c_contiguous
    labels, first = np.unique(superpixels, return_index=True)
    np.testing.assert_array_equal(labels, np.arange(labels.size))  # from 0, none missing
    assert (np.diff(first) > 0).all()  # in raster order of first appearance
    pieces = label(superpixels, connectivity=1, background=-1, return_num=True)[1]
    assert pieces == labels.size  # each region is one piece over pixel sides


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 70), st.integers(1, 70), st.integers(1, 400))
def test_regions_are_connected_and_numbered_without_gaps(seed, height, width, count):
    image = texture(seed, height, width)
    assert_partition(slic(image, count), image)


@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 50), (50, 1), (500, 1), (3, 2000), (3000, 4), (9, 800)]
)
def test_a_thin_image_is_cut_along_its_length_into_as_many_pieces_as_asked(height, width, count):
    image = texture(0, height, width)
    superpixels = slic(image, count)
    assert_partition(superpixels, image)
    area = np.bincount(superpixels.ravel())
    assert area.size == min(count, max(height, width))
    assert np.ptp(area) <= min(height, width)  # pieces of equal length, give or take one pixel


@pytest.mark.parametrize(("height", "width"), [(2, 3), (3, 3), (4, 5), (12, 12)])
def test_an_image_of_fewer_pixels_than_regions_asked_for_has_one_region_a_pixel(height, width):
    superpixels = slic(texture(0, height, width), 300)
    np.testing.assert_array_equal(superpixels.ravel(), np.arange(height * width))


@pytest.mark.parametrize("count", [100, 300, 1000])
@pytest.mark.parametrize("photo", PHOTOS)
def test_a_photograph_has_about_as_many_regions_as_asked(photo, count):
    image = getattr(data, photo)()
    superpixels = slic(image, count)
    assert_partition(superpixels, image)
    assert superpixels.max() + 1 == pytest.approx(count, rel=0.25)


def test_a_flat_image_is_cut_evenly():
    image = np.full((120, 160, 3), 90, np.uint8)
    superpixels = slic(image, 100)
    assert_partition(superpixels, image)
    assert superpixels.max() + 1 == pytest.approx(100, rel=0.25)
    assert np.bincount(superpixels.ravel()).max() <= 4 * 120 * 160 / 100


def test_regions_follow_colour():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:120, :160]
    disk = (rows - 60) ** 2 + (columns - 75) ** 2 < 37**2
    colours = np.where(disk[..., None], [200, 80, 40], [60, 90, 160])
    image = (colours + rng.integers(-10, 11, (120, 160, 3))).astype(np.uint8)
    share = ndimage.mean(disk, superpixels := slic(image, 100), np.arange(superpixels.max() + 1))
    # The blur before clustering leaves a seam of one pixel: under 2 % of this image.
    assert ((share[superpixels] > 0.5) != disk).mean() < 0.02


@pytest.mark.parametrize("photo", PHOTOS)
def test_neither_repetition_nor_threads_change_a_label(photo):
    image = getattr(data, photo)()
    before = cv2.getNumThreads()
    try:
        maps = []
        for threads in (1, 4, 1):
            cv2.setNumThreads(threads)
            maps.append(slic(image, 300))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_slic_leaves_its_image_alone():
    image = data.chelsea()
    copy = image.copy()
    slic(image, 50)
    np.testing.assert_array_equal(image, copy)


@pytest.mark.parametrize(
    ("image", "count", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), 0, "count must be at least 1, got 0"),
        (np.zeros((4, 4), np.uint8), 5, r"image must be uint8 \(H, W, 3\), got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), 5, r"image must be uint8 .*, got uint8 \(4, 4, 4\)"),
        (np.zeros((4, 4, 3)), 5, r"image must be uint8 .*, got float64 \(4, 4, 3\)"),
    ],
)
def test_slic_names_what_it_cannot_cut(image, count, message):
    with pytest.raises(ValueError, match=message):
        slic(image, count)


@FEW
@given(SEEDS, st.integers(1, 8), st.integers(1, 8), st.integers(1, 4))
def test_means_match_scipy_and_follow_renamed_regions(seed, height, width, kinds):
    rng = np.random.default_rng(seed)
    maps = rng.random((kinds, height, width))
    superpixels = regions(seed, height, width)
    index = np.arange(superpixels.max() + 1)
    expected = np.stack([ndimage.mean(m, superpixels, index) for m in maps], axis=1)
    rtol = 64 * EPSILON  # at most 64 float64 terms, summed in any order
    np.testing.assert_allclose(region_means(maps, superpixels), expected, rtol)
    order = rng.permutation(index)
    np.testing.assert_allclose(region_means(maps, order[superpixels])[order], expected, rtol)


def test_means_are_summed_in_double_precision():
    maps = np.full((1, 2000, 2000), 0.1, np.float32)
    means = region_means(maps, np.zeros((2000, 2000), np.int32))
    # Four million terms: each addition rounds by half an epsilon at most.
    np.testing.assert_allclose(means, np.float32(0.1), rtol=4e6 * EPSILON / 2)


def test_a_missing_label_is_named():
    with pytest.raises(ValueError, match=r"skips labels \[1\] of 0\.\.2; renumber from 0"):
        region_means(np.zeros((1, 1, 2)), np.array([[0, 2]]))


@pytest.mark.parametrize("shape", [(3, 4), (1, 4, 3), (2, 1, 3, 4)])
def test_maps_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"maps must be \(K, \*\(3, 4\)\), got shape"):
        region_means(np.zeros(shape), np.zeros((3, 4), np.int32))


@FEW
@given(SEEDS, st.integers(1, 8), st.integers(1, 8))
def test_borders_match_a_loop_over_pixels(seed, height, width):
    rng = np.random.default_rng(seed)
    superpixels = regions(seed, height, width)
    edges = rng.random((height, width)).astype(np.float32)
    expected = border_strength_superpixels_oracle(edges, superpixels)
    adjacency, strength = border_strength(edges, superpixels)
    assert adjacency.dtype == np.int32
    assert [tuple(pair) for pair in adjacency.tolist()] == sorted(expected)
    # At most 2 * 64 float64 terms a border.
    np.testing.assert_allclose(
        strength, [expected[pair] for pair in sorted(expected)], rtol=128 * EPSILON
    )
    pairs = neighbours(superpixels)
    assert pairs.dtype == np.int32
    assert [tuple(p) for p in pairs.tolist()] == sorted(neighbours_superpixels_oracle(superpixels))
    assert border_lengths(superpixels).tolist() == border_lengths_superpixels_oracle(superpixels)


def test_a_single_region_has_no_borders():
    superpixels = np.zeros((3, 4), np.int32)
    adjacency, strength = border_strength(np.ones((3, 4), np.float32), superpixels)
    assert neighbours(superpixels).shape == adjacency.shape == (0, 2)
    assert strength.shape == (0,)
    assert border_lengths(superpixels).tolist() == [14]


def test_inner_regions_have_no_border_length():
    superpixels = np.zeros((3, 3), np.int32)
    superpixels[1, 1] = 1
    assert border_lengths(superpixels).tolist() == [12, 0]


@FEW
@given(
    SEEDS, st.integers(1, 12), st.integers(1, 12), st.tuples(st.integers(1, 7), st.integers(1, 7))
)
def test_pooling_averages_the_bilinear_enlargement_over_regions(seed, height, width, grid):
    values = np.random.default_rng(seed).random((2, *grid))
    superpixels = regions(seed, height, width)
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None], (height, width), mode="bilinear", align_corners=False
    )[0].numpy()
    weights = pooling(superpixels, grid)
    assert weights.shape == (superpixels.max() + 1, grid[0] * grid[1])
    # At most 144 pixels of four products each, and 49 cells.
    rounding = 1024 * EPSILON
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=rounding)
    assert weights.min() >= 0
    np.testing.assert_allclose(
        weights @ values.reshape(2, -1).T, region_means(enlarged, superpixels), rtol=rounding
    )
