import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from skimage import data
from skimage.color import rgb2lab

from oracles import robust_background_saliency_oracle
from saff import saliency
from saff.errors import SettingsError
from saff.saliency.rbd import (
    BORDER_SIGMA,
    COLOUR_SIGMA,
    FARTHEST,
    REGIONS,
    SMOOTHNESS,
    SPACE_SIGMA,
    STEPS,
    robust_background,
    shortest_paths,
)
from saff.superpixels import border_lengths, neighbours, region_means, slic

RBD = saliency.load("rbd")


def disk_on_plain(height=150, width=200):
    rows, columns = np.mgrid[:height, :width]
    disk = (rows - 80) ** 2 + (columns - 90) ** 2 < 35**2
    image = np.full((height, width, 3), [70, 90, 110], np.uint8)
    image[disk] = [250, 220, 60]
    return image, disk


def noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_bright_disk_on_a_plain_ground_stands_out():
    image, disk = disk_on_plain()
    strength = RBD(image)
    assert strength.dtype == np.float32
    assert strength.shape == disk.shape
    assert strength[disk].mean() > 0.8
    assert strength[~disk].mean() < 0.2


def test_what_touches_the_border_is_background_however_bright():
    image, disk = disk_on_plain()
    bar = np.zeros_like(disk)
    bar[:, :30] = True
    image[bar] = [250, 220, 60]  # of the disk's colour, apart from it, as long as the image is high
    strength = RBD(image)
    assert strength[disk].mean() > 0.8
    assert strength[bar].mean() < 0.4
    assert strength[~disk & ~bar].mean() < 0.2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 6))
def test_saliency_is_that_of_the_papers_equations(seed, height, width):
    rng = np.random.default_rng(seed)
    labels = np.arange(height * width, dtype=np.int32).reshape(height, width)
    colour = rng.uniform(0, 40, (labels.size, 3))
    if seed % 2:  # some neighbours have the same colour: no way is shorter than between them
        colour = rng.choice([0.0, 15.0], (labels.size, 3))
    assume(np.ptp(colour, axis=0).any())
    position = np.stack(np.mgrid[:height, :width], axis=2).reshape(-1, 2) / max(height, width)
    adjacency, on_border = neighbours(labels), np.flatnonzero(border_lengths(labels))
    expected = robust_background_saliency_oracle(
        colour,
        position,
        adjacency,
        on_border,
        (COLOUR_SIGMA, SPACE_SIGMA, BORDER_SIGMA),
        SMOOTHNESS,
    )
    found = robust_background(colour, position, adjacency, on_border)
    # Paths of some edges, each rounded by half of 80 / 32767 Lab units, against a sigma of 10.
    np.testing.assert_allclose(found, expected, 0, 1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0.01, 0.5))
def test_shortest_paths_are_those_of_dijkstra(seed, count, density):
    rng = np.random.default_rng(seed)
    cost = np.where(rng.random((count, count)) < density, rng.uniform(0, 30, (count, count)), 0)
    cost = np.maximum(cost, cost.T)
    np.fill_diagonal(cost, 0.0)
    expected = np.minimum(dijkstra(csr_array(cost)), FARTHEST)
    found = shortest_paths(np.where(cost > 0, cost, np.inf))
    np.testing.assert_array_equal(found, found.T)
    half_a_step = FARTHEST / STEPS / 2
    np.testing.assert_allclose(found, expected, 0, half_a_step * count)  # of a path's edges


def test_what_is_far_away_or_not_joined_is_as_far_as_the_farthest():
    cost = np.full((3, 3), np.inf)
    cost[0, 1] = cost[1, 0] = 2 * FARTHEST
    expected = np.where(np.eye(3), 0.0, FARTHEST)
    np.testing.assert_allclose(shortest_paths(cost), expected, 1e-12)


def test_regions_are_described_by_lab_colour_and_relative_position():
    image = data.chelsea()
    superpixels = slic(image, 60)
    index = np.arange(superpixels.max() + 1)
    lab = rgb2lab(image)
    colour = np.array([lab[superpixels == r].mean(axis=0) for r in index])
    position = np.array([np.argwhere(superpixels == r).mean(axis=0) / 451 for r in index])
    expected = robust_background(
        colour, position, neighbours(superpixels), np.flatnonzero(border_lengths(superpixels))
    )
    found = region_means(RBD.on_regions(image, superpixels)[None], superpixels)[:, 0]
    # OpenCV's Lab differs from scikit-image's by 1e-2 units of white point and table: .004 here.
    np.testing.assert_allclose(found, expected, 0, 0.01)


@pytest.mark.parametrize("photo", ["astronaut", "chelsea", "coffee"])
def test_a_photograph_is_stretched_over_its_own_regions(photo):
    image = getattr(data, photo)()
    strength = RBD(image)
    assert strength.min() == 0
    assert strength.max() == 1
    superpixels = slic(image, REGIONS)
    np.testing.assert_array_equal(strength, RBD.on_regions(image, superpixels))
    for region in range(superpixels.max() + 1):
        assert np.ptp(strength[superpixels == region]) == 0


@pytest.mark.parametrize("photo", ["astronaut", "chelsea", "coffee"])
def test_a_mirrored_image_has_the_mirrored_saliency(photo):
    image = getattr(data, photo)()
    superpixels = slic(image, 200)
    mirrored = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(superpixels[:, ::-1])
    strength = RBD.on_regions(image, superpixels)
    again = RBD.on_regions(*mirrored)[:, ::-1]
    np.testing.assert_allclose(again, strength, 0, 1e-5)  # the same sums in another order
    # Left to itself it cuts the mirrored image otherwise, which moves borders and means: by .03 to
    # .07 here, where the map turned the wrong way is off by .13 to .31.
    assert np.abs(RBD(mirrored[0])[:, ::-1] - RBD(image)).mean() < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (2, 3), (500, 1), (60, 80)])
def test_a_flat_image_has_nothing_salient(shape):
    strength = RBD(np.full((*shape, 3), 90, np.uint8))
    np.testing.assert_array_equal(strength, np.zeros(shape, np.float32))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 25), st.integers(1, 60))
def test_saliency_is_finite_and_in_range(seed, height, width, count):
    image = noise(seed, height, width)
    strength = RBD.on_regions(image, slic(image, count))
    assert strength.shape == (height, width)
    assert strength.dtype == np.float32
    assert np.isfinite(strength).all()
    assert strength.min() == 0
    assert strength.max() in (0, 1)


def test_a_single_region_is_not_salient():
    strength = RBD.on_regions(noise(0, 5, 7), np.zeros((5, 7), np.int32))
    np.testing.assert_array_equal(strength, np.zeros((5, 7), np.float32))


def test_an_unknown_name_is_explained():
    with pytest.raises(SettingsError, match="unknown saliency 'drfy'; known: "):
        saliency.load("drfy")


def test_rbd_can_share_superpixels():
    assert isinstance(RBD, saliency.RegionSaliency)
    assert not isinstance(abs, saliency.RegionSaliency)
