"""RGB -> foreground logits: DeepLab-v2 by the name of its backbone, or a user's own network."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from saff import backends
from saff.errors import SettingsError
from saff.network.base import Network, channels_last, freeze

__all__ = ["BACKBONES", "Network", "deeplab_v2", "freeze", "load"]

BACKBONES = ("efficientnet_lite0", "resnet101", "vgg16")
UNETS = tuple(f"efficientnet_lite{n}_unet" for n in (0, 1, 2))  # see saff.network.unet
SHIPPED = "shipped"  # weights: all of the network that comes with saff


def deeplab_v2(
    backbone: str = "vgg16",
    classes: int = 2,
    pretrained: bool = False,
    *,
    weights: str | None = None,
    seed: int = 0,
) -> nn.Module:
    """Make a DeepLab-v2.

    Parameters
    ----------
    backbone : {"vgg16", "resnet101", "efficientnet_lite0"}
        ``vgg16`` is the paper's, 37,799,752 parameters for two classes; ``efficientnet_lite0`` is
        small enough to be trained without a GPU, and its weights come with a package.
    classes : int
        Background and foreground are two classes, as the paper has it, so that recipes and
        weights in circulation fit; the softmax of two is the sigmoid of their difference.
    pretrained : bool
        Start the trunk from weights published for ImageNet (of torchvision's hub cache, or the
        package's); the other layers start from random numbers.
    weights : str, optional
        File or URI of the trunk's weights instead: a state dict with torchvision's names.
    seed : int
        Seed of the random numbers; the caller's generator stays as it was.

    Returns
    -------
    network : torch.nn.Module
        Float (N, 3, H, W) to logits (N, classes, H/8, W/8), sides rounded up, in training mode.
        Its attributes are those of :class:`Network`.

    Raises
    ------
    SettingsError
        If the backbone is unknown, or there is no class.
    WeightsError
        If the weights cannot be read or belong to another network.
    """
    if classes < 1:
        raise SettingsError(f"classes must be at least 1, got {classes}")
    if backbone not in BACKBONES:
        raise SettingsError(f"no backbone {backbone!r}; known: {', '.join(BACKBONES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _factory(backbone)(classes, pretrained=pretrained, weights=weights)
    return channels_last(network)


def _factory(backbone: str) -> Callable[..., nn.Module]:
    if backbone == "efficientnet_lite0":
        from saff.network import lite

        return lite.efficientnet_lite0
    from saff.network import deeplab  # imports torchvision, which takes as long as torch

    return deeplab.vgg16 if backbone == "vgg16" else deeplab.resnet101


def _unet(name: str, *, pretrained: bool, weights: str | None) -> nn.Module:
    from saff.network.unet import lite_unet  # reads weights: more than inference needs

    return lite_unet(name, 2, pretrained=pretrained, weights=weights)


def load(
    name: str, *, pretrained: bool = False, weights: str | None = None, seed: int = 0
) -> Network:
    """Make a network with two classes by its name.

    Parameters
    ----------
    name : str
        A backbone of :func:`deeplab_v2`, ``efficientnet_lite0_unet`` and its siblings (see
        :mod:`saff.network.unet`), or ``package.module:factory``, where ``factory()`` gives
        a module as :class:`Network` describes it, its random numbers drawn from ``seed``.
    pretrained, weights, seed
        As for :func:`deeplab_v2`; a network of your own finds its own weights.  ``weights`` may be
        ``"shipped"``: all of the network that comes with saff.

    Returns
    -------
    network : Network
        In training mode.

    Raises
    ------
    SettingsError
        If there is no such network, or it lacks an attribute; its subclass WeightsError if weights
        cannot be had.
    """
    if ":" in name and weights not in (None, SHIPPED):
        raise SettingsError(
            f"network {name!r} finds its own weights; set training.network_weights to null"
        )
    if weights == SHIPPED and ":" not in name:
        from saff.network.shipped import start_from_shipped

        return cast(Network, channels_last(start_from_shipped(name)))
    known: dict[str, Callable[[], Any]] = {
        backbone: partial(deeplab_v2, backbone, pretrained=pretrained, weights=weights, seed=seed)
        for backbone in BACKBONES
    }
    known |= {u: partial(_unet, u, pretrained=pretrained, weights=weights) for u in UNETS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = backends.load("network", name, known)
    missing = [a for a in ("mean", "std", "multiple", "head") if not hasattr(network, a)]
    if missing or not isinstance(network, nn.Module):
        what = f"without {', '.join(missing)}" if missing else "that is no torch.nn.Module"
        raise SettingsError(
            f"network {name!r} gave a {type(network).__name__} {what}; see saff.network.Network"
        )
    return cast(Network, channels_last(network))
