"""S-measure, E-measure, weighted F, boundary F: slow loops, another program's figures, limits."""

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy.ndimage import distance_transform_edt

from oracles import (
    boundary_f_oracle,
    e_measures_oracle,
    s_measure_oracle,
    weighted_f_oracle,
)
from saff.measures import (
    _distance_to,
    adaptive_level,
    boundary_f,
    e_measures,
    level_counts,
    outline,
    s_measure,
    weighted_f,
)

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=40, deadline=None)
SUMS = 1e-12  # float64 sums over some hundred pixels, in another order

try:
    import py_sod_metrics
except ImportError:
    py_sod_metrics = None


def picture(seed, largest=12):
    """Give a small random map with its truth: blobs or noise, some void, always foreground."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, largest, 2)
    rows, columns = np.mgrid[:height, :width]
    truth = rng.random((height, width)) < rng.random()
    if rng.random() < 0.6:
        truth = np.hypot(rows - height * rng.random(), columns - width * rng.random()) < 4
    levels = np.where(truth, 200, 40) + rng.normal(0, 60, truth.shape)
    valid = rng.random(truth.shape) < rng.choice([0.7, 1.0])
    corner = tuple(rng.integers(0, truth.shape))
    truth[corner] = valid[corner] = True
    return np.clip(levels, 0, 255).astype(np.uint8), truth, valid


def both_sides(levels, truth, valid=None):
    return level_counts(levels, truth, valid)[:2]


@FEW
@given(SEEDS)
def test_the_s_measure_is_its_definition(seed):
    levels, truth, valid = picture(seed)
    expected = s_measure_oracle(levels, truth, valid)
    assert s_measure(levels, truth, valid) == pytest.approx(expected, abs=SUMS)


@FEW
@given(SEEDS)
def test_the_e_measure_is_its_definition(seed):
    levels, truth, valid = picture(seed)
    found = e_measures(both_sides(levels, truth, valid))
    np.testing.assert_allclose(found, e_measures_oracle(levels, truth, valid), atol=1e-9)


@FEW
@given(SEEDS)
def test_the_weighted_f_measure_is_its_definition(seed):
    levels, truth, valid = picture(seed)
    expected = weighted_f_oracle(levels, truth, valid)
    assert weighted_f(levels, truth, valid) == pytest.approx(expected, abs=SUMS)


@pytest.mark.parametrize("threads", [1, 2])
def test_distances_are_exact_wherever_their_array_lies(threads):
    mask = np.random.default_rng(threads).random((301, 403)) < 0.001
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)  # on one, OpenCV's last digit depends on the address
    try:
        found = [_distance_to(mask) for _ in range(8)]  # all kept, so that addresses differ
    finally:
        cv2.setNumThreads(before)
    for distance in found:
        np.testing.assert_array_equal(distance, distance_transform_edt(~mask))


@FEW
@given(SEEDS)
def test_the_boundary_f_measure_is_its_definition(seed):
    levels, truth, valid = picture(seed)
    expected = boundary_f_oracle(levels >= 128, truth, valid, 1.0)
    assert boundary_f(levels >= 128, truth, valid) == pytest.approx(expected, abs=SUMS)


@FEW
@given(SEEDS)
def test_the_adaptive_level_is_twice_the_mean(seed):
    levels, truth, valid = picture(seed)
    threshold = min(2 * levels[valid].mean(), 255)
    kept = levels >= adaptive_level(both_sides(levels, truth, valid))
    np.testing.assert_array_equal(kept[valid], levels[valid] >= threshold - 1e-9)


@FEW
@given(SEEDS)
def test_nothing_depends_on_what_stands_in_void_pixels(seed):
    levels, truth, valid = picture(seed)
    other = np.where(valid, levels, np.random.default_rng(seed).integers(0, 256, truth.shape))
    other = other.astype(np.uint8)
    assert s_measure(other, truth, valid) == s_measure(levels, truth, valid)
    assert weighted_f(other, truth, valid) == weighted_f(levels, truth, valid)
    assert s_measure(levels, truth ^ ~valid, valid) == s_measure(levels, truth, valid)
    assert weighted_f(levels, truth ^ ~valid, valid) == weighted_f(levels, truth, valid)
    assert boundary_f(levels > 99, truth ^ ~valid, valid) == boundary_f(levels > 99, truth, valid)


# Another program: pysodmetrics. Each release asks for an older NumPy, and the later ones for a
# build of OpenCV that writes over ours, so none can stand in pyproject.toml. `make env` installs
# one without its dependencies.


def analytic(height, width):
    """Give a map and a mask by formula, so that the figures below hold on every machine."""
    rows, columns = np.mgrid[:height, :width]
    truth = ((rows - 0.4 * height) / (0.3 * height)) ** 2 + (
        (columns - 0.45 * width) / (0.25 * width)
    ) ** 2 < 1
    wave = 60 * np.sin(rows / 7) * np.cos(columns / 5)
    levels = np.clip(np.where(truth, 190, 50) + wave, 0, 255).astype(np.uint8)
    levels.flat[0], levels.flat[-1] = 0, 255  # as the other program stretches every map
    return levels, truth


RECORDED = {
    (60, 80): [0.8233077269, 0.5248425847, 0.9251324303, 0.6429164029, 1.0000099723],
    (75, 50): [0.8232902980, 0.5271190894, 0.9226874275, 0.6374680256, 1.0000125181],
    (375, 500): [0.8268035029, 0.5000797472, 0.9229889824, 0.6371071795, 1.0000002544],
}
"""Of pysodmetrics 1.6.2: S-measure, weighted F, E-measure adaptive, mean and max."""


def ours(levels, truth):
    counts = both_sides(levels, truth)
    e = e_measures(counts)
    return [
        s_measure(levels, truth),
        weighted_f(levels, truth),
        e[adaptive_level(counts)],
        e.mean(),
        e.max(),
    ]


@pytest.mark.parametrize("shape", RECORDED)
def test_figures_are_those_recorded_of_pysodmetrics(shape):
    assert ours(*analytic(*shape)) == pytest.approx(RECORDED[shape], abs=1e-8)


@pytest.mark.skipif(py_sod_metrics is None, reason="no pysodmetrics; make env installs it")
@FEW
@given(SEEDS)
def test_figures_are_those_of_pysodmetrics(seed):
    levels, truth, _ = picture(seed, 40)
    levels.flat[0], levels.flat[-1] = 0, 255
    # there, an empty region and the deviation of one pixel are no numbers
    assume(not truth[:, -1].any() and not truth[-1].any() and truth.sum() > 1)
    assume((~truth).sum() > 1)
    theirs = [
        py_sod_metrics.Smeasure(),
        py_sod_metrics.WeightedFmeasure(),
        py_sod_metrics.Emeasure(),
    ]
    for measure in theirs:
        measure.step(levels, truth.astype(np.uint8) * 255)
    s, f, e = (measure.get_results() for measure in theirs)
    expected = [s["sm"], f["wfm"], e["em"]["adp"], e["em"]["curve"].mean(), e["em"]["curve"].max()]
    assert ours(levels, truth) == pytest.approx(expected, abs=1e-8)


# Limits


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (30, 40)])
def test_a_perfect_map_has_the_best_figures(shape):
    truth = np.zeros(shape, bool)
    truth[shape[0] // 3 : shape[0] // 3 + 9, shape[1] // 3 : shape[1] // 3 + 9] = True
    levels = truth.astype(np.uint8) * 255
    assert s_measure(levels, truth) == pytest.approx(1)
    assert weighted_f(levels, truth) == pytest.approx(1)
    assert boundary_f(truth, truth) == 1
    less = max(truth.size - 1, 1)  # by which the published measure divides
    assert e_measures(both_sides(levels, truth)).max() == pytest.approx(truth.size / less)


def test_a_map_of_nothing_has_the_worst_figures():
    truth = np.zeros((20, 30), bool)
    truth[5:12, 6:20] = True
    nothing = np.zeros(truth.shape, np.uint8)
    assert weighted_f(nothing, truth) == pytest.approx(0, abs=1e-6)
    assert boundary_f(nothing > 0, truth) == 0
    assert s_measure(nothing, truth) < 0.5


def a_square(side, moved=0, size=200):
    mask = np.zeros((side, side), bool)
    start = (side - size) // 2
    mask[start : start + size, start + moved : start + moved + size] = True
    return mask


@pytest.mark.parametrize(("moved", "least", "most"), [(2, 1, 1), (3, 0.5, 0.56), (20, 0.4, 0.5)])
def test_outlines_may_be_off_by_2_pixels_of_500(moved, least, most):
    assert least <= boundary_f(a_square(500, moved), a_square(500)) <= most


def test_the_tolerance_grows_with_the_picture_and_is_at_least_a_pixel():
    assert boundary_f(a_square(1000, 4), a_square(1000)) == 1
    assert boundary_f(a_square(1000, 5), a_square(1000)) < 0.6
    assert boundary_f(a_square(50, 1, 20), a_square(50, 0, 20)) == 1
    assert boundary_f(a_square(50, 2, 20), a_square(50, 0, 20)) < 0.7


def test_the_border_of_the_picture_is_no_outline():
    mask = np.zeros((6, 8), bool)
    mask[:, :4] = True
    assert outline(mask).nonzero()[1].tolist() == [3] * 6
    assert not outline(np.ones((3, 3), bool)).any()
    assert boundary_f(np.ones((3, 3), bool), np.ones((3, 3), bool)) == 1


def test_the_outline_runs_in_the_middle_of_a_void_band():
    truth, band = a_square(500), a_square(500, size=208) & ~a_square(500, size=196)
    assert boundary_f(a_square(500), truth & ~band, ~band) == 1
    everything = np.zeros((500, 500), bool)
    everything[10:60, 10:60] = True  # a region that is void as a whole
    seen = truth | everything
    assert boundary_f(seen, truth, ~everything) == 1
    assert boundary_f(seen, truth) < 0.95
