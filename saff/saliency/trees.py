"""Boosted regression trees as arrays: small, checked, and evaluated for all regions at once."""

from dataclasses import dataclass

import numpy as np

from saff.arrays import AnyArray
from saff.errors import WeightsError
from saff.modelfile import Arrays

MOST_TREES, MOST_NODES, DEEPEST = 10_000, 4096, 64
FIELDS = {"feature": "i", "threshold": "f", "left": "i", "right": "i", "value": "f"}


@dataclass(frozen=True, slots=True)
class Trees:
    """A sum of trees.

    A leaf points to itself on both sides, so every tree can be walked the same number of steps.

    Attributes
    ----------
    feature : int array of shape (T, N)
        Column that a node asks for.
    threshold : float32 array of shape (T, N)
        A value at most this goes left.
    left, right : int arrays of shape (T, N)
        Nodes of the same tree; the root is 0.
    value : float32 array of shape (T, N)
        Value of a leaf; 0 elsewhere.
    depth : int
        Steps from the root to the deepest leaf.
    """

    feature: AnyArray
    threshold: AnyArray
    left: AnyArray
    right: AnyArray
    value: AnyArray
    depth: int

    def __call__(self, features: AnyArray) -> AnyArray:
        """Sum of the leaves that each row ends in: float32 (M, F) to float32 (M,)."""
        trees, nodes = self.feature.shape
        first = (np.arange(trees) * nodes)[None]  # nodes of all trees in one numbering
        feature, threshold = self.feature.ravel(), self.threshold.ravel()
        left, right = ((side + first.T).ravel() for side in (self.left, self.right))
        rows = np.arange(len(features))[:, None] * features.shape[1]
        values = np.ascontiguousarray(features, dtype=np.float32).ravel()
        node = np.broadcast_to(first, (len(features), trees))
        for _ in range(self.depth):
            goes_left = values[rows + feature[node]] <= threshold[node]
            node = np.where(goes_left, left[node], right[node])
        total: AnyArray = self.value.ravel()[node].sum(axis=1, dtype=np.float32)
        return total


def from_arrays(arrays: Arrays, columns: int, source: str) -> Trees:
    """Make trees of the arrays of a file, after checking that no walk leaves them.

    Raises
    ------
    WeightsError
        If an array is missing or of another type, a node does not exist, or a walk has no end.
    """
    shape = arrays["feature"].shape if "feature" in arrays else ()
    sound = len(shape) == 2 and all(
        name in arrays and arrays[name].dtype.kind == kind and arrays[name].shape == shape
        for name, kind in FIELDS.items()
    )
    if not sound or not (1 <= shape[0] <= MOST_TREES and 1 <= shape[1] <= MOST_NODES):
        raise WeightsError(
            f"{source} does not hold trees: expected (T, N) arrays {[*FIELDS]}, T at most "
            f"{MOST_TREES} and N at most {MOST_NODES}"
        )
    feature, left, right = (arrays[name].astype(np.int64) for name in ("feature", "left", "right"))
    inside = all(((a >= 0) & (a < shape[1])).all() for a in (left, right))
    inside = inside and bool(((feature >= 0) & (feature < columns)).all())
    with np.errstate(over="ignore"):
        threshold, value = (arrays[name].astype(np.float32) for name in ("threshold", "value"))
    finite = np.isfinite(threshold).all() and np.isfinite(value).all()
    here = np.arange(shape[1])
    leaf = (left == here) & (right == here)
    if not inside or not finite or not (leaf | ((left > here) & (right > here))).all():
        raise WeightsError(f"{source} holds trees whose branches lead to no leaf: it is damaged")
    # Children come after their node, so walks end; the longest of them:
    depth = np.zeros(shape, dtype=np.int64)
    tree = np.arange(shape[0])
    for node in range(shape[1]):
        inner = ~leaf[:, node]
        for side in (left, right):
            child = side[:, node]
            deeper = np.where(inner, depth[:, node] + 1, depth[tree, child])
            depth[tree, child] = np.maximum(depth[tree, child], deeper)
    if depth.max() > DEEPEST:
        raise WeightsError(f"{source} holds a tree of depth {depth.max()}, at most {DEEPEST}")
    return Trees(feature, threshold, left, right, value, int(depth.max()))
