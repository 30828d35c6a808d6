import io

import numpy as np
import pytest
import torch
from torch import nn

from saff import network
from saff.errors import SettingsError, WeightsError
from saff.network import BACKBONES, deeplab_v2
from saff.network.dropout import SampleDropout, set_keys

LAYOUT = 1e-4  # of the largest value: float32 sums of thousands, added up in another order


def file_of(state, path):
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("classes", [1, 2])
def test_logits_are_an_eighth_of_the_input(backbone, classes):
    made = deeplab_v2(backbone, classes).eval()
    with torch.inference_mode():
        assert made(torch.zeros(2, 3, 64, 96)).shape == (2, classes, 8, 12)


def test_vgg16_is_the_network_in_circulation():
    made = deeplab_v2("vgg16")
    assert sum(p.numel() for p in made.parameters()) == 37_799_752
    with torch.inference_mode():
        assert made.eval()(torch.zeros(1, 3, 321, 321)).shape == (1, 2, 41, 41)
    pools = [m for m in made.trunk if isinstance(m, nn.MaxPool2d)]
    assert [(p.kernel_size, p.stride) for p in pools] == [(3, 2)] * 3 + [(3, 1)] * 2
    convolutions = [m for m in made.trunk if isinstance(m, nn.Conv2d)]
    assert [c.dilation for c in convolutions] == [(1, 1)] * 10 + [(2, 2)] * 3
    assert [b[0].dilation for b in made.branches] == [(6, 6), (12, 12), (18, 18), (24, 24)]
    heads = torch.cat([h.weight.flatten() for h in made.head])
    assert heads.std().item() == pytest.approx(0.01, rel=0.05)
    assert sum(p.numel() for p in made.head.parameters()) == 4 * (1024 * 2 + 2)


def test_branches_are_summed():
    made = deeplab_v2("vgg16").eval()
    x = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = made.trunk(x)
        parts = [h(b(features)) for b, h in zip(made.branches, made.head, strict=True)]
        torch.testing.assert_close(made(x), sum(parts))


@pytest.mark.parametrize("backbone", ["vgg16", "resnet101"])
def test_a_trunk_is_read_from_a_torchvision_file(backbone, tmp_path):
    from saff.torchvision_import import models

    torch.manual_seed(1)
    source = models.get_model(backbone)
    state = source.state_dict()
    if backbone == "vgg16":  # the published file holds the features alone, the rest is NaN
        state = {name: value for name, value in state.items() if name.startswith("features.")}
        state["classifier.0.weight"] = torch.full((1,), torch.nan)
    made = deeplab_v2(backbone, weights=file_of(state, tmp_path / "trunk.pth"))
    first = made.trunk[0].weight
    torch.testing.assert_close(first, source.state_dict()[next(iter(state))])
    if backbone == "resnet101":  # the same network as torchvision's, dilated
        dilated = models.resnet101(replace_stride_with_dilation=[False, True, True]).eval()
        dilated.load_state_dict(source.state_dict())
        x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = nn.Sequential(*list(dilated.children())[:-2])(x)
            found = made.eval().trunk(x)
        torch.testing.assert_close(
            found, expected, rtol=0, atol=LAYOUT * expected.abs().max().item()
        )


def test_the_lite_trunk_is_the_encoders(tmp_path):
    from saff.backbones.efficientnet_lite import FAMILY, EfficientNetLite, packaged
    from saff.checkpoints import load_state, open_weights

    name = "efficientnet_lite0"
    encoder = EfficientNetLite(name)
    load_state(encoder, open_weights(packaged(name), FAMILY[name].sha256))
    made = deeplab_v2(name, pretrained=True).eval()
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        levels = made.trunk(x)
        expected = encoder.eval()(x)[:4]  # stages 4 to 7
    assert levels[0].shape == (1, 40, 8, 12)  # stage 3
    for level, other in zip(levels[1:], expected, strict=True):
        torch.testing.assert_close(level, other, rtol=0, atol=LAYOUT * other.abs().max().item())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_seed_names_the_new_layers_and_leaves_the_callers_numbers_alone(backbone):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (deeplab_v2(backbone, seed=s) for s in (1, 1, 2))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    weights = [torch.cat([p.flatten() for p in n.head.parameters()]) for n in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("backbone", ["resnet101", "efficientnet_lite0"])
def test_normalisations_stay_as_they_are_in_training(backbone):
    made = deeplab_v2(backbone).train()
    set_keys(made, [0, 1])
    before = {k: v.clone() for k, v in made.state_dict().items() if "running" in k}
    assert before
    made(torch.randn(2, 3, 64, 64))
    after = made.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_mistakes_are_named(tmp_path):
    with pytest.raises(SettingsError, match=r"no backbone 'vgg'; known: efficientnet_lite0, "):
        deeplab_v2("vgg")
    with pytest.raises(SettingsError, match="classes must be at least 1, got 0"):
        deeplab_v2("vgg16", 0)
    with pytest.raises(SettingsError, match="unknown network 'vgg'"):
        network.load("vgg")
    with pytest.raises(SettingsError, match="finds its own weights"):
        network.load("a.b:c", weights="file.pth")
    with pytest.raises(WeightsError, match="cannot read the weights"):
        deeplab_v2("vgg16", weights=str(tmp_path / "missing.pth"))
    path = file_of({"0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="does not hold the weights of"):
        deeplab_v2("vgg16", weights=path)


def test_weights_that_cannot_be_fetched_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsError, match=r"vgg16 are not at .* name one with training\.network"):
        deeplab_v2("vgg16", pretrained=True)


class Tiny(nn.Module):
    mean, std, multiple = (0.0,), (255.0,), 8

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.head(nn.functional.avg_pool2d(x, 8))


def headless():
    made = Tiny()
    del made.head
    return made


def test_a_network_of_ones_own():
    made = network.load(f"{__name__}:Tiny", seed=3)
    assert made(torch.zeros(1, 3, 16, 24)).shape == (1, 2, 2, 3)
    assert torch.equal(network.load(f"{__name__}:Tiny", seed=3).head.weight, made.head.weight)
    with pytest.raises(SettingsError, match="gave a Tiny without head; see saff"):
        network.load(f"{__name__}:headless")
    with pytest.raises(SettingsError, match=r"without mean, std, multiple, head; see"):
        network.load("torch.nn:ReLU")


@pytest.mark.parametrize(
    ("backbone", "stages", "first"),
    [
        ("vgg16", 5, 64 * 27 + 64 + 64 * 576 + 64),
        ("resnet101", 5, 9408 + 128),
        ("efficientnet_lite0", 7, 928 + 896),
    ],
)
def test_stages_are_frozen_from_the_first(backbone, stages, first):
    made = deeplab_v2(backbone)
    assert len(made.stages()) == stages
    network.freeze(made, 0)
    assert all(p.requires_grad for p in made.parameters())
    network.freeze(made, 1)
    assert sum(p.numel() for p in made.parameters() if not p.requires_grad) == first
    network.freeze(made, stages)
    assert not any(p.requires_grad for p in made.trunk.parameters())
    assert all(p.requires_grad for p in made.head.parameters())
    with pytest.raises(SettingsError, match=rf"frozen_stages must be at most {stages} for a .*99"):
        network.freeze(made, 99)
    with pytest.raises(SettingsError, match="frozen_stages must be at most 0 for a Tiny, got 1"):
        network.freeze(Tiny(), 1)


# Dropout


def test_a_sample_loses_the_same_features_wherever_it_is():
    layers = nn.Sequential(SampleDropout(0.5), SampleDropout(0.5)).train()
    x = torch.ones(3, 400)

    def drop(keys):
        set_keys(layers, keys)
        return layers[0](x[: len(keys)]), layers[1](x[: len(keys)])

    whole, second = drop([7, 8, 9])
    alone, _ = drop([8])
    torch.testing.assert_close(whole[1:2], alone, rtol=0, atol=0)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, second)
    assert set(np.unique(whole.numpy())) == {0.0, 2.0}  # what is kept makes up for what is lost
    assert whole.mean().item() == pytest.approx(1.0, abs=6 / np.sqrt(1200))  # six deviations


def test_whole_channels_are_lost():
    layer = SampleDropout(0.5, whole_channels=True).train()
    set_keys(layer, [1, 2])
    found = layer(torch.ones(2, 300, 3, 4))
    assert torch.equal(found, found[:, :, :1, :1].expand_as(found))
    assert not torch.equal(found[0], found[1])
    assert found.mean().item() == pytest.approx(1.0, abs=6 / np.sqrt(600))  # six deviations


def test_dropout_rests_in_evaluation_and_asks_for_keys_in_training():
    layer = SampleDropout(0.5)
    x = torch.rand(2, 5)
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match="expected a key for each of 2 samples, got 0"):
        layer.train()(x)
    assert "probability=0.5" in repr(layer)


def test_a_state_dict_is_all_that_is_read(tmp_path):
    path = tmp_path / "evil.pth"
    stream = io.BytesIO()
    torch.save(Tiny(), stream)
    path.write_bytes(stream.getvalue())
    with pytest.raises(WeightsError, match="none was run"):
        deeplab_v2("vgg16", weights=str(path))
