"""From the pixels of images to the input of a network."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from saff.arrays import AnyArray


class Normalisation(Protocol):
    """A network, or what holds one, and the statistics of the images that it was trained with.

    Attributes
    ----------
    mean, std : sequence of float
        Three numbers or one, of RGB 0..255: the input is ``(image - mean) / std``.
    """

    @property
    def mean(self) -> Sequence[float]: ...  # noqa: D102

    @property
    def std(self) -> Sequence[float]: ...  # noqa: D102


def to_input(
    images: AnyArray, network: Normalisation, device: torch.device | str = "cpu"
) -> Tensor:
    """Normalise images: uint8 (N, H, W, 3) RGB to float32 (N, 3, H, W) on a device.

    The channels stay last in memory, which CPUs prefer.
    """
    copied = np.array(images, order="C")  # torch takes no array that is read-only or reversed
    pixels = torch.from_numpy(copied).to(device, non_blocking=True)
    mean, std = (torch.tensor(v, device=device) for v in (network.mean, network.std))
    normalised: Tensor = ((pixels.float() - mean) / std).permute(0, 3, 1, 2)
    return normalised
