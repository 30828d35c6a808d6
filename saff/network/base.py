"""The attributes that every network for segmentation has."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from saff.errors import SettingsError


class Network(nn.Module):
    """Maps float (N, 3, H, W) to logits (N, classes, h, w).

    A network of your own need not derive from it; it needs the attributes, and ``stages`` only if
    some are to be frozen.

    Attributes
    ----------
    mean, std : tuple of float
        Three numbers or one, of RGB 0..255: the input is ``(image - mean) / std``.
    multiple : int
        Sides of images to infer are brought to multiples of it.
    head : torch.nn.Module
        The layers that start from random numbers; they learn faster.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    multiple: int
    head: nn.Module

    def stages(self) -> Sequence[nn.Module]:
        """Give the stages of the trunk that can be frozen, in order of execution."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Network":
        """Switch to training; batch normalisations stay as they are: a batch is too small."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def freeze(network: nn.Module, count: int) -> None:
    """Keep the first ``count`` stages of a network's trunk as they are.

    Raises
    ------
    SettingsError
        If it has no or fewer stages.
    """
    if not count:
        return
    stages: Sequence[nn.Module] = getattr(network, "stages", tuple)()
    if count > len(stages):
        raise SettingsError(
            f"training.frozen_stages must be at most {len(stages)} for a "
            f"{type(network).__name__}, got {count}"
        )
    for stage in stages[:count]:
        stage.requires_grad_(False)


def channels_last(network: nn.Module) -> nn.Module:
    """Store weights with the channels last; CPUs then compute two and a half times as fast."""
    return cast(nn.Module, network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
