"""A network's prediction averaged with the pseudo label of the image."""

import dataclasses

import numpy as np
import pytest

from saff.cluster.predictions import PredictPart, describe_predictions, encode_prediction
from saff.config import Inference
from saff.fused_prediction import models_beside, predict_fused
from saff.images import decode
from saff.inference import predict, predict_many
from saff.labeling import label_image
from saff.network.shipped import load_shipped
from saff.outlines import cut_outline
from saff.quality import foreground_found, to_levels
from saff.shards import read_all_rows


@pytest.fixture(scope="module")
def network():
    return load_shipped().network


def with_share(settings, share):
    inference = Inference(input_sides=(96,), pseudo_label_share=share)
    return dataclasses.replace(settings, inference=inference)


def test_the_mean_of_the_network_and_of_the_label_without_any_network(photographs, small, network):
    image, settings = photographs["chelsea"], with_share(small, 0.25)
    settings = dataclasses.replace(settings, network_share=0.5)
    ((fused, found),) = predict_fused(network, [image], settings, models_beside(settings))
    alone = dataclasses.replace(settings, network_share=0.0, outline="none")
    label = label_image(image, alone).confidence
    predicted = predict(network, image, dataclasses.replace(settings.inference, refinement="none"))
    assert fused.dtype == np.float32
    mean = label**0.25 * predicted**0.75
    sharp = mean**3 / (mean**3 + (1 - mean) ** 3)
    np.testing.assert_allclose(fused, cut_outline(sharp, image), atol=1e-6)
    assert np.abs(label - predicted).max() > 0.1
    assert np.abs(fused - sharp).max() > 0.1
    assert found == foreground_found(
        to_levels(predicted), settings.inference.foreground_found_above
    )


def test_without_a_share_the_network_predicts_alone(photographs, small, network):
    images, settings = list(photographs.values()), with_share(small, 0.0)
    assert models_beside(settings) is None
    sizes = [(20, 30)] * len(images)
    fused = predict_fused(network, images, settings, None, sizes=sizes)
    alone = predict_many(network, images, settings.inference, sizes=sizes)
    for one, expected in zip(fused, alone, strict=True):
        np.testing.assert_array_equal(one.confidence, expected)


def test_maps_have_the_sizes_that_are_asked_for(photographs, small, network):
    settings = with_share(small, 0.5)
    sizes = [(50, 70), (33, 21)]
    images = [photographs["chelsea"], photographs["coffee"]]
    fused = predict_fused(network, images, settings, models_beside(settings), sizes=sizes)
    assert [f.confidence.shape for f in fused] == sizes
    assert all(f.min() >= 0 and f.max() <= 1 for f, _ in fused)


def test_a_part_holds_fused_predictions_and_its_run_says_of_what(run_copy, small, network):
    settings = with_share(small, 0.5)
    part = PredictPart(run_copy, "predictions", None, settings)
    for name in (run_copy / "manifest").names(".parquet"):
        part({"part": name})
    rows = [
        row
        for name in (run_copy / "predictions").names(".parquet")
        for row in read_all_rows(run_copy / "predictions", name)
        if row["error_kind"] is None
    ]
    assert len(rows) == 4
    for row in rows[:2]:
        with open(row["uri"], "rb") as file:
            image = decode(file.read())
        (fused,) = predict_fused(network, [image], settings, models_beside(settings))
        expected = encode_prediction(*fused)
        assert {name: row[name] for name in expected} == expected
    said = describe_predictions("sha", settings)
    assert said["pseudo_labels"]["config"]["network_share"] == 0.0
    alone = describe_predictions("sha", with_share(small, 0.0))
    assert "pseudo_labels" not in alone
    assert alone["digest"] != said["digest"]
