import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from saff.labeling import label_image
from saff.quality import (
    foreground_found,
    mask_dice,
    mask_quality,
    peak_confidence,
    prediction_quality,
    to_levels,
)

FEW = settings(max_examples=50, deadline=None)


def example(seed, count=9):
    rng = np.random.default_rng(seed)
    return rng.random((count, 4)), rng.random(count), rng.integers(1, 50, count)


@FEW
@given(st.integers(0, 2**32 - 1))
def test_quality_matches_numpy_over_pixels(seed):
    features, scores, area = example(seed)
    pixels = np.repeat(scores, area)
    inside = pixels >= 0.5
    expected = 0.0
    if inside.any() and not inside.all():
        alike = [np.corrcoef(np.repeat(f, area), pixels)[0, 1] for f in features.T]
        contrast = pixels[inside].mean() - pixels[~inside].mean()
        expected = contrast * np.mean(np.maximum(alike, 0))
    assert mask_quality(features, scores, area) == pytest.approx(expected, abs=1e-9)
    assert 0 <= mask_quality(features, scores, area) <= 1


def test_cues_that_contradict_or_say_nothing_count_as_none():
    scores, area = np.array([1.0, 0.0, 0.0]), np.ones(3)
    assert mask_quality(scores[:, None], scores, area) == pytest.approx(1.0)
    assert mask_quality(1 - scores[:, None], scores, area) == 0.0
    assert mask_quality(np.full((3, 1), 0.3), scores, area) == 0.0


@pytest.mark.parametrize("scores", [[0.0, 0.4], [0.5, 1.0], [0.5]])
def test_a_mask_of_nothing_or_everything_has_none(scores):
    values = np.array(scores)
    assert mask_quality(values[:, None], values, np.ones(values.size)) == 0.0


def test_a_labelled_image_says_its_quality(photographs, small):
    labeled = label_image(photographs["astronaut"], small)
    area = np.bincount(labeled.superpixels.ravel())
    again = mask_quality(labeled.features, labeled.scores, area)
    assert labeled.quality == pytest.approx(again, abs=1e-6)
    assert 0 < labeled.quality < 1


# Predictions

SEEDS = st.integers(0, 2**32 - 1)


def a_map(seed):
    """Levels of a small map, few or many of them different."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, rng.integers(1, 300))
    return rng.choice(levels, rng.integers(1, 40, 2)).astype(np.uint8)


@FEW
@given(SEEDS)
def test_a_predictions_quality_is_the_soft_dice_of_map_and_mask(seed):
    levels = a_map(seed)
    confidence, mask = levels / 255.0, levels / 255.0 >= 0.5
    shared = (confidence * mask).sum()
    expected = 2 * shared / (mask.sum() + confidence.sum()) if mask.any() else 0.0
    quality = prediction_quality(levels)
    assert quality == pytest.approx(expected, abs=1e-12)
    assert 0 <= quality <= 1
    assert (quality == 0) == (not mask.any())
    assert quality == prediction_quality(np.ascontiguousarray(levels[::-1].T))
    assert prediction_quality(np.where(mask, 255, 0).astype(np.uint8)) == float(mask.any())


@FEW
@given(SEEDS)
def test_more_confidence_inside_and_less_outside_is_more_quality(seed):
    levels = a_map(seed).astype(np.int64)
    rng = np.random.default_rng(seed)
    inside = levels >= 128
    surer = np.where(inside, rng.integers(levels, 256), rng.integers(0, levels + 1))
    assert prediction_quality(surer.astype(np.uint8)) >= prediction_quality(levels.astype(np.uint8))


@FEW
@given(SEEDS)
def test_the_peak_is_the_mean_of_one_pixel_in_a_thousand(seed):
    rng = np.random.default_rng(seed)
    levels = rng.integers(rng.integers(0, 256), 256, rng.integers(1, 80, 2)).astype(np.uint8)
    highest = np.sort(levels.ravel())[::-1][: max(1, levels.size // 1000)]
    assert peak_confidence(levels) == pytest.approx(highest.mean() / 255, abs=1e-12)


@pytest.mark.parametrize(
    ("level", "peak_above", "found"),
    [(127, 0.0, False), (128, 0.0, True), (200, 0.8, False), (204, 0.8, True), (255, 1.0, True)],
)
def test_foreground_is_found_from_one_half_and_from_the_threshold_on(level, peak_above, found):
    levels = np.zeros((100, 90), np.uint8)
    levels[3, 2:11] = level  # nine pixels: one in a thousand
    assert foreground_found(levels, peak_above) is found
    levels[3, 2] = 0  # one of them less: the peak falls by a ninth
    assert foreground_found(levels, peak_above) is (level >= 128 and peak_above == 0.0)


def test_levels_keep_the_mask_of_one_half():
    below = np.nextafter(np.float32(0.5), np.float32(0))
    assert to_levels(np.array([[below, 0.5]], np.float32)).tolist() == [[127, 128]]


@given(st.integers(0, 2**32 - 1))
def test_dice_of_masks_is_that_of_sets(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.random((2, 4, 5)) < rng.random()
    a, b = ({*np.flatnonzero(m).tolist()} for m in (first, second))
    expected = 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0
    assert mask_dice(first, second) == expected
