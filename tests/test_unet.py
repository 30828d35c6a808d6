"""The U-shaped network, and the one that comes trained with saff."""

import dataclasses

import numpy as np
import pytest
import torch

from saff import config
from saff.errors import SettingsError, WeightsError
from saff.inference import predict
from saff.modelfile import pack, shipped
from saff.network import UNETS, load
from saff.network.shipped import KIND, load_shipped, start_from_shipped
from saff.network.unet import fuse_network

MIB = 2**20


@pytest.mark.parametrize("name", UNETS)
def test_logits_have_a_quarter_of_the_size(name):
    network = load(name).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 16, 24)
    assert len(network.stages()) == 7


def test_what_is_new_depends_on_the_seed_alone():
    one, same, other = (load(UNETS[0], pretrained=True, seed=s).state_dict() for s in (0, 0, 1))
    name = "head.up.0.1.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    trunk = "trunk._blocks.3._project_conv.weight"
    assert torch.equal(one[trunk], other[trunk])  # of ImageNet


def test_folding_normalisations_changes_nothing_but_the_last_bits():
    network = start_from_shipped(config.default().training.network).eval()
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = network(x)
        fuse_network(network)
        after = network(x)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)  # float32, some 60 layers


def test_training_starts_from_the_shipped_network_by_default():
    training = config.default().training
    network = load(training.network, pretrained=True, weights=training.network_weights)
    shipped_one = start_from_shipped(training.network)
    for one, other in zip(network.parameters(), shipped_one.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_architecture_cannot_start_from_it():
    with pytest.raises(SettingsError, match="to null to start from ImageNet"):
        load("efficientnet_lite1_unet", weights="shipped")


def test_the_shipped_file_is_small_and_finds_what_is_in_the_foreground(photographs):
    with open(shipped("network"), "rb") as file:
        assert len(file.read()) < 12 * MIB
    network = load_shipped().network
    settings = dataclasses.replace(config.default().inference, input_sides=(256,))
    confidence = predict(network, photographs["chelsea"], settings)
    cat = confidence[30:110, 60:150]  # the face fills the middle
    assert cat.mean() > 0.7
    assert np.isfinite(confidence).all()


def test_a_file_of_another_network_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "network.safetensors"
    path.write_bytes(pack(KIND, {"x": np.zeros(3)}, {"network": "another"}))
    monkeypatch.setattr("saff.network.shipped.shipped", lambda name: str(path))
    with pytest.raises(WeightsError, match="holds the unknown network 'another'"):
        load_shipped()
