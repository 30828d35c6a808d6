"""Maps and regions -> unary and context features: Eq. 1 to 4 of the paper."""

import math

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.distance import pdist, squareform

from saff.arrays import Adjacency, AnyArray, Features, Matrix

FLAT = 1e-12  # what float64 sums of values in [0, 1] may differ by when they are the same
NEGLIGIBLE = 1e-6  # share of a similarity that a sum over some hundred regions does not need
LIMITS = 8  # of the cost of paths: regions with borders of like strength have one in common
FLAT_COSINE = 1e-6  # the same for cosines of an encoder's float32 features


def class_vectors(scores: AnyArray, temperature: float) -> Features:
    """Turn class scores into the semantic vectors v_i: ``exp(s / T)``, the largest sum being 1.

    One divisor for the whole image, not one per region as a softmax has: a region that shows no
    class clearly keeps a short vector.

    Parameters
    ----------
    scores : float array of shape (R, K)
        Class scores (logits) of each region.
    temperature : float
        Above 0; larger is flatter.

    Returns
    -------
    vectors : float64 array of shape (R, K)
        Entries in [0, 1], rows sum to at most 1, so that Eq. 1 stays in [0, 1].

    Raises
    ------
    ValueError
        If the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    scaled = scores.astype(np.float64) / temperature
    exponent = np.exp(scaled - scaled.max())
    vectors: Features = exponent / exponent.sum(axis=1).max()
    return vectors


def semantic_similarity(vectors: AnyArray) -> Matrix:
    """How much of their classes two superpixels share: ``sum_k min(v_ik, v_jk)``, Eq. 1.

    Computed as ``(|v_i| + |v_j| - |v_i - v_j|) / 2`` with L1 norms, which equals the sum of minima
    and lets SciPy do the loop.

    Parameters
    ----------
    vectors : float array of shape (R, K)
        Semantic vectors, entries >= 0.

    Returns
    -------
    similarity : float64 array of shape (R, R)
        Symmetric; in [0, 1] where rows sum to at most 1.  The diagonal is the row's own sum.

    Raises
    ------
    ValueError
        If an entry is negative or not finite, or the array is not 2-d.
    """
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be (R, K), got shape {vectors.shape}")
    values = np.asarray(vectors, dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("vectors must be finite and not negative; normalise them first")
    mass = values.sum(axis=1)
    distance = squareform(pdist(values, "cityblock"), checks=False)
    similarity: Matrix = 0.5 * (mass[:, None] + mass[None, :] - distance)
    np.maximum(similarity, 0.0, out=similarity)  # rounding may leave -1e-17: nothing is shared
    return similarity


def apparent_similarity(edge_weights: AnyArray, scale: float = 3.5) -> Matrix:
    """``exp(-w_E E(i, j))``: near 1 where no edge lies between two superpixels, Eq. 2.

    Parameters
    ----------
    edge_weights : float array of shape (R, R)
        E, >= 0; infinite where no path joins two regions.
    scale : float
        w_E, the paper's 3.5; finite.

    Returns
    -------
    similarity : float64 array of shape (R, R)
        In [0, 1]; 0 where no path joins two regions, whatever the scale.

    Raises
    ------
    ValueError
        If an edge weight is negative or NaN, the array is not square, or ``scale`` is negative or
        not finite.
    """
    if edge_weights.ndim != 2 or edge_weights.shape[0] != edge_weights.shape[1]:
        raise ValueError(f"edge_weights must be (R, R), got shape {edge_weights.shape}")
    if not 0 <= scale < np.inf:
        raise ValueError(f"scale must be at least 0 and finite, got {scale}")
    if not (edge_weights >= 0).all():
        raise ValueError("edge_weights must be at least 0 and not NaN")
    if scale == 0:  # 0 * inf would be NaN
        return np.isfinite(edge_weights).astype(np.float64)
    similarity: Matrix = np.exp(-scale * np.asarray(edge_weights, np.float64))
    return similarity


def context(similarity: AnyArray, unary: AnyArray) -> Features:
    """Spread a unary feature over similar superpixels: ``M' S``, Eq. 3 and 4.

    The diagonal of M is set to zero and its rows are divided by their sum; a row without any
    similarity stays zero.

    Parameters
    ----------
    similarity : float array of shape (R, R)
        M, entries >= 0.
    unary : float array of shape (R,)
        The other kind's unary feature.

    Returns
    -------
    context : float64 array of shape (R,)
        A convex combination of ``unary`` per superpixel, or 0 where M' has an empty row.

    Raises
    ------
    ValueError
        If the shapes disagree.
    """
    if similarity.ndim != 2 or similarity.shape != (unary.size, unary.size) or unary.ndim != 1:
        raise ValueError(
            f"similarity must be (R, R) and unary (R,), got {similarity.shape} and {unary.shape}"
        )
    rows = np.array(similarity, dtype=np.float64)  # a copy: the diagonal is written
    np.fill_diagonal(rows, 0.0)
    total = rows.sum(axis=1)
    weighted: Features = rows @ unary.astype(np.float64)
    spread: Features = np.divide(weighted, total, out=np.zeros_like(total), where=total > 0)
    return spread


def cheapest_paths(adjacency: Adjacency, strength: AnyArray, count: int) -> Matrix:
    """Edge weight E(i, j) between any two regions: the cheapest path over the adjacency graph.

    Parameters
    ----------
    adjacency : int array of shape (E, 2)
        Pairs of touching regions.
    strength : float array of shape (E,)
        Edge strength on each shared border, >= 0.
    count : int
        Number of regions R.

    Returns
    -------
    edge_weights : float64 array of shape (R, R)
        Symmetric, zero diagonal; infinite where no path exists.
    """
    paths: Matrix = dijkstra(_graph(adjacency, strength, count), directed=False)
    return paths


def cheap_paths(adjacency: Adjacency, strength: AnyArray, count: int, scale: float) -> Matrix:
    """The same without paths of which Eq. 2 leaves nothing, at a quarter of the cost.

    Parameters
    ----------
    adjacency, strength, count
        As for :func:`cheapest_paths`.
    scale : float
        w_E of Eq. 2.

    Returns
    -------
    edge_weights : float64 array of shape (R, R)
        As :func:`cheapest_paths` gives them, but infinite where ``exp(-w_E E(i, j))`` may be less
        than ``NEGLIGIBLE`` of what it is for the nearest neighbour of i.
    """
    if scale == 0.0:  # all regions are alike, however far
        return cheapest_paths(adjacency, strength, count)
    nearest = np.full(count, np.inf)
    for end in adjacency.T:
        np.minimum.at(nearest, end, strength)
    graph, paths = _graph(adjacency, strength, count), np.empty((count, count))
    for group in np.array_split(np.argsort(nearest), min(count, LIMITS)):
        limit = nearest[group[-1]] - math.log(NEGLIGIBLE) / scale
        paths[group] = dijkstra(graph, directed=False, indices=group, limit=limit)
    return paths


def _graph(adjacency: Adjacency, strength: AnyArray, count: int) -> csr_array:
    # A sparse array may store a 0: a border that costs nothing.  A dense one would lose it.
    return csr_array((strength, (adjacency[:, 0], adjacency[:, 1])), shape=(count, count))


def min_max_normalise(values: AnyArray, flat: float = FLAT) -> Features:
    """Bring values to [0, 1] by their own minimum and maximum; equal values become 0.

    Parameters
    ----------
    values : float array
        Finite.
    flat : float
        Values that differ by no more are equal.

    Returns
    -------
    stretched : float64 array of the same shape
        In [0, 1].

    Raises
    ------
    ValueError
        If a value is NaN or infinite.
    """
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):  # NaN spreads to both
        raise ValueError("values must be finite, got NaN or infinity")
    if not high - low > flat:  # a flat feature says nothing: 0, not noise blown up to 1
        return np.zeros(values.shape)
    stretched: Features = (values.astype(np.float64) - low) / (high - low)
    return stretched


def feature_similarity(levels: list[AnyArray], power: float) -> Matrix:
    """Similarity of superpixels in an encoder's features: mean cosine over levels, sharpened.

    Stands in for Eq. 1 in ``default()``: the features know parts and materials that no class
    names.

    Parameters
    ----------
    levels : list of float arrays, each of shape (R, D)
        Mean features of each region; D may differ.
    power : float
        Exponent, above 0.

    Returns
    -------
    similarity : float64 array of shape (R, R)
        In [0, 1], symmetric.
    """
    cosine = sum(_cosine(level) for level in levels) / len(levels)
    similarity: Matrix = np.clip(cosine, 0.0, 1.0) ** power
    return similarity


def border_contrast(levels: list[AnyArray], border: AnyArray) -> Features:
    """Semantic unary of ``default()``: how unlike the image border a superpixel's features are.

    ``1 - sum_j l_j cos(f_i, f_j) / sum_j l_j`` over the regions j on the border, l_j their length
    on it, for each level; every level is stretched to [0, 1] and the levels are averaged.

    Parameters
    ----------
    levels : list of float arrays, each of shape (R, D)
        Mean features of each region.
    border : array of shape (R,)
        Pixels of each region on the image border, not all 0.

    Returns
    -------
    contrast : float64 array of shape (R,)
        In [0, 1].
    """
    on_border = np.flatnonzero(border)
    share = border[on_border] / border.sum()
    contrasts = [
        min_max_normalise(1.0 - _cosine(level, on_border) @ share, FLAT_COSINE) for level in levels
    ]
    return min_max_normalise(np.mean(contrasts, axis=0))


def _cosine(features: AnyArray, columns: AnyArray | None = None) -> Matrix:
    """Cosine similarity, negative values 0: (R, D) to (R, R), or to (R, C) for chosen columns."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(length, np.finfo(np.float32).tiny)
    other = unit if columns is None else unit[columns]
    cosine: Matrix = np.maximum(unit @ other.T, 0.0).astype(np.float64)
    return cosine
