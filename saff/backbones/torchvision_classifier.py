"""torchvision classifiers split into trunk and head: GoogLeNet, as in the paper, and others."""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saff.checkpoints import load_state, open_hub, open_weights
from saff.errors import SettingsError
from saff.torchvision_import import Permute, models

PROBE_TOLERANCE = 1e-3  # of the largest feature; float32 sums of a few thousand terms stay below
WITH_AUXILIARY = ("googlenet", "inception_v3")
OLD_DENSE_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")  # in published files


class Classifier(NamedTuple):
    """A classifier in two parts, in evaluation mode, and what its input and weights are.

    Attributes
    ----------
    trunk : Trunk
        Image to feature levels.
    head : torch.nn.Linear
        Mean of the last level to class scores.
    mean, std : tuple of float
        Statistics of RGB in 0..255: the input is ``(image - mean) / std``.
    sha256 : str
        SHA-256 of the weights file.
    """

    trunk: "Trunk"
    head: nn.Linear
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str


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
        turns = [index for index, layer in enumerate(layers) if isinstance(layer, Permute)]
        self.turn = turns[0] if turns else 0  # layers before it put the channels last (Swin)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature levels: the last map of each size from stride 8 on, coarsest last."""
        smallest = min(x.shape[2:]) // 8
        levels: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            level = x.movedim(-1, 1) if index < self.turn else x
            if min(level.shape[2:]) > smallest:
                continue
            if levels and levels[-1].shape[2:] == level.shape[2:]:
                levels.pop()
            levels.append(level)
        return levels


def load(name: str, weights: str | None = None) -> Classifier:
    """Load a torchvision classifier.

    Parameters
    ----------
    name : str
        As torchvision calls it: ``"googlenet"``, ``"resnet50"``, ...
    weights : str, optional
        File or URI of a state dict.  Without it torch's hub cache is used, filled from the internet
        where there is one; the checksum in the file's name is verified.

    Returns
    -------
    classifier : Classifier
        Trunk and head.

    Raises
    ------
    SettingsError
        If torchvision has no such classifier, or it is not global pooling and a linear head.
    WeightsError
        If the weights cannot be read or belong to another network.
    """
    if name not in models.list_models(module=models):  # classifiers alone, not detectors
        raise SettingsError(f"torchvision has no classifier {name!r}")
    # Auxiliary classifiers serve training only; "init_weights" would draw numbers for nothing.
    extra = {"aux_logits": False, "init_weights": False} if name in WITH_AUXILIARY else {}
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(0)
        network = models.get_model(name, weights=None, **extra).eval()
    trunk, head = split(name, network)
    published = models.get_model_weights(name).DEFAULT
    file = open_weights(weights) if weights else open_hub(name, published.url, "encoder_weights")
    load_state(
        network,
        file,
        drop=("aux1.", "aux2.", "AuxLogits."),
        rename=lambda entry: OLD_DENSE_NAME.sub(r"\1", entry),
    )
    preset = published.transforms()
    mean, std = (tuple(255 * value for value in values) for values in (preset.mean, preset.std))
    if name in WITH_AUXILIARY:  # trained on [-1, 1], to which torchvision's wrapper converts
        mean, std = (127.5,), (127.5,)
    return Classifier(trunk, head, mean, std, file.sha256)


def split(name: str, network: nn.Module) -> tuple[Trunk, nn.Linear]:
    """Split a classifier into trunk and head, and prove the split on a probe.

    The head must read the mean of the trunk's last map, and what it gives must be the answer.
    """
    layers = list(_before_pooling(network))
    heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
    probe = torch.linspace(-1, 1, 3 * 96 * 128).reshape(1, 3, 96, 128)
    passed: list[tuple[Tensor, Tensor]] = []  # what the head read and gave
    # Shapes that do not fit raise one of these: then it is no such classifier.
    with torch.inference_mode(), suppress(AssertionError, IndexError, RuntimeError, TypeError):
        hook = heads[-1].register_forward_hook(
            lambda _, inputs, output: passed.append((inputs[0], output))
        )
        answer = network(probe)
        hook.remove()
        read, given = passed[-1]
        tolerance = PROBE_TOLERANCE * float(read.abs().max())
        tails: list[list[nn.Module]] = [[], [nn.ReLU()]]  # some have their last ReLU as a function
        for tail in tails:
            trunk = Trunk(layers + tail).eval()
            pooled = trunk(probe)[-1].mean(dim=(2, 3))
            same = torch.allclose(pooled, read, rtol=0, atol=tolerance) and tolerance > 0
            if same and torch.equal(given, answer):
                return trunk, heads[-1]
    raise SettingsError(
        f"torchvision:{name} is not a chain of layers, global average pooling and one linear "
        "layer; choose one that is, such as googlenet, resnet50, mobilenet_v2 or efficientnet_b0"
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
