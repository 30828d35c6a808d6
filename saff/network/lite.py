"""A DeepLab for two CPU cores: EfficientNet-Lite0 with a dilated pyramid and a finer last step.

Its trunk keeps the stride of 32 that it was trained with.  Its levels are brought to one width and
added at stride 16, branches of different dilation look at the sum, and a level of stride 8 joins
before the scores.  That costs a fifth of dilating the trunk itself, as VGG-16 is.
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from saff.backbones import efficientnet_lite
from saff.backbones.efficientnet_lite import Trunk
from saff.network.base import Network
from saff.network.dropout import SampleDropout

FIRST_LEVEL = 2  # stage 3 is the last of stride 8
WIDTH = 128
DILATIONS = (1, 3, 6)
DROPOUT = 0.1


class LiteNetwork(Network):
    """A trunk that is an EfficientNet-Lite, and a head.

    Parameters
    ----------
    trunk : Trunk
        Image to levels.
    head : torch.nn.Module
        Levels to logits, in the size of the first level.
    """

    mean, std = efficientnet_lite.MEAN, efficientnet_lite.STD
    multiple = 32

    def __init__(self, trunk: Trunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> Tensor:
        """Float (N, 3, H, W), sides multiples of 32, to logits (N, classes, h, w)."""
        return cast(Tensor, self.head(self.trunk(x)))

    def stages(self) -> Sequence[nn.Module]:
        """The seven stages of the trunk, the stem with the first."""
        trunk = self.trunk
        blocks = list(trunk._blocks)
        starts = [0, *(end + 1 for end in trunk.stage_ends[:-1])]
        ends = [end + 1 for end in trunk.stage_ends]
        stages = [blocks[a:b] for a, b in zip(starts, ends, strict=True)]
        stages[0] = [trunk._conv_stem, trunk._bn0, *stages[0]]
        return [nn.ModuleList(stage) for stage in stages]


class LiteHead(nn.Module):
    """The layers that start from random numbers: levels to class scores at stride 8."""

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(depth, WIDTH, 1) for depth in channels])
        self.branches = nn.ModuleList([_separable(dilation) for dilation in DILATIONS])
        self.dropout = SampleDropout(DROPOUT, whole_channels=True)
        self.mix = _separable(1)
        self.score = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels, finest first, to logits in the size of the first."""
        fine, *coarse = [lateral(x) for lateral, x in zip(self.lateral, levels, strict=True)]
        y = sum(resize_like(x, coarse[0]) for x in coarse)
        y = relu(cast(Tensor, y))
        y = y + sum(branch(y) for branch in self.branches)
        return cast(Tensor, self.score(self.mix(resize_like(self.dropout(y), fine) + fine)))


class LiteDeepLab(LiteNetwork):
    """Logits at an eighth of the size of the image."""


def efficientnet_lite0(classes: int, *, pretrained: bool, weights: str | None) -> LiteDeepLab:
    """Make the network that CPUs can train; see :func:`saff.network.deeplab_v2`."""
    trunk = efficientnet_lite.load_trunk(
        "efficientnet_lite0", FIRST_LEVEL, pretrained=pretrained, weights=weights
    )
    return LiteDeepLab(trunk, LiteHead(trunk.channels, classes))


def _separable(dilation: int) -> nn.Sequential:
    """Depthwise 3x3, then 1x1."""
    return nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation, groups=WIDTH),
        nn.Conv2d(WIDTH, WIDTH, 1),
        nn.ReLU(inplace=True),
    )


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """Bring features to the size of others, bilinearly."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
