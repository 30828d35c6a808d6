import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import ndimage
from skimage import data

from saff import saliency
from saff.errors import WeightsError
from saff.modelfile import pack, parse, read_model, shipped
from saff.saliency.descriptors import FEATURES, binary_patterns, collect, describe, texture
from saff.saliency.drfi import KIND, LEVELS, Drfi, cut
from saff.saliency.hierarchy import join
from saff.saliency.trees import from_arrays
from saff.superpixels import neighbours, slic

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def drfi():
    return saliency.load("drfi")


def picture(seed, height=40, width=60):
    """Give noise in two tones with a brighter square."""
    rng = np.random.default_rng(seed)
    image = rng.integers(40, 90, (height, width, 3), dtype=np.uint8)
    image[10:25, 15:35] += 120
    return image


# The hierarchy


@FEW
@given(SEEDS)
def test_levels_are_nested_and_have_the_wanted_counts(seed):
    superpixels = slic(picture(seed), 30)
    size = superpixels.max() + 1
    colour = np.random.default_rng(seed).random((size, 3))
    counts = np.array([25, 12, 5, 2])
    hierarchy = join(colour, neighbours(superpixels), counts)
    assert hierarchy.member.shape == (size, 4)
    np.testing.assert_array_equal(np.bincount(hierarchy.level), np.minimum(counts, size))
    np.testing.assert_array_equal(np.unique(hierarchy.member), np.arange(len(hierarchy.level)))
    for finer, coarser in zip(hierarchy.member.T, hierarchy.member.T[1:], strict=False):
        for region in np.unique(finer):  # lies in one region of the coarser level
            assert len(np.unique(coarser[finer == region])) == 1


def test_what_looks_alike_is_joined_first():
    superpixels = np.repeat(np.arange(4, dtype=np.int32), 5)[None].repeat(3, axis=0)
    colour = np.array([[0.0, 0, 0], [1, 0, 0], [50, 0, 0], [51, 0, 0]])
    hierarchy = join(colour, neighbours(superpixels), np.array([4, 2]))
    assert len({*hierarchy.member[:2, 1]}) == len({*hierarchy.member[2:, 1]}) == 1


# Features


def test_statistics_match_plain_means():
    image = picture(0)
    superpixels = slic(image, 12)
    s = collect(image, superpixels)
    index = np.arange(superpixels.max() + 1)
    red = image[..., 0] / 255
    np.testing.assert_allclose(
        s.sums[:, 0] / s.area, ndimage.mean(red, superpixels, index), rtol=1e-5
    )
    np.testing.assert_allclose(
        s.squares[:, 0] / s.area - (s.sums[:, 0] / s.area) ** 2,
        ndimage.variance(red, superpixels, index),
        atol=1e-5,
    )
    assert s.area.sum() == superpixels.size
    assert s.border.sum() == 2 * sum(superpixels.shape)
    for histogram in (s.histograms[:, :216], s.columns, s.rows):
        np.testing.assert_array_equal(histogram.sum(axis=1), s.area)
    np.testing.assert_array_equal(s.shared, s.shared.T)


def test_there_are_93_features_and_a_merged_region_has_those_of_its_pixels():
    image = picture(1)
    fine = slic(image, 12)
    count = fine.max() + 1
    joined = join(np.random.default_rng(0).random((count, 3)), neighbours(fine), np.array([4]))
    coarse = joined.member[:, 0].astype(np.int32)[fine]
    alone = join(np.eye(4, 3), neighbours(coarse), np.array([4]))
    merged = describe(collect(image, fine), joined)
    direct = describe(collect(image, coarse), alone)
    assert merged.shape == (4, FEATURES)
    order = alone.member[:, 0]
    # All but backgroundness: which part of the strip a superpixel holds is known per superpixel.
    kept = [*range(29), *range(58, FEATURES)]
    np.testing.assert_allclose(merged[:, kept], direct[order][:, kept], rtol=2e-3, atol=2e-4)


def test_binary_patterns_match_a_loop():
    grey = np.random.default_rng(0).random((5, 6))
    padded = np.pad(grey, 1, mode="edge")
    codes = binary_patterns(grey)
    around = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    for row in range(5):
        for column in range(6):
            bits = [padded[1 + row + a, 1 + column + b] >= grey[row, column] for a, b in around]
            assert codes[row, column] == sum(bit << i for i, bit in enumerate(bits))


def test_texture_answers_to_direction():
    stripes = np.tile((np.arange(40) // 4 % 2).astype(np.float32), (40, 1))
    across, along = texture(stripes)[:6, 10:30, 10:30].mean(axis=(1, 2))[[0, 3]]
    assert across > 20 * along
    turned = texture(np.ascontiguousarray(stripes.T))[:6, 10:30, 10:30].mean(axis=(1, 2))
    np.testing.assert_allclose(turned[[3, 0]], [across, along], atol=1e-5)


# Trees


def stumps():
    """Give two trees: 1 if column 0 is above .5; 10 if column 1 is at most .2, else 20."""
    return {
        "feature": np.int16([[0, 0, 0], [1, 0, 0]]),
        "threshold": np.float32([[0.5, 0, 0], [0.2, 0, 0]]),
        "left": np.int16([[1, 1, 2], [1, 1, 2]]),
        "right": np.int16([[2, 1, 2], [2, 1, 2]]),
        "value": np.float32([[0, 0, 1], [0, 10, 20]]),
    }


def test_trees_are_walked():
    trees = from_arrays(stumps(), 2, "here")
    assert trees.depth == 1
    rows = np.float32([[0.5, 0.2], [0.6, 0.2], [0.6, 0.3]])
    np.testing.assert_array_equal(trees(rows), [10, 11, 21])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "left",
            np.int16([[0, 1, 2], [1, 1, 2]]),
            "branches lead to no leaf",
        ),  # the root leads to itself
        ("right", np.int16([[3, 1, 2], [2, 1, 2]]), "branches lead to no leaf"),
        ("feature", np.int16([[2, 0, 0], [1, 0, 0]]), "branches lead to no leaf"),
        ("value", np.float32([[0, 0, np.nan], [0, 10, 20]]), "branches lead to no leaf"),
        ("threshold", np.int16([[0, 0, 0], [0, 0, 0]]), "does not hold trees"),
        ("right", np.int16([[2, 1], [2, 1]]), "does not hold trees"),
        ("value", np.float64([[0, 0, 1e300], [0, 10, 20]]), "branches lead to no leaf"),
    ],
)
def test_trees_that_cannot_be_walked_are_refused(name, value, message):
    with pytest.raises(WeightsError, match=f"here .*{message}"):
        from_arrays(stumps() | {name: value}, 2, "here")


@pytest.mark.parametrize("shape", [(0, 2**40), (3, 0), (2, 5000)])
def test_trees_of_no_or_absurd_size_are_refused(shape):
    few = {"feature": np.zeros(shape, np.int16)} if 0 in shape else {}
    arrays = {name: np.zeros(shape, a.dtype) for name, a in stumps().items()} | few
    with pytest.raises(WeightsError, match="here does not hold trees"):
        from_arrays(arrays, 2, "here")


def test_a_tree_like_a_chain_is_refused():
    count = 100
    here = np.arange(count, dtype=np.int16)[None]
    arrays = {
        "feature": np.zeros((1, count), np.int16),
        "threshold": np.zeros((1, count), np.float32),
        "left": np.minimum(here + 1, count - 1),
        "right": np.minimum(here + 1, count - 1),
        "value": np.zeros((1, count), np.float32),
    }
    with pytest.raises(WeightsError, match="here holds a tree of depth 99, at most 64"):
        from_arrays(arrays, 2, "here")


def test_lightgbm_and_the_arrays_agree():
    lightgbm = pytest.importorskip("lightgbm")
    from saff.saliency.fitting import to_arrays

    rng = np.random.default_rng(0)
    features = rng.random((2000, 5)).astype(np.float32)
    target = (features[:, 0] * features[:, 1] > 0.25).astype(float)
    settings = {"objective": "binary", "num_leaves": 9, "verbose": -1, "num_threads": 1}
    model = lightgbm.train(settings, lightgbm.Dataset(features, target), 7)
    roots = [tree["tree_structure"] for tree in model.dump_model()["tree_info"]]
    trees = from_arrays(to_arrays(roots), 5, "fitted")
    np.testing.assert_allclose(
        trees(features), model.predict(features, raw_score=True), rtol=1e-4, atol=1e-5
    )


# The back end


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3), (30, 40)])
@pytest.mark.parametrize("kind", ["flat", "noise"])
def test_any_image_gives_a_valid_map(drfi, shape, kind):
    image = np.full((*shape, 3), 90, np.uint8)
    if kind == "noise":
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels = drfi(image)
    assert pixels.shape == shape
    assert pixels.dtype == np.float32
    assert np.isfinite(pixels).all()
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@pytest.mark.parametrize("colour", [(128, 155, 248), (255, 255, 255), (1, 99, 3)])
def test_one_colour_has_nothing_that_stands_out(drfi, colour):
    assert not drfi(np.full((61, 50, 3), colour, np.uint8)).any()


def test_an_object_stands_out(drfi):
    image = data.astronaut()
    pixels = drfi(image)
    assert pixels.shape == image.shape[:2]
    assert pixels[50:250, 180:280].mean() > 2 * pixels[:60, :60].mean()
    np.testing.assert_array_equal(pixels, drfi(image))


def test_few_superpixels_serve_every_level():
    regions = cut(picture(0, 12, 16))
    assert regions.hierarchy.member.shape == (regions.superpixels.max() + 1, LEVELS.size)
    assert np.isfinite(regions.features).all()


def test_a_model_without_level_weights_is_refused():
    arrays = read_model(shipped("saliency"), KIND).arrays
    model = parse(pack(KIND, arrays | {"fusion": arrays["fusion"][:3]}), "here", KIND)
    with pytest.raises(WeightsError, match="here has no weight for each of 15 levels"):
        Drfi(model)


def test_a_file_of_ones_own_is_loaded_by_name(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(pack(KIND, read_model(shipped("saliency"), KIND).arrays))
    assert saliency.load(f"drfi:{path}").digest == saliency.load("drfi").digest
    with pytest.raises(WeightsError, match="cannot read the weights"):
        saliency.load(f"drfi:{tmp_path}/none")
