"""One image of the report: its pictures, measures and weights, ready for the template.

Arrays in, text and data URIs out.  A picture beside the others is one more entry of `_panels`.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from saff.arrays import AnyArray, Features, Image, LabelMap
from saff.metrics import HALF
from saff.quality import mask_iou, to_levels
from saff.report.text import visible
from saff.resize import sample, shrunk_size

THUMBNAIL_SIDE = 320  # pixels of the longest side; shown at 150 to 320 CSS pixels
JPEG_QUALITY = 75
COLOUR_MAP = "magma"  # perceptually uniform, so that equal steps of a map look equal
SLIDER_STEPS = 100  # the threshold moves by 0.01
NARROWEST, WIDEST = 0.66, 2.4  # width / height of a picture's frame; thinner images get margins
WEIGHTS = (  # name, and the cue that a context feature belongs to
    ("semantic", ""),
    ("context", "semantic"),
    ("saliency", ""),
    ("context", "saliency"),
    ("bias", ""),
)

Grey: TypeAlias = NDArray[np.uint8]
View: TypeAlias = dict[str, Any]
"""What the template draws; text in it is not yet escaped."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Label:
    """The pseudo label of an image as a confidence map, and how it came about."""

    confidence: Grey
    """uint8 (H, W): 255 is foreground for sure."""
    superpixels: LabelMap
    """int (H, W), labels 0 .. R-1."""
    features: Features
    """float (R, 4) in [0, 1], columns S_s, S_s_con, S_a, S_a_con."""
    weights: Sequence[float]
    """The four feature weights, then the bias."""
    seeds_foreground: int
    seeds_background: int
    fallback: str = ""
    """Why the fit was not used as published; empty when it was."""
    quality: float | None = None
    """How far the mask can be trusted, in [0, 1]; None in runs that did not tell."""

    def __post_init__(self) -> None:
        _check_features(self.features, self.superpixels)
        if len(self.weights) != len(WEIGHTS) or not np.isfinite(self.weights).all():
            came = f"{[float(w) for w in self.weights]}"
            raise ValueError(f"weights must be 5 finite numbers (4 and the bias), got {came}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Card:
    """One image with what was made of it, ready to draw: a label, a prediction or both."""

    image_id: str
    image: Image
    """uint8 (H, W, 3), RGB."""
    label: Label | None = None
    prediction: Grey | None = None
    """The trained network's confidence: uint8 (H, W), 255 is foreground for sure."""
    prediction_quality: float | None = None
    """How far the prediction's mask can be trusted, in [0, 1]."""
    foreground_found: bool = True
    """False: the network has found no foreground, and the prediction's mask is empty."""

    def __post_init__(self) -> None:
        size = self.image.shape[:2]
        if self.image.shape != (*size, 3) or self.image.dtype != np.uint8 or 0 in size:
            came = f"{self.image.dtype} {self.image.shape}"
            raise ValueError(f"image must be uint8 (H, W, 3) with pixels, got {came}")
        maps = [("prediction", self.prediction)]
        if self.label is not None:
            maps.append(("confidence", self.label.confidence))
        for name, grey in maps:
            if grey is not None and (grey.shape != size or grey.dtype != np.uint8):
                came = f"{grey.dtype} {grey.shape}"
                raise ValueError(f"{name} must be uint8 {size} like the image, got {came}")
        if self.label is not None and self.label.superpixels.shape != size:
            came = f"{self.label.superpixels.shape}"
            raise ValueError(f"superpixels must be {size} like the image, got {came}")
        if self.label is None and self.prediction is None:
            raise ValueError("a card must have a label or a prediction, got neither")


def image_confidence(confidence: AnyArray) -> float:
    """How decided a confidence map is: the mean of ``|2 c - 1|`` over its pixels.

    Parameters
    ----------
    confidence : uint8 array of shape (H, W)
        Confidence map, 0 .. 255 for c in [0, 1].

    Returns
    -------
    image_confidence : float
        1 when every pixel is surely foreground or surely background, 0 when all stand at 0.5.

    Examples
    --------
    >>> image_confidence(np.array([[0, 255], [255, 0]], np.uint8))
    1.0
    """
    return float(np.abs(2.0 * confidence / 255.0 - 1.0).mean())


def cue_difference(features: AnyArray, superpixels: AnyArray) -> float:
    """How far the two cues of an image are apart: the mean of ``|S_s - S_a|`` over its pixels.

    Parameters
    ----------
    features : float array of shape (R, 4)
        Columns S_s, S_s_con, S_a, S_a_con, each in [0, 1].
    superpixels : int array of shape (H, W)
        Labels 0 .. R-1.

    Returns
    -------
    cue_difference : float
        0 when the semantic and the saliency map are the same, 1 when one is the other's negative
        in black and white.

    Raises
    ------
    ValueError
        If the features are not finite (R, 4) or a label has no row in them.

    Examples
    --------
    >>> features = np.array([[1.0, 0.5, 0.25, 0.5], [0.0, 0.5, 0.0, 0.5]])
    >>> cue_difference(features, np.array([[0, 1, 1]]))
    0.25
    """
    _check_features(features, superpixels)
    area = np.bincount(superpixels.ravel(), minlength=len(features))  # pixels per region, (R,)
    return float(np.average(np.abs(features[:, 0] - features[:, 2]), weights=area))


def iou_of_masks(confidence: AnyArray, prediction: AnyArray) -> float:
    """Intersection over union of the masks at 0.5: how far a network kept to a pseudo label.

    Parameters
    ----------
    confidence, prediction : uint8 arrays of shape (H, W)
        Confidence maps, 0 .. 255.

    Returns
    -------
    iou : float
        1 when both masks are the same, also when both are empty; 0 when they share no pixel.

    Examples
    --------
    >>> iou_of_masks(np.array([[0, 128, 255]], np.uint8), np.array([[0, 127, 200]], np.uint8))
    0.5
    """
    return mask_iou(confidence >= HALF, prediction >= HALF)


def card_view(card: Card, side: int) -> View:
    """One card as the template draws it; what it has not is None or empty."""
    height, width = card.image.shape[:2]
    view: View = {
        "name": visible(card.image_id),
        "height": height,
        "width": width,
        "ratio": round(min(max(width / height, NARROWEST), WIDEST), 4),
        "panels": list(_panels(card, side)),
        "quality": None,
        "prediction_quality": None,
        "foreground_found": card.foreground_found,
        "cue_difference": None,
        "label_iou": None,
        "foreground": None,
        "predicted": card.prediction is not None,
        "predicted_foreground": None,
        "weights": [],
        "fallback": "",
    }
    if card.prediction is not None:
        view["image_confidence"] = round(image_confidence(card.prediction), 4)
        view["predicted_foreground"] = _foreground_share(card.prediction, card.foreground_found)
        if card.prediction_quality is not None:
            view["prediction_quality"] = round(card.prediction_quality, 4)
    if (label := card.label) is not None:
        view |= {
            "image_confidence": round(image_confidence(label.confidence), 4),
            "cue_difference": round(cue_difference(label.features, label.superpixels), 4),
            "foreground": _foreground_share(label.confidence),
            "weights": [float(w) for w in label.weights],
            "seeds_foreground": int(label.seeds_foreground),
            "seeds_background": int(label.seeds_background),
            "fallback": visible(label.fallback),
            "quality": None if label.quality is None else round(label.quality, 4),
        }
        if card.prediction is not None:
            predicted = card.prediction * np.uint8(card.foreground_found)
            view["label_iou"] = round(iou_of_masks(label.confidence, predicted), 4)
    return view


@dataclass(frozen=True, slots=True)
class _Panel:
    """One picture: given (``src``), drawn by the script on a canvas, or both: drawn from it."""

    kind: str
    caption: str
    src: str = ""
    canvas: bool = False


def _panels(card: Card, side: int) -> Iterator[_Panel]:
    """The pictures of one card, left to right."""
    height, width = size = shrunk_size(card.image.shape, side)
    small = Pillow.fromarray(card.image).resize((width, height), Pillow.Resampling.LANCZOS)
    yield _Panel("original", "Original", _jpeg(small))
    if (label := card.label) is not None:
        regions = sample(label.superpixels, size)
        for kind, column in (("semantic", 0), ("saliency", 2)):
            levels = to_levels(np.clip(label.features[:, column], 0.0, 1.0))
            yield _Panel(kind, kind.capitalize(), _webp(colour_map()[levels][regions]))
        # subsampled, not averaged: the mask on the page is the real one at these pixels
        grey = sample(label.confidence, size)
        yield _Panel("confidence", "Confidence", _webp(grey), canvas=True)
    if card.prediction is not None:
        grey = sample(card.prediction, size)
        yield _Panel("prediction", "Prediction", _webp(grey), canvas=True)
    yield _Panel("mask", "Mask", canvas=True)
    yield _Panel("cutout", "Cut-out", canvas=True)


def _check_features(features: AnyArray, superpixels: AnyArray) -> None:
    if features.ndim != 2 or features.shape[1] != 4 or not np.isfinite(features).all():
        raise ValueError(f"features must be finite (R, 4), got shape {features.shape}")
    if superpixels.ndim != 2 or superpixels.min() < 0 or superpixels.max() >= len(features):
        got = f"{superpixels.shape} with {superpixels.min()}..{superpixels.max()}"
        raise ValueError(
            f"superpixels must be (H, W) with labels 0..{len(features) - 1}, got {got}"
        )


def _foreground_share(confidence: Grey, found: bool = True) -> list[float]:
    """Share of pixels at or above each threshold 0, 0.01 .. 1 of the slider; 0 if none is found."""
    if not found:
        return [0.0] * (SLIDER_STEPS + 1)
    counts = np.bincount(confidence.ravel(), minlength=256)
    kept = np.cumsum(counts[::-1])[::-1] / confidence.size  # (256,), at or above each level
    levels = -(-255 * np.arange(SLIDER_STEPS + 1) // SLIDER_STEPS)  # ceil(255 t)
    return [round(share, 4) for share in kept[levels].tolist()]


@lru_cache(maxsize=1)
def colour_map() -> Grey:
    """Colours of the confidence, (256, 3)."""
    import matplotlib  # not at the top: whoever only reads rows need not load it

    colours: Grey = matplotlib.colormaps[COLOUR_MAP](np.arange(256), bytes=True)
    return colours[:, :3]


def _jpeg(picture: Pillow.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True, progressive=False)
    return data_uri("image/jpeg", stream.getvalue())


def _webp(values: AnyArray) -> str:
    """Lossless: the script thresholds what it reads back.  A third smaller than PNG."""
    stream = io.BytesIO()
    Pillow.fromarray(values).convert("RGB").save(
        stream, "WEBP", lossless=True, method=1, quality=30
    )
    return data_uri("image/webp", stream.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Address that holds a file itself, so that a page fetches nothing."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def bar_limit(views: Sequence[View]) -> float:
    """Weight at the end of every bar of the page: the 95th percentile of all sizes, at least 1.

    One scale for all images, so that bars compare; a fit that ran away does not flatten the others.
    """
    sizes = np.abs([weight for view in views for weight in view["weights"]])
    return max(1.0, round(float(np.quantile(sizes, 0.95)), 1)) if sizes.size else 1.0


def add_bars(views: Sequence[View], limit: float) -> None:
    """Add to each card that has weights the bars that show them."""
    for view in views:
        if view["weights"]:
            view["bars"] = [
                {"name": name, "of": of, **_bar(weight, limit)}
                for (name, of), weight in zip(WEIGHTS, view["weights"], strict=True)
            ]


def _bar(weight: float, limit: float) -> View:
    """A bar from the axis in the middle, as percentages of the drawing's width."""
    length = 50 * min(abs(weight) / limit, 1.0)
    text = f"{weight:+.2f}" if abs(weight) < 1000 else f"{weight:+.1e}"
    return {
        "text": text.replace("-", "\N{MINUS SIGN}"),
        "sign": "negative" if weight < 0 else "positive",
        "start": round(50.0 - (length if weight < 0 else 0.0), 2),
        "length": round(length, 2),
        "beyond": abs(weight) > limit,
    }
