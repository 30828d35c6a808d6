"""Robust background detection: what is connected to the image border is background.

References
----------
Zhu, Liang, Wei and Sun, Saliency optimization from robust background detection, CVPR 2014.
"""

import cv2
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.distance import pdist, squareform

from saff.arrays import Adjacency, AnyArray, Features, Image, LabelMap, PixelMap
from saff.superpixels import border_lengths, neighbours, region_means, slic

COLOUR_SIGMA = 10.0  # Lab units; the paper's sigma_clr
SPACE_SIGMA = 0.25  # of the longer image side; the paper's sigma_spa
BORDER_SIGMA = 1.0  # of the boundary connectivity; the paper's sigma_bndCon
SMOOTHNESS = 0.1  # the paper's mu: joins neighbours of any colour
REGIONS = 300  # when called on an image alone


class RobustBackground:
    """Saliency by background-weighted contrast and the paper's quadratic optimisation."""

    def __call__(self, image: Image) -> PixelMap:
        """Saliency: uint8 (H, W, 3) RGB to float32 (H, W) in [0, 1]."""
        return self.on_regions(image, slic(image, REGIONS))

    def on_regions(self, image: Image, superpixels: LabelMap) -> PixelMap:
        """Saliency, constant on each region: uint8 (H, W, 3), int32 (H, W) to float32 (H, W)."""
        height, width = superpixels.shape
        lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        rows, columns = np.mgrid[:height, :width] / max(height, width)
        means = region_means(np.stack([*np.moveaxis(lab, 2, 0), rows, columns]), superpixels)
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
    cost = np.zeros((count, count))
    cost[i, j] = np.maximum(distance[i, j], 1e-9)  # 0 would mean "do not touch"
    cost[first, second] = np.maximum(distance[first, second], 1e-9)
    geodesic = dijkstra(csr_array(cost), directed=False)
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
