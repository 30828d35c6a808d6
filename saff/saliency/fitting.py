"""Fitting the regressor of DRFI to images with masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from saff.arrays import AnyArray, Features, Image, LabelMap
from saff.encoding import min_max_normalise
from saff.errors import SettingsError
from saff.metrics import Evaluation
from saff.quality import to_levels
from saff.resize import resize
from saff.saliency.descriptors import FEATURES
from saff.saliency.drfi import LEVELS, cut, fuse, score
from saff.saliency.hierarchy import Hierarchy
from saff.saliency.trees import Trees, from_arrays


@dataclass(frozen=True, slots=True)
class Boosting:
    """How the trees are grown; see LightGBM's parameters."""

    trees: int = 250
    leaves: int = 31
    depth: int = 8
    rate: float = 0.08
    smallest_leaf: int = 100
    """Regions."""
    feature_share: float = 0.4
    """Share of the features that each tree sees, drawn at random."""
    region_share: float = 0.5
    """Share of the regions that each tree sees, drawn at random."""
    sure: float = 0.8
    """Share of a region's pixels that must be on one side; mixed regions teach nothing."""
    seed: int = 0


class Example(NamedTuple):
    """One image to learn from.

    Attributes
    ----------
    superpixels : int32 array of shape (h, w)
        Superpixels of the shrunk image.
    hierarchy : Hierarchy
        Regions of all levels.
    features : float32 array of shape (M, 93)
        Features of each region.
    share : float64 array of shape (R,)
        Share of foreground among each superpixel's valid pixels; NaN if none is valid.
    area : float64 array of shape (R,)
        Valid pixels of each superpixel.
    """

    superpixels: LabelMap
    hierarchy: Hierarchy
    features: AnyArray
    share: Features
    area: Features


def make_example(image: Image, mask: AnyArray, valid: AnyArray) -> Example:
    """Cut and describe an image, and say how much of each superpixel is foreground.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
        RGB.
    mask, valid : bool arrays of shape (H, W)
        Foreground, and pixels that count.

    Raises
    ------
    ValueError
        If the shapes disagree.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask must be {image.shape[:2]}, the image's size, got {mask.shape}")
    regions = cut(image)
    labels = regions.superpixels.ravel()
    inside, counted = (
        np.bincount(
            labels,
            resize(m.astype(np.float32), regions.superpixels.shape, average=True).ravel(),
        )
        for m in (mask & valid, valid)
    )
    share = np.divide(inside, counted, out=np.full(len(inside), np.nan), where=counted > 0)
    return Example(*regions, np.clip(share, 0.0, 1.0), counted.astype(np.float64))


def targets(example: Example) -> tuple[AnyArray, AnyArray]:
    """Share of foreground and valid area of the regions of all levels: (M,) and (M,)."""
    member, size = example.hierarchy.member, len(example.hierarchy.level)
    repeated = member.shape[1]
    area = np.bincount(member.ravel(), np.repeat(example.area, repeated), size)
    inside = np.nan_to_num(example.share) * example.area
    share = np.bincount(member.ravel(), np.repeat(inside, repeated), size) / np.maximum(area, 1e-9)
    return share, area


def fit_trees(examples: Sequence[Example], boosting: Boosting) -> dict[str, AnyArray]:
    """Grow trees on the regions that lie on one side; arrays as :mod:`saff.saliency.trees` reads.

    Raises
    ------
    SettingsError
        If LightGBM is not installed, or the masks hold only one class.
    """
    try:
        import lightgbm
    except (ImportError, OSError) as error:  # OSError: its OpenMP library is missing
        raise SettingsError(
            f"fitting needs LightGBM, which cannot be imported ({error}); pip install 'saff[fit]'"
        ) from error
    features, labels, weights = [], [], []
    for example in examples:
        share, area = targets(example)
        sure = ((share >= boosting.sure) | (share <= 1 - boosting.sure)) & (area > 0)
        features.append(example.features[sure])
        labels.append(share[sure] >= 0.5)
        weights.append(np.sqrt(area[sure] / example.area.sum()))  # large regions are few
    target = np.concatenate(labels) if labels else np.zeros(0, bool)
    if not target.any() or target.all():
        raise SettingsError(
            f"{len(examples)} masks give {int(target.sum())} foreground regions of {target.size}; "
            "both classes are needed to learn from"
        )
    data = lightgbm.Dataset(
        np.concatenate(features), target.astype(np.float32), weight=np.concatenate(weights)
    )
    settings = {
        "objective": "binary",
        "boost_from_average": False,
        "num_leaves": boosting.leaves,
        "max_depth": boosting.depth,
        "learning_rate": boosting.rate,
        "min_data_in_leaf": boosting.smallest_leaf,
        "feature_fraction": boosting.feature_share,
        "bagging_fraction": boosting.region_share,
        "bagging_freq": 1,
        "lambda_l2": 5.0,
        "max_bin": 63,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": boosting.seed,
        "verbose": -1,
    }
    model = lightgbm.train(settings, data, boosting.trees).dump_model()
    return to_arrays([tree["tree_structure"] for tree in model["tree_info"]])


def to_arrays(roots: Sequence[dict[str, Any]]) -> dict[str, AnyArray]:
    """Lay trees, as LightGBM dumps them, out as arrays of shape (T, N)."""
    trees = [list(_nodes(root)) for root in roots]
    shape = len(trees), max(len(nodes) for nodes in trees)
    own = np.broadcast_to(np.arange(shape[1], dtype=np.int16), shape)
    arrays: dict[str, AnyArray] = {
        "feature": np.zeros(shape, np.int16),
        "threshold": np.zeros(shape, np.float32),
        "left": own.copy(),
        "right": own.copy(),
        "value": np.zeros(shape, np.float32),
    }
    for row, nodes in enumerate(trees):
        number = {id(node): index for index, node in enumerate(nodes)}
        for index, node in enumerate(nodes):
            if "leaf_value" in node:
                arrays["value"][row, index] = node["leaf_value"]
                continue
            arrays["feature"][row, index] = node["split_feature"]
            arrays["threshold"][row, index] = node["threshold"]
            for side in ("left", "right"):
                arrays[side][row, index] = number[id(node[f"{side}_child"])]
    return arrays


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    if "leaf_value" not in node:
        yield from _nodes(node["left_child"])
        yield from _nodes(node["right_child"])


def level_scores(trees: Trees, example: Example) -> Features:
    """What each level says of each superpixel: (R, L)."""
    return score(trees(example.features), example.hierarchy)


def fit_fusion(scores: Sequence[Features], examples: Sequence[Example]) -> Features:
    """Weights of the levels, (L,), at least 0 and of sum 1: least squares on held-out scores."""
    area = np.concatenate([e.area / e.area.sum() for e in examples])
    share = np.concatenate([e.share for e in examples])
    known = area > 0
    root = np.sqrt(area[known])
    design = np.concatenate(scores)[known] * root[:, None]
    weights: Features = nnls(design, share[known] * root)[0]
    return weights / weights.sum() if weights.any() else np.full(LEVELS.size, 1 / LEVELS.size)


def measure(
    scores: Features, fusion: AnyArray, example: Example, mask: AnyArray, valid: AnyArray
) -> Evaluation:
    """Measure one image: its map in the mask's size against the mask."""
    saliency = min_max_normalise(fuse(scores, fusion)).astype(np.float32)[example.superpixels]
    full = resize(saliency, mask.shape)
    evaluation = Evaluation(measures="f")
    evaluation.add(to_levels(np.clip(full, 0, 1)), mask, valid)
    return evaluation


def trees_of(arrays: dict[str, AnyArray]) -> Trees:
    """Trees that were just fitted."""
    return from_arrays(arrays, FEATURES, "the fitted model")
