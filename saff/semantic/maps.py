"""What a semantic encoder gives."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from saff.arrays import Image


@dataclass(frozen=True, slots=True)
class SemanticMaps:
    """Dense class scores and features of one image, on coarse grids that cover it evenly.

    Attributes
    ----------
    scores : float32 array of shape (K, h, w)
        Class scores (logits) of each grid cell: class activation maps.  K may be 0: an encoder that
        was trained without classes.
    levels : tuple of float32 arrays, each of shape (D, h, w)
        Feature maps of several depths, from local to semantic; sizes differ.  May be empty: then
        only class scores can be used.
    attention : float32 array of shape (h, w), optional
        How much of the image's own token lies on each cell, of a transformer.
    """

    scores: NDArray[np.float32]
    levels: tuple[NDArray[np.float32], ...] = ()
    attention: NDArray[np.float32] | None = None


class Encoder(Protocol):
    """What a semantic back end is."""

    def __call__(self, image: Image, /) -> SemanticMaps:
        """Encode an image: uint8 (H, W, 3) to its semantic maps."""
