"""Vision transformers as semantic encoders.

A self-supervised transformer knows no classes: it gives features and attention alone.
"""

import os

import numpy as np
import torch

from saff.arrays import Image
from saff.backbones.inputs import to_input
from saff.backbones.vit import VisionTransformer
from saff.checkpoints import WeightsFile, open_weights, read_state
from saff.errors import WeightsError
from saff.semantic.cam import to_side
from saff.semantic.maps import SemanticMaps

BASE = "https://dl.fbaipublicfiles.com"
PUBLISHED = {
    "dino_vits16": f"{BASE}/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    "dino_vits8": f"{BASE}/dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth",
    "dino_vitb16": f"{BASE}/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    "dino_vitb8": f"{BASE}/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth",
    "dinov2_vits14": f"{BASE}/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
    "dinov2_vitb14": f"{BASE}/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
    "dinov2_vitl14": f"{BASE}/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
}


class VitEncoder:
    """A transformer and the preprocessing it was trained with.

    Parameters
    ----------
    network : VisionTransformer
        Image to tokens.
    side : int
        Longer side of the input in pixels.
    digest : str
        SHA-256 of the weights.
    """

    mean = (123.675, 116.28, 103.53)  # ImageNet's, of RGB 0..255
    std = (58.395, 57.12, 57.375)

    def __init__(self, network: VisionTransformer, *, side: int, digest: str = "") -> None:
        self.network = network
        self.side = side
        self.digest = digest

    def __call__(self, image: Image) -> SemanticMaps:
        """Encode: uint8 (H, W, 3) RGB to features and attention; no class scores."""
        resized = to_side(image, self.side, self.network.patch)
        with torch.inference_mode():
            x = to_input(resized[None], self).contiguous()  # channels first, as the weights are
            tokens = self.network(x)
        h, w = tokens.attention.shape
        return SemanticMaps(
            scores=np.zeros((0, h, w), np.float32),
            levels=tuple(level.numpy() for level in tokens.levels),
            attention=tokens.attention.numpy(),
        )


def load(name: str, *, side: int, weights: str | None = None) -> VitEncoder:
    """Load a transformer.

    Parameters
    ----------
    name : str
        A key of ``PUBLISHED``, or ``"vit"`` for weights of your own.
    side : int
        Longer side of the input in pixels.
    weights : str, optional
        File or URI of a state dict.  Without it torch's hub cache is looked into; nothing is
        downloaded.

    Raises
    ------
    WeightsError
        If the weights are missing or describe no transformer.
    """
    file = open_weights(weights) if weights else _cached(name)
    return VitEncoder(
        VisionTransformer(read_state(file), file.source), side=side, digest=file.sha256
    )


def _cached(name: str) -> WeightsFile:
    if name not in PUBLISHED:
        raise WeightsError(f"encoder {name!r} has no published weights; name encoder_weights")
    url = PUBLISHED[name]
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if not os.path.exists(path):
        raise WeightsError(
            f"the weights of {name} are not at {path}; on a machine with the internet: "
            f"curl --create-dirs -o {path} {url}"
        )
    return open_weights(path)
