"""Estimate how far a mask can be trusted, without any annotation."""

import numpy as np

from saff.arrays import AnyArray


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
