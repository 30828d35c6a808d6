"""Edges learnt from people's drawings: the network of saff.edges.network with trained weights."""

import numpy as np
import torch
from torch import Tensor

from saff.arrays import AnyArray, Image, PixelMap
from saff.backbones.efficientnet_lite import EfficientNetLite, fuse_layers
from saff.backbones.inputs import to_input
from saff.edges.network import MULTIPLE, NAME, EdgeNetwork
from saff.errors import WeightsError
from saff.modelfile import Model, read_model, shipped
from saff.resize import resize, size_in_multiples

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
        size = size_in_multiples(image.shape, min(self.side, max(height, width)), MULTIPLE)
        resized = resize(image, size, average=size[0] < height or size[1] < width)
        with torch.inference_mode():
            logits = self.network(to_input(resized[None], self.network))
            strength = torch.sigmoid(logits)[0, 0].numpy()
        return resize(strength, (height, width), average=False)


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
