"""Convolutions with what follows them, against torch's own layers one after the other."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from saff.backbones import convolutions, efficientnet_lite
from saff.backbones.convolutions import FusedConv2d

AFTER = {"none": lambda y: y, "relu": functional.relu, "relu6": functional.relu6}
LAYERS = {
    "1x1": {"kernel_size": 1},
    "3x3, stride 2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "5x5 depthwise": {"kernel_size": 5, "padding": 2, "groups": 8},
    "3x3 depthwise, dilated": {"kernel_size": 3, "padding": 3, "dilation": 3, "groups": 8},
}


def random(*shape, seed=0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(memory_format=torch.channels_last)


def layer(kind):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Conv2d(8, 8, **LAYERS[kind]).eval().requires_grad_(False)


def norm():
    made = nn.BatchNorm2d(8).eval().requires_grad_(False)
    made.weight[:], made.bias[:] = random(8, 1, 1, 1).flatten(), 0.3
    made.running_mean[:], made.running_var[:] = 0.2, 1.7
    return made


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("activation", sorted(AFTER))
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_one_layer_gives_what_its_parts_give(kind, activation, added, one_pass, monkeypatch):
    if one_pass and not convolutions.HAS_ONEDNN:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(convolutions, "HAS_ONEDNN", one_pass)
    convolution, batch_norm, x = layer(kind), norm(), 3 * random(2, 8, 12, 10)
    plain = batch_norm(convolution(x))
    plus = random(*plain.shape, seed=2) if added else None
    expected = AFTER[activation](plain if plus is None else plain + plus)
    found = FusedConv2d(convolution, batch_norm, activation)(x, plus)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # float32, 72 terms at most
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not convolutions.HAS_ONEDNN, reason="this torch has no oneDNN")
def test_one_image_is_computed_by_onednn_and_a_converted_network_by_torch():
    fused, x = FusedConv2d(layer("1x1"), None, "relu"), random(1, 8, 4, 4)
    with torch.profiler.profile() as profile:
        fused(x)
    assert "mkldnn::_convolution_pointwise" in {event.key for event in profile.key_averages()}
    program = torch.export.export(fused, (x,))
    assert "mkldnn" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), fused(x))


@pytest.mark.parametrize("side", [8, 9, 32])
@pytest.mark.parametrize("kernel", [3, 5])
def test_even_padding_changes_nothing(kernel, side):
    convolution = efficientnet_lite._SameConv2d(8, 8, kernel, 2, groups=8).requires_grad_(False)
    even = convolution.padded_evenly()
    assert even.weight.shape[2:] == (kernel + 1, kernel + 1)
    x = random(1, 8, side, side + 2)
    torch.testing.assert_close(even(x), convolution(x), rtol=1e-5, atol=1e-5)
    whole = efficientnet_lite._SameConv2d(8, 8, kernel)
    assert whole.padded_evenly() is whole
