import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from oracles import (
    border_contrast_encoding_oracle,
    cheapest_paths_encoding_oracle,
    feature_similarity_encoding_oracle,
    row_normalise_encoding_oracle,
    semantic_similarity_encoding_oracle,
)
from saff.encoding import (
    NEGLIGIBLE,
    apparent_similarity,
    border_contrast,
    cheap_paths,
    cheapest_paths,
    class_vectors,
    context,
    feature_similarity,
    min_max_normalise,
    semantic_similarity,
)

EPSILON = np.finfo(np.float64).eps
SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.integers(1, 9)
FEW = settings(max_examples=50, deadline=None)


def vectors_of(seed, count, classes=5):
    """Give semantic vectors: rows sum to 1, some entries are 0, some rows are the same."""
    rng = np.random.default_rng(seed)
    values = rng.random((count, classes)) * (rng.random((count, classes)) < 0.6)
    values[rng.integers(count)] = values[0]
    total = values.sum(axis=1, keepdims=True)
    return np.divide(values, total, out=np.full_like(values, 1 / classes), where=total > 0)


def similarity_of(seed, count):
    """Give a similarity, not symmetric, in which some rows are empty but for the diagonal."""
    rng = np.random.default_rng(seed)
    values = rng.random((count, count)) * (rng.random((count, count)) < 0.7)
    values[rng.random(count) < 0.2] = 0.0
    np.fill_diagonal(values, rng.random(count))
    return values


def graph_of(seed, count):
    """Give borders between regions, each pair once, a few of strength 0; maybe not connected."""
    rng = np.random.default_rng(seed)
    pairs = np.argwhere(np.triu(rng.random((count, count)) < 0.4, 1)).astype(np.int32)
    strength = rng.random(len(pairs)) * (rng.random(len(pairs)) < 0.7)
    return pairs, strength


def levels_of(seed, count):
    """Give features of two levels, as an encoder gives them; some are negative, some all 0."""
    rng = np.random.default_rng(seed)
    levels = [rng.normal(0.3, 1, (count, depth)) for depth in (4, 7)]
    levels[0][rng.integers(count)] = 0.0
    return levels


@FEW
@given(SEEDS, COUNTS)
def test_semantic_similarity_is_eq_1(seed, count):
    vectors = vectors_of(seed, count)
    copy = vectors.copy()
    similarity = semantic_similarity(vectors)
    np.testing.assert_array_equal(vectors, copy)
    atol = 8 * EPSILON  # sums of five entries that are at most 1, and a difference
    np.testing.assert_allclose(similarity, semantic_similarity_encoding_oracle(vectors), 0, atol)
    np.testing.assert_array_equal(similarity, similarity.T)
    assert similarity.min() >= 0
    assert similarity.max() <= 1 + atol


def test_semantic_similarity_of_vectors_that_sum_to_less_than_one():
    vectors = np.array([[0.5, 0.0], [0.25, 0.25], [0.0, 0.0]])
    expected = [[0.5, 0.25, 0.0], [0.25, 0.5, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(semantic_similarity(vectors), expected)


def test_vectors_that_share_nothing_are_not_negatively_alike():
    for seed in range(200):  # without care a good part of them is -1e-16, by rounding
        vectors = np.zeros((2, 10))
        vectors[0, :5], vectors[1, 5:] = np.random.default_rng(seed).random((2, 5))
        vectors /= vectors.sum(axis=1, keepdims=True)
        assert 0 <= semantic_similarity(vectors)[0, 1] <= 8 * EPSILON


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros(3), r"vectors must be \(R, K\), got shape \(3,\)"),
        (np.array([[0.5, -0.1]]), "vectors must be finite and not negative; normalise them"),
        (np.array([[0.5, np.nan]]), "vectors must be finite and not negative"),
        (np.array([[0.5, np.inf]]), "vectors must be finite and not negative"),
    ],
)
def test_vectors_that_eq_1_cannot_take_are_named(vectors, message):
    with pytest.raises(ValueError, match=message):
        semantic_similarity(vectors)


@FEW
@given(SEEDS, COUNTS, st.floats(0, 10))
def test_apparent_similarity_is_eq_2(seed, count, scale):
    edge_weights = np.random.default_rng(seed).exponential(1.0, (count, count))
    expected = [[np.exp(-scale * value) for value in row] for row in edge_weights]
    np.testing.assert_allclose(  # NumPy's exp of an array and of a number differ by one rounding
        apparent_similarity(edge_weights, scale), expected, rtol=4 * EPSILON
    )


def test_apparent_similarity_has_the_papers_scale_and_knows_infinity():
    edge_weights = np.array([[0.0, 1.0], [np.inf, 0.5]])
    expected = [[1.0, np.exp(-3.5)], [0.0, np.exp(-1.75)]]
    np.testing.assert_allclose(apparent_similarity(edge_weights), expected, rtol=4 * EPSILON)
    without_scale = apparent_similarity(edge_weights, 0.0)  # 0 * inf is not a number
    np.testing.assert_array_equal(without_scale, [[1.0, 1.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("edge_weights", "scale", "message"),
    [
        (np.zeros((2, 3)), 3.5, r"edge_weights must be \(R, R\), got shape \(2, 3\)"),
        (np.zeros(4), 3.5, r"edge_weights must be \(R, R\), got shape \(4,\)"),
        (np.array([[-1.0]]), 3.5, "edge_weights must be at least 0 and not NaN"),
        (np.array([[np.nan]]), 3.5, "edge_weights must be at least 0 and not NaN"),
        (np.zeros((2, 2)), -1.0, "scale must be at least 0 and finite, got -1.0"),
        (np.zeros((2, 2)), np.nan, "scale must be at least 0 and finite, got nan"),
        (np.zeros((2, 2)), np.inf, "scale must be at least 0 and finite, got inf"),
    ],
)
def test_edge_weights_that_eq_2_cannot_take_are_named(edge_weights, scale, message):
    with pytest.raises(ValueError, match=message):
        apparent_similarity(edge_weights, scale)


@FEW
@given(SEEDS, COUNTS)
def test_context_is_eq_3(seed, count):
    similarity = similarity_of(seed, count)
    unary = np.random.default_rng(seed + 1).random(count)
    before = similarity.copy()
    spread = context(similarity, unary)
    np.testing.assert_array_equal(similarity, before)  # the diagonal is zeroed in a copy
    rows = row_normalise_encoding_oracle(similarity)
    atol = 16 * EPSILON  # two sums of at most nine terms in [0, 1]
    np.testing.assert_allclose(spread, [sum(row * unary) for row in rows], 0, atol)
    # The rows of M' sum to 1, or to 0 where a superpixel is like no other.
    empty = rows.sum(axis=1) == 0
    np.testing.assert_allclose(context(similarity, np.ones(count)), ~empty, 0, atol)
    assert (spread[empty] == 0).all()
    assert spread.min() >= 0
    assert spread.max() <= unary.max() + atol  # a convex combination
    np.testing.assert_allclose(context(similarity, np.full(count, 0.3)), 0.3 * ~empty, 0, atol)


def test_context_of_one_superpixel_is_zero():
    np.testing.assert_array_equal(context(np.array([[0.7]]), np.array([0.9])), [0.0])


@pytest.mark.parametrize(
    ("similarity", "unary"), [((2, 2), (3,)), ((2, 3), (2,)), ((4,), (4,)), ((2, 2), (2, 1))]
)
def test_shapes_that_context_cannot_take_are_named(similarity, unary):
    with pytest.raises(ValueError, match=r"similarity must be \(R, R\) and unary \(R,\), got"):
        context(np.zeros(similarity), np.zeros(unary))


@FEW
@given(SEEDS, COUNTS)
def test_paths_match_floyd_and_warshall(seed, count):
    adjacency, strength = graph_of(seed, count)
    paths = cheapest_paths(adjacency, strength, count)
    expected = cheapest_paths_encoding_oracle(adjacency, strength, count)
    np.testing.assert_allclose(paths, expected, rtol=8 * EPSILON)  # at most eight additions
    np.testing.assert_array_equal(paths == 0, expected == 0)


@FEW
@given(SEEDS, st.integers(1, 40), st.floats(0, 20))
def test_paths_that_are_left_out_add_nothing_to_the_context(seed, count, scale):
    adjacency, strength = graph_of(seed, count)
    whole = cheapest_paths(adjacency, strength, count)
    cheap = cheap_paths(adjacency, strength, count, scale)
    kept = np.isfinite(cheap)
    np.testing.assert_array_equal(cheap[kept], whole[kept])
    left_out = np.where(kept, 0.0, np.exp(-scale * whole) if scale else 1.0)
    similarity = apparent_similarity(whole, scale)
    np.fill_diagonal(similarity, 0.0)
    most = 1.001 * NEGLIGIBLE * similarity.max(axis=1, keepdims=True)  # rounded exponents
    assert (left_out <= most).all()


def test_paths_far_from_every_region_are_left_out():
    ladder = np.array([[0, 1], [1, 2], [2, 3]], np.int32)
    paths = cheap_paths(ladder, np.array([1.0, 2.0, 9.0]), 4, 2.0)
    assert np.isinf(paths[0, 3])  # exp(-24), beside exp(-2) of region 1
    assert paths[3, 2] == 9.0  # the nearest that region 3 has
    assert np.isfinite(cheap_paths(ladder, np.array([1.0, 2.0, 9.0]), 4, 0.0)).all()


def test_a_border_without_strength_is_still_a_border():
    adjacency = np.array([[0, 1], [1, 2], [3, 4]], np.int32)
    paths = cheapest_paths(adjacency, np.array([0.0, 0.5, 0.0]), 5)
    np.testing.assert_array_equal(paths[0], [0.0, 0.0, 0.5, np.inf, np.inf])
    np.testing.assert_array_equal(paths[3], [np.inf, np.inf, np.inf, 0.0, 0.0])


def test_a_detour_may_be_cheaper_than_the_shared_border():
    adjacency = np.array([[0, 1], [0, 2], [1, 2]], np.int32)
    assert cheapest_paths(adjacency, np.array([1.0, 0.25, 0.25]), 3)[0, 1] == 0.5


def test_paths_of_a_single_region():
    paths = cheapest_paths(np.zeros((0, 2), np.int32), np.zeros(0), 1)
    np.testing.assert_array_equal(paths, [[0.0]])


@FEW
@given(SEEDS, COUNTS, st.floats(0.1, 20))
def test_class_vectors_share_one_divisor(seed, count, temperature):
    scores = np.random.default_rng(seed).normal(0, 8, (count, 6)).astype(np.float32)
    vectors = class_vectors(scores, temperature)
    values = scores.astype(np.float64) / temperature
    powers = np.array([[np.exp(value - values.max()) for value in row] for row in values])
    # The exponent may be some hundreds: its rounding is that much larger in the power.
    np.testing.assert_allclose(vectors, powers / max(map(sum, powers)), rtol=2000 * EPSILON)
    assert vectors.dtype == np.float64
    assert vectors.min() >= 0
    np.testing.assert_allclose(vectors.sum(axis=1).max(), 1.0, rtol=8 * EPSILON)


def test_large_scores_do_not_overflow():
    vectors = class_vectors(np.array([[1e5, 0.0], [-1e5, -1e5]], np.float32), 1.0)
    np.testing.assert_array_equal(vectors, [[1.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
def test_a_temperature_that_is_none_is_named(temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0, got {temperature}"):
        class_vectors(np.zeros((1, 2)), temperature)


@FEW
@given(SEEDS, COUNTS, st.sampled_from([1.0, 2.5, 4.0]))
def test_feature_similarity_is_a_mean_of_cosines(seed, count, power):
    levels = levels_of(seed, count)
    similarity = feature_similarity(levels, power)
    atol = 100 * EPSILON  # sums of seven products, two roots, and a power up to 4
    expected = feature_similarity_encoding_oracle(levels, power)
    np.testing.assert_allclose(similarity, expected, 0, atol)
    np.testing.assert_allclose(similarity, similarity.T, 0, atol)
    assert similarity.dtype == np.float64
    assert similarity.min() >= 0
    assert similarity.max() <= 1


@FEW
@given(SEEDS, st.integers(2, 9))
def test_border_contrast_matches_a_loop(seed, count):
    levels = levels_of(seed, count)
    border = np.random.default_rng(seed + 1).integers(0, 4, count)
    border[0] = 2  # a picture has a border
    contrast = border_contrast(levels, border)
    # Cosines are good to 1e-15, and a stretch magnifies that by at most 1e6 where it is none.
    np.testing.assert_allclose(contrast, border_contrast_encoding_oracle(levels, border), 0, 1e-9)
    assert contrast.min() == 0
    assert contrast.max() in (0, 1)


def test_rounding_of_float32_features_is_no_contrast():
    rng = np.random.default_rng(0)
    alike = rng.random((1, 500)) * rng.uniform(0.5, 2, (30, 1))  # one direction, many lengths
    levels = [alike.astype(np.float32)]
    assert np.ptp(feature_similarity(levels, 1.0)) > 0  # the cosines are not quite the same
    np.testing.assert_array_equal(border_contrast(levels, np.ones(30)), np.zeros(30))


def test_a_region_unlike_the_border_has_the_contrast():
    like, unlike = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    levels = [np.stack([like, like, unlike]).astype(np.float32)]
    np.testing.assert_array_equal(border_contrast(levels, np.array([5, 3, 0])), [0.0, 0.0, 1.0])
    # Region 2 is half of the border: nothing is unlike it as a whole.
    np.testing.assert_array_equal(border_contrast(levels, np.array([2, 2, 4])), [0.0, 0.0, 0.0])
    assert border_contrast(levels[:1], np.array([1, 0, 2]))[0] == 1.0


@FEW
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_stretch_reaches_from_0_to_1_and_keeps_the_order(values):
    values = np.array(values)
    stretched = min_max_normalise(values)
    if np.ptp(values) > 1e-12:
        assert stretched.min() == 0
        assert stretched.max() == 1
        assert (np.diff(stretched[np.argsort(values, kind="stable")]) >= 0).all()
        expected = (values - values.min()) / (values.max() - values.min())
        np.testing.assert_array_equal(stretched, expected)
    else:
        assert (stretched == 0).all()


def test_equal_values_and_rounding_noise_are_stretched_to_zero():
    np.testing.assert_array_equal(min_max_normalise(np.full(3, 0.7)), np.zeros(3))
    np.testing.assert_array_equal(min_max_normalise(np.array([0.3, 0.1 + 0.2])), np.zeros(2))


@FEW
@given(SEEDS, st.integers(2, 9))
def test_renaming_superpixels_renames_every_result(seed, count):
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)  # superpixel r is called order[r]
    old = np.argsort(order)  # and the one called r was old[r]
    vectors, similarity = vectors_of(seed, count), similarity_of(seed, count)
    levels, border = levels_of(seed, count), rng.integers(1, 4, count)
    unary = rng.random(count)
    adjacency, strength = graph_of(seed, count)
    renamed = np.sort(order[adjacency], axis=1)
    pairs = [
        (class_vectors(vectors, 0.1)[old], class_vectors(vectors[old], 0.1)),
        (semantic_similarity(vectors)[np.ix_(old, old)], semantic_similarity(vectors[old])),
        (context(similarity, unary)[old], context(similarity[np.ix_(old, old)], unary[old])),
        (
            cheapest_paths(adjacency, strength, count)[np.ix_(old, old)],
            cheapest_paths(renamed, strength, count),
        ),
        (
            feature_similarity(levels, 4.0)[np.ix_(old, old)],
            feature_similarity([level[old] for level in levels], 4.0),
        ),
    ]
    for expected, found in pairs:
        np.testing.assert_allclose(found, expected, 0, 100 * EPSILON)  # the order of sums
    contrast = border_contrast([level[old] for level in levels], border[old])
    np.testing.assert_allclose(contrast, border_contrast(levels, border)[old], 0, 1e-9)
