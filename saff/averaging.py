"""The average of what an image says by itself and of what a network knows: a sharpened mean."""

import numpy as np

from saff.arrays import PixelMap


def weighted_mean(label: PixelMap, predicted: PixelMap, share: float) -> PixelMap:
    """Weighted geometric mean of two maps, sharpened.

    A geometric mean ranks pixels as well as an arithmetic one, and its mask at one half is closer.

    Parameters
    ----------
    label, predicted : float32 arrays of one shape
        In [0, 1].
    share : float
        Weight of ``predicted``, in [0, 1]; that of ``label`` is the rest.

    Returns
    -------
    mean : float32 array of the same shape
        In [0, 1]: :func:`sharpen` of ``label ** (1 - share) * predicted ** share``.

    Examples
    --------
    >>> weighted_mean(np.float32([1.0, 0.5]), np.float32([0.25, 0.5]), 0.5).tolist()
    [0.5, 0.5]
    """
    mean = label.astype(np.float64) ** (1 - share) * predicted.astype(np.float64) ** share
    return sharpen(mean.astype(np.float32))


def sharpen(confidence: PixelMap) -> PixelMap:
    """Move the levels of a map away from one half: its log-odds, three times.

    The order of the pixels and the mask at one half stay as they are.  The mean of two maps is sure
    only where both are; where one is, it is right more often than the mean says.

    Parameters
    ----------
    confidence : float32 array of shape (H, W)
        In [0, 1].

    Returns
    -------
    sharpened : float32 array of shape (H, W)
        In [0, 1]: ``p**3 / (p**3 + (1 - p)**3)``.

    Examples
    --------
    >>> sharpen(np.array([0.0, 0.5, 0.75, 1.0], np.float32)).tolist()[:3:2]
    [0.0, 0.9642857313156128]
    """
    outside = 1 - confidence
    inside = confidence * confidence * confidence  # products are the same on every processor
    return np.asarray(inside / (inside + outside * outside * outside), np.float32)
