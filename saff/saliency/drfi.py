"""DRFI: saliency of regions at many levels, learnt from their features.

References
----------
Jiang, Wang, Yuan, Wu, Zheng and Li, Salient object detection: a discriminative regional feature
integration approach, CVPR 2013; Wang et al., IJCV 2017.
"""

from typing import NamedTuple

import cv2
import numpy as np

from saff.arrays import AnyArray, Features, Image, LabelMap, PixelMap
from saff.encoding import min_max_normalise
from saff.errors import WeightsError
from saff.modelfile import Model, read_model, shipped
from saff.resize import resize, shrink
from saff.saliency.descriptors import FEATURES, collect, describe
from saff.saliency.hierarchy import Hierarchy, join
from saff.saliency.trees import from_arrays
from saff.superpixels import neighbours, region_means, slic

KIND = "saff saliency 1"
SIDE = 320  # longer images are shrunk to this many pixels
LEVELS = np.array([250, 199, 158, 125, 100, 79, 63, 50, 40, 32, 25, 20, 16, 13, 10])


class Regions(NamedTuple):
    """An image cut at all levels.

    Attributes
    ----------
    superpixels : int32 array of shape (h, w)
        Superpixels of the shrunk image, labels 0 .. R-1.
    hierarchy : Hierarchy
        Which regions each superpixel belongs to.
    features : float32 array of shape (M, 93)
        Features of each region.
    """

    superpixels: LabelMap
    hierarchy: Hierarchy
    features: AnyArray


def cut(image: Image) -> Regions:
    """Cut an image at all levels and describe the regions: uint8 (H, W, 3) RGB to Regions."""
    image = shrink(image, SIDE)
    superpixels = slic(image, int(LEVELS[0]))
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    colour = region_means(np.moveaxis(lab, 2, 0), superpixels)
    hierarchy = join(colour, neighbours(superpixels), LEVELS)
    return Regions(superpixels, hierarchy, describe(collect(image, superpixels), hierarchy))


class Drfi:
    """Saliency by a regressor over region features.

    Parameters
    ----------
    model : Model
        Trees over 93 features, and ``fusion``: the weight of each level.
    """

    def __init__(self, model: Model) -> None:
        self.trees = from_arrays(model.arrays, FEATURES, model.source)
        fusion = model.arrays.get("fusion", np.zeros(0))
        if fusion.shape != LEVELS.shape or not np.isfinite(fusion).all():
            raise WeightsError(f"{model.source} has no weight for each of {LEVELS.size} levels")
        self.fusion = fusion.astype(np.float64)
        self.digest = model.digest

    def __call__(self, image: Image) -> PixelMap:
        """Saliency: uint8 (H, W, 3) RGB to float32 (H, W) in [0, 1]."""
        if (image == image[0, 0]).all():  # one colour: nothing stands out
            return np.zeros(image.shape[:2], np.float32)
        regions = cut(image)
        saliency = fuse(score(self.trees(regions.features), regions.hierarchy), self.fusion)
        small = min_max_normalise(saliency).astype(np.float32)[regions.superpixels]
        clipped: PixelMap = np.clip(resize(small, image.shape[:2]), 0.0, 1.0)
        return clipped


def score(logits: AnyArray, hierarchy: Hierarchy) -> Features:
    """Probability that a superpixel is salient, as each level sees it: (M,) to (R, L)."""
    probability = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    levels: Features = probability[hierarchy.member]
    return levels


def fuse(levels: AnyArray, fusion: AnyArray) -> Features:
    """Weighted mean of the levels: (R, L), (L,) to (R,)."""
    fused: Features = levels @ fusion
    return fused


def shipped_drfi() -> Drfi:
    """Load the model that comes with the package."""
    return Drfi(read_model(shipped("saliency"), KIND))
