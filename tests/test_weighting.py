import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from oracles import resampled_fit_weighting_oracle, ridge_weighting_oracle
from saff.weighting import Fit, fit_weights

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=60, deadline=None)
SOLVED = 1e-9  # least squares in float64 with a condition of at most some thousands
DEFICIENT = "rank-deficient system: minimum-norm solution"


def picture(seed, count=40):
    """Give features of superpixels whose two unary ones reach from 0 to 1."""
    features = np.random.default_rng(seed).random((count, 4))
    return features, features[:, 0], features[:, 2]


def seeds_of(features, background_below=0.2, foreground_above=0.6):
    agreement = np.sqrt(features[:, 0] * features[:, 2])
    return agreement > foreground_above, agreement < background_below


def solution(fit):
    return np.append(fit.weights, fit.bias)


@FEW
@given(SEEDS)
def test_balance_is_resampling_in_the_limit(seed):
    features, semantic, saliency = picture(seed)
    foreground, background = seeds_of(features)
    assume(min(foreground.sum(), background.sum()) >= 5)
    fit = fit_weights(features, semantic, saliency)
    expected = resampled_fit_weighting_oracle(features, foreground, background)
    np.testing.assert_allclose(solution(fit), expected, SOLVED, SOLVED)
    assert (fit.seeds_foreground, fit.seeds_background) == (foreground.sum(), background.sum())
    assert fit.fallback == ""


@FEW
@given(SEEDS)
def test_without_balance_every_seed_counts_once(seed):
    features, semantic, saliency = picture(seed)
    foreground, background = seeds_of(features)
    assume(min(foreground.sum(), background.sum()) >= 5)
    fit = fit_weights(features, semantic, saliency, balance=False)
    chosen = foreground | background
    design = np.column_stack([features, np.ones(len(features))])[chosen]
    expected = np.linalg.solve(design.T @ design, design.T @ foreground[chosen])
    np.testing.assert_allclose(solution(fit), expected, SOLVED, SOLVED)


@FEW
@given(SEEDS, st.booleans(), st.sampled_from([1e-3, 0.1, 1.0, 30.0]))
def test_the_prior_pulls_as_the_normal_equations_say(seed, balance, strength):
    features, semantic, saliency = picture(seed)
    foreground, background = seeds_of(features)
    n_foreground, n_background = foreground.sum(), background.sum()
    assume(min(n_foreground, n_background) >= 1)
    prior = np.random.default_rng(seed + 1).normal(0, 1, 4)
    importance = np.ones(len(features))
    if balance:
        importance[foreground] = max(1, n_background / n_foreground)
        importance[background] = max(1, n_foreground / n_background)
    chosen = foreground | background
    expected = ridge_weighting_oracle(
        features[chosen], foreground[chosen], importance[chosen], prior, strength
    )
    fit = fit_weights(
        features, semantic, saliency, balance=balance, prior=prior, prior_strength=strength
    )
    np.testing.assert_allclose(solution(fit), expected, SOLVED, SOLVED)
    assert fit.fallback == ""  # the prior gives every direction a weight


def test_a_strong_prior_wins():
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    fit = fit_weights(*picture(0), prior=prior, prior_strength=1e8)
    # The pull of the examples is of the order of one against 1e8.
    np.testing.assert_allclose(solution(fit), np.append(prior, 0), 0, 1e-7)


@FEW
@given(SEEDS, st.sampled_from([0.0, 0.5]))
def test_repeated_superpixels_and_their_order_change_nothing(seed, strength):
    features, semantic, saliency = picture(seed)
    foreground, background = seeds_of(features)
    assume(min(foreground.sum(), background.sum()) >= 5)
    rng = np.random.default_rng(seed)
    fit = fit_weights(features, semantic, saliency, prior_strength=strength)
    for rows in (rng.permutation(40), np.repeat(np.arange(40), 3)):
        again = fit_weights(features[rows], semantic[rows], saliency[rows], prior_strength=strength)
        np.testing.assert_allclose(solution(again), solution(fit), SOLVED, SOLVED)
    columns = rng.permutation(4)
    turned = fit_weights(features[:, columns], semantic, saliency, prior_strength=strength)
    np.testing.assert_allclose(turned.weights, fit.weights[columns], SOLVED, SOLVED)


def test_thresholds_are_strict():
    evidence = np.array([0.125, 0.25, 0.375, 0.5, 0.625])  # products and roots are exact
    features = np.zeros((5, 4))
    bounds = {"background_below": 0.25, "foreground_above": 0.5}
    fit = fit_weights(features, evidence, evidence, **bounds)
    assert (fit.seeds_background, fit.seeds_foreground) == (1, 1)  # 0.25 and 0.5 are neither
    nearer = {"background_below": 0.375, "foreground_above": 0.375}
    fit = fit_weights(features, evidence, evidence, **nearer)
    assert (fit.seeds_background, fit.seeds_foreground) == (2, 2)


def test_the_papers_thresholds_are_the_default():
    agreement = np.array([0.19, 0.21, 0.59, 0.61])
    fit = fit_weights(np.zeros((4, 4)), agreement, agreement)
    assert (fit.seeds_background, fit.seeds_foreground) == (1, 1)


def test_seeds_need_both_kinds_of_evidence():
    semantic, saliency = np.array([1.0, 0.0, 0.9]), np.array([0.0, 1.0, 0.8])
    fit = fit_weights(np.eye(3, 4), semantic, saliency)
    assert (fit.seeds_background, fit.seeds_foreground) == (2, 1)


@pytest.mark.parametrize(
    ("evidence", "kinds"),
    [
        ([0.1, 0.3], "no foreground seeds"),
        ([0.7, 0.3], "no background seeds"),
        ([0.3, 0.4], "no foreground and no background seeds"),
    ],
)
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_without_seeds_of_a_class_the_prior_scores(evidence, kinds, strength):
    features, evidence = np.array([[0.2, 0.4, 0.6, 0.8], [0, 0, 0, 1]]), np.array(evidence)
    fit = fit_weights(features, evidence, evidence, prior_strength=strength)
    assert fit.fallback == f"{kinds}: plain mean of the features"
    np.testing.assert_array_equal(solution(fit), [0.25, 0.25, 0.25, 0.25, 0.0])
    np.testing.assert_allclose(fit.score(features), [0.5, 0.25], rtol=1e-15)
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    fit = fit_weights(features, evidence, evidence, prior=prior, prior_strength=strength)
    assert fit.fallback == f"{kinds}: prior weights"
    np.testing.assert_array_equal(solution(fit), [0.4, 0.3, 0.2, 0.1, 0.0])


def test_a_rank_deficient_system_is_solved_with_the_smallest_weights():
    features = np.array([[1.0, 1, 0, 0], [0.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    evidence = np.array([0.9, 0.1, 0.4])
    fit = fit_weights(features, evidence, evidence)
    assert fit.fallback == DEFICIENT
    # w1 + w2 + b = 1 and b = 0: the smallest such solution.
    np.testing.assert_allclose(solution(fit), [0.5, 0.5, 0, 0, 0], 0, SOLVED)


@FEW
@given(SEEDS, st.integers(1, 4))
def test_too_few_seeds_give_the_minimum_norm_solution(seed, count):
    rng = np.random.default_rng(seed)
    features = rng.random((count + 1, 4))
    evidence = np.append(np.full(count, 0.9), 0.1)
    fit = fit_weights(features, evidence, evidence)
    if count < 4:  # five unknowns
        assert fit.fallback == DEFICIENT
    foreground = evidence > 0.6
    expected = resampled_fit_weighting_oracle(features, foreground, ~foreground)
    # Five random examples may be all but dependent: errors grow with the condition.
    design = np.column_stack([features, np.ones(count + 1)])
    rtol = 1e-13 * np.linalg.cond(design) ** 2
    np.testing.assert_allclose(solution(fit), expected, 0, rtol * np.abs(expected).max())


def test_scores_are_clipped():
    fit = Fit(np.array([2.0, -1.0]), -0.25, 1, 1, "")
    scores = fit.score(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.25]]))
    np.testing.assert_array_equal(scores, [1.0, 0.0, 0.5])


def test_the_input_is_left_alone():
    given_arrays = picture(0)
    copies = [array.copy() for array in given_arrays]
    fit_weights(*given_arrays, prior_strength=1.0)
    for array, copy in zip(given_arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features": np.zeros(3)},
            r"features must be \(R, F\), semantic and saliency \(R,\), got",
        ),
        ({"semantic": np.zeros(2)}, r"got \(3, 4\), \(2,\) and \(3,\)"),
        ({"saliency": np.zeros((3, 1))}, r"got \(3, 4\), \(3,\) and \(3, 1\)"),
        ({"background_below": 0.7}, "thresholds must hold 0 <= background_below <= .* 0.7 and 0.6"),
        ({"background_below": -0.1}, "thresholds must hold .*, got -0.1 and 0.6"),
        ({"foreground_above": 1.1}, "thresholds must hold .*, got 0.2 and 1.1"),
        ({"foreground_above": np.nan}, "thresholds must hold .*, got 0.2 and nan"),
        ({"prior_strength": -1.0}, "prior_strength must be at least 0 and finite, got -1.0"),
        ({"prior_strength": np.nan}, "prior_strength must be at least 0 and finite, got nan"),
        ({"prior_strength": np.inf}, "prior_strength must be at least 0 and finite, got inf"),
        ({"prior": np.zeros(3)}, r"prior must be \(4,\), one weight per feature, got \(3,\)"),
        ({"prior": np.full(4, np.nan)}, "features, semantic, saliency and prior must be finite"),
        ({"features": np.full((3, 4), np.nan)}, "features, semantic, .* must be finite"),
        ({"semantic": np.array([0, np.inf, 0])}, "features, semantic, .* must be finite"),
        ({"saliency": np.array([0, np.nan, 0])}, "features, semantic, .* must be finite"),
    ],
)
def test_what_cannot_be_fitted_is_named(changes, message):
    arguments = {"features": np.zeros((3, 4)), "semantic": np.zeros(3), "saliency": np.zeros(3)}
    with pytest.raises(ValueError, match=message):
        fit_weights(**(arguments | changes))
