import dataclasses
import json
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from skimage import data

import saff
from saff import cli, config, network_export
from saff.inference import predict
from saff.network import Network, deeplab_v2, load
from saff.network_export import ConversionError, Portable, export_network
from saff.resize import size_in_multiples
from saff.storage import Folder
from saff.trained import NetworkFolder, load_trained

SHARPER = 20.0  # untrained scores are all about 0.5; so they reach from 0.1 to 0.9 and more


class Small(Network):
    """A network of one's own that is converted in a second: 1/4 of the size, grey 0..1."""

    mean, std, multiple = (0.0,), (255.0,), 4

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Conv2d(3, 2, 4, stride=4)

    def forward(self, x):
        return self.head(x)


class Whimsical(Small):
    """It looks at the pixels to know what to do, so that no graph is the whole of it."""

    def forward(self, x):
        return self.head(x) if float(x.mean()) > 0.5 else -self.head(x)


class ThreeClasses(Small):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Conv2d(3, 3, 4, stride=4)


OWN = ("test_network_export",)  # whose networks these are


EXPORT = ("saff", "export-network", "--allow-code", *OWN)


def trained_run(path, network, state):
    """A run as training leaves it, by a network that has learnt nothing."""
    folder = NetworkFolder(Folder.at(str(path)) / "network")
    folder.claim({"saff": saff.__version__, "training": {"network": network}, "digest": network})
    folder.finish(state)
    return Folder.at(str(path))


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    """A run whose network has features of ImageNet and random scores."""
    network = deeplab_v2("efficientnet_lite0", pretrained=True)
    with torch.no_grad():
        network.head.score.weight *= SHARPER
    state = network.state_dict()
    return trained_run(tmp_path_factory.mktemp("lite"), "efficientnet_lite0", state)


@pytest.fixture(scope="module")
def lite_onnx(lite, tmp_path_factory):
    return export_network(lite, tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.fixture
def small(tmp_path, request):
    """A run with the small network, or another of this module."""
    name = f"test_network_export:{getattr(request, 'param', 'Small')}"
    return trained_run(tmp_path / "run", name, load(name).state_dict())


@pytest.fixture
def call(call):
    """Call ``saff export-network``: exit code, standard error."""

    def command(*words):
        code, _, err = call("export-network", *words, "--allow-code", "test_network_export")
        return code, err

    return command


def answers(path, image):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["probability"], {"image": image})[0]


def by_hand(network, image):
    """What the converted model is to give, in the words of its description."""
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (network.mean, network.std))
    with torch.inference_mode():
        logits = network((torch.from_numpy(image) - mean) / std)
        probability = logits.softmax(1)[:, 1:]
        size = image.shape[2:]
        return torch.nn.functional.interpolate(probability, size, mode="bilinear")[:, 0].numpy()


def noise(batch, height, width):
    return np.random.default_rng(0).uniform(0, 255, (batch, 3, height, width)).astype(np.float32)


@pytest.mark.compiles
@pytest.mark.parametrize("size", [(2, 96, 160), (1, 416, 288), (3, 64, 64)])
def test_onnxruntime_gives_what_torch_gives_at_any_size(lite, lite_onnx, size):
    image = noise(*size)
    expected = by_hand(load_trained(lite).network, image)
    found = answers(lite_onnx.model, image)
    assert (found.dtype, found.shape) == (np.float32, (size[0], *size[1:]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=network_export.TOLERANCE)
    assert lite_onnx.difference < network_export.TOLERANCE


@pytest.mark.compiles
def test_the_program_of_torch_gives_the_same(lite, tmp_path):
    done = export_network(lite, tmp_path / "model.pt2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.pt2"]
    assert b"/saff/" not in done.model.read_bytes()  # nor a path of this machine
    program = torch.export.load(done.model).module()
    network = load_trained(lite).network
    for image in (noise(2, 96, 160), noise(1, 224, 64)):
        found = program(torch.from_numpy(image)).numpy()
        expected = by_hand(network, image)
        np.testing.assert_allclose(found, expected, rtol=0, atol=network_export.TOLERANCE)


@pytest.mark.compiles
def test_the_description_is_enough_to_segment_a_photograph_as_saff_does(lite, lite_onnx):
    photograph = data.chelsea()  # 300 x 451
    notes = json.loads(lite_onnx.description.read_text())
    given, gives = notes["input"], notes["output"]
    assert (given["layout"], given["colour_order"], given["range"]) == ("NCHW", "RGB", [0, 255])

    longer, multiple = given["longer_side"], given["multiple"]
    factor = longer / max(photograph.shape[:2])
    height, width = (
        max(given["smallest_side"], multiple * round(n * factor / multiple))
        for n in photograph.shape[:2]
    )
    resized = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA)
    x = resized.astype(given["type"]).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(lite_onnx.model, providers=["CPUExecutionProvider"])
    (probability,) = session.run([gives["name"]], {given["name"]: x})[0]

    assert longer == max(config.default().inference.input_sides)
    inference = dataclasses.replace(
        config.default().inference,
        input_sides=(longer,),
        horizontal_flip=False,
        zoom_share=0.0,
        refinement="none",
    )
    network = load_trained(lite).network
    assert (height, width) == size_in_multiples(photograph.shape, longer, network.multiple)
    expected = predict(network, resized, inference)
    assert expected.std() > 0.02  # random layers, and yet it says something
    # Two libraries' convolutions, and OpenCV's interpolation in place of torch's: both round.
    np.testing.assert_allclose(probability, expected, rtol=0, atol=2 * network_export.TOLERANCE)
    # In the photograph's size saff interpolates once from the network's grid, a user twice. A
    # second linear interpolation moves a value by less than a cell's neighbours differ: rarely
    # much, so few pixels change sides.
    back = cv2.resize(probability, photograph.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    whole = predict(network, photograph, inference)
    assert np.abs(back - whole).mean() < 0.01
    assert ((back >= gives["threshold"]) != (whole >= gives["threshold"])).mean() < 0.01


def test_a_network_of_ones_own_is_one_file_that_says_what_it_is(small, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    done = export_network(small, folder / "a.b.onnx", OWN)
    assert done.model == folder / "a.b.onnx"
    assert done.description == folder / "a.b.json"
    assert sorted(folder.iterdir()) == [done.description, done.model]  # weights are inside
    notes = json.loads(done.description.read_text())
    trained = load_trained(small, OWN)
    assert notes["network"] == "test_network_export:Small"
    assert notes["sha256"] == trained.sha256
    assert (notes["saff"], notes["torch"]) == (saff.__version__, torch.__version__)
    assert (notes["input"]["multiple"], notes["input"]["longer_side"]) == (4, 448)
    assert "smallest_side" in notes["how"]

    model = onnx.load(done.model)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", notes["opset"])]
    props = {p.key: p.value for p in model.metadata_props}
    assert props["sha256"] == trained.sha256
    assert props["input.colour_order"] == "RGB"
    assert props["input.range"] == "[0, 255]"
    assert props["output.threshold"] == "0.5"
    session = onnxruntime.InferenceSession(done.model, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", "height", "width"]
    assert b"test_network_export.py" not in done.model.read_bytes()  # nor a path of this machine
    image = noise(2, 12, 20)
    expected = by_hand(trained.network, image)
    np.testing.assert_allclose(answers(done.model, image), expected, rtol=0, atol=1e-6)


def test_the_network_that_is_converted_stays_as_it_was():
    network = deeplab_v2("efficientnet_lite0").eval()
    stem = network.trunk._conv_stem.weight
    Portable(network)
    assert stem.requires_grad
    assert network.trunk._conv_stem.weight is stem
    assert stem.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["resnet101", "vgg16"])
def test_the_large_networks_too(name, tmp_path):
    run = trained_run(tmp_path / "run", name, deeplab_v2(name).state_dict())
    done = export_network(run, tmp_path / "model.onnx", OWN)
    assert done.difference < network_export.TOLERANCE
    program = network_export.trace(Portable(load_trained(run).network), 8)
    ask = network_export._torch_runner(program.module())
    assert (
        network_export.compare(Portable(load_trained(run).network), ask, 8)
        < network_export.TOLERANCE
    )


def test_the_command_says_what_it_wrote(small, tmp_path, monkeypatch, capsys):
    to = tmp_path / "model.onnx"
    monkeypatch.setattr(sys, "argv", [*EXPORT, small.path, "--to", str(to)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out) == (0, "")
    (line,) = captured.err.splitlines()  # torch is quiet
    assert line.startswith(f"{to} and {tmp_path / 'model.json'}; differs from the network by at")


# What can go wrong


@pytest.mark.parametrize("name", ["model.pth", "model", "onnx"])
def test_another_extension_is_refused_and_the_two_are_named(call, tmp_path, name):
    code, error = call("there is no run", "--to", tmp_path / name)
    assert code == 2
    expected = f"cannot convert to {tmp_path / name}: its name must end in .onnx or .pt2"
    assert error == f"saff: {expected}\n"


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_what_brings_it(
    call, small, tmp_path, monkeypatch, package
):
    monkeypatch.setitem(sys.modules, package, None)
    code, error = call(small.path, "--to", tmp_path / "model.onnx")
    assert code == 2
    assert error == (
        f"saff: ONNX needs the package {package}, which is not installed: "
        "pip install saff[export]\n"
    )
    assert not list(tmp_path.glob("model.*"))
    code, _ = call(small.path, "--to", tmp_path / "model.pt2")  # needs none
    assert code == 0


def test_without_onnxruntime_onnx_alone_checks_and_the_command_says_so(
    call, small, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, error = call(small.path, "--to", tmp_path / "model.onnx")
    assert code == 0
    assert "its form is checked; pip install onnxruntime" in error
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))


def test_an_untrained_run_is_refused(call, tmp_path):
    run = Folder.at(str(tmp_path / "run"))
    code, error = call(run.path, "--to", tmp_path / "model.onnx")
    assert code == 2
    assert error.startswith("saff: there is no trained network at ")
    NetworkFolder(run / "network").claim({"training": {}, "digest": "x"})
    code, error = call(run.path, "--to", tmp_path / "model.onnx")
    assert code == 2
    assert error.startswith("saff: training has not ended at ")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_not_there(call, small, tmp_path):
    code, error = call(small.path, "--to", tmp_path / "none" / "model.pt2")
    assert code == 2
    to = tmp_path / "none" / "model.pt2"
    assert error == f"saff: cannot write {to}: No such file or directory\n"


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_model_that_answers_otherwise_is_not_written(small, tmp_path, monkeypatch, suffix):
    to = tmp_path / f"model{suffix}"
    to.write_bytes(b"earlier")
    original = network_export.trace

    def wrong(portable, multiple):
        other = Portable(load("test_network_export:Small", seed=1).eval())
        return original(other, multiple)

    monkeypatch.setattr(network_export, "trace", wrong)
    with pytest.raises(
        ConversionError, match=r"differs from the network by .* less than 1e-04; noth"
    ):
        export_network(small, to, OWN)
    assert to.read_bytes() == b"earlier"
    assert {p.name for p in tmp_path.iterdir()} == {to.name, "run"}  # no draft, no JSON


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda x: x[:, 0, :4],
            r"gives \(1, 4, 12\) for \(1, 3, 8, 12\), the network \(1, 8, 12\)",
        ),
        (lambda x: x[:, 0] * np.nan, r"differs from the network by nan"),
    ],
)
def test_a_wrong_shape_and_nan_are_no_agreement(answer, message):
    with pytest.raises(ConversionError, match=message):
        network_export.compare(Portable(Small().eval()), answer, 4)


@pytest.mark.parametrize(
    ("small", "message"),
    [
        ("Whimsical", "torch cannot convert the network: "),
        ("ThreeClasses", r"the network must give logits \(N, 2, h, w\)"),
    ],
    indirect=["small"],
)
def test_a_network_that_cannot_be_converted(small, tmp_path, message):
    with pytest.raises(ConversionError, match=message) as caught:
        export_network(small, tmp_path / "model.pt2", OWN)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_what_onnx_cannot_express_is_reported(tmp_path):
    with pytest.raises(ConversionError, match="cannot write the network as ONNX: "):
        network_export.write_onnx(SimpleNamespace(), tmp_path / "model.onnx", {})
    assert list(tmp_path.iterdir()) == []
