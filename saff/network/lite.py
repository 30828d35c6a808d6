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
from saff.backbones.efficientnet_lite import EfficientNetLite, Stages
from saff.network.base import Network
from saff.network.dropout import SampleDropout

NAME = "efficientnet_lite0"
FIRST_LEVEL = 2  # stage 3 is the last of stride 8
CHANNELS = (40, 80, 112, 192, 320)  # of stages 3 to 7
WIDTH = 128
DILATIONS = (1, 3, 6)
DROPOUT = 0.1


class LiteTrunk(Stages):
    """Stages 1 to 7 of EfficientNet-Lite0; parameter names are those of its weight file."""

    def __init__(self, network: EfficientNetLite) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = network._conv_stem, network._bn0
        self._blocks = network._blocks
        self.stage_ends = network.stage_ends

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of stages 3 (stride 8), 4, 5 (16), 6 and 7 (32)."""
        return self.run_stages(x)[FIRST_LEVEL:]


class LiteHead(nn.Module):
    """What is learnt anew: levels to class scores at stride 8."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(channels, WIDTH, 1) for channels in CHANNELS])
        self.branches = nn.ModuleList([_separable(dilation) for dilation in DILATIONS])
        self.dropout = SampleDropout(DROPOUT, whole_channels=True)
        self.mix = _separable(1)
        self.score = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels, finest first, to logits in the size of the first."""
        fine, *coarse = [lateral(x) for lateral, x in zip(self.lateral, levels, strict=True)]
        y = sum(_resize(x, coarse[0]) for x in coarse)
        y = relu(cast(Tensor, y))
        y = y + sum(branch(y) for branch in self.branches)
        return cast(Tensor, self.score(self.mix(_resize(self.dropout(y), fine) + fine)))


class LiteDeepLab(Network):
    """Trunk and head.

    Parameters
    ----------
    trunk : LiteTrunk
        Image to levels.
    head : LiteHead
        Levels to logits.
    """

    mean, std = efficientnet_lite.MEAN, efficientnet_lite.STD
    multiple = 32

    def __init__(self, trunk: LiteTrunk, head: LiteHead) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> Tensor:
        """Float (N, 3, H, W), sides multiples of 32, to logits (N, classes, H/8, W/8)."""
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


def efficientnet_lite0(classes: int, *, pretrained: bool, weights: str | None) -> LiteDeepLab:
    """Make the network that CPUs can train; see :func:`saff.network.deeplab_v2`."""
    if pretrained or weights:
        network, _ = efficientnet_lite.load(NAME, weights)
    else:
        network = EfficientNetLite(NAME)
    return LiteDeepLab(LiteTrunk(network), LiteHead(classes))


def _separable(dilation: int) -> nn.Sequential:
    """Depthwise 3x3, then 1x1."""
    return nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation, groups=WIDTH),
        nn.Conv2d(WIDTH, WIDTH, 1),
        nn.ReLU(inplace=True),
    )


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
