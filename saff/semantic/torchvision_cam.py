"""torchvision classifiers as CAM encoders: GoogLeNet, as in the paper, and others by name."""

import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from saff.errors import SettingsError, WeightsError
from saff.semantic.cam import CamEncoder
from saff.semantic.weights import load_state, open_weights
from saff.torchvision_import import models

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
PROBE_TOLERANCE = 1e-3  # relative; float32 sums over a few thousand terms stay far below


class Trunk(nn.Module):
    """The layers of a classifier before its global pooling, run in order.

    Parameters
    ----------
    layers : list of torch.nn.Module
        In order of execution.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature levels: the last map of each size from stride 8 on, coarsest last."""
        smallest = min(x.shape[2:]) // 8
        levels: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            if min(x.shape[2:]) > smallest:
                continue
            if levels and levels[-1].shape[2:] == x.shape[2:]:
                levels.pop()
            levels.append(x)
        return levels


def load(name: str, *, side: int, weights: str | None = None) -> CamEncoder:
    """Load a torchvision classifier as a CAM encoder.

    Parameters
    ----------
    name : str
        As torchvision calls it: ``"googlenet"``, ``"resnet50"``, ...
    side : int
        Longer side of the input in pixels.
    weights : str, optional
        File or URI of a state dict.  Without it torch's hub cache is used, filled from the internet
        where there is one; the file name's checksum is verified.

    Returns
    -------
    encoder : CamEncoder
        Class scores as many as the head has.

    Raises
    ------
    SettingsError
        If torchvision has no such classifier, or it is not global pooling and a linear head.
    WeightsError
        If the weights cannot be had or belong to another network.
    """
    try:
        # Auxiliary classifiers serve training only; "init_weights" would draw numbers for nothing.
        extra = {"aux_logits": False, "init_weights": False} if name in _WITH_AUXILIARY else {}
        network = models.get_model(name, weights=None, **extra)
    except ValueError as error:
        raise SettingsError(f"torchvision has no classifier {name!r}") from error
    network.eval()
    trunk, head = _split(name, network)
    file = open_weights(weights or _hub_file(name))
    load_state(network, file, drop=("aux1.", "aux2.", "AuxLogits."))
    half = (127.5,), (127.5,)  # what these two were trained on, whatever torchvision's wrapper does
    mean, std = half if name in _WITH_AUXILIARY else (IMAGENET_MEAN, IMAGENET_STD)
    return CamEncoder(trunk, head, mean=mean, std=std, side=side, digest=file.sha256)


_WITH_AUXILIARY = ("googlenet", "inception_v3")


def _split(name: str, network: nn.Module) -> tuple[Trunk, nn.Linear]:
    """Split a classifier into trunk and head, and prove the split on a probe."""
    heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
    layers = list(_before_pooling(network))
    probe = torch.linspace(-1, 1, 3 * 96 * 128).reshape(1, 3, 96, 128)
    with torch.inference_mode():
        for tail in ([], [nn.ReLU()]):  # some have their last ReLU as a function, not a layer
            trunk = Trunk(layers + tail).eval()
            try:
                pooled = trunk(probe)[-1].mean(dim=(2, 3))
                if torch.allclose(
                    heads[-1](pooled), network(probe), rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE
                ):
                    return trunk, heads[-1]
            except (RuntimeError, IndexError, TypeError):
                continue
    raise SettingsError(
        f"torchvision:{name} is not a chain of layers, global average pooling and one linear layer; "
        "choose one that is, such as googlenet, resnet50, mobilenet_v2 or efficientnet_b0"
    )


def _before_pooling(network: nn.Module) -> Iterator[nn.Module]:
    """Give the layers up to the global pooling, in order, containers of features opened."""
    for name, child in network.named_children():
        if name in ("avgpool", "fc", "classifier", "dropout"):
            return
        if name in ("features", "layers", "trunk_output"):
            yield from child.children()
        elif name not in ("aux1", "aux2", "AuxLogits"):
            yield child


def _hub_file(name: str) -> str:
    """Path of the published weights in torch's hub cache, downloaded if they are not there."""
    url: str = models.get_model_weights(name).DEFAULT.url
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if not os.path.exists(path):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            digest = os.path.basename(url).rsplit("-", 1)[-1].split(".")[0]
            torch.hub.download_url_to_file(url, path, hash_prefix=digest, progress=False)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"the weights of {name} are not at {path} and cannot be downloaded ({error}); "
                f"put the file there, or name one with encoder_weights in the configuration"
            ) from error
    return path
