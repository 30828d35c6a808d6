"""Outlines by colour: the cut finds the edge that a blurred map has lost, and never runs away."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from saff import outlines
from saff.outlines import BAND, SIDE, cut_outline


def disc(shape=(200, 300), radius=60, centre=(100, 150)):
    """An orange disc on a green ground, both noisy; and its mask."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    rng = np.random.default_rng(0)
    image = np.where(mask[..., None], (220, 130, 40), (40, 120, 60)) + rng.normal(
        0, 12, (*shape, 3)
    )
    return np.clip(image, 0, 255).astype(np.uint8), mask


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def test_a_map_that_is_too_fat_comes_to_the_edge_of_the_colours():
    image, mask = disc()
    fat = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8))
    confidence = cv2.GaussianBlur(fat.astype(np.float32), (0, 0), 5)
    refined = cut_outline(confidence, image)
    assert iou(confidence >= 0.5, mask) < 0.9 < 0.96 < iou(refined >= 0.5, mask)
    np.testing.assert_array_equal(cut_outline(confidence, image), refined)  # no randomness


def test_the_outline_of_a_large_image_follows_its_edges(monkeypatch):
    """A disc with teeth that are finer than the image of which the cut is made."""
    y, x = np.mgrid[:900, :1200]
    angle = np.arctan2(y - 450, x - 600)
    mask = np.hypot(y - 450, x - 600) < 300 + 6 * np.sign(np.sin(80 * angle))
    image = np.where(mask[..., None], (220, 130, 40), (40, 120, 60))
    image = np.clip(image + np.random.default_rng(0).normal(0, 3, image.shape), 0, 255)
    image = image.astype(np.uint8)
    confidence = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 8)
    refined = cut_outline(confidence, image)
    monkeypatch.setattr(outlines, "FINE", np.inf)
    coarse = cut_outline(confidence, image)
    wrong, less = (((m >= 0.5) != mask).sum() for m in (coarse, refined))
    assert less < 0.6 * wrong
    assert refined.dtype == np.float32
    np.testing.assert_allclose(coarse[:100], refined[:100], atol=0.01)  # far away nothing moves


def test_edges_that_would_change_the_mask_too_much_are_not_followed():
    image = np.full((700, 700, 3), 90, np.uint8)  # no edge anywhere: all is smoothed away
    confidence = np.zeros((700, 700), np.float32)
    confidence[340:345, 100:600] = 1
    assert outlines.follow_edges(confidence, image, 10.0) is confidence


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(2, 60))
def test_any_map_stays_in_range_and_far_from_the_outline_as_it_was(seed, height, width):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    confidence = cv2.GaussianBlur(rng.random((height, width), np.float32), (0, 0), 3)
    confidence = (confidence - confidence.min()) / max(float(np.ptp(confidence)), 1e-6)
    refined = cut_outline(confidence, image)
    assert (refined.dtype, refined.shape) == (np.float32, confidence.shape)
    assert refined.min() >= 0
    assert refined.max() <= 1
    changed = (refined >= 0.5) != (confidence >= 0.5)
    near = cv2.distanceTransform((confidence >= 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    away = cv2.distanceTransform((confidence < 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    sure = (confidence > 0.95) & (near > 2 + BAND * SIDE)
    assert not changed[sure].any()
    assert not changed[away > 2 + BAND * SIDE].any()


@pytest.mark.parametrize("level", [0.0, 0.49, 0.5, 1.0])
def test_a_map_without_an_outline_stays_as_it_is(level):
    image, mask = disc()
    confidence = np.full(mask.shape, level, np.float32)
    assert cut_outline(confidence, image) is confidence


def test_a_cut_that_would_change_the_mask_too_much_is_not_made():
    image = np.zeros((120, 120, 3), np.uint8)
    image[:, 60:] = 255  # the colours say: everything on one side
    confidence = np.zeros((120, 120), np.float32)
    confidence[58:62, 30:90] = 0.6  # a thin line across
    refined = cut_outline(confidence, image)
    before, after = confidence >= 0.5, refined >= 0.5
    assert iou(before, after) >= 0.5 or refined is confidence


def test_another_size_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"confidence must be \(4, 5\), got shape \(5, 4\)"):
        cut_outline(np.zeros((5, 4), np.float32), np.zeros((4, 5, 3), np.uint8))
