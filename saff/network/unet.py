"""A U-shaped network for CPUs: EfficientNet-Lite and a decoder up to a quarter of the image's size.

The trunk keeps the stride of 32 that it was trained with.  Its levels are brought to one width; the
two coarsest are added and seen through three dilations and as a whole; then each finer level is
added on the way up, followed by a separable convolution.  DeepLab-v2 stops at an eighth of the
size, where thin limbs are lost.
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import interpolate, relu, relu6
from torch.nn.utils.fusion import fuse_conv_bn_eval

from saff.backbones import efficientnet_lite
from saff.backbones.efficientnet_lite import EfficientNetLite
from saff.network.base import Network

FIRST_LEVEL = 1  # stage 2 is the last of stride 4
WIDTH = 96
DILATIONS = (1, 3, 6)


class FineTrunk(nn.Module):
    """Stages 1 to 7 of EfficientNet-Lite; parameter names are those of its weight file."""

    def __init__(self, network: EfficientNetLite) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = network._conv_stem, network._bn0
        self._blocks = network._blocks
        self.stage_ends = network.stage_ends
        last_blocks = [network._blocks[end] for end in network.stage_ends[FIRST_LEVEL:]]
        self.channels = [cast(nn.Conv2d, b._project_conv).out_channels for b in last_blocks]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of stages 2 (stride 4), 3 (8), 4, 5 (16), 6 and 7 (32)."""
        x = relu6(self._bn0(self._conv_stem(x)), inplace=True)
        levels = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self.stage_ends[FIRST_LEVEL:]:
                levels.append(x)
        return levels


class UHead(nn.Module):
    """What is learnt anew: levels to class scores at stride 4.

    Parameters
    ----------
    channels : sequence of int
        Of the six levels, finest first.
    classes : int
        Scores of a cell.
    """

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([_pointwise(c) for c in channels])
        self.branches = nn.ModuleList([_separable(dilation) for dilation in DILATIONS])
        self.whole = nn.Conv2d(WIDTH, WIDTH, 1)
        self.up = nn.ModuleList([_separable(1) for _ in range(3)])  # strides 16, 8, 4
        self.score = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels, finest first, to logits in the size of the first."""
        four, eight, sixteen, sixteen_b, coarse, coarsest = [
            lateral(x) for lateral, x in zip(self.lateral, levels, strict=True)
        ]
        y = relu(coarse + coarsest)
        seen = [branch(y) for branch in self.branches]
        y = y + seen[0] + seen[1] + seen[2] + self.whole(y.mean((2, 3), keepdim=True))
        for mix, level in zip(self.up, (sixteen + sixteen_b, eight, four), strict=True):
            y = mix(relu(_resize(y, level) + level))
        return cast(Tensor, self.score(y))


class LiteUNet(Network):
    """Trunk and head.

    Parameters
    ----------
    trunk : FineTrunk
        Image to levels.
    head : UHead
        Levels to logits.
    """

    mean, std = efficientnet_lite.MEAN, efficientnet_lite.STD
    multiple = 32

    def __init__(self, trunk: FineTrunk, head: UHead) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> Tensor:
        """Float (N, 3, H, W), sides multiples of 32, to logits (N, classes, H/4, W/4)."""
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


def lite_unet(name: str, classes: int, *, pretrained: bool, weights: str | None) -> LiteUNet:
    """Make the network of a name in ``saff.network.UNETS``; see :func:`saff.network.load`."""
    trunk_name = name.removesuffix("_unet")
    if pretrained or weights:
        network, _ = efficientnet_lite.load(trunk_name, weights)
    else:
        network = EfficientNetLite(trunk_name)
    trunk = FineTrunk(network)
    return LiteUNet(trunk, UHead(trunk.channels, classes))


def fold_normalisations(network: LiteUNet) -> None:
    """Fold every batch normalisation into the convolution before it, for inference alone."""
    efficientnet_lite.fuse_layers(network.trunk)
    for module in network.head.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for place, layer in enumerate(module):
            if isinstance(layer, nn.BatchNorm2d):
                convolution = cast(nn.Conv2d, module[place - 1])
                module[place - 1] = fuse_conv_bn_eval(convolution, layer)
                module[place] = nn.Identity()


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


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
