"""Measures of one confidence map against one true mask, beside precision, recall and F.

Each is the published measure where no pixel is void; void pixels are left out of every sum.

adaptive F
    F of the pixels whose level is at least twice the mean level [1]_.
S-measure
    Structural similarity of objects and of the four regions around the centroid of the truth [2]_.
E-measure
    Enhanced alignment of a thresholded map: at the adaptive threshold, and at each of 256 [3]_.
weighted F
    F in which an error weighs more the farther it lies from the object, and less where others like
    it surround it [4]_.
boundary F
    F (beta squared 1) of outlines, at a tolerance of 2 pixels where the long side has 500.

References
----------
.. [1] Achanta, Hemami, Estrada and Süsstrunk, Frequency-tuned salient region detection, CVPR 2009.
.. [2] Fan, Cheng, Liu, Li and Borji, Structure-measure: A new way to evaluate foreground maps,
   ICCV 2017.
.. [3] Fan, Gong, Cao, Ren, Cheng and Borji, Enhanced-alignment measure for binary foreground map
   evaluation, IJCAI 2018.
.. [4] Margolin, Zelnik-Manor and Tal, How to evaluate foreground maps?, CVPR 2014.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from saff.arrays import AnyArray

TOLERANCE = 2 / 500  # of the long side
TINY = float(np.spacing(1.0))  # keeps denominators from being 0, as in the published code
LEVELS = np.arange(256)
NEAR = 3  # pixels from the middle of weighted F's window to its side
DEVIATION = 5.0  # pixels, of the Gaussian in it
HALF_DISTANCE = 5.0  # pixels at which the weight of a false alarm has risen from 1 to 1.5
BLOCK_ROWS = 512


def level_counts(
    confidence: AnyArray, truth: AnyArray, valid: AnyArray | None
) -> NDArray[np.int64]:
    """Count pixels per level: int64 (3, 256), the rows for background, foreground and void.

    Raises
    ------
    ValueError
        If a shape or dtype is wrong.
    """
    if confidence.dtype != np.uint8:
        raise ValueError(
            f"confidence must be uint8 (0..255), got {confidence.dtype};"
            " round 255 * confidence, or stretch it"
        )
    for name, flags in (("truth", truth), ("valid", valid)):
        if flags is None:
            continue
        if flags.dtype != np.bool_:
            raise ValueError(f"{name} must be bool, got {flags.dtype}; compare it: mask > 127")
        if flags.shape != confidence.shape:
            raise ValueError(
                f"{name} must have the shape {confidence.shape} of confidence, got {flags.shape}"
            )
    counts = np.zeros(3 * 256, np.int64)
    for start in range(0, len(confidence), BLOCK_ROWS):  # counting takes 8 bytes a pixel
        rows = slice(start, start + BLOCK_ROWS)
        side = truth[rows] if valid is None else np.where(valid[rows], truth[rows], np.uint8(2))
        cell = np.multiply(side, 256, dtype=np.uint16) + confidence[rows]
        counts += np.bincount(cell.ravel(), minlength=3 * 256)
    return counts.reshape(3, 256)


def adaptive_level(counts: AnyArray) -> int:
    """Lowest level that is at least twice the mean level, and at most 255.

    Parameters
    ----------
    counts : int array of shape (2, 256)
        Pixels per level, of background and foreground.
    """
    pixels = counts.sum(axis=0)
    total, area = int(pixels @ LEVELS), int(pixels.sum())
    return min(-(-2 * total // area), 255)


def e_measures(counts: AnyArray) -> NDArray[np.float64]:
    """E-measure at each threshold: float64 (256,).

    Parameters
    ----------
    counts : int array of shape (2, 256)
        Pixels per level, of background and foreground, of which there is some.
    """
    kept = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # (2, 256): pixels at or above each level
    background, foreground = (int(n) for n in counts.sum(axis=1))
    area = background + foreground
    if background == 0:
        return np.asarray(kept[1] / max(area - 1, 1))
    predicted = kept.sum(axis=0) / area
    true = foreground / area
    total = np.zeros(256)
    for side, pixels in ((1.0, kept), (0.0, counts.sum(axis=1, keepdims=True) - kept)):
        for value, number in ((0.0, pixels[0]), (1.0, pixels[1])):
            one, other = side - predicted, value - true
            alignment = 2 * one * other / (one**2 + other**2 + TINY)
            total += number * (alignment + 1) ** 2 / 4
    return total / (area - 1)


def s_measure(levels: AnyArray, truth: AnyArray, valid: AnyArray | None = None) -> float:
    """S-measure of a map, from 0 to 1; objects and regions weigh the same.

    Parameters
    ----------
    levels : uint8 array of shape (H, W)
        The map, 0..255.
    truth : bool array of shape (H, W)
        Some valid pixel is foreground.
    valid : bool array of shape (H, W), optional
        Pixels that count.
    """
    inside = truth if valid is None else truth & valid
    # the column and row after the centroid's: the regions are cut behind it
    down, right = (int(np.rint(_mean_index(inside.sum(axis=axis)))) + 1 for axis in (1, 0))
    regions = np.stack(
        [
            level_counts(levels[rows, columns], truth[rows, columns], _cut(valid, rows, columns))
            for rows in (slice(down), slice(down, None))
            for columns in (slice(right), slice(right, None))
        ]
    )[:, :2]  # (4, 2, 256): not the void ones
    background, foreground = regions.sum(axis=0)
    area = int(background.sum() + foreground.sum())
    if not background.any():
        return int(foreground @ LEVELS) / (255 * area)
    objects = _object_score(foreground) + _object_score(background[::-1])
    alike = sum(int(region.sum()) * _similarity(*region) for region in regions if region.any())
    return max(0.0, (objects + alike) / (2 * area))


def _mean_index(counts: AnyArray) -> float:
    return float(counts @ np.arange(counts.size) / counts.sum())


def _cut(valid: AnyArray | None, rows: slice, columns: slice) -> AnyArray | None:
    return None if valid is None else valid[rows, columns]


def _object_score(pixels: AnyArray) -> float:
    """Likeness of the pixels of one side to 255, times their number; from their levels (256,)."""
    area, total, squares = (int(pixels @ LEVELS**power) for power in range(3))
    mean = total / (255 * area)
    deviation = ((area * squares - total**2) / (area * max(area - 1, 1))) ** 0.5 / 255
    return float(2 * area * mean / (mean**2 + 1 + deviation + TINY))


def _similarity(background: AnyArray, foreground: AnyArray) -> float:
    """Structural similarity of map and truth in one region, from the levels of both sides."""
    area, total, squares = (int((background + foreground) @ LEVELS**power) for power in range(3))
    true, common = int(foreground.sum()), int(foreground @ LEVELS)
    x, y = total / (255 * area), true / area
    pairs = area * max(area - 1, 1)
    variance_x = (area * squares - total**2) / (pairs * 255**2)
    variance_y = (area * true - true**2) / pairs
    covariance = (area * common - total * true) / (pairs * 255)
    numerator = 4 * x * y * covariance
    denominator = (x**2 + y**2) * (variance_x + variance_y)
    if numerator:
        return numerator / (denominator + TINY)
    return 0.0 if denominator else 1.0


def weighted_f(levels: AnyArray, truth: AnyArray, valid: AnyArray | None = None) -> float:
    """Weighted F-measure of a map, beta squared 1; the arguments are those of :func:`s_measure`."""
    counted = np.ones_like(truth) if valid is None else valid
    inside = truth & counted
    missed = _missed(levels, inside, counted)
    area = float(np.count_nonzero(inside))
    distance = _distance_to(inside)
    false = 0.0
    outside = counted & ~inside
    for start in range(0, len(levels), BLOCK_ROWS):  # 64 bit numbers of a large map take room
        rows = slice(start, start + BLOCK_ROWS)
        away = distance[rows][outside[rows]]
        errors = levels[rows][outside[rows]] / 255
        false += float((errors * (2 - 0.5 ** (away / HALF_DISTANCE))).sum())
    recall = 1 - missed / area
    precision = (area - missed) / (area - missed + false + TINY)
    return 2 * recall * precision / (recall + precision + TINY)


def _missed(levels: AnyArray, inside: AnyArray, counted: AnyArray) -> float:
    """Sum of the errors inside the object, each at most what a Gaussian around it finds."""
    box = tuple(
        slice(max(0, int(index.min()) - NEAR), int(index.max()) + NEAR + 1)
        for index in np.nonzero(inside)
    )
    inside, counted = inside[box], counted[box]
    error = np.where(inside, 255 - levels[box], levels[box]) / 255.0
    error[~counted] = 0.0
    spread = _spread_errors(error, inside)
    window = (2 * NEAR + 1, 2 * NEAR + 1)
    around = cv2.GaussianBlur(spread, window, DEVIATION, borderType=cv2.BORDER_CONSTANT)
    return float(np.minimum(error[inside], around[inside]).sum())


def _spread_errors(error: AnyArray, inside: AnyArray) -> AnyArray:
    """Give each pixel beside the object, as far as the window reaches, the nearest one's error."""
    spread = error.copy()
    window = np.ones((2 * NEAR + 1, 2 * NEAR + 1), np.uint8)
    beside = cv2.dilate(inside.astype(np.uint8), window).astype(bool) & ~inside
    rows, columns = np.nonzero(beside)
    reach = range(-NEAR - 1, NEAR + 2)  # from a corner of the window, nearer than its middle
    steps = [(down, right) for down in reach for right in reach]
    # The farthest first, so that the nearest has the last word; of two as near, the one more to the
    # left, as SciPy's distance transform chooses, by which others compute this measure.
    steps.sort(key=lambda step: (step[0] ** 2 + step[1] ** 2, step[1], step[0]), reverse=True)
    for down, right in steps:
        r, c = rows + down, columns + right
        exists = (r >= 0) & (r < len(inside)) & (c >= 0) & (c < inside.shape[1])
        exists[exists] = inside[r[exists], c[exists]]
        spread[rows[exists], columns[exists]] = error[r[exists], c[exists]]
    return spread


def boundary_f(kept: AnyArray, truth: AnyArray, valid: AnyArray | None = None) -> float:
    """F-measure of outlines, beta squared 1, at a tolerance of :data:`TOLERANCE`, at least 1 pixel.

    An outline is the foreground pixels that have a background pixel beside, above or below them;
    the border of the picture is none.  Void pixels take the side of the nearest pixel that counts,
    so that the true outline runs in the middle of a void band; outlines of the map inside void
    that match nothing are left out.

    Parameters
    ----------
    kept, truth : bool arrays of shape (H, W)
        Mask to be measured, and the true one.
    valid : bool array of shape (H, W), optional
        Pixels that count.
    """
    counted = np.ones_like(truth) if valid is None else valid
    if not counted.all():
        nearer = _distance_to(truth & counted) <= _distance_to(~truth & counted)
        truth = np.where(counted, truth, nearer)
    tolerance = max(1.0, TOLERANCE * max(truth.shape))
    found, true = outline(kept), outline(truth)
    matched = found & (_distance_to(true) <= tolerance)
    hits, false = np.count_nonzero(matched), np.count_nonzero(found & ~matched & counted)
    met = np.count_nonzero(true & (_distance_to(found) <= tolerance))
    precision = hits / (hits + false) if hits + false else 1.0
    recall = met / np.count_nonzero(true) if true.any() else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: AnyArray) -> AnyArray:
    """Foreground pixels that have a background pixel beside, above or below: bool (H, W)."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(mask.astype(np.uint8), cross)  # pixels beyond the border count as foreground
    return np.asarray(mask & (inner == 0))


def _distance_to(mask: AnyArray) -> NDArray[np.float64]:
    """Distance of each pixel to the nearest one of a mask, in pixels; infinite without any.

    On one thread OpenCV's distances differ in their last digit with the address of the array that
    they are written to.  Their squares are whole numbers, and rounding to these makes distances
    below 2,000 pixels exact; the measures do not tell larger ones apart.
    """
    if not mask.any():
        return np.full(mask.shape, np.inf)
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    squares = np.rint(np.square(distance, dtype=np.float64))
    return np.asarray(np.sqrt(squares, out=squares))
