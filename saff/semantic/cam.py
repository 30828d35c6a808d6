"""Class activation mapping: any classifier with global pooling and a linear head, made dense.

Because pooling and the head are linear, the head applied to every cell of the last feature map
gives class scores whose mean over the cells is the classifier's own output.

References
----------
Zhou et al., Learning deep features for discriminative localization, CVPR 2016.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from saff.arrays import Image
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
        Of the input, in units of 0..255; one value or one per channel.
    side : int
        Longer side of the encoder's input in pixels; the shorter keeps the aspect ratio.
    multiple : int
        Both input sides are rounded to a multiple of it.
    digest : str
        SHA-256 of the weights.
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
    ) -> None:
        self.trunk = trunk
        self.weight = head.weight.detach()[:, :, None, None]  # (K, D, 1, 1)
        self.bias = head.bias.detach()  # (K,)
        self.mean = np.asarray(mean, dtype=np.float32)
        self.std = np.asarray(std, dtype=np.float32)
        self.side = side
        self.multiple = multiple
        self.digest = digest

    def __call__(self, image: Image) -> SemanticMaps:
        """Encode: uint8 (H, W, 3) RGB to scores (K, h, w) and feature levels."""
        shrunk = resize_to_multiple(image, self.side, self.multiple)
        values = (shrunk.astype(np.float32) - self.mean) / self.std
        with torch.inference_mode():
            levels = self.trunk(torch.from_numpy(values).permute(2, 0, 1)[None])
            scores = nn.functional.conv2d(levels[-1], self.weight, self.bias)
        return SemanticMaps(scores[0].numpy(), tuple(level[0].numpy() for level in levels))


def resize_to_multiple(image: Image, side: int, multiple: int) -> Image:
    """Resize so that the longer side is about ``side`` and both are multiples of ``multiple``.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
        RGB.
    side, multiple : int
        In pixels; no side gets shorter than one ``multiple``.

    Returns
    -------
    resized : uint8 array of shape (H', W', 3)
        The aspect ratio is kept up to the rounding.
    """
    factor = side / max(image.shape[:2])
    height, width = (max(1, round(n * factor / multiple)) * multiple for n in image.shape[:2])
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=method)
    return np.asarray(resized, dtype=np.uint8)
