"""Class activation mapping: any classifier with global pooling and a linear head, made dense.

Because pooling and the head are linear, the head applied to every cell of the last feature map
gives class scores whose mean over the cells is the classifier's own output.

References
----------
Zhou et al., Learning deep features for discriminative localization, CVPR 2016.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from saff.arrays import Image
from saff.backbones import efficientnet_lite
from saff.backbones.inputs import to_input
from saff.resize import resize, size_in_multiples
from saff.semantic.maps import SemanticMaps


class CamEncoder:
    """A trunk with its linear head, and the preprocessing it was trained with.

    Parameters
    ----------
    trunk : callable
        Float (1, 3, h, w) to a list of feature maps, the last one that which the head was trained
        on; all in evaluation mode.
    head : torch.nn.Linear
        The classifier.
    mean, std : sequence of float
        Statistics of the input, in units of 0..255; one value or one per channel.
    side : int
        Longer side of the encoder's input in pixels; the shorter keeps the aspect ratio.
    multiple : int
        Both input sides are rounded to a multiple of it.
    digest : str
        SHA-256 of the weights.
    class_scores : bool
        Compute the class scores; without them ``scores`` holds no class.
    channels_last : bool
        The weights have their channels last, as CPUs prefer, and so has the input.
    """

    def __init__(
        self,
        trunk: Callable[[Tensor], list[Tensor]],
        head: nn.Linear,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        side: int,
        multiple: int = 32,
        digest: str = "",
        class_scores: bool = True,
        channels_last: bool = False,
    ) -> None:
        self.trunk = trunk
        classes = len(head.weight) if class_scores else 0
        self.weight = head.weight.detach()[:classes, :, None, None]  # (K, D, 1, 1)
        self.bias = head.bias.detach()[:classes]  # (K,)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.side = side
        self.multiple = multiple
        self.digest = digest
        self.channels_last = channels_last

    def __call__(self, image: Image) -> SemanticMaps:
        """Encode: uint8 (H, W, 3) RGB to scores (K, h, w) and feature levels."""
        resized = to_side(image, self.side, self.multiple)
        with torch.inference_mode():
            x = to_input(resized[None], self)  # channels last
            levels = self.trunk(x if self.channels_last else x.contiguous())
            scores = levels[-1][:, :0]  # of no class
            if len(self.weight):
                scores = nn.functional.conv2d(levels[-1], self.weight, self.bias)
        return SemanticMaps(scores[0].numpy(), tuple(level[0].numpy() for level in levels))


def to_side(image: Image, side: int, multiple: int) -> Image:
    """Resize so that the longer side is about ``side`` and both are multiples of ``multiple``.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
        RGB.
    side, multiple : int
        In pixels; no side gets shorter than one ``multiple``.
    """
    size = size_in_multiples(image.shape, side, multiple)
    return resize(image, size, average=side < max(image.shape[:2]))


def load_efficientnet_lite(
    name: str, *, side: int, weights: str | None = None, class_scores: bool = True
) -> CamEncoder:
    """Load an EfficientNet-Lite: five feature levels, 1000 class scores at stride 32.

    Parameters
    ----------
    name, weights
        As for :func:`saff.backbones.efficientnet_lite.load`.
    side : int
        Longer side of the input in pixels.
    class_scores : bool
        As for :class:`CamEncoder`.
    """
    network, sha256 = efficientnet_lite.load(name, weights)
    efficientnet_lite.fuse_layers(network.eval())
    mean, std = efficientnet_lite.MEAN, efficientnet_lite.STD
    return CamEncoder(
        network,
        network._fc,
        mean=mean,
        std=std,
        side=side,
        digest=sha256,
        class_scores=class_scores,
        channels_last=True,
    )


def load_torchvision(
    name: str, *, side: int, weights: str | None = None, class_scores: bool = True
) -> CamEncoder:
    """Load a torchvision classifier: the last map of each size, as many scores as its head gives.

    Parameters
    ----------
    name, weights
        As for :func:`saff.backbones.torchvision_classifier.load`.
    side : int
        Longer side of the input in pixels.
    class_scores : bool
        As for :class:`CamEncoder`.
    """
    from saff.backbones import torchvision_classifier  # its import takes as long as torch's own

    trunk, head, mean, std, sha256 = torchvision_classifier.load(name, weights)
    return CamEncoder(
        trunk, head, mean=mean, std=std, side=side, digest=sha256, class_scores=class_scores
    )
