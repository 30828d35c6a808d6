"""Estimate how far a mask can be trusted, and whether there is anything, without any annotation.

:func:`mask_quality` is of pseudo labels, the other functions are of a network's predictions.  The
latter count the 8-bit levels that a row stores, so that they are the same on every processor.
"""

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from saff.arrays import AnyArray, PixelMap
from saff.metrics import HALF

PEAK_SHARE = 1000  # the peak is the mean of one pixel in so many, of those with most confidence


def mask_quality(features: AnyArray, scores: AnyArray, area: AnyArray) -> float:
    """How clearly a mask stands out, times how far the cues agree with it.

    The first is the mean score inside the mask (scores of at least 0.5) minus that outside; the
    second the mean, over the features, of their correlation with the scores, negative ones counted
    as 0.  Regions weigh by their area.

    Parameters
    ----------
    features : float array of shape (R, F)
        In [0, 1].
    scores : float array of shape (R,)
        In [0, 1].
    area : array of shape (R,)
        Pixels of each region.

    Returns
    -------
    quality : float
        In [0, 1]; 0 for a mask that is empty or holds the whole image.

    Examples
    --------
    >>> mask_quality(np.array([[1.0], [0.0]]), np.array([1.0, 0.0]), np.array([1, 3]))
    1.0
    """
    inside = scores >= 0.5
    if inside.all() or not inside.any():
        return 0.0
    share = area / area.sum()
    contrast = np.average(scores[inside], weights=area[inside]) - np.average(
        scores[~inside], weights=area[~inside]
    )
    centred = np.column_stack([features, scores]).astype(np.float64)
    centred -= share @ centred
    spread = np.sqrt(share @ centred**2)
    joint = (share * centred[:, -1]) @ centred[:, :-1]
    norm = spread[:-1] * spread[-1]
    agreement = np.divide(joint, norm, out=np.zeros_like(joint), where=norm > 0)
    return float(np.clip(contrast * np.maximum(agreement, 0.0).mean(), 0.0, 1.0))


def mask_iou(first: AnyArray, second: AnyArray) -> float:
    """Intersection over union of two masks; 1 if both are empty.

    Parameters
    ----------
    first, second : bool arrays of one shape
        Masks.

    Examples
    --------
    >>> mask_iou(np.array([True, True, False]), np.array([True, False, False]))
    0.5
    """
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 1.0


def mask_dice(first: AnyArray, second: AnyArray) -> float:
    """Dice coefficient of two masks, twice the overlap over the sum of sizes; 1 if both are empty.

    Parameters
    ----------
    first, second : bool arrays of one shape
        Masks.

    Examples
    --------
    >>> mask_dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2 * int(np.count_nonzero(first & second)) / total if total else 1.0


def to_levels(confidence: PixelMap) -> NDArray[np.uint8]:
    """Confidence in [0, 1] as 8-bit levels; at least one half becomes at least 128.

    Examples
    --------
    >>> to_levels(np.array([[0.0, 0.499, 0.5, 1.0]], np.float32)).tolist()
    [[0, 127, 128, 255]]
    """
    return np.rint(confidence * 255).astype(np.uint8)


def prediction_quality(levels: AnyArray) -> float:
    """Soft Dice coefficient of a confidence map and its own mask (arXiv 2402.10665).

    Twice the confidence inside the mask over the size of the mask and all confidence: 1 where the
    map is 1 in the mask and 0 outside of it.

    Parameters
    ----------
    levels : uint8 array of shape (H, W)
        Confidence, 0..255.

    Returns
    -------
    quality : float
        In [0, 1]; 0 for an empty mask.

    Examples
    --------
    >>> prediction_quality(np.array([[255, 0]], np.uint8))
    1.0
    >>> prediction_quality(np.array([[255, 127]], np.uint8)) < 0.81
    True
    """
    counts = _count_levels(levels)
    confidence = counts * np.arange(256)  # whole numbers: no rounding, whatever their order
    mask = int(counts[HALF:].sum())
    whole = 255 * mask + int(confidence.sum())
    return 2 * int(confidence[HALF:].sum()) / whole if mask else 0.0


def peak_confidence(levels: AnyArray) -> float:
    """Mean confidence of the thousandth of all pixels that has most of it, of at least one pixel.

    Parameters
    ----------
    levels : uint8 array of shape (H, W)
        Confidence, 0..255.

    Returns
    -------
    peak : float
        In [0, 1].

    Examples
    --------
    >>> peak_confidence(np.array([[255, 0]], np.uint8))
    1.0
    """
    counts = _count_levels(levels)
    wanted = max(1, levels.size // PEAK_SHARE)
    above = np.cumsum(counts[::-1])[::-1] - counts  # pixels with more confidence than each level
    taken = np.clip(wanted - above, 0, counts)
    return int(taken @ np.arange(256)) / (255 * wanted)


def foreground_found(levels: AnyArray, peak_above: float) -> bool:
    """Whether a confidence map shows any foreground; without any, its mask is empty.

    Parameters
    ----------
    levels : uint8 array of shape (H, W)
        Confidence, 0..255.
    peak_above : float
        Least :func:`peak_confidence` of an image with foreground; 0 leaves every mask as it is.

    Returns
    -------
    found : bool
        Also False where no confidence reaches one half.
    """
    return bool(levels.max() >= HALF) and peak_confidence(levels) >= peak_above


def judge_prediction(levels: AnyArray, found: bool) -> tuple[bool, float]:
    """Whether a prediction shows any foreground in the end, and how far its mask can be trusted.

    Parameters
    ----------
    levels : uint8 array of shape (H, W)
        Confidence, 0..255.
    found : bool
        Whether the network saw any.

    Returns
    -------
    foreground_found : bool
        False also where no confidence reaches one half.
    quality : float
        :func:`prediction_quality`, 0 without foreground.
    """
    found = found and bool(levels.max() >= HALF)
    return found, prediction_quality(levels) if found else 0.0


def _count_levels(levels: AnyArray) -> NDArray[np.int64]:
    """Count the pixels of each level: int64 (256,), with no memory for each pixel."""
    return np.asarray(PIL.Image.fromarray(levels).histogram(), np.int64)
