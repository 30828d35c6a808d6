"""Connected components of a mask, and how annotation files write one: runs, an outline."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from saff.arrays import AnyArray

Points = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Component:
    """A connected component of a mask: pixels that touch by a side or a corner.

    Attributes
    ----------
    pixels : uint8 array of shape (h, w)
        1 where it is, inside its bounding box.
    top, left : int
        First row and column of the box in the image.
    area : int
        Its pixels.
    """

    pixels: AnyArray
    top: int
    left: int
    area: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels."""
        height, width = self.pixels.shape
        return self.left, self.top, width, height


def connected_components(mask: AnyArray, smallest: int = 1) -> list[Component]:
    """Connected components of a mask, the largest first.

    Parameters
    ----------
    mask : bool array of shape (H, W)
        Foreground.
    smallest : int
        Pixels of the smallest one that is given.

    Returns
    -------
    components : list of Component
        None for an empty mask.

    Examples
    --------
    >>> mask = np.array([[1, 0, 0, 0], [0, 1, 0, 1]], bool)
    >>> [(one.box, one.area) for one in connected_components(mask)]
    [((0, 0, 2, 2), 2), ((3, 1, 1, 1), 1)]
    """
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    components = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        pixels = (labels[box] == number).astype(np.uint8)
        area = int(np.count_nonzero(pixels))
        if area >= smallest:
            components.append(Component(pixels, box[0].start, box[1].start, area))
    return sorted(components, key=lambda component: -component.area)


def run_lengths(values: AnyArray) -> NDArray[np.int64]:
    """Lengths of the runs of equal values in a flat array of 0 and 1, the first one of zeros.

    Examples
    --------
    >>> run_lengths(np.array([0, 0, 1])).tolist(), run_lengths(np.array([1, 1, 0])).tolist()
    ([2, 1], [0, 2, 1])
    """
    changes = np.flatnonzero(np.diff(values)) + 1
    ends = np.concatenate([[0] if values[0] else [], changes, [len(values)]]).astype(np.int64)
    return np.diff(ends, prepend=0)


def column_runs(component: Component, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Run lengths of a component in the whole image, column after column, as COCO counts them.

    Parameters
    ----------
    component : Component
        Of the image.
    shape : tuple of int
        Height and width of the image.
    """
    height, width = shape
    steps = np.diff(np.pad(component.pixels.T.view(np.int8), ((0, 0), (1, 1))), axis=1)
    first, last = np.nonzero(steps == 1), np.nonzero(steps == -1)
    starts, ends = ((component.left + c) * height + component.top + r for c, r in (first, last))
    joined = starts[1:] == ends[:-1]  # a run that reaches the bottom goes on at the next top
    starts, ends = starts[np.r_[True, ~joined]], ends[np.r_[~joined, True]]
    edges = np.concatenate([np.column_stack([starts, ends]).ravel(), [height * width]])
    lengths = np.diff(edges, prepend=0)
    return lengths if lengths[-1] else lengths[:-1]


def outlines(component: Component) -> list[Points]:
    """Outline of a component, then those of its holes; each the pixels (x, y) along it.

    They are pixels of the component, also around a hole.
    """
    found, levels = cv2.findContours(
        np.ascontiguousarray(component.pixels),
        cv2.RETR_CCOMP,
        cv2.CHAIN_APPROX_NONE,
        offset=(component.left, component.top),
    )
    points = [contour.reshape(-1, 2) for contour in found]
    parents = levels.reshape(-1, 4)[:, 3]
    order = np.argsort(parents >= 0, kind="stable")  # the outline has none
    return [points[number] for number in order]


def cut_open(component: Component) -> Points:
    """One closed outline of a component: each hole is joined to it by a cut of no width.

    A format with one list of points for each object has no other way to leave a hole empty.  A cut
    runs along a row, from the leftmost pixel at a hole to what bounds the component there.  Filled
    with its own line included, as :func:`cv2.fillPoly` fills, the outline gives the component to
    the pixel.

    Returns
    -------
    points : int32 array of shape (P, 2)
        Pixels (x, y), at least three.
    """
    outline, *holes = outlines(component)
    for hole in sorted(holes, key=lambda points: tuple(points[_leftmost(points)])):
        first = _leftmost(hole)
        x, y = hole[first]
        row = component.pixels[y - component.top, : x - component.left]
        bound = component.left + int(np.flatnonzero(row == 0)[-1] + 1 if not row.all() else 0)
        start = int(np.flatnonzero((outline == (bound, y)).all(axis=1))[0])
        around = np.concatenate([hole[first:], hole[: first + 1]])
        outline = np.concatenate([outline[: start + 1], around, outline[start:]])
    corners = _corners(outline)
    return corners if len(corners) > 2 else np.resize(corners, (3, 2))


def _leftmost(points: Points) -> int:
    """Index of the first of the leftmost points, by row."""
    return int(np.lexsort(points.T[::-1])[0])


def _corners(points: Points) -> Points:
    """Points of a closed line without those that lie within a straight piece of it."""
    steps = np.diff(points, axis=0, append=points[:1])
    lengths = np.maximum(np.abs(steps).max(axis=1, keepdims=True), 1)
    directions = steps / lengths
    turns = (directions != np.roll(directions, 1, axis=0)).any(axis=1)
    turns[0] = True
    corners: Points = points[turns]
    return corners
