"""Convert a trained network to one file that runs without saff: ONNX, or torch's ExportedProgram.

RGB 0..255 goes in, the probability of foreground in the input's size comes out; everything between
is inside the file.  How to bring an image to a size that the network takes stands beside it, in a
JSON file of the same stem.
"""

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

import saff
from saff import config
from saff.arrays import AnyArray
from saff.errors import SettingsError
from saff.network import Network
from saff.shards import Row
from saff.storage import Folder
from saff.trained import Trained, load_trained

if TYPE_CHECKING:
    from onnx import ModelProto

FORMATS = (".onnx", ".pt2")
INPUT, OUTPUT = "image", "probability"
OPSET = 18  # of ONNX; the oldest that torch's exporter writes without a conversion
THRESHOLD = 0.5
TOLERANCE = 1e-4  # of a probability, between the converted model and the network
TRACED = (2, 4, 6)  # batch, height and width in multiples, that no other size is confused with
CHECKED = ((1, 2, 3), (2, 7, 5))  # sizes to compare at; the first side is the smallest there is
HOW = (
    "Resize the RGB image to height = max(smallest_side, multiple * round(H * longer_side / "
    "max(H, W) / multiple)) and width likewise, averaging pixels where it shrinks; give it as "
    "float32 0..255, channels first, without subtracting or dividing anything. Resize the "
    "probability back to the image's size; from the threshold on it is foreground."
)

Run = Callable[[AnyArray], AnyArray]


class ConversionError(SettingsError):
    """A network cannot be converted, or the file gives other answers than it; no file is left."""


class Portable(nn.Module):
    """A network with what belongs before and after it.

    Parameters
    ----------
    network : Network
        In evaluation mode; it is copied.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        # With channels last, torch.export would decide for every size whether it is 1.
        self.network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for name in ("mean", "std"):
            values = torch.tensor(getattr(network, name), dtype=torch.float32)
            self.register_buffer(name, values.reshape(1, -1, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """RGB 0..255, float32 (N, 3, H, W), to the probability of foreground, (N, H, W)."""
        logits = self.network((image - self.mean) / self.std)
        if logits.ndim != 4 or logits.shape[1] != 2:
            raise ValueError(f"the network must give logits (N, 2, h, w), got {logits.shape}")
        foreground = functional.softmax(logits.float(), dim=1)[:, 1:]
        size = image.shape[2:]
        smooth = functional.interpolate(foreground, size, mode="bilinear", align_corners=False)
        return smooth[:, 0].clamp(0, 1)


class Converted(NamedTuple):
    """The files that :func:`export_network` has written."""

    model: Path
    description: Path
    """JSON: how images are to be prepared, and which network it is."""
    difference: float | None
    """The largest between a probability of the file and one of the network; None if no installed
    package can run the file."""


def export_network(run: Folder, to: Path, allow_code: Collection[str] = ()) -> Converted:
    """Convert a trained network to one file, and write how to use it as JSON beside it.

    Parameters
    ----------
    run : Folder
        Output of a run whose network is trained.
    to : Path
        File to write, ``.onnx`` or ``.pt2``; the JSON file has its stem.
    allow_code : collection of str
        Modules that may be imported where the run names its network as ``package.module:factory``.

    Returns
    -------
    converted : Converted
        The files, and how far the model is from the network.

    Raises
    ------
    SettingsError
        If the extension is another, a package is missing, there is no trained network or no
        folder to write to; its subclass ConversionError if the network cannot be converted, or
        the file gives another answer than the network.  Neither file is written then.
    """
    suffix = to.suffix.lower()
    if suffix not in FORMATS:
        raise SettingsError(f"cannot convert to {to}: its name must end in {' or '.join(FORMATS)}")
    if suffix == ".onnx":
        _require_onnx()
    trained = load_trained(run, allow_code)
    description = describe(trained, OPSET if suffix == ".onnx" else None)
    portable = Portable(trained.network)
    with _drafts(to) as (model, notes):
        program = trace(portable, trained.network.multiple)
        if suffix == ".onnx":
            write_onnx(program, model, description)
            answer = _onnx_runner(model)
        else:
            _save(program, model)
            answer = _torch_runner(torch.export.load(model).module())
        difference = compare(portable, answer, trained.network.multiple) if answer else None
        notes.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return Converted(to, to.with_suffix(".json"), difference)


def describe(trained: Trained, opset: int | None) -> Row:
    """Say how to use the converted network and which it is: the content of the JSON file."""
    multiple = trained.network.multiple
    return {
        "network": trained.run["training"]["network"],
        "sha256": trained.sha256,  # of the weights file
        "saff": saff.__version__,
        "torch": torch.__version__,
        "opset": opset,
        "input": {
            "name": INPUT,
            "type": "float32",
            "layout": "NCHW",
            "colour_order": "RGB",
            "range": [0, 255],
            "multiple": multiple,
            "smallest_side": CHECKED[0][1] * multiple,
            "longer_side": max(config.default().inference.input_sides),
        },
        "output": {
            "name": OUTPUT,
            "type": "float32",
            "layout": "NHW",
            "range": [0, 1],
            "meaning": "probability of foreground, in the size of the input",
            "threshold": THRESHOLD,
        },
        "how": HOW,
    }


def trace(portable: Portable, multiple: int) -> ExportedProgram:
    """Record what the network computes, for any batch and all sides that are multiples.

    Parameters
    ----------
    portable : Portable
        Network.
    multiple : int
        Number of which the sides are multiples.

    Returns
    -------
    program : torch.export.ExportedProgram
        Without the paths of the source files that it was recorded from.

    Raises
    ------
    ConversionError
        If torch cannot record it.
    """
    smallest = CHECKED[0][1]  # torch.export takes a map of one cell for a special case
    sides = [multiple * Dim(name, min=smallest) for name in ("rows", "columns")]
    dynamic = {INPUT: {0: Dim("batch", min=1), 2: sides[0], 3: sides[1]}}
    try:
        program = torch.export.export(portable, (_noise(TRACED, multiple),), dynamic_shapes=dynamic)
    except Exception as error:  # a network of one's own can raise anything
        raise ConversionError(f"torch cannot convert the network: {_first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def write_onnx(program: ExportedProgram, path: Path, description: Row) -> None:
    """Write one self-contained ONNX file.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        What :func:`trace` gives.
    path : Path
        File to write.
    description : dict
        Goes into the model's metadata, ``input.layout`` and so on.

    Raises
    ------
    ConversionError
        If a step of the network does not exist in ONNX, or ONNX refuses the model.
    """
    import onnx

    try:
        with warnings.catch_warnings():
            # torch copies its own tree specifications, which torch deprecates.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)", FutureWarning)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
        assert exported is not None
        model: ModelProto = exported.model_proto
        _tidy(model)
        onnx.helper.set_model_props(model, _flat(description))
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # torch, onnxscript and onnx have an error each
        raise ConversionError(f"cannot write the network as ONNX: {_first_line(error)}") from error
    path.write_bytes(model.SerializeToString())


def compare(portable: Portable, run: Run, multiple: int) -> float:
    """Compare a converted model with its network, at several sizes.

    Parameters
    ----------
    portable : Portable
        Network.
    run : callable
        The converted model: float32 (N, 3, H, W) to (N, H, W).
    multiple : int
        Number of which the sides are multiples.

    Returns
    -------
    difference : float
        The largest between two probabilities.

    Raises
    ------
    ConversionError
        If it is not below 1e-4, or the shape is another.
    """
    worst = 0.0
    for size in CHECKED:
        image = _noise(size, multiple)
        with torch.inference_mode():
            expected = portable(image).numpy()
        found = run(image.numpy())
        if found.shape != expected.shape:
            raise ConversionError(
                f"the converted model gives {found.shape} for {tuple(image.shape)}, the network "
                f"{expected.shape}; nothing was written"
            )
        difference = float(np.abs(found - expected).max())
        if not difference < TOLERANCE:  # NaN is not
            raise ConversionError(
                f"the converted model differs from the network by {difference:.1e} for "
                f"{tuple(image.shape)}, expected less than {TOLERANCE:.0e}; nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _noise(size: tuple[int, int, int], multiple: int) -> Tensor:
    """Draw an input, the same for the same size: float32 (N, 3, H, W) in 0..255."""
    batch, height, width = size
    shape = (batch, 3, height * multiple, width * multiple)
    return 255 * torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _save(program: ExportedProgram, path: Path) -> None:
    try:
        torch.export.save(program, path)
    except Exception as error:  # its serialisation has errors of its own
        raise ConversionError(f"torch cannot save the network: {_first_line(error)}") from error


def _torch_runner(module: nn.Module) -> Run:
    def run(image: AnyArray) -> AnyArray:
        with torch.inference_mode():
            found: AnyArray = module(torch.from_numpy(image)).numpy()
        return found

    return run


def _onnx_runner(path: Path) -> Run | None:
    """Run an ONNX file with onnxruntime; None if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: AnyArray) -> AnyArray:
        found: AnyArray = session.run([OUTPUT], {INPUT: image})[0]
        return found

    return run


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise SettingsError(
            f"ONNX needs the package {error.name}, which is not installed: pip install saff[export]"
        ) from error


def _tidy(model: "ModelProto") -> None:
    """Name the sizes, and drop the source lines with paths that torch adds."""
    graph = model.graph
    del graph.value_info[:]  # sizes in between, in the names that the outer ones had
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
    for value, names in (
        (graph.input[0], ("batch", None, "height", "width")),
        (graph.output[0], ("batch", "height", "width")),
    ):
        for size, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name:
                size.dim_param = name


def _flat(description: Row) -> dict[str, str]:
    """Flatten a description for ONNX, whose metadata maps names to text."""
    flat: dict[str, str] = {}
    for name, value in description.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": text for inner, text in _flat(value).items()}
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat


@contextmanager
def _drafts(to: Path) -> Iterator[tuple[Path, Path]]:
    """Paths to write the model and its JSON file to; both appear when all has gone well."""
    try:
        with tempfile.TemporaryDirectory(prefix=".saff-", dir=to.parent) as folder:
            model, notes = Path(folder, to.name), Path(folder, to.with_suffix(".json").name)
            yield model, notes
            os.replace(model, to)
            os.replace(notes, to.with_suffix(".json"))
    except OSError as error:
        raise SettingsError(f"cannot write {to}: {error.strerror or error}") from error


def _first_line(error: Exception) -> str:
    lines: list[Any] = str(error).strip().splitlines() or [type(error).__name__]
    return str(lines[0])
