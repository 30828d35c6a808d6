"""The sharpened mean of two maps."""

import numpy as np
from hypothesis import given, strategies as st

from saff.averaging import sharpen, weighted_mean


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_the_mean_lies_between_both_before_it_is_sharpened(seed, share):
    label, predicted = np.random.default_rng(seed).random((2, 20), np.float32)
    mean = weighted_mean(label, predicted, share)
    assert mean.dtype == np.float32
    assert (mean >= sharpen(np.minimum(label, predicted)) - 1e-6).all()
    assert (mean <= sharpen(np.maximum(label, predicted)) + 1e-6).all()


def test_a_share_of_nothing_leaves_the_other_map():
    label, predicted = np.float32([[0.0, 0.2, 1.0], [0.7, 0.6, 0.0]])
    np.testing.assert_array_equal(weighted_mean(label, predicted, 0.0), sharpen(label))
    np.testing.assert_array_equal(weighted_mean(label, predicted, 1.0), sharpen(predicted))


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30))
def test_sharpening_keeps_the_order_and_the_mask(values):
    confidence = np.sort(np.array(values, np.float32))
    sharp = sharpen(confidence)
    assert sharp.dtype == np.float32
    assert (np.diff(sharp) >= 0).all()
    np.testing.assert_array_equal(sharp >= 0.5, confidence >= 0.5)
    assert (np.abs(sharp - 0.5) >= np.abs(confidence - 0.5) - 1e-6).all()
    np.testing.assert_allclose(sharpen(1 - confidence), 1 - sharp, atol=1e-6)
