"""DeepLab-v2 (Chen et al., TPAMI 2018) on VGG-16, as in the paper, and on ResNet-101.

The last two poolings lose their stride and the convolutions after them are dilated instead, so
that the map stays at an eighth of the input.  Four branches of different dilation read it
(atrous spatial pyramid pooling) and their class scores are added up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saff.checkpoints import WeightsFile, load_state, open_hub, open_weights
from saff.network.base import Network
from saff.network.dropout import SampleDropout
from saff.torchvision_import import models

VGG16_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # convolutions, channels
DILATIONS = (6, 12, 18, 24)
BRANCH_CHANNELS = 1024
DEVIATION = 0.01  # of the normal distribution that new layers start from


class DeepLabV2(Network):
    """Trunk, branches of different dilation, and one classifier for each branch.

    Parameters
    ----------
    trunk : torch.nn.Module
        Image to features at stride 8.
    branches : list of torch.nn.Module
        Features to features.
    head : list of torch.nn.Module
        For each branch its class scores.
    mean, std : tuple of float
        Of RGB 0..255: the input is ``(image - mean) / std``.
    """

    multiple = 8
    head: nn.ModuleList

    def __init__(
        self,
        trunk: nn.Module,
        branches: Sequence[nn.Module],
        head: Sequence[nn.Module],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self.head = nn.ModuleList(head)
        self.mean, self.std = mean, std

    def stages(self) -> Sequence[nn.Module]:
        """Blocks of VGG-16 between its poolings; stem and layers of ResNet-101."""
        layers = list(self.trunk.children())
        ends = [i for i, layer in enumerate(layers, 1) if _ends_stage(layer)]
        starts = [0, *ends[:-1]]
        return [nn.Sequential(*layers[a:b]) for a, b in zip(starts, ends, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """Float (N, 3, H, W) to logits (N, classes, H/8, W/8), sides rounded up."""
        features = self.trunk(x)
        scores = [
            head(branch(features)) for branch, head in zip(self.branches, self.head, strict=True)
        ]
        return torch.stack(scores).sum(0)


def vgg16(classes: int, *, pretrained: bool, weights: str | None) -> DeepLabV2:
    """The network of the paper: 37,799,752 parameters for two classes.

    See :func:`saff.network.deeplab_v2`.
    """
    trunk = _vgg16_trunk()
    published = models.VGG16_Weights.IMAGENET1K_FEATURES
    if pretrained or weights:
        load_state(
            trunk,
            _open(weights, "vgg16", published.url),
            drop=("classifier.",),
            rename=lambda entry: entry.removeprefix("features."),
        )
    branches = [
        nn.Sequential(
            nn.Conv2d(512, BRANCH_CHANNELS, 3, padding=dilation, dilation=dilation),  # fc6
            nn.ReLU(inplace=True),
            SampleDropout(0.5),
            nn.Conv2d(BRANCH_CHANNELS, BRANCH_CHANNELS, 1),  # fc7
            nn.ReLU(inplace=True),
            SampleDropout(0.5),
        )
        for dilation in DILATIONS
    ]
    for module in branches:
        for layer in module:
            if isinstance(layer, nn.Conv2d):
                _normal(layer)  # its input is in 0..255: larger numbers let the loss diverge
    head = [_normal(nn.Conv2d(BRANCH_CHANNELS, classes, 1)) for _ in DILATIONS]
    mean = tuple(255 * value for value in published.transforms().mean)
    return DeepLabV2(trunk, branches, head, mean, (1.0,))


def _vgg16_trunk() -> nn.Sequential:
    """VGG-16's convolutions with stride 8: pools 4 and 5 keep the size, conv5 is dilated by 2.

    The layers stand where torchvision has them, so that its weights fit by their names.
    """
    layers: list[nn.Module] = []
    channels = 3
    for block, (convolutions, out) in enumerate(VGG16_BLOCKS, start=1):
        dilation = 2 if block == 5 else 1
        for _ in range(convolutions):
            layers.append(nn.Conv2d(channels, out, 3, padding=dilation, dilation=dilation))
            layers.append(nn.ReLU(inplace=True))
            channels = out
        layers.append(nn.MaxPool2d(3, stride=2 if block <= 3 else 1, padding=1))
    return nn.Sequential(*layers)


def resnet101(classes: int, *, pretrained: bool, weights: str | None) -> DeepLabV2:
    """ResNet-101 at stride 8 with the pyramid of DeepLab-v2, a dilated convolution per branch.

    See :func:`saff.network.deeplab_v2`.
    """
    published = models.ResNet101_Weights.IMAGENET1K_V1
    network = models.resnet101(replace_stride_with_dilation=[False, True, True])
    if pretrained or weights:
        load_state(network, _open(weights, "resnet101", published.url))
    trunk = nn.Sequential(*list(network.children())[:-2])  # without pooling and classifier
    head = [
        _normal(nn.Conv2d(2048, classes, 3, padding=dilation, dilation=dilation))
        for dilation in DILATIONS
    ]
    preset = published.transforms()
    mean, std = (tuple(255 * value for value in values) for values in (preset.mean, preset.std))
    return DeepLabV2(trunk, [nn.Identity() for _ in DILATIONS], head, mean, std)


def _open(weights: str | None, name: str, url: str) -> WeightsFile:
    return open_weights(weights) if weights else open_hub(name, url, "training.network_weights")


def _ends_stage(layer: nn.Module) -> bool:
    return isinstance(layer, nn.MaxPool2d | nn.Sequential)


def _normal(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.normal_(layer.weight, std=DEVIATION)
    _zero(layer.bias)
    return layer


def _zero(bias: Tensor | None) -> None:
    assert bias is not None
    nn.init.zeros_(bias)
