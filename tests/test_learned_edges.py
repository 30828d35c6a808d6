import struct

import cv2
import numpy as np
import pytest
import torch
from scipy.io import savemat
from skimage import data

from saff import edges
from saff.edges.fitting import Drawn, EdgeFitting, draw, edge_loss, fit_edges, read_boundaries
from saff.edges.learned import KIND, LearnedEdges, from_arrays, to_arrays
from saff.errors import SettingsError, WeightsError
from saff.images import encode_png
from saff.modelfile import pack, parse, read_model, shipped

QUICK = EdgeFitting(steps=3, batch_size=2, crop_size=64, warmup_steps=1)


@pytest.fixture(scope="module")
def learned():
    return edges.load("learned")


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3), (33, 47), (40, 700)])
def test_any_image_gives_a_valid_map(learned, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    strength = learned(image)
    assert strength.shape == shape
    assert strength.dtype == np.float32
    assert strength.min() >= 0
    assert strength.max() <= 1


def test_outlines_are_stronger_than_texture(learned):
    image = np.random.default_rng(0).integers(90, 130, (160, 240, 3), dtype=np.uint8)
    image[40:120, 80:160] = np.minimum(image[40:120, 80:160].astype(int) + 100, 255)
    strength = learned(image)
    outline = strength[60:100, 77:84].max(axis=1).mean()
    assert outline > 0.5
    assert outline > 3 * strength[60:100, 100:140].mean()
    assert outline > 3 * strength[60:100, 20:60].mean()


def test_weights_survive_being_shipped(learned):
    arrays = read_model(shipped("edges"), KIND).arrays
    again = to_arrays(from_arrays(arrays))
    assert {*again} == {*arrays}
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def test_weights_of_something_else_are_named():
    model = parse(pack(KIND, {"score.weight": np.zeros(3, np.float16)}), "here", KIND)
    with pytest.raises(WeightsError, match="here does not hold edge weights"):
        LearnedEdges(model)


def test_weights_that_are_no_numbers_are_refused():
    arrays = dict(read_model(shipped("edges"), KIND).arrays)
    arrays["score.bias"] = np.full_like(arrays["score.bias"], np.nan)
    with pytest.raises(WeightsError, match="here holds weights that are NaN or infinite"):
        LearnedEdges(parse(pack(KIND, arrays), "here", KIND))


# Structured forests


OPTIONS = """%YAML:1.0
---
options:
   stride: 2
   shrinkNumber: 2
   patchSize: 32
   patchInnerSize: 16
   numberOfGradientOrientations: 4
   gradientSmoothingRadius: 0
   regFeatureSmoothingRadius: 2
   ssFeatureSmoothingRadius: 8
   gradientNormalizationRadius: 4
   selfsimilarityGridSize: 5
   numberOfTrees: 1
   numberOfTreesToEvaluate: 1
   numberOfOutputChannels: 1
"""
LEAF = """childs: [ 0 ]
featureIds: [ 0 ]
thresholds: [ 0.5 ]
edgeBoundaries: [ 0, 16 ]
edgeBins: [ %s ]
"""


def test_a_structured_forest_of_ones_own_is_used(tmp_path):
    """One tree of one leaf, which sees an edge down the middle of every patch."""
    inside = ", ".join(str(row * 16 + 8) for row in range(16))
    leaf = LEAF % inside
    (tmp_path / "forest.yml").write_text(OPTIONS + leaf)
    back_end = edges.load(f"structured:{tmp_path}/forest.yml")
    strength = back_end(data.coffee()[:61, :83])
    assert strength.shape == (61, 83)
    assert strength.dtype == np.float32
    assert 0 < strength.max() <= 1
    assert len(back_end.digest) == 64


def test_a_structured_forest_that_is_none_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot read the edge model .*none\.yml: No such file"):
        edges.load(f"structured:{tmp_path}/none.yml")
    (tmp_path / "text.yml").write_text("a note")
    with pytest.raises(WeightsError, match=r"text\.yml is no structured forest"):
        edges.load(f"structured:{tmp_path}/text.yml")


# Fitting


def test_boundaries_are_read_from_mat_and_png(tmp_path):
    people = np.random.default_rng(0).random((3, 5, 7)) < 0.3
    cells = np.empty((1, 3), object)
    for index, person in enumerate(people):
        cells[0, index] = {"Boundaries": person.astype(np.uint8)}
    savemat(tmp_path / "drawn.mat", {"groundTruth": cells})
    np.testing.assert_array_equal(read_boundaries((tmp_path / "drawn.mat").read_bytes()), people)
    png = encode_png((people[0] * 255).astype(np.uint8))
    np.testing.assert_array_equal(read_boundaries(png), people[:1])


HUGE = encode_png(np.zeros((1, 1), np.uint8))[:16] + struct.pack(">II", 60_000, 60_000)


@pytest.mark.parametrize("content", [b"", b"a note", b"\x89PNG\r\n", HUGE])
def test_boundaries_that_are_none_are_named(content):
    with pytest.raises(ValueError, match="the boundaries are"):
        read_boundaries(content)


def test_a_sample_turns_image_and_lines_together():
    image = np.zeros((90, 120, 3), np.uint8)
    image[:, 60:] = 255
    line = np.zeros((1, 90, 120), np.float32)
    line[0, :, 59:61] = 1
    for seed in range(8):
        sample, share, valid = draw(Drawn(image, line), QUICK, np.random.default_rng(seed))
        assert sample.shape == (64, 64, 3)
        assert share.shape == valid.shape == (64, 64)
        grey = sample[..., 0].astype(np.float32)
        change = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        if share[valid].any():
            assert change[(share > 0) & valid].mean() > 10 * change[(share == 0) & valid].mean()


def test_edges_and_the_rest_weigh_the_same_and_doubt_nothing():
    share = torch.zeros(1, 10, 10)
    share[0, 0] = 1.0
    share[0, 1] = 0.2
    valid = torch.ones(1, 10, 10, dtype=torch.bool)
    low, high = torch.full((1, 10, 10), -4.0), torch.full((1, 10, 10), 4.0)
    missed, invented = edge_loss(low, share, valid, 0.3), edge_loss(high, share, valid, 0.3)
    assert float(invented / missed) == pytest.approx(1.1, rel=0.01)
    doubtful = low.clone()
    doubtful[0, 1] = 4.0
    assert float(edge_loss(doubtful, share, valid, 0.3)) == pytest.approx(float(missed))


def test_fitting_is_repeatable_and_learns():
    image = data.coffee()[:200, :300]
    line = np.zeros((1, 200, 300), np.float32)
    line[0, ::40] = 1
    losses = []
    first, second = (
        fit_edges([Drawn(image, line)], QUICK, on_step=lambda step, loss: losses.append(loss))
        for _ in range(2)
    )
    assert losses[:3] == losses[3:]
    assert all(torch.equal(first[name], second[name]) for name in first)
    strength = LearnedEdges(parse(pack(KIND, to_arrays(first)), "fitted", KIND))(image)
    assert np.isfinite(strength).all()


def test_nothing_to_learn_from_is_named():
    with pytest.raises(SettingsError, match="no image with boundaries"):
        fit_edges([], QUICK)
