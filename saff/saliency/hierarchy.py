"""One image cut at many levels: superpixels, joined step by step into larger regions.

Regions that touch and look alike are joined first.  The distance of two superpixels is that of the
cheapest path between them over touching superpixels, so a region holds together; the distance of
two regions is the mean over their superpixels (average linkage).
"""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform

from saff.arrays import Adjacency, AnyArray
from saff.encoding import cheapest_paths


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Nested regions of all levels in one numbering, the finest level first.

    Attributes
    ----------
    member : int array of shape (R, L)
        Number of the region that each superpixel belongs to at each level, 0 .. M-1 over all.
    level : int array of shape (M,)
        The level of each region.
    """

    member: AnyArray
    level: AnyArray


def join(colour: AnyArray, adjacency: Adjacency, counts: AnyArray) -> Hierarchy:
    """Join superpixels into as many regions as each level wants.

    Parameters
    ----------
    colour : float array of shape (R, 3)
        Mean Lab colour of each superpixel.
    adjacency : int array of shape (E, 2)
        Pairs of touching superpixels; they connect all.
    counts : int array of shape (L,)
        Wanted number of regions of each level, falling; an image of fewer superpixels has fewer.

    Returns
    -------
    hierarchy : Hierarchy
        L levels.
    """
    size = len(colour)
    if size == 1:
        return Hierarchy(np.arange(len(counts))[None], np.arange(len(counts)))
    i, j = adjacency.T
    distance = np.linalg.norm(colour[i] - colour[j], axis=1)
    paths = cheapest_paths(adjacency, distance, size)
    tree = linkage(squareform(paths, checks=False), "average")
    # SciPy's cut_tree gives one region where as many regions as superpixels are wanted.
    wanted, level_of = np.unique(np.minimum(counts, size - 1), return_inverse=True)
    cuts = cut_tree(tree, wanted)[:, level_of]  # (R, L), each level numbered from 0
    cuts[:, counts >= size] = np.arange(size)[:, None]
    sizes = cuts.max(axis=0) + 1
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return Hierarchy(cuts + starts, np.repeat(np.arange(len(counts)), sizes))
