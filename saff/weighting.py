"""Features -> seeds, balance, least squares, score: Eq. 5 and 6 of the paper."""

from dataclasses import dataclass

import numpy as np

from saff.arrays import AnyArray, Features

NO_SEEDS = "no {kind} seeds: {weights}"
DEFICIENT = "rank-deficient system: minimum-norm solution"


@dataclass(frozen=True, slots=True)
class Fit:
    """The adaptive weights of one image.

    Attributes
    ----------
    weights : float64 array of shape (F,)
        One weight per feature, in the order of the feature columns.
    bias : float
        Added to every score.
    seeds_foreground, seeds_background : int
        Superpixels that served as examples.
    fallback : str
        Empty when the fit was used as published; otherwise what was done instead, and why.
    """

    weights: Features
    bias: float
    seeds_foreground: int
    seeds_background: int
    fallback: str

    def score(self, features: AnyArray) -> Features:
        """Score superpixels, Eq. 5, clipped to [0, 1]: (R, F) -> (R,)."""
        scores: Features = np.clip(features @ self.weights + self.bias, 0.0, 1.0)
        return scores


def fit_weights(
    features: AnyArray,
    semantic: AnyArray,
    saliency: AnyArray,
    *,
    background_below: float = 0.2,
    foreground_above: float = 0.6,
    balance: bool = True,
    prior: AnyArray | None = None,
    prior_strength: float = 0.0,
) -> Fit:
    """Fit the feature weights of one image to its own confident superpixels, Eq. 6.

    Superpixels with ``sqrt(semantic * saliency)`` below ``background_below`` are examples of
    target 0, those above ``foreground_above`` of target 1.  With a prior the solution minimises
    ``sum_i c_i (f_i . w + b - t_i)^2 + prior_strength * C * (|w - w0|^2 + b^2)``, where c_i is the
    weight of seed i, C the sum of all of them and w0 the prior: ridge regression towards weights
    that hold for images in general.

    Parameters
    ----------
    features : float array of shape (R, F)
        In [0, 1].
    semantic, saliency : float arrays of shape (R,)
        The two unary features, in [0, 1], that choose the seeds.
    background_below, foreground_above : float
        Seed thresholds in [0, 1], the first not above the second.
    balance : bool
        Every seed of the minority class counts ``n_major / n_minor`` times, the exact limit of
        resampling it at random.
    prior : float array of shape (F,), optional
        w0; without it the plain mean of the features, ``1 / F`` each.  An image that lacks seeds of
        a class is scored with it.
    prior_strength : float
        0 is the published least squares.

    Returns
    -------
    fit : Fit
        Weights, bias, seed counts and the fallback, if one was taken.

    Raises
    ------
    ValueError
        If shapes disagree, a value is not finite, or a threshold or ``prior_strength`` is out of
        range.
    """
    count, columns = features.shape if features.ndim == 2 else (-1, -1)
    if semantic.shape != (count,) or saliency.shape != (count,):
        raise ValueError(
            "features must be (R, F), semantic and saliency (R,), got "
            f"{features.shape}, {semantic.shape} and {saliency.shape}"
        )
    if not 0.0 <= background_below <= foreground_above <= 1.0:
        raise ValueError(
            "thresholds must hold 0 <= background_below <= foreground_above <= 1, got "
            f"{background_below} and {foreground_above}"
        )
    if not 0.0 <= prior_strength < np.inf:
        raise ValueError(f"prior_strength must be at least 0 and finite, got {prior_strength}")
    w0 = np.full(columns, 1.0 / columns) if prior is None else np.asarray(prior, np.float64)
    if w0.shape != (columns,):
        raise ValueError(f"prior must be ({columns},), one weight per feature, got {w0.shape}")
    if not all(np.isfinite(a).all() for a in (features, semantic, saliency, w0)):
        raise ValueError("features, semantic, saliency and prior must be finite")
    agreement = np.sqrt(np.clip(semantic, 0, None) * np.clip(saliency, 0, None))
    foreground = agreement > foreground_above
    background = agreement < background_below
    n_foreground, n_background = int(foreground.sum()), int(background.sum())
    missing = [
        kind for kind, n in (("foreground", n_foreground), ("background", n_background)) if n == 0
    ]
    if missing:
        used = "plain mean of the features" if prior is None else "prior weights"
        fallback = NO_SEEDS.format(kind=" and no ".join(missing), weights=used)
        return Fit(w0, 0.0, n_foreground, n_background, fallback)

    seeds = foreground | background
    importance = np.ones(count)
    if balance:
        larger = max(n_foreground, n_background)
        importance[foreground] = larger / n_foreground
        importance[background] = larger / n_background
    root = np.sqrt(importance[seeds])
    design = np.column_stack([features, np.ones(count)])[seeds] * root[:, None]
    target = foreground[seeds] * root
    if prior_strength > 0:
        pull = np.sqrt(prior_strength * float(importance[seeds].sum()))
        design = np.vstack([design, pull * np.eye(columns + 1)])
        target = np.concatenate([target, pull * np.append(w0, 0.0)])
    solution, _, rank, _ = np.linalg.lstsq(design, target)
    fallback = DEFICIENT if rank < columns + 1 else ""
    return Fit(solution[:-1], float(solution[-1]), n_foreground, n_background, fallback)
