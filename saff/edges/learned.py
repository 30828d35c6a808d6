"""Edges learnt from people's drawings: the network of saff.edges.network with trained weights."""

import cv2
import numpy as np
import torch
from torch import Tensor

from saff.arrays import AnyArray, Image, PixelMap
from saff.edges.network import MULTIPLE, NAME, EdgeNetwork
from saff.errors import WeightsError
from saff.modelfile import Model, read_model, shipped
from saff.semantic.efficientnet_lite import EfficientNetLite, fuse_layers

KIND = "saff edges 1"
SIDE = 512  # longer images are shrunk to this many pixels: BSDS500, which it learnt from, has 481


class LearnedEdges:
    """Edge strength by a trained network.

    Parameters
    ----------
    model : Model
        Its weights.
    side : int
        Longer images are shrunk to this many pixels before, and their map enlarged.
    """

    def __init__(self, model: Model, side: int = SIDE) -> None:
        network = EdgeNetwork(EfficientNetLite(NAME))
        try:
            network.load_state_dict(from_arrays(model.arrays))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()[:200]
            raise WeightsError(f"{model.source} does not hold edge weights: {reason}") from error
        fuse_layers(network.eval())
        if not all(torch.isfinite(p).all() for p in network.parameters()):
            raise WeightsError(f"{model.source} holds weights that are NaN or infinite")
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.side = side
        self.digest = model.digest

    def __call__(self, image: Image) -> PixelMap:
        """Edge strength: uint8 (H, W, 3) RGB to float32 (H, W) in [0, 1]."""
        height, width = image.shape[:2]
        factor = min(1.0, self.side / max(height, width))
        h, w = (max(MULTIPLE, round(n * factor / MULTIPLE) * MULTIPLE) for n in (height, width))
        shrinks = h < height or w < width
        resized = cv2.resize(
            image, (w, h), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        with torch.inference_mode():
            logits = self.network(to_input(np.asarray(resized)[None]))
            strength = torch.sigmoid(logits)[0, 0].numpy()
        enlarged = cv2.resize(strength, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(enlarged, dtype=np.float32)


def to_input(images: AnyArray) -> Tensor:
    """Normalise images: uint8 (N, H, W, 3) to float32 (N, 3, H, W), channels last in memory."""
    pixels = torch.from_numpy(images).float()
    normalised = (pixels - EdgeNetwork.mean) / EdgeNetwork.std
    return normalised.permute(0, 3, 1, 2)


def to_arrays(state: dict[str, Tensor]) -> dict[str, AnyArray]:
    """Weights as they are shipped: 16-bit floats; counters are left out."""
    return {n: v.half().numpy() for n, v in state.items() if v.is_floating_point()}


def from_arrays(arrays: dict[str, AnyArray]) -> dict[str, Tensor]:
    """Weights as the network takes them."""
    state = {name: torch.from_numpy(a.astype(np.float32)) for name, a in arrays.items()}
    norms = [n.removesuffix("running_var") for n in state if n.endswith("running_var")]
    return state | {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}


def shipped_edges() -> LearnedEdges:
    """Load the weights that come with the package."""
    return LearnedEdges(read_model(shipped("edges"), KIND))
