"""Dropout that depends on the sample, not on its batch, its place in it or its worker."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SampleDropout(nn.Module):
    """Set features to zero at random, by a key of each sample.

    The same sample at the same step loses the same features whether one worker trains or eight,
    and whether training was interrupted or not.

    Parameters
    ----------
    probability : float
        That a feature is lost; in [0, 1).
    whole_channels : bool
        Lose a channel everywhere rather than single values.
    """

    def __init__(self, probability: float, *, whole_channels: bool = False) -> None:
        super().__init__()
        self.probability = probability
        self.whole_channels = whole_channels
        self.layer = 0  # its number among those of the network, so that their masks differ
        self.keys: Sequence[int] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Float (N, ...) to the same; unchanged in evaluation."""
        if not self.training or not self.probability:
            return x
        if len(self.keys) != len(x):
            raise ValueError(
                f"expected a key for each of {len(x)} samples, got {len(self.keys)}; call "
                "set_keys(network, keys) before each training step"
            )
        kept = 1 - self.probability
        shape = (x.shape[1], 1, 1) if self.whole_channels else x.shape[1:]
        masks = [self._mask(key, shape, kept) for key in self.keys]
        return x * torch.stack(masks).to(x.device, x.dtype, non_blocking=True).div_(kept)

    def _mask(self, key: int, shape: Sequence[int], kept: float) -> Tensor:
        digest = hashlib.sha256(f"{key} {self.layer}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.rand(*shape, generator=generator) < kept

    def extra_repr(self) -> str:
        """What ``print(network)`` shows."""
        return f"probability={self.probability}"


def set_keys(network: nn.Module, keys: Sequence[int]) -> None:
    """Give every :class:`SampleDropout` of a network the keys of the samples of the next batch."""
    layers = (m for m in network.modules() if isinstance(m, SampleDropout))
    for number, layer in enumerate(layers):
        layer.layer, layer.keys = number, keys
