"""Robust background detection: what is connected to the image border is background.

References
----------
Zhu, Liang, Wei and Sun, Saliency optimization from robust background detection, CVPR 2014.
"""

import cv2
import numpy as np
from scipy.spatial.distance import pdist, squareform

from saff.arrays import Adjacency, AnyArray, Features, Image, LabelMap, Matrix, PixelMap
from saff.superpixels import border_lengths, neighbours, region_means, slic

COLOUR_SIGMA = 10.0  # Lab units; the paper's sigma_clr
SPACE_SIGMA = 0.25  # of the longer image side; the paper's sigma_spa
BORDER_SIGMA = 1.0  # of the boundary connectivity; the paper's sigma_bndCon
SMOOTHNESS = 0.1  # the paper's mu: joins neighbours of any colour
REGIONS = 300  # when called on an image alone
FARTHEST = 8 * COLOUR_SIGMA  # geodesic distance from which the closeness, 1e-14, counts as none
STEPS = 2**15 - 1  # of equal length, to the farthest; two of it still fit in 16 bits


class RobustBackground:
    """Saliency by background-weighted contrast and the paper's quadratic optimisation."""

    def __call__(self, image: Image) -> PixelMap:
        """Saliency: uint8 (H, W, 3) RGB to float32 (H, W) in [0, 1]."""
        return self.on_regions(image, slic(image, REGIONS))

    def on_regions(self, image: Image, superpixels: LabelMap) -> PixelMap:
        """Saliency, constant on each region: uint8 (H, W, 3), int32 (H, W) to float32 (H, W)."""
        height, width = superpixels.shape
        lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        place = np.indices((height, width), np.float32) / np.float32(max(height, width))
        means = region_means(np.stack([*cv2.split(lab), *place]), superpixels)
        adjacency = neighbours(superpixels)
        on_border = np.flatnonzero(border_lengths(superpixels))
        saliency = robust_background(means[:, :3], means[:, 3:], adjacency, on_border)
        result: PixelMap = saliency.astype(np.float32)[superpixels]
        return result


def robust_background(
    colour: Features, position: Features, adjacency: Adjacency, on_border: AnyArray
) -> Features:
    """Saliency of regions.

    Parameters
    ----------
    colour : float64 array of shape (R, 3)
        Mean Lab colour.
    position : float64 array of shape (R, 2)
        Centroid, in units of the longer image side.
    adjacency : int array of shape (E, 2)
        Pairs of touching regions.
    on_border : int array of shape (B,)
        Regions that touch the image border.

    Returns
    -------
    saliency : float64 array of shape (R,)
        In [0, 1], its minimum 0 and its maximum 1 unless the image is flat: then all 0.
    """
    count = len(colour)
    distance = squareform(pdist(colour), checks=False)
    # Geodesic distance over touching regions; all border regions touch each other (section 3.2).
    i, j = adjacency.T
    first, second = on_border[np.stack(np.triu_indices(len(on_border), 1))]
    cost = np.full((count, count), np.inf)
    cost[i, j] = cost[j, i] = distance[i, j]
    cost[first, second] = cost[second, first] = distance[first, second]
    geodesic = shortest_paths(cost)
    closeness = np.exp(-(geodesic**2) / (2 * COLOUR_SIGMA**2))  # Eq. 4 there
    connectivity = closeness[:, on_border].sum(axis=1) / np.sqrt(closeness.sum(axis=1))
    background = 1.0 - np.exp(-(connectivity**2) / (2 * BORDER_SIGMA**2))  # Eq. 7 there
    nearness = np.exp(-(squareform(pdist(position), checks=False) ** 2) / (2 * SPACE_SIGMA**2))
    contrast = (distance * nearness) @ background  # Eq. 6 there
    if not contrast.max() > 1e-9:  # one colour: nothing stands out
        return np.zeros(count)
    contrast /= contrast.max()
    # Eq. 9 there: sum w_bg s^2 + sum w_fg (s - 1)^2 + sum w_ij (s_i - s_j)^2, solved exactly.
    smooth = np.zeros((count, count))
    weight = np.exp(-(distance[i, j] ** 2) / (2 * COLOUR_SIGMA**2)) + SMOOTHNESS
    smooth[i, j] = smooth[j, i] = weight
    system = np.diag(background + contrast + smooth.sum(axis=1)) - smooth
    saliency: Features = np.linalg.solve(system, contrast)
    low, high = saliency.min(), saliency.max()
    return (saliency - low) / (high - low) if high - low > 1e-12 else np.zeros(count)


def shortest_paths(cost: Matrix) -> Matrix:
    """Length of the shortest path between any two regions, up to ``FARTHEST``.

    Floyd and Warshall's algorithm in 16-bit whole numbers, which a CPU adds and compares 32 at a
    time: three times as fast as Dijkstra's for some hundred regions.  An edge is rounded by half a
    step, 0.001 Lab units, at most.

    Parameters
    ----------
    cost : float64 array of shape (R, R)
        Symmetric; infinite where two regions do not touch.

    Returns
    -------
    lengths : float64 array of shape (R, R)
        Zero diagonal; ``FARTHEST`` where a path is longer, or where there is none.
    """
    unit = FARTHEST / STEPS
    lengths = np.rint(np.minimum(cost / unit, STEPS)).astype(np.uint16)
    np.fill_diagonal(lengths, 0)
    through = np.empty_like(lengths)
    for middle in range(len(lengths)):
        np.add(lengths[:, middle, None], lengths[middle], out=through)
        np.minimum(lengths, through, out=lengths)
    found: Matrix = lengths.astype(np.float64) * unit
    return found
