"""How well confidence maps agree with true masks: precision, recall, F-measure.

Section 5 of the paper. A threshold t of 0..255 keeps the pixels whose 8-bit confidence is at
least t. With TP the number of kept foreground pixels::

    precision(t) = TP / kept pixels        (1 where nothing is kept)
    recall(t)    = TP / foreground pixels
    F(t)         = (1 + beta^2) precision recall / (beta^2 precision + recall)

Void pixels are left out everywhere. Over many images three averages are in circulation, and their
maxima differ by several points; `Evaluation` gives all three and names them:

``mean_pr``
    P(t) and R(t) averaged over images, F of the two means, maximum over t. The paper's, and ours.
``mean_f``
    F(t) per image, averaged over images, maximum over t.
``max_f``
    Maximum over t per image, averaged over images: every image with its own best threshold.

:mod:`saff.measures` has the other measures that are averaged with them.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from saff.arrays import AnyArray
from saff.measures import (
    adaptive_level,
    boundary_f,
    e_measures,
    level_counts,
    s_measure,
    weighted_f,
)

ByThreshold: TypeAlias = NDArray[np.float64]
"""float64 (256,), one value for each threshold 0..255."""
Flags: TypeAlias = NDArray[np.bool_]
"""bool (H, W)."""

HALF = 128
"""Confidence 0.5 in 8 bits: 127.5, rounded up, as a pseudo label is ``confidence >= 0.5``."""


def precision_recall(
    confidence: AnyArray, truth: AnyArray, valid: AnyArray | None = None
) -> tuple[ByThreshold, ByThreshold]:
    """Precision and recall of one map at all 256 thresholds.

    Parameters
    ----------
    confidence : uint8 array of shape (H, W)
        0..255, taken as it is; `normalise_to_255` it first for the paper's normalised heat map.
    truth : bool array of shape (H, W)
        True is foreground.
    valid : bool array of shape (H, W), optional
        False leaves a pixel out (void), whatever its confidence. Default: all pixels count.

    Returns
    -------
    precision, recall : float64 arrays of shape (256,)
        In [0, 1]; entry t is for the pixels with ``confidence >= t``. Where none is kept,
        precision is 1 and recall 0. Recall starts at 1 and never rises.

    Raises
    ------
    ValueError
        If a shape or dtype is wrong, or no valid pixel is foreground: recall is then undefined.
        (`Evaluation` leaves such an image out and counts it.)

    Examples
    --------
    >>> confidence = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    >>> precision, recall = precision_recall(confidence, confidence >= 200)
    >>> precision[[0, 100, 101]], recall[[0, 200, 201]]
    (array([0.5       , 0.66666667, 1.        ]), array([1. , 1. , 0.5]))
    """
    counts = level_counts(confidence, truth, valid)
    if not counts[1].any():
        raise ValueError(
            "truth has no valid foreground pixel, so recall is undefined; leave the image out"
        )
    return _precision_recall(counts)


@overload
def f_measure(precision: float, recall: float, beta_squared: float = ...) -> float: ...
@overload
def f_measure(
    precision: ByThreshold, recall: ByThreshold, beta_squared: float = ...
) -> ByThreshold: ...
def f_measure(precision: Any, recall: Any, beta_squared: float = 0.3) -> Any:
    """Weighted harmonic mean of precision and recall.

    ``(1 + beta_squared) P R / (beta_squared P + R)``, and 0 where both are 0.

    Parameters
    ----------
    precision, recall : float or float array
        In [0, 1], of one shape.
    beta_squared : float
        Weight of recall, at least 0. It *is* beta squared and is not squared again: 0.3 is the
        usual value, and favours precision.

    Returns
    -------
    f : float64, scalar or array like the input
        In [0, 1].

    Raises
    ------
    ValueError
        If `beta_squared` is negative or not finite.

    Examples
    --------
    >>> round(float(f_measure(0.5, 1.0)), 4)  # squaring 0.3 once more would give 0.5215
    0.5652
    """
    if not 0.0 <= beta_squared < np.inf:
        raise ValueError(f"beta_squared must be a finite number >= 0, got {beta_squared}")
    precision, recall = np.asarray(precision, np.float64), np.asarray(recall, np.float64)
    product = (1.0 + beta_squared) * precision * recall
    weighted = beta_squared * precision + recall
    return np.divide(product, weighted, out=np.zeros_like(weighted), where=weighted > 0)[()]


def normalise_to_255(confidence: AnyArray) -> NDArray[np.uint8]:
    """Bring a map to 0..255 by its own minimum and maximum: the paper's normalised heat map.

    ``round(255 (c - min) / (max - min))``, over all pixels of the map, void ones too: a prediction
    is normalised without looking at the truth.

    Parameters
    ----------
    confidence : real array of shape (H, W)
        Any range, finite.

    Returns
    -------
    stretched : uint8 array of shape (H, W)
        From 0 to 255. A flat map says nothing about where the foreground is: it becomes all 0.
        Levels of an 8-bit map keep their order and never merge, as stretching only widens them.

    Raises
    ------
    ValueError
        If the map is empty or holds NaN or infinity.
    """
    values = np.asarray(confidence, np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(
            "confidence must hold finite numbers,"
            f" got NaN, infinity or no pixel at all (shape {values.shape})"
        )
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(values.shape, np.uint8)
    stretched: NDArray[np.float64] = np.rint((values - low) * 255 / (high - low))
    return stretched.astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A precision-recall curve over the thresholds 0..255."""

    precision: ByThreshold
    """float64 (256,), [0, 1]."""
    recall: ByThreshold
    """float64 (256,), [0, 1]."""
    beta_squared: float = 0.3
    """Weight of recall in `f`."""

    @property
    def f(self) -> ByThreshold:
        """F-measure: float64 (256,), [0, 1]."""
        return f_measure(self.precision, self.recall, self.beta_squared)

    @property
    def best(self) -> int:
        """The threshold of the largest F, the lowest one if several share it."""
        return int(self.f.argmax())


# Sums of per-image figures are kept as int64 in units of 2**-36, because integers add up to the
# same sum in any order and floats do not. Rounding to the unit moves a mean by at most 2**-37
# (7e-12); 2**27 images fit.
_UNIT = 2**36
_CURVES = ("precision", "recall", "f", "e")
_FIGURES = ("best_f", "f_at_half", "adaptive_f", "adaptive_e", "mae", "iou", "accuracy")
_OF_SHAPE = ("s_measure", "weighted_f", "boundary_f")
Measures: TypeAlias = Literal["all", "f"]
"""``f``: what follows from the pixels of each level; ``all``: also S-measure, weighted F and
boundary F, which follow from where they are and take some 15 ms for an image of 500 x 375."""


@dataclass(slots=True, eq=False)
class Evaluation:
    """What is known after any number of images: sums, of a fixed size, that add up over shards.

    ``a + b`` is the evaluation of the images of both. Whatever the order of the images and their
    split into shards, the state is the same to the last bit.

    An image without valid foreground truth is counted in `skipped` and enters no average.

    Parameters
    ----------
    beta_squared : float
        Weight of recall in F, already squared.
    normalise : bool
        Apply `normalise_to_255` to each map before precision and recall, as the paper does.
        ``mae``, ``iou``, ``accuracy``, ``f_at_half`` and ``boundary_f`` never do: they describe the
        confidence and the mask that a user gets.
    measures : {"all", "f"}
        Which figures, see :data:`Measures`.

    Raises
    ------
    ValueError
        If `beta_squared` is negative or not finite.

    Examples
    --------
    >>> truth = np.array([[False, True]])
    >>> shards = [Evaluation(), Evaluation()]
    >>> shards[0].add(np.array([[10, 200]], dtype=np.uint8), truth)
    >>> shards[1].add(np.array([[90, 80]], dtype=np.uint8), truth)
    >>> sum(shards, start=Evaluation()).summary()["iou"]
    0.5
    """

    beta_squared: float = 0.3
    normalise: bool = True
    measures: Measures = "all"
    images: int = field(default=0, init=False)
    """Images in the averages."""
    skipped: int = field(default=0, init=False)
    """Images left out, having no valid foreground truth."""
    best_thresholds: int = field(default=0, init=False)
    """Sum over images of the threshold that is best for the image."""
    sums: dict[str, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)
    """Per figure the sum over images in units of 2**-36: int64, (256,) by threshold, or ()."""

    def __post_init__(self) -> None:
        f_measure(1.0, 1.0, self.beta_squared)  # a bad value stops here, not at the first image
        figures = _FIGURES + (_OF_SHAPE if self.measures == "all" else ())
        self.sums = {name: np.zeros(256, np.int64) for name in _CURVES}
        self.sums |= {name: np.zeros((), np.int64) for name in figures}

    def add(
        self,
        confidence: AnyArray,
        truth: AnyArray,
        valid: AnyArray | None = None,
        *,
        foreground_found: bool = True,
    ) -> None:
        """Take in one image; the arguments, and the errors, are those of `precision_recall`.

        Truth without foreground is not an error here: the image is counted in `skipped`.

        Parameters
        ----------
        confidence, truth, valid
            As for `precision_recall`.
        foreground_found : bool
            False: the mask is empty whatever the confidence.  That counts in ``iou``, ``accuracy``,
            ``f_at_half`` and ``boundary_f``, which are of the mask.
        """
        counts = level_counts(confidence, truth, valid)
        if not counts[1].any():
            self.skipped += 1
            return
        levels = _normalise_counts(counts) if self.normalise else counts
        curve = Curve(*_precision_recall(levels), self.beta_squared)
        e, adaptive = e_measures(levels[:2]), adaptive_level(levels[:2])
        figures = {
            "precision": curve.precision,
            "recall": curve.recall,
            "f": curve.f,
            "best_f": curve.f.max(),
            "adaptive_f": curve.f[adaptive],
            "e": e,
            "adaptive_e": e[adaptive],
            "mae": _mean_absolute_error(counts),
            **_of_mask(counts if foreground_found else _at_level_0(counts), self.beta_squared),
        }
        if self.measures == "all":
            shown = _stretch(confidence, counts) if self.normalise else confidence
            figures["s_measure"] = s_measure(shown, truth, valid)
            figures["weighted_f"] = weighted_f(shown, truth, valid)
            mask = (confidence >= HALF) & foreground_found
            figures["boundary_f"] = boundary_f(mask, truth, valid)
        for name, figure in figures.items():
            self.sums[name] += np.rint(figure * _UNIT).astype(np.int64)
        self.best_thresholds += curve.best
        self.images += 1

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """Give the evaluation of the images of both; neither changes.

        Raises
        ------
        ValueError
            If their settings differ.
        """
        mine = (self.beta_squared, self.normalise, self.measures)
        if mine != (other.beta_squared, other.normalise, other.measures):
            raise ValueError(
                "evaluations of different settings do not add up: beta_squared"
                f" {self.beta_squared} and {other.beta_squared},"
                f" normalise {self.normalise} and {other.normalise},"
                f" measures {self.measures} and {other.measures}"
            )
        both = Evaluation(*mine)
        both.images = self.images + other.images
        both.skipped = self.skipped + other.skipped
        both.best_thresholds = self.best_thresholds + other.best_thresholds
        both.sums = {name: self.sums[name] + other.sums[name] for name in self.sums}
        return both

    def curve(self) -> Curve:
        """Precision and recall averaged over images, per threshold: the curve of ``mean_pr``.

        Raises
        ------
        ValueError
            If no image had foreground truth.
        """
        return Curve(self._mean("precision"), self._mean("recall"), self.beta_squared)

    def summary(self) -> dict[str, Any]:
        """Give the content of ``metrics.json``.

        Returns
        -------
        summary : dict
            ``images`` (in the averages) and ``skipped``; ``mean_pr``, ``mean_f`` and ``max_f``,
            each with its ``max_f`` in [0, 1] and its ``threshold``: the lowest that reaches the
            maximum, for ``max_f`` the mean of the images' own; ``mae``, the mean of
            ``|confidence / 255 - truth|`` over pixels, ``iou`` and ``accuracy`` of the mask
            ``confidence >= 128``, each per image, then averaged; likewise ``f_at_half``, F of that
            mask, ``adaptive_f`` and, if all are measured, ``s_measure``, ``weighted_f`` and
            ``boundary_f``; ``e_measure`` with its ``adaptive`` value, the ``mean`` over thresholds
            and its ``max`` with the ``threshold``; ``beta_squared``, ``normalised``, ``measures``.

        Raises
        ------
        ValueError
            If no image had foreground truth.
        """
        mean_pr, mean_f, e = self.curve(), self._mean("f"), self._mean("e")
        shape = {name: float(self._mean(name)) for name in _OF_SHAPE if name in self.sums}
        return {
            "images": self.images,
            "skipped": self.skipped,
            "mean_pr": {"max_f": float(mean_pr.f.max()), "threshold": mean_pr.best},
            "mean_f": {"max_f": float(mean_f.max()), "threshold": int(mean_f.argmax())},
            "max_f": {
                "max_f": float(self._mean("best_f")),
                "threshold": self.best_thresholds / self.images,
            },
            "mae": float(self._mean("mae")),
            "iou": float(self._mean("iou")),
            "accuracy": float(self._mean("accuracy")),
            "f_at_half": float(self._mean("f_at_half")),
            "adaptive_f": float(self._mean("adaptive_f")),
            "e_measure": {
                "adaptive": float(self._mean("adaptive_e")),
                "mean": float(e.mean()),
                "max": float(e.max()),
                "threshold": int(e.argmax()),
            },
            **shape,
            "beta_squared": self.beta_squared,
            "normalised": self.normalise,
            "measures": self.measures,
        }

    def _mean(self, name: str) -> NDArray[np.float64]:
        if not self.images:
            raise ValueError(
                f"no image with foreground truth to average over ({self.skipped} without)"
            )
        return np.asarray(self.sums[name] / (_UNIT * self.images), np.float64)


def _normalise_counts(counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """Give the counts of the stretched map: every level that occurs moves to its new place."""
    levels = np.flatnonzero(counts.any(axis=0))
    stretched = np.zeros_like(counts)
    stretched[:, normalise_to_255(levels)] = counts[
        :, levels
    ]  # no two levels come to the same place
    return stretched


def _stretch(confidence: AnyArray, counts: NDArray[np.int64]) -> AnyArray:
    """Give the stretched map, level by level."""
    levels = np.flatnonzero(counts.any(axis=0))
    table = np.zeros(256, np.uint8)
    table[levels] = normalise_to_255(levels)
    return np.asarray(table[confidence])


def _precision_recall(counts: NDArray[np.intp]) -> tuple[ByThreshold, ByThreshold]:
    """Precision and recall from the pixels per level, of which some are foreground."""
    kept = counts[:2, ::-1].cumsum(axis=1)[:, ::-1]  # (2, 256): pixels at or above each level
    hits, predicted = kept[1], kept.sum(axis=0)
    precision = np.divide(hits, predicted, out=np.ones(256), where=predicted > 0)
    return precision, hits / hits[0]


def _at_level_0(counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """Give the counts of a map without any confidence."""
    empty = np.zeros_like(counts)
    empty[:, 0] = counts.sum(axis=1)
    return empty


def _mean_absolute_error(counts: NDArray[np.intp]) -> float:
    background, foreground, _ = counts
    pixels, level = background.sum() + foreground.sum(), np.arange(256)
    return float((background @ level + foreground @ (255 - level)) / (255 * pixels))


def _of_mask(counts: NDArray[np.intp], beta_squared: float) -> dict[str, Any]:
    """F, IoU and accuracy of the mask at 0.5."""
    background, foreground, _ = counts
    hits, false_alarms = foreground[HALF:].sum(), background[HALF:].sum()
    return {
        "f_at_half": Curve(*_precision_recall(counts), beta_squared).f[HALF],
        "iou": hits / (foreground.sum() + false_alarms),
        "accuracy": (hits + background[:HALF].sum()) / (background.sum() + foreground.sum()),
    }


def curve_csv(curve: Curve) -> str:
    """Write a curve as CSV: ``threshold,precision,recall,f``, one line per threshold 0..255.

    Numbers are written so that reading them back gives the same float64.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("threshold", "precision", "recall", "f"))
    columns = (curve.precision.tolist(), curve.recall.tolist(), curve.f.tolist())
    writer.writerows(zip(range(256), *columns, strict=True))
    return text.getvalue()


def curve_svg(curves: Mapping[str, Curve]) -> str:
    """Draw precision over recall, one line per curve, its maximal F marked.

    Parameters
    ----------
    curves : mapping of str to Curve
        What the legend calls each curve, in the order of the legend.

    Returns
    -------
    svg : str
        A picture 6 inches wide, its words kept as text; the same for the same curves.

    Raises
    ------
    ValueError
        If there is no curve.
    """
    if not curves:
        raise ValueError("curves must hold at least one named curve, got none")
    import matplotlib  # here, not above: workers that only count need not load it
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"svg.hashsalt": "saff", "svg.fonttype": "none", "text.parse_math": False}
    ):
        figure = Figure(figsize=(6, 5 + 0.25 * len(curves)), layout="constrained")
        axes = figure.add_subplot()
        labels = []
        for number, (name, curve) in enumerate(curves.items()):
            style = ("o-", "o--", "o:", "o-.")[number // 10 % 4]  # ten colours, then again dashed
            axes.plot(curve.recall, curve.precision, style, markevery=[curve.best])
            labels.append(f"{name}: max F {curve.f.max():.3f} at threshold {curve.best}")
        # below the axes, where it hides no curve
        figure.legend(axes.get_lines(), labels, loc="outside lower center", frameon=False)
        axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1.01), ylim=(0, 1.01))
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()
