"""Edge maps against boundaries that people drew: the standard measure of BSDS500.

Detections are thinned to one pixel, as the drawn lines are, and matched one to one: a detected
pixel is right if it is paired with a drawn one at most .0075 of the image diagonal away.  Lines of
any annotator make a detection right; recall counts the lines of each of them.

References
----------
Martin, Fowlkes and Malik, Learning to detect natural image boundaries using local brightness,
color, and texture cues, PAMI 2004; Arbelaez et al., Contour detection and hierarchical image
segmentation, PAMI 2011.
"""

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from scipy.spatial import KDTree
from skimage.morphology import thin

from saff.arrays import AnyArray, PixelMap

TOLERANCE = 0.0075  # of the diagonal
THRESHOLDS = 49
ORIENTATION_SIGMA = 2.0  # pixels
KEEP = 1.01  # a pixel stays if it is above its neighbours across the edge by less than 1 % short


class MatchCounts(NamedTuple):
    """What was counted at each threshold: int64 arrays of shape (T,), or (N, T) for N images.

    Attributes
    ----------
    right, detected : arrays
        Detected pixels that match an annotator's boundary, and all.
    found, drawn : arrays
        Boundary pixels that a detection matches, and all, over the annotators.
    """

    right: AnyArray
    detected: AnyArray
    found: AnyArray
    drawn: AnyArray


class Scores(NamedTuple):
    """F-measures of boundaries.

    Attributes
    ----------
    ods, threshold : float
        Best F with one threshold for all images, and that threshold.
    ois : float
        F with the best threshold of each image.
    precision, recall : float64 arrays of shape (T,)
        At each threshold, over all images.
    """

    ods: float
    threshold: float
    ois: float
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def suppress(edges: PixelMap) -> PixelMap:
    """Keep edge strength on the crest of each edge alone: float32 (H, W) to the same.

    A pixel stays if neither neighbour across the edge, one pixel away, is stronger.  The direction
    is that of the curvature of the smoothed map.
    """
    if min(edges.shape) < 2:  # a line of pixels has no direction
        return edges
    smooth = cv2.GaussianBlur(edges, (0, 0), ORIENTATION_SIGMA)
    down, across = np.gradient(smooth)
    (yy, xy), xx = np.gradient(down), np.gradient(across, axis=1)
    # The direction in which the map bends most, on the crest and on its flanks: the eigenvector of
    # the Hessian's eigenvalue of largest size, which is the lower one where their sum is negative.
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.where(xx + yy < 0, np.pi / 2, 0.0)
    rows, columns = np.mgrid[: edges.shape[0], : edges.shape[1]].astype(np.float32)
    dx, dy = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    keep = np.ones(edges.shape, dtype=bool)
    for sign in (-1, 1):
        neighbour = cv2.remap(
            edges,
            columns + sign * dx,
            rows + sign * dy,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        keep &= edges * KEEP >= neighbour
    crest: PixelMap = np.where(keep, edges, np.float32(0))
    return crest


def match(detected: AnyArray, drawn: AnyArray, tolerance: float) -> tuple[AnyArray, AnyArray]:
    """Pair detected and drawn pixels one to one, as many as possible.

    Parameters
    ----------
    detected, drawn : bool arrays of shape (H, W)
        Thin boundaries.
    tolerance : float
        Greatest distance of a pair, in pixels.

    Returns
    -------
    right, found : bool arrays of shape (H, W)
        The detected and the drawn pixels that have a partner.
    """
    sources, targets = np.argwhere(detected), np.argwhere(drawn)
    if not len(sources) or not len(targets):
        return np.zeros_like(detected), np.zeros_like(drawn)
    near = KDTree(sources).sparse_distance_matrix(
        KDTree(targets), tolerance, output_type="coo_matrix"
    )
    first, second = near.row, near.col
    # As a flow of one unit a pixel: SciPy's Dinic is a hundred times as fast here as its matching.
    d, t = len(sources), len(targets)
    tails = np.concatenate([np.full(d, d + t), first, d + np.arange(t)])
    heads = np.concatenate([np.arange(d), d + second, np.full(t, d + t + 1)])
    ones = np.ones(tails.size, np.int32)
    network = csr_array((ones, (tails, heads)), shape=(d + t + 2, d + t + 2))
    flow = maximum_flow(network, d + t, d + t + 1).flow[:d, d : d + t].tocoo()
    paired = flow.data > 0
    pairs = flow.row[paired], flow.col[paired]
    right, found = np.zeros_like(detected), np.zeros_like(drawn)
    right[tuple(sources[pairs[0]].T)] = True
    found[tuple(targets[pairs[1]].T)] = True
    return right, found


def count_matches(
    edges: PixelMap, annotations: Iterable[AnyArray], thresholds: int = THRESHOLDS
) -> MatchCounts:
    """Count right and wrong boundary pixels of one image at thresholds between 0 and 1.

    Parameters
    ----------
    edges : float32 array of shape (H, W)
        Edge map in [0, 1], thick as it is.
    annotations : iterable of bool arrays of shape (H, W)
        Boundaries of each annotator.
    thresholds : int
        T; the thresholds are ``k / (T + 1)``, k from 1 to T.

    Returns
    -------
    counts : MatchCounts
        Arrays of shape (T,).

    Raises
    ------
    ValueError
        If the shapes disagree or there is no annotation.
    """
    people = [np.asarray(boundary, dtype=bool) for boundary in annotations]
    if not people or any(boundary.shape != edges.shape for boundary in people):
        shapes = [boundary.shape for boundary in people]
        raise ValueError(f"annotations must be at least one of {edges.shape}, got {shapes}")
    crest = suppress(edges)
    tolerance = TOLERANCE * float(np.hypot(*edges.shape))
    counts = np.zeros((4, thresholds), dtype=np.int64)
    for index in range(thresholds):
        detected: AnyArray = thin(  # type: ignore[no-untyped-call]
            crest >= (index + 1) / (thresholds + 1)
        )
        right = np.zeros_like(detected)
        for boundary in people:
            paired, found = match(detected, boundary, tolerance)
            right |= paired
            counts[2:, index] += found.sum(), boundary.sum()
        counts[:2, index] = right.sum(), detected.sum()
    return MatchCounts(*counts)


def summarise(counts: MatchCounts) -> Scores:
    """Sum up many images: counts of shape (N, T) to their scores."""
    totals = MatchCounts(*(np.asarray(c).sum(axis=0) for c in counts))
    precision, recall, f = _f(totals)
    each = _f(counts)[2].argmax(axis=1)
    best = MatchCounts(*(c[np.arange(len(each)), each].sum(keepdims=True) for c in counts))
    top = int(f.argmax())
    return Scores(float(f[top]), (top + 1) / (f.size + 1), float(_f(best)[2][0]), precision, recall)


def _f(counts: MatchCounts) -> tuple[AnyArray, AnyArray, AnyArray]:
    precision = counts.right / np.maximum(counts.detected, 1)
    recall = counts.found / np.maximum(counts.drawn, 1)
    return precision, recall, 2 * precision * recall / np.maximum(precision + recall, 1e-12)
