import csv
import io
import json
import pickle
from fractions import Fraction
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from oracles import (
    evaluation_metrics_oracle,
    f_measure_metrics_oracle,
    precision_recall_metrics_oracle,
    stretch_metrics_oracle,
)
from saff.measures import (
    adaptive_level,
    boundary_f,
    e_measures,
    level_counts,
    s_measure,
    weighted_f,
)
from saff.metrics import (
    Curve,
    Evaluation,
    curve_csv,
    curve_svg,
    f_measure,
    normalise_to_255,
    precision_recall,
)

EPSILON = np.finfo(np.float64).eps
UNIT = 2.0**-36  # in which Evaluation keeps its sums: a mean is off by at most half of it
SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=40, deadline=None)  # pictures are small: each has many edge cases


def picture(seed):
    """Give a small random map with its truth: few or many levels, some void, always foreground."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 8, 2))
    levels = rng.integers(0, 256, rng.integers(1, 9))  # few: levels repeat, thresholds tie
    confidence = rng.choice(levels, shape).astype(np.uint8)
    truth, valid = rng.random(shape) < rng.random(), rng.random(shape) < 0.8
    corner = tuple(rng.integers(0, shape))
    truth[corner] = valid[corner] = True
    return confidence, truth, valid


@FEW
@given(SEEDS)
def test_without_foreground_found_what_is_of_the_mask_is_that_of_an_empty_one(seed):
    confidence, truth, valid = picture(seed)
    empty, whole, nothing = Evaluation(), Evaluation(), Evaluation()
    empty.add(confidence, truth, valid, foreground_found=False)
    whole.add(confidence, truth, valid)
    nothing.add(np.zeros_like(confidence), truth, valid)
    of_mask = {"iou", "accuracy", "f_at_half", "boundary_f"}
    for name, found in empty.sums.items():
        expected = nothing if name in of_mask else whole
        np.testing.assert_array_equal(found, expected.sums[name], err_msg=name)


def evaluation_of(images, **options):
    evaluation = Evaluation(**options)
    for image in images:
        evaluation.add(*image)
    return evaluation


def assert_same_state(first, second):
    assert first.summary() == second.summary()  # floats too: equal to the last bit
    assert first.best_thresholds == second.best_thresholds
    for name, total in first.sums.items():
        np.testing.assert_array_equal(total, second.sums[name], strict=True)


# Two images on which the three averages differ; F by hand with beta squared 0.3.
#            t: 0..5              6..10            11..15      16..20      21..255
# FIRST   P, R: 1/2, 1  F .565    1/2, 1   .565    1, 1    1   1, 1    1   1, 0   0
# SECOND  P, R: 2/3, 1  F .722    1/2, 1/2 .5      1/2, 1/2 .5 1, 0    0   1, 0   0
# means   P, R: 7/12, 1 F .645    1/2, 3/4 .542    3/4, 3/4 .75 1, 1/2 .8125  1, 0  0
# mean of F:              .644             .533            .75         .5         0
FIRST = (np.array([[10, 20]], np.uint8), np.array([[False, True]]))
SECOND = (np.array([[5, 15, 15]], np.uint8), np.array([[True, True, False]]))


@FEW
@given(SEEDS)
def test_precision_and_recall_match_masks_made_threshold_by_threshold(seed):
    confidence, truth, valid = picture(seed)
    for void in (None, valid):
        precision, recall = precision_recall(confidence, truth, void)
        expected = precision_recall_metrics_oracle(confidence, truth, void)
        # one division of integers below 2**53, which is rounded correctly
        np.testing.assert_array_equal(precision, np.array(expected[0], float), strict=True)
        np.testing.assert_array_equal(recall, np.array(expected[1], float), strict=True)


def test_a_worked_example():
    confidence = np.array([[0, 100], [200, 255]], np.uint8)
    truth = np.array([[False, True], [False, True]])
    precision, recall = precision_recall(confidence, truth)
    steps = [0, 1, 100, 101, 200, 201, 255]
    assert precision[steps].tolist() == [1 / 2, 2 / 3, 2 / 3, 1 / 2, 1 / 2, 1, 1]
    assert recall[steps].tolist() == [1, 1, 1, 1 / 2, 1 / 2, 1 / 2, 1 / 2]


def test_a_threshold_that_keeps_nothing_has_precision_1_and_recall_0():
    precision, recall = precision_recall(np.array([[7]], np.uint8), np.array([[True]]))
    assert precision.tolist() == [1.0] * 256
    assert recall.tolist() == [1.0] * 8 + [0.0] * 248


@FEW
@given(SEEDS)
def test_recall_starts_at_1_and_never_rises(seed):
    _, recall = precision_recall(*picture(seed))
    assert recall[0] == 1.0
    assert (np.diff(recall) <= 0).all()


@FEW
@given(SEEDS)
def test_the_order_of_pixels_does_not_matter(seed):
    image = picture(seed)
    order = np.random.default_rng(seed).permutation(image[0].size)
    shuffled = [pixels.ravel()[order].reshape(pixels.shape) for pixels in image]
    np.testing.assert_array_equal(precision_recall(*shuffled), precision_recall(*image))
    first, second = (evaluation_of([i], measures="f") for i in (shuffled, image))
    assert_same_state(first, second)


@FEW
@given(SEEDS)
def test_what_stands_in_void_pixels_does_not_matter(seed):
    confidence, truth, valid = picture(seed)
    rng = np.random.default_rng(seed)
    other = np.where(valid, confidence, rng.integers(0, 256, valid.shape)).astype(np.uint8)
    changed = (other, truth ^ ~valid, valid)
    image = (confidence, truth, valid)
    np.testing.assert_array_equal(precision_recall(*changed), precision_recall(*image))
    first, second = (evaluation_of([i], normalise=False) for i in (changed, image))
    for evaluation in (first, second):
        del evaluation.sums["boundary_f"]  # true outlines run inside void bands
    assert_same_state(first, second)


def test_a_map_is_stretched_as_a_whole_void_pixels_included():
    confidence, truth = np.array([[100, 200, 50]], np.uint8), np.array([[False, True, False]])
    valid = np.array([[True, True, False]])
    evaluation = evaluation_of([(confidence, truth, valid)])
    assert evaluation.curve().best == 86  # 100 is stretched to 85 = 255 (100 - 50) / (200 - 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((1, 2)), np.ones((1, 2), bool)), r"uint8 \(0..255\), got float64; round 255"),
        ((np.zeros((1, 2), np.uint8), np.ones((1, 2), int)), "truth must be bool, got int64"),
        (
            (np.zeros((1, 2), np.uint8), np.ones((2, 1), bool)),
            r"truth must have the shape \(1, 2\) of confidence, got \(2, 1\)",
        ),
        (
            (np.zeros((1, 2), np.uint8), np.ones((1, 2), bool), np.ones((1, 2), np.uint8)),
            "valid must be bool, got uint8",
        ),
        (
            (np.zeros((1, 2), np.uint8), np.ones((1, 2), bool), np.ones(2, bool)),
            r"valid must have the shape \(1, 2\) of confidence, got \(2,\)",
        ),
    ],
)
def test_arrays_of_the_wrong_kind_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(*arguments)
    evaluation = evaluation_of([FIRST])
    with pytest.raises(ValueError, match=message):
        evaluation.add(*arguments)
    assert_same_state(evaluation, evaluation_of([FIRST]))


@pytest.mark.parametrize(
    ("truth", "valid"),
    [
        (np.zeros((2, 3), bool), None),
        (np.eye(2, 3, dtype=bool), ~np.eye(2, 3, dtype=bool)),
        (np.eye(2, 3, dtype=bool), np.zeros((2, 3), bool)),
    ],
    ids=["all background", "all foreground void", "all void"],
)
def test_an_image_without_foreground_is_refused_alone_and_counted_among_others(truth, valid):
    confidence = np.full((2, 3), 200, np.uint8)
    with pytest.raises(ValueError, match=r"no valid foreground pixel.*leave the image out"):
        precision_recall(confidence, truth, valid)
    evaluation = evaluation_of([FIRST, (confidence, truth, valid)])
    assert evaluation.summary() == evaluation_of([FIRST]).summary() | {"skipped": 1}


def test_beta_is_already_squared():
    # 1.3 * 0.8 * 0.5 / (0.3 * 0.8 + 0.5); with 0.3 squared again it would be .5 * .872 / .572
    assert f_measure(0.8, 0.5) == pytest.approx(0.52 / 0.74, rel=4 * EPSILON)
    assert f_measure(0.8, 0.5, beta_squared=1.0) == pytest.approx(0.8 / 1.3, rel=4 * EPSILON)
    assert f_measure(0.8, 0.5, 0.0) == pytest.approx(0.8, rel=4 * EPSILON)


@FEW
@given(SEEDS, st.fractions(0, 4, max_denominator=100))
def test_f_measure_matches_fractions(seed, beta_squared):
    rng = np.random.default_rng(seed)
    precision, recall = rng.integers(0, 5, (2, 20)) / 4
    expected = [
        float(f_measure_metrics_oracle(Fraction(p), Fraction(r), beta_squared))
        if beta_squared or r
        else 0.0  # the weight of recall is 0 and so is recall: 0 / 0
        for p, r in zip(precision.tolist(), recall.tolist(), strict=True)
    ]
    f = f_measure(precision, recall, float(beta_squared))
    np.testing.assert_allclose(f, expected, rtol=8 * EPSILON)  # seven roundings
    assert [
        f_measure(p, r, float(beta_squared)) for p, r in zip(precision, recall, strict=True)
    ] == (f.tolist())


def test_f_measure_of_nothing_right_is_0():
    assert f_measure(0.0, 0.0) == 0.0
    assert f_measure(np.array([0.0, 1.0]), np.array([0.0, 1.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("beta_squared", [-0.1, np.nan, np.inf])
def test_a_beta_squared_that_is_no_weight_is_refused(beta_squared):
    message = f"beta_squared must be a finite number >= 0, got {beta_squared}"
    with pytest.raises(ValueError, match=message):
        f_measure(1.0, 1.0, beta_squared)
    with pytest.raises(ValueError, match=message):
        Evaluation(beta_squared=beta_squared)


@FEW
@given(SEEDS)
def test_stretch_matches_fractions_and_keeps_levels_apart(seed):
    confidence, _, _ = picture(seed)
    stretched = normalise_to_255(confidence)
    np.testing.assert_array_equal(stretched, stretch_metrics_oracle(confidence), strict=True)
    np.testing.assert_array_equal(normalise_to_255(stretched), stretched)
    assert np.unique(stretched).size == np.unique(confidence).size


def test_stretch_rounds_as_fractions_do_for_every_span():
    for span in range(1, 256):  # halves, to even, among them: 255 / 6 is 42.5
        levels = np.arange(255 - span, 256)
        expected = [round(Fraction(255 * step, span)) for step in range(span + 1)]
        assert normalise_to_255(levels).tolist() == expected


def test_stretch_takes_any_range():
    stretched = normalise_to_255(np.array([[-1.0, 0.0], [0.5, 3.0]], np.float32))
    assert stretched.tolist() == [[0, 64], [96, 255]]  # 63.75 and 95.625
    assert stretched.dtype == np.uint8


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_map_is_stretched_to_0(level):
    flat = np.full((2, 3), level, np.uint8)
    np.testing.assert_array_equal(normalise_to_255(flat), np.zeros((2, 3), np.uint8), strict=True)
    truth = np.eye(2, 3, dtype=bool)
    recall = evaluation_of([(flat, truth)]).curve().recall
    assert recall.tolist() == [1.0] + [0.0] * 255


@pytest.mark.parametrize("values", [[[np.nan, 1.0]], [[np.inf, 1.0]], [[]]])
def test_a_map_that_cannot_be_stretched_is_named(values):
    with pytest.raises(ValueError, match=r"finite numbers, got NaN, infinity or no pixel .*\(1, "):
        normalise_to_255(np.array(values))


def test_the_three_averages_on_a_worked_example():
    summary = evaluation_of([FIRST, SECOND], normalise=False, measures="f").summary()
    assert {*summary.pop("e_measure")} == {"adaptive", "mean", "max", "threshold"}
    assert summary == {
        "images": 2,
        "skipped": 0,
        "mean_pr": {"max_f": pytest.approx(0.8125, abs=UNIT), "threshold": 16},
        "mean_f": {"max_f": pytest.approx(0.75, abs=UNIT), "threshold": 11},
        "max_f": {"max_f": pytest.approx((1 + 13 / 18) / 2, abs=UNIT), "threshold": 11 / 2},
        "mae": pytest.approx((245 / 510 + 505 / 765) / 2, abs=UNIT),
        "iou": 0.0,
        "accuracy": pytest.approx((1 / 2 + 1 / 3) / 2, abs=UNIT),
        "f_at_half": 0.0,
        "adaptive_f": 0.0,  # twice the mean is more than the largest level in both
        "beta_squared": 0.3,
        "normalised": False,
        "measures": "f",
    }


@settings(FEW, max_examples=15)  # exact fractions take their time
@given(st.lists(SEEDS, min_size=1, max_size=3), st.booleans(), st.sampled_from([0.3, 1.0]))
def test_every_figure_matches_exact_sums_over_images(seeds, normalise, beta_squared):
    images = [picture(seed) for seed in seeds]
    evaluation = evaluation_of(images, normalise=normalise, beta_squared=beta_squared)
    exact = evaluation_metrics_oracle(images, Fraction(str(beta_squared)), normalise)
    summary, curve = evaluation.summary(), evaluation.curve()
    assert (summary["images"], summary["skipped"]) == (len(images), 0)
    for name in ("mae", "iou", "accuracy"):
        assert summary[name] == pytest.approx(float(exact[name]), abs=UNIT)
    np.testing.assert_allclose(curve.precision, np.array(exact["precision"], float), atol=UNIT)
    np.testing.assert_allclose(curve.recall, np.array(exact["recall"], float), atol=UNIT)
    # F has a slope of at most 1 + 1 / beta squared in P and in R: 4.4 units for each
    tolerance = 16 * UNIT
    np.testing.assert_allclose(curve.f, np.array(exact["mean_pr"], float), atol=tolerance)
    for name in ("mean_pr", "mean_f"):
        best = float(max(exact[name]))
        assert summary[name]["max_f"] == pytest.approx(best, abs=tolerance)
        assert float(exact[name][summary[name]["threshold"]]) == pytest.approx(best, abs=tolerance)
    assert summary["max_f"]["max_f"] == pytest.approx(float(exact["max_f"]), abs=UNIT)


@FEW
@given(st.lists(SEEDS, min_size=2, max_size=12), SEEDS)
def test_shards_in_any_order_add_up_to_the_whole(seeds, seed):
    images = [picture(seed) for seed in seeds]
    images.append((images[0][0], np.zeros_like(images[0][1]), None))  # this one is skipped
    whole = evaluation_of(images)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    cuts = np.sort(rng.integers(0, len(images) + 1, 3))  # four shards, empty ones among them
    shards = [evaluation_of([images[i] for i in shard]) for shard in np.split(order, cuts)]
    assert_same_state(sum(shards, start=Evaluation()), whole)
    assert_same_state((shards[3] + shards[1]) + (shards[2] + shards[0]), whole)


def test_adding_leaves_both_sides_alone():
    first, second = evaluation_of([FIRST]), evaluation_of([SECOND])
    both = first + second
    both.add(*FIRST)
    assert_same_state(first, evaluation_of([FIRST]))
    assert_same_state(second, evaluation_of([SECOND]))


def test_the_state_travels_and_does_not_grow():
    few, many = evaluation_of([FIRST]), evaluation_of([FIRST, SECOND] * 50)
    assert len(pickle.dumps(many)) <= len(pickle.dumps(few)) + 16 < 10_000
    assert_same_state(pickle.loads(pickle.dumps(many)), many)


@pytest.mark.parametrize(
    "other",
    [Evaluation(beta_squared=1.0), Evaluation(normalise=False), Evaluation(measures="f")],
)
def test_evaluations_of_different_settings_do_not_mix(other):
    message = (
        f"beta_squared 0.3 and {other.beta_squared}, normalise True and {other.normalise}, "
        f"measures all and {other.measures}"
    )
    with pytest.raises(ValueError, match=message):
        Evaluation() + other


@FEW
@given(SEEDS)
def test_stretching_moves_neither_the_best_of_an_image_nor_its_mask(seed):
    image = picture(seed)
    stretched, plain = evaluation_of([image]).summary(), evaluation_of([image], normalise=False)
    expected = plain.summary()
    assert stretched["max_f"]["max_f"] == expected["max_f"]["max_f"]
    for name in ("mae", "iou", "accuracy"):
        assert stretched[name] == expected[name]
    confidence, truth, valid = image
    shown = evaluation_of([(normalise_to_255(confidence), truth, valid)], normalise=False)
    np.testing.assert_array_equal(shown.sums["f"], evaluation_of([image]).sums["f"])


def test_the_mask_at_half_keeps_128():
    confidence = np.array([[127, 128, 255, 0]], np.uint8)
    summary = evaluation_of([(confidence, np.array([[True, True, False, False]]))]).summary()
    assert summary["iou"] == pytest.approx(1 / 3, abs=UNIT)
    assert summary["accuracy"] == 0.5
    # precision and recall are 1/2: 128 and 255 are kept, and one of them is true
    assert summary["f_at_half"] == pytest.approx(0.5, abs=UNIT)


def test_the_outline_is_that_of_the_mask_at_half():
    truth = np.zeros((9, 9), bool)
    truth[3:6, 3:6] = True
    levels = np.where(truth, 128, 127).astype(np.uint8)
    assert evaluation_of([(levels, truth)]).summary()["boundary_f"] == 1.0


def test_a_summary_is_json_of_plain_numbers():
    summary = evaluation_of([FIRST, SECOND]).summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


@FEW
@given(SEEDS)
def test_measures_are_averaged_over_images(seed):
    images = [picture(seed), picture(seed + 1)]
    for normalise in (False, True):
        found = {name: [] for name in ("s_measure", "weighted_f", "boundary_f")}
        at_half, adaptive, curves = [], [], []
        for confidence, truth, valid in images:
            shown = normalise_to_255(confidence) if normalise else confidence
            found["s_measure"].append(s_measure(shown, truth, valid))
            found["weighted_f"].append(weighted_f(shown, truth, valid))
            found["boundary_f"].append(boundary_f(confidence >= 128, truth, valid))
            f = f_measure(*precision_recall(shown, truth, valid))
            counts = level_counts(shown, truth, valid)[:2]
            adaptive.append([f[adaptive_level(counts)], e_measures(counts)[adaptive_level(counts)]])
            at_half.append(f_measure(*precision_recall(confidence, truth, valid))[128])
            curves.append(e_measures(counts))
        summary = evaluation_of(images, normalise=normalise).summary()
        for name, values in found.items():
            assert summary[name] == pytest.approx(np.mean(values), abs=UNIT)
        assert summary["f_at_half"] == pytest.approx(np.mean(at_half), abs=UNIT)
        assert summary["adaptive_f"] == pytest.approx(np.mean(adaptive, axis=0)[0], abs=UNIT)
        e, curve = summary["e_measure"], np.mean(curves, axis=0)
        assert e["adaptive"] == pytest.approx(np.mean(adaptive, axis=0)[1], abs=UNIT)
        assert (e["mean"], e["max"]) == pytest.approx((curve.mean(), curve.max()), abs=UNIT)
        assert curve[e["threshold"]] == pytest.approx(curve.max(), abs=UNIT)


def test_measures_that_need_the_shape_can_be_left_out():
    both = evaluation_of([FIRST, SECOND]).summary(), evaluation_of([FIRST], measures="f").summary()
    assert {*both[0]} - {*both[1]} == {"s_measure", "weighted_f", "boundary_f"}


def test_nothing_to_average_is_said():
    evaluation = Evaluation()
    evaluation.add(np.zeros((1, 1), np.uint8), np.zeros((1, 1), bool))
    for figure in (evaluation.summary, evaluation.curve):
        with pytest.raises(ValueError, match=r"no image with foreground truth .*\(1 without\)"):
            figure()


def test_a_csv_holds_the_curve_to_the_last_bit():
    curve = evaluation_of([FIRST, SECOND]).curve()
    text = curve_csv(curve)
    assert text.startswith("threshold,precision,recall,f\n0,")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [int(row["threshold"]) for row in rows] == list(range(256))
    for name, column in (("precision", curve.precision), ("recall", curve.recall), ("f", curve.f)):
        assert [float(row[name]) for row in rows] == column.tolist()


def test_the_best_threshold_is_the_lowest_of_the_best():
    assert evaluation_of([FIRST], normalise=False).curve().best == 11  # 11..20 have F 1


def test_an_svg_names_its_axes_and_every_curve():
    one = evaluation_of([FIRST, SECOND], normalise=False).curve()
    names = ["SAFF & balance", "_private", "<b>$x$</b>", *map(str, range(9))]
    svg = curve_svg(dict.fromkeys(names, one))
    texts = [text.text for text in ElementTree.fromstring(svg).findall(".//{*}text")]
    assert {"Recall", "Precision"} <= set(texts)
    for name in names:
        assert f"{name}: max F {one.f.max():.3f} at threshold 16" in texts


def test_an_svg_marks_the_largest_f():
    one = evaluation_of([FIRST, SECOND], normalise=False).curve()
    root = ElementTree.fromstring(curve_svg({"pseudo labels": one}))
    clipped = ".//{*}g[@clip-path]//{*}use"
    marks = [(float(use.get("x")), float(use.get("y"))) for use in root.findall(clipped)]
    paths = [path.get("d").split() for path in root.findall(".//{*}path[@clip-path]")]
    steps = max(paths, key=len)  # M x y L x y L x y ...: the curve, from threshold 0 to 255
    corners = list(zip(map(float, steps[1::3]), map(float, steps[2::3]), strict=True))
    # P, R of the worked example: (7/12, 1), (1/2, 3/4), (3/4, 3/4), (1, 1/2), (1, 0)
    assert len(dict.fromkeys(corners)) == 5
    assert marks == [list(dict.fromkeys(corners))[3]]
    assert marks[0][1] == corners[-1][1]  # as high: precision is 1 for both


def test_the_same_curves_give_the_same_svg_and_no_setting_is_left_behind():
    curves = {"pseudo labels": evaluation_of([FIRST, SECOND]).curve()}
    before = dict(matplotlib.rcParams)
    assert curve_svg(curves) == curve_svg(curves)
    assert dict(matplotlib.rcParams) == before
    assert "<dc:date>" not in curve_svg(curves)


def test_a_picture_of_no_curve_is_refused():
    with pytest.raises(ValueError, match="at least one named curve, got none"):
        curve_svg({})


def test_a_curve_keeps_its_own_beta():
    curve = Curve(np.full(256, 0.8), np.full(256, 0.5), beta_squared=1.0)
    assert curve.f[0] == pytest.approx(0.8 / 1.3, rel=4 * EPSILON)
