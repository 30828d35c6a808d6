"""RGB -> superpixel label map, and what the label map gives: means, adjacency, borders, pooling."""

import cv2
import numpy as np

from saff.arrays import Adjacency, AnyArray, Features, Image, LabelMap, Matrix, PixelMap

SLIC_ITERATIONS = 3  # of the k-means; with more, no mask of a label gets better
SLIC_COMPACTNESS = 10.0  # weight of position against colour, Lab in 8 bit
SMALLEST_PERCENT = 25  # of the mean area; smaller fragments join a neighbour


def slic(image: Image, count: int) -> LabelMap:
    """Cut an image into connected regions of similar colour and size (SLIC).

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
        RGB.
    count : int
        Wanted number of regions, at least 1.  The result comes near it on photographs; an image
        of few pixels has fewer.

    Returns
    -------
    superpixels : int32 array of shape (H, W)
        Labels 0 .. R-1 in raster order of first appearance, none missing; each region is connected
        over pixel sides.

    Raises
    ------
    ValueError
        If ``count`` is below 1 or the image is not uint8 (H, W, 3).

    References
    ----------
    Achanta et al., SLIC superpixels compared to state-of-the-art superpixel methods, PAMI 2012.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    side = max(1, round(np.sqrt(height * width / count)))
    if min(height, width) < 2 * side:  # the library needs two cells across: cut along the length
        return _strips(height, width, count)
    if side == 1:  # no more pixels than wanted regions, about: every pixel is one
        return np.arange(height * width, dtype=np.int32).reshape(height, width)
    lab = cv2.cvtColor(cv2.GaussianBlur(image, (3, 3), 0), cv2.COLOR_RGB2LAB)
    cells = cv2.ximgproc.createSuperpixelSLIC(lab, cv2.ximgproc.SLIC, side, SLIC_COMPACTNESS)
    cells.iterate(SLIC_ITERATIONS)
    cells.enforceLabelConnectivity(SMALLEST_PERCENT)
    labels: LabelMap = np.asarray(cells.getLabels(), dtype=np.int32)
    return labels


def _strips(height: int, width: int, count: int) -> LabelMap:
    """Equal strips across an image too thin to cluster."""
    length = max(height, width)
    strip = (np.arange(length) * min(count, length) // length).astype(np.int32)
    strips = strip[None, :] if width >= height else strip[:, None]
    return np.ascontiguousarray(np.broadcast_to(strips, (height, width)))


def region_means(maps: AnyArray, superpixels: LabelMap) -> Features:
    """Average every pixel map over every superpixel: Eq. (unary) of docs/method.md.

    Parameters
    ----------
    maps : float array of shape (K, H, W)
        Stacked pixel maps, any unit.
    superpixels : int array of shape (H, W)
        Labels 0 .. R-1, none missing.

    Returns
    -------
    means : float64 array of shape (R, K)
        ``means[r, k]`` is the mean of ``maps[k]`` over region r.

    Raises
    ------
    ValueError
        If the shapes disagree or a label is missing.
    """
    if maps.ndim != 3 or maps.shape[1:] != superpixels.shape:
        raise ValueError(f"maps must be (K, *{superpixels.shape}), got shape {maps.shape}")
    labels = superpixels.ravel()
    area = np.bincount(labels)  # pixels per region, (R,)
    if not area.all():
        gaps = np.flatnonzero(area == 0).tolist()
        raise ValueError(f"superpixels skips labels {gaps} of 0..{area.size - 1}; renumber from 0")
    sums = [np.bincount(labels, weights=m.ravel()) for m in maps]  # float64 whatever the input
    return np.stack(sums, axis=1) / area[:, None]


def _touching(superpixels: LabelMap) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Pixel pairs across a border: flat indices of both pixels, and the key of their regions.

    The key of regions i < j is ``i * R + j``.
    """
    width, labels = superpixels.shape[1], superpixels.ravel()
    row, column = np.nonzero(superpixels[:, :-1] != superpixels[:, 1:])
    right, above = row * width + column, np.flatnonzero(labels[:-width] != labels[width:])
    first = np.concatenate([right, above])
    second = np.concatenate([right + 1, above + width])
    low = np.minimum(labels[first], labels[second]).astype(np.int64)
    return first, second, low * _count(superpixels) + np.maximum(labels[first], labels[second])


def _count(superpixels: LabelMap) -> int:
    return int(superpixels.max()) + 1


def neighbours(superpixels: LabelMap) -> Adjacency:
    """Pairs of regions that share a pixel side.

    Parameters
    ----------
    superpixels : int array of shape (H, W)
        Labels 0 .. R-1.

    Returns
    -------
    adjacency : int32 array of shape (E, 2)
        ``i < j``, sorted, each pair once; (0, 2) for a single region.
    """
    count = _count(superpixels)
    return _pairs(np.flatnonzero(_lengths(_touching(superpixels)[2], count)), count)


def _lengths(keys: AnyArray, count: int) -> AnyArray:
    """Pixel sides that each pair of regions shares, by its key."""
    return np.bincount(keys, minlength=count * count)


def _pairs(keys: AnyArray, count: int) -> Adjacency:
    return np.stack(np.divmod(keys, count), axis=1).astype(np.int32)


def border_strength(edges: PixelMap, superpixels: LabelMap) -> tuple[Adjacency, Features]:
    """Mean edge strength along the border that two touching regions share.

    Parameters
    ----------
    edges : float array of shape (H, W)
        Edge map, in [0, 1].
    superpixels : int array of shape (H, W)
        Labels 0 .. R-1.

    Returns
    -------
    adjacency : int32 array of shape (E, 2)
        As :func:`neighbours` gives it.
    strength : float64 array of shape (E,)
        Mean over the shared pixel sides of the stronger of the two pixels, in [0, 1].
    """
    first, second, keys = _touching(superpixels)
    count, flat = _count(superpixels), edges.ravel()
    crossing = np.maximum(flat[first], flat[second])
    lengths = _lengths(keys, count)
    pairs = np.flatnonzero(lengths)
    sums = np.bincount(keys, weights=crossing, minlength=count * count)
    return _pairs(pairs, count), sums[pairs] / lengths[pairs]


def border_lengths(superpixels: LabelMap) -> AnyArray:
    """Pixels of each region on the image's border: int (H, W) to int64 (R,), corners twice."""
    frame = [superpixels[0], superpixels[-1], superpixels[:, 0], superpixels[:, -1]]
    return np.bincount(np.concatenate(frame), minlength=superpixels.max() + 1)


def pooling(superpixels: LabelMap, grid: tuple[int, int]) -> Matrix:
    """Weights that average a coarse grid over each region, as if enlarged bilinearly before.

    Parameters
    ----------
    superpixels : int array of shape (H, W)
        Labels 0 .. R-1, none missing.
    grid : tuple of int
        Rows h and columns w of the grid; its cells cover the image evenly.

    Returns
    -------
    weights : float64 array of shape (R, h * w)
        Rows sum to 1: ``weights @ values`` with ``values`` of shape (h * w, K) gives (R, K).
    """
    rows, columns = (_linear(n, m) for n, m in zip(superpixels.shape, grid, strict=True))
    count, cells = int(superpixels.max()) + 1, grid[0] * grid[1]
    sums = np.zeros(count * cells)
    base = superpixels.astype(np.int64) * cells
    for row, row_weight in rows:
        for column, column_weight in columns:
            index = base + (row * grid[1])[:, None] + column[None, :]
            weight = row_weight[:, None] * column_weight[None, :]
            sums += np.bincount(index.ravel(), weights=weight.ravel(), minlength=sums.size)
    weights = sums.reshape(count, cells)
    normalised: Matrix = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def _linear(size: int, cells: int) -> tuple[tuple[AnyArray, AnyArray], tuple[AnyArray, AnyArray]]:
    """Linear interpolation of ``cells`` values at ``size`` pixels: two (cell, weight) pairs."""
    centre = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    low = np.minimum(centre.astype(np.int64), max(cells - 2, 0))
    share = centre - low
    return (low, 1.0 - share), (np.minimum(low + 1, cells - 1), share)
