import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from saff.labeling import label_image
from saff.quality import mask_quality

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
