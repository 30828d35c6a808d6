"""A U-shaped network for CPUs: EfficientNet-Lite and a decoder up to a quarter of the image's size.

The trunk keeps the stride of 32 that it was trained with.  Its levels are brought to one width; the
two coarsest are added and seen through three dilations and as a whole; then each finer level is
added on the way up, followed by a separable convolution.  DeepLab-v2 stops at an eighth of the
size, where thin limbs are lost.
"""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import relu

from saff.backbones import efficientnet_lite
from saff.backbones.convolutions import FusedConv2d
from saff.network.base import channels_last
from saff.network.lite import LiteNetwork, resize_like

FIRST_LEVEL = 1  # stage 2 is the last of stride 4
WIDTH = 96
DILATIONS = (1, 3, 6)


class UHead(nn.Module):
    """The layers that start from random numbers: levels to class scores at stride 4.

    Parameters
    ----------
    channels : sequence of int
        Channels of the six levels, finest first.
    classes : int
        Scores of a cell.
    """

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([_pointwise(c) for c in channels])
        self.branches = nn.ModuleList([_separable(dilation) for dilation in DILATIONS])
        self.whole: nn.Module = nn.Conv2d(WIDTH, WIDTH, 1)
        self.up = nn.ModuleList([_separable(1) for _ in range(3)])  # strides 16, 8, 4
        self.score: nn.Module = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels, finest first, to logits in the size of the first."""
        four, eight, sixteen, sixteen_b, coarse, coarsest = [
            lateral(x) for lateral, x in zip(self.lateral, levels, strict=True)
        ]
        y = relu(coarse + coarsest)
        seen = [branch(y) for branch in self.branches]
        y = y + seen[0] + seen[1] + seen[2] + self.whole(y.mean((2, 3), keepdim=True))
        for mix, level in zip(self.up, (sixteen + sixteen_b, eight, four), strict=True):
            y = mix(relu(resize_like(y, level) + level))
        return cast(Tensor, self.score(y))


class LiteUNet(LiteNetwork):
    """Logits at a quarter of the size of the image."""


def lite_unet(name: str, classes: int, *, pretrained: bool, weights: str | None) -> LiteUNet:
    """Make the network of a name in ``saff.network.UNETS``; see :func:`saff.network.load`."""
    trunk = efficientnet_lite.load_trunk(
        name.removesuffix("_unet"), FIRST_LEVEL, pretrained=pretrained, weights=weights
    )
    return LiteUNet(trunk, UHead(trunk.channels, classes))


def fuse_network(network: LiteUNet) -> None:
    """Make each convolution one layer with its normalisation and activation, for inference."""
    efficientnet_lite.fuse_layers(network.trunk)
    head = cast(UHead, network.head)
    head.lateral = nn.ModuleList([FusedConv2d(*layers) for layers in _layers(head.lateral)])
    head.branches, head.up = (
        nn.ModuleList(
            [
                nn.Sequential(FusedConv2d(depthwise), FusedConv2d(pointwise, norm, "relu"))
                for depthwise, pointwise, norm, _ in _layers(separable)
            ]
        )
        for separable in (head.branches, head.up)
    )
    for name in ("whole", "score"):
        setattr(head, name, FusedConv2d(getattr(head, name)))
    channels_last(network)


def _layers(sequences: nn.ModuleList) -> list[list[Any]]:
    return [list(cast(nn.Sequential, sequence)) for sequence in sequences]


def _pointwise(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))


def _separable(dilation: int) -> nn.Sequential:
    """Depthwise 3x3, then 1x1, normalised."""
    return nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation, groups=WIDTH, bias=False),
        nn.Conv2d(WIDTH, WIDTH, 1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(inplace=True),
    )
