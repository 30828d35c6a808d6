import dataclasses

import numpy as np
import pytest
import torch

from saff import config, semantic
from saff.backbones import vit
from saff.errors import SettingsError, WeightsError
from saff.labeling import label_image
from saff.torchvision_import import models

WIDTH, PATCH, GRID, DEPTH = 128, 16, 4, 5


@pytest.fixture(scope="module")
def reference():
    """A transformer of torchvision, with weights that matter everywhere."""
    torch.manual_seed(0)
    network = models.VisionTransformer(PATCH * GRID, PATCH, DEPTH, 2, WIDTH, 4 * WIDTH).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def state(reference):
    """Its weights, named as DINO names them."""
    values = {
        "cls_token": reference.class_token,
        "pos_embed": reference.encoder.pos_embedding,
        "patch_embed.proj.weight": reference.conv_proj.weight,
        "patch_embed.proj.bias": reference.conv_proj.bias,
        "norm.weight": reference.encoder.ln.weight,
        "norm.bias": reference.encoder.ln.bias,
    }
    for index, block in enumerate(reference.encoder.layers):
        pairs = {
            "norm1": block.ln_1,
            "norm2": block.ln_2,
            "attn.proj": block.self_attention.out_proj,
            "mlp.fc1": block.mlp[0],
            "mlp.fc2": block.mlp[3],
        }
        for name, layer in pairs.items():
            values[f"blocks.{index}.{name}.weight"] = layer.weight
            values[f"blocks.{index}.{name}.bias"] = layer.bias
        values[f"blocks.{index}.attn.qkv.weight"] = block.self_attention.in_proj_weight
        values[f"blocks.{index}.attn.qkv.bias"] = block.self_attention.in_proj_bias
    return {name: value.detach().clone() for name, value in values.items()}


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "weights.pth"
    torch.save(state, path)
    return str(path)


def test_features_are_those_of_torchvision(reference, state):
    x = torch.randn(1, 3, PATCH * GRID, PATCH * GRID, generator=torch.Generator().manual_seed(1))
    network = vit.VisionTransformer(state, "here")
    with torch.inference_mode():
        found = network(x)
        tokens = torch.cat([reference.class_token, reference._process_input(x)], dim=1)
        expected = reference.encoder(tokens)[0, 1:]
        block = reference.encoder.layers[-1]
        before = tokens + reference.encoder.pos_embedding
        for layer in reference.encoder.layers[:-1]:
            before = layer(before)
        normed = block.ln_1(before)
        _, shares = block.self_attention(normed, normed, normed, average_attn_weights=True)
    assert len(found.levels) == vit.LEVELS
    last = found.levels[-1].flatten(1).T
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.attention.flatten(), shares[0, 0, 1:], rtol=1e-4, atol=1e-6)


def test_scaled_blocks_and_registers_are_understood(state):
    x = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    plain = vit.VisionTransformer(state, "here")
    scales = {f"blocks.{i}.ls{k}.gamma": torch.ones(WIDTH) for i in range(DEPTH) for k in (1, 2)}
    same = vit.VisionTransformer(state | scales, "here")
    torch.testing.assert_close(same(x).levels[-1], plain(x).levels[-1])
    off = {name: torch.zeros(WIDTH) for name in scales}
    still = vit.VisionTransformer(state | off, "here")(x)
    torch.testing.assert_close(still.levels[0], still.levels[-1])  # nothing is added any more
    registers = {"register_tokens": torch.randn(1, 4, WIDTH)}
    seen = vit.VisionTransformer(state | registers, "here")(x)
    assert seen.levels[0].shape == plain(x).levels[0].shape == (WIDTH, 2, 3)
    assert not torch.allclose(seen.levels[-1], plain(x).levels[-1])


def test_an_encoder_gives_features_and_attention_in_the_shape_of_the_image(weights, photographs):
    maps = semantic.load("vit", side=128, weights=weights)(photographs["coffee"])
    assert maps.scores.shape == (0, 5, 8)
    assert [level.shape for level in maps.levels] == [(WIDTH, 5, 8)] * vit.LEVELS
    assert maps.attention.shape == (5, 8)
    assert 0 < maps.attention.sum() < 1


@pytest.mark.parametrize("unary", ["border_contrast", "attention"])
def test_images_are_labelled_with_a_transformer(weights, photographs, small, unary):
    settings = dataclasses.replace(
        small, encoder="dino_vits16", encoder_weights=weights, semantic_unary=unary
    )
    labeled = label_image(photographs["coffee"], settings)
    assert np.ptp(labeled.features[:, 0]) == 1
    assert np.isfinite(labeled.confidence).all()


def test_what_an_encoder_does_not_give_is_named(weights, photographs, small):
    no_classes = dataclasses.replace(
        config.paper(), encoder="vit", encoder_weights=weights, encoder_side=64
    )
    message = "gives feature levels and attention but no class scores"
    with pytest.raises(SettingsError, match=message):
        label_image(photographs["coffee"], no_classes)
    with pytest.raises(SettingsError, match="gives feature levels but no attention"):
        label_image(photographs["coffee"], dataclasses.replace(small, semantic_unary="attention"))


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"curl --create-dirs -o .*/dino_vitbase8_pretrain\.pth"):
        semantic.load("dino_vitb8")
    with pytest.raises(WeightsError, match="'vit' has no published weights; name encoder_weights"):
        semantic.load("vit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": torch.zeros(1, 12, WIDTH)}, "fit no transformer: 11 positions are no"),
        ({"norm.weight": torch.zeros(3)}, "fit no transformer"),
        ({"blocks.2.attn.qkv.weight": None}, "it has no blocks.2.attn.qkv.weight"),
        ({"cls_token": None}, "it has no cls_token"),
        ({"blocks.7.norm1.weight": torch.zeros(1)}, "it has no blocks.5.norm1.weight"),
        ({"pos_embed": torch.zeros(3)}, "fit no transformer"),
        ({"patch_embed.proj.weight": torch.zeros(())}, "fit no transformer"),
        ({"patch_embed.proj.weight": torch.zeros(128, 3, 65, 65)}, "patches of 65 pixels"),
        ({"norm.bias": torch.full((128,), torch.nan)}, "here holds NaN or infinity"),
    ],
)
def test_weights_of_something_else_are_named(state, change, message):
    changed = {name: value for name, value in (state | change).items() if value is not None}
    with pytest.raises(WeightsError, match=message):
        vit.VisionTransformer(changed, "here")
