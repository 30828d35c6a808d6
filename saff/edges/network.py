"""A small convolutional network for edges.

The first five stages of EfficientNet-Lite0, and a path back from the coarsest of them to half the
size of the image.  That edges want all depths of a classifier at once is Xie and Tu's idea
(Holistically-nested edge detection, ICCV 2015); here the levels are summed on the way up, which a
CPU can afford.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from saff.backbones.efficientnet_lite import MEAN, STD, EfficientNetLite, Stages

NAME = "efficientnet_lite0"
STAGES = 5  # of seven: what lies behind is larger than the rest together, and knows objects
CHANNELS = (16, 24, 40, 80, 112)  # of stages 1 to 5, at strides 2, 4, 8, 16 and 16
WIDTH = 32
MULTIPLE = 16


class EdgeNetwork(Stages):
    """Image to edge logits.

    Parameters
    ----------
    trunk : EfficientNetLite
        Its stem and first five stages are kept.
    """

    mean, std = MEAN, STD

    def __init__(self, trunk: EfficientNetLite) -> None:
        super().__init__()
        self.stage_ends = trunk.stage_ends[:STAGES]
        self._conv_stem, self._bn0 = trunk._conv_stem, trunk._bn0
        self._blocks = trunk._blocks[: self.stage_ends[-1] + 1]
        self.lateral = nn.ModuleList([nn.Conv2d(channels, WIDTH, 1) for channels in CHANNELS])
        self.mix = nn.ModuleList([_separable() for _ in range(4)])
        self.score = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Float (N, 3, H, W), sides multiples of 16, to logits (N, 1, H/2, W/2)."""
        levels = self.run_stages(x)
        fine, *rest = [lateral(x) for lateral, x in zip(self.lateral, levels, strict=True)]
        y = self.mix[3](relu(rest[3] + rest[2]))
        for mix, level in ((self.mix[2], rest[1]), (self.mix[1], rest[0]), (self.mix[0], fine)):
            y = mix(relu(_double(y) + level))
        return cast(Tensor, self.score(y))


def _separable() -> nn.Sequential:
    """Depthwise 3x3, then 1x1."""
    return nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
        nn.Conv2d(WIDTH, WIDTH, 1),
        nn.ReLU(inplace=True),
    )


def _double(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
