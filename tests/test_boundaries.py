import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from saff.boundaries import MatchCounts, count_matches, match, summarise, suppress

FEW = settings(max_examples=40, deadline=None)


def most_pairs(detected, drawn, tolerance):
    """Size of the largest one-to-one matching, by trying every assignment."""
    first, second = np.argwhere(detected), np.argwhere(drawn)
    near = ((first[:, None] - second[None]) ** 2).sum(axis=2) <= tolerance**2
    if len(first) > len(second):
        near = near.T
    columns = range(near.shape[1])
    return max(
        (sum(near[r, c] for r, c in enumerate(p)))
        for p in itertools.permutations(columns, near.shape[0])
    )


@FEW
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1.5, 2.3]))
def test_as_many_pixels_as_possible_are_paired(seed, tolerance):
    rng = np.random.default_rng(seed)
    detected, drawn = np.zeros((2, 4, 5), bool)
    for boundary in (detected, drawn):
        boundary.ravel()[rng.choice(20, rng.integers(0, 6), replace=False)] = True
    right, found = match(detected, drawn, tolerance)
    assert right.sum() == found.sum() == most_pairs(detected, drawn, tolerance)
    assert not (right & ~detected).any()
    assert not (found & ~drawn).any()


def line(column, shape=(60, 80)):
    edges = np.zeros(shape, np.float32)
    edges[:, column] = 1.0
    return edges


def test_a_line_beside_the_drawn_one_is_right_within_the_tolerance():
    near = count_matches(line(40), [line(40) > 0], 3)  # tolerance .75 pixels of 100
    np.testing.assert_array_equal(near.right, near.detected)
    np.testing.assert_array_equal(near.found, near.drawn)
    far = count_matches(line(42), [line(40) > 0], 3)
    assert far.right.sum() == far.found.sum() == 0


def test_any_annotator_makes_right_and_each_counts_for_recall():
    counts = count_matches(line(40), [line(40) > 0, line(10) > 0], 1)
    assert counts.right == counts.detected
    assert counts.drawn == 2 * counts.found


def test_thick_edges_are_measured_on_their_crest():
    columns = np.exp(-((np.arange(80) - 40.0) ** 2) / 18)
    crest = suppress(np.tile(columns, (60, 1)).astype(np.float32))
    assert (crest[5:-5].argmax(axis=1) == 40).all()
    assert np.count_nonzero(crest[5:-5, 30:50]) == crest[5:-5].shape[0]


def test_scores_of_one_and_of_each_threshold():
    right, detected = np.array([[8, 4], [2, 2]]), np.array([[10, 4], [20, 2]])
    found, drawn = np.array([[8, 4], [4, 4]]), np.array([[10, 10], [10, 10]])
    scores = summarise(MatchCounts(right, detected, found, drawn))
    np.testing.assert_allclose(scores.precision, [10 / 30, 6 / 6])
    np.testing.assert_allclose(scores.recall, [12 / 20, 8 / 20])
    assert scores.ods == pytest.approx(2 * 0.4 / 1.4)
    assert scores.threshold == pytest.approx(2 / 3)
    # The first image is best at the first threshold (.8, .8), the second at the second (1, .4).
    precision, recall = 10 / 12, 12 / 20
    assert scores.ois == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (20, 1)])
def test_a_line_of_pixels_is_counted(shape):
    counts = count_matches(np.ones(shape, np.float32), [np.ones(shape, bool)], 2)
    assert (counts.right <= counts.detected).all()


def test_annotations_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"at least one of \(60, 80\), got \[\(2, 2\)\]"):
        count_matches(line(40), [np.zeros((2, 2))])
    with pytest.raises(ValueError, match=r"got \[\]"):
        count_matches(line(40), [])
