import cv2
import numpy as np
from hypothesis import given, strategies as st
from pycocotools import mask as coco_mask
from scipy import ndimage

from saff.exports.shapes import column_runs, connected_components, cut_open, run_lengths

TOUCHING = np.ones((3, 3))  # by a side or a corner


@st.composite
def masks(draw):
    """Noise of any density, its pixels perhaps enlarged so that there are straight sides."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random((height, width)) < draw(st.floats(0, 1))
    scale = draw(st.sampled_from([1, 3]))
    return np.kron(mask, np.ones((scale, scale), bool))


def whole(component, shape):
    """A component in its image."""
    mask = np.zeros(shape, np.uint8)
    left, top, width, height = component.box
    mask[top : top + height, left : left + width] = component.pixels
    return mask


@given(masks())
def test_components_are_those_of_scipy(mask):
    labels, count = ndimage.label(mask, TOUCHING)
    found = connected_components(mask)
    assert len(found) == count
    areas = [component.area for component in found]
    assert areas == sorted(np.bincount(labels.ravel())[1:].tolist(), reverse=True)
    for component in found:
        pixels = whole(component, mask.shape) > 0
        (number,) = np.unique(labels[pixels])
        np.testing.assert_array_equal(pixels, labels == number)


def test_components_smaller_than_wanted_are_left_out():
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
    assert [c.area for c in connected_components(mask, smallest=2)] == [3, 2]
    assert connected_components(np.zeros((2, 2), bool)) == []


@given(masks())
def test_an_outline_that_is_filled_gives_the_component_holes_and_all(mask):
    for component in connected_components(mask):
        points = cut_open(component)
        filled = cv2.fillPoly(np.zeros(mask.shape, np.uint8), [points], 1)
        np.testing.assert_array_equal(filled, whole(component, mask.shape))
        assert len(points) >= 3


def test_a_straight_side_is_two_points():
    (component,) = connected_components(np.ones((4, 6), bool))
    assert sorted(cut_open(component).tolist()) == [[0, 0], [0, 3], [5, 0], [5, 3]]


@given(masks())
def test_column_runs_are_those_of_coco(mask):
    height, width = mask.shape
    for component in connected_components(mask):
        runs = {"counts": column_runs(component, mask.shape).tolist(), "size": [height, width]}
        expected = coco_mask.encode(np.asfortranarray(whole(component, mask.shape)))
        assert coco_mask.frPyObjects(runs, height, width) == expected


@given(masks())
def test_run_lengths_give_the_values_back(mask):
    lengths = run_lengths(mask.ravel())
    values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    np.testing.assert_array_equal(values, mask.ravel())
    assert lengths[1:].all()
