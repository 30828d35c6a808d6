"""What a run made of its images, as one HTML page that opens from disk and needs no network.

Arrays in, text out: the caller reads the rows and stores the text.  Everything the page shows is
inside it (pictures as ``data:`` addresses, styles, the script), and a content security policy
forbids it to fetch anything else.  Names, messages and settings are untrusted text: the template
escapes every one of them.

A picture beside the others is one more entry of `_panels`; a figure about the whole run is a
`_plot` and one more section of ``templates/report.html.j2``.
"""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any, Literal, TypeAlias

import jinja2
import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image as Pillow

from saff.arrays import AnyArray, Features, Image, LabelMap
from saff.metrics import HALF, Curve
from saff.resize import sample, shrunk_size

THUMBNAIL_SIDE = 320  # pixels of the longest side; shown at 150 to 320 CSS pixels
JPEG_QUALITY = 75
COLOUR_MAP = "magma"  # perceptually uniform, so that equal steps of a map look equal
SLIDER_STEPS = 100  # the threshold moves by 0.01
NARROWEST, WIDEST = 0.66, 2.4  # width / height of a picture's frame; thinner images get margins
POINTS = 600  # of a line in a figure; a longer one keeps its highs and lows
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measured:
    """How well the maps of a stage agree with truth."""

    curve: Curve
    """Precision and recall, averaged over the images."""
    summary: Mapping[str, Any]
    """As :meth:`saff.metrics.Evaluation.summary` gives it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One image that has no label, or no prediction, and why."""

    image_id: str
    error_kind: str
    error: str


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


def disagreement(features: AnyArray, superpixels: AnyArray) -> float:
    """How far the two cues of an image are apart: the mean of ``|S_s - S_a|`` over its pixels.

    Parameters
    ----------
    features : float array of shape (R, 4)
        Columns S_s, S_s_con, S_a, S_a_con, each in [0, 1].
    superpixels : int array of shape (H, W)
        Labels 0 .. R-1.

    Returns
    -------
    disagreement : float
        0 when the semantic and the saliency map are the same, 1 when one is the other's negative
        in black and white.

    Raises
    ------
    ValueError
        If the features are not finite (R, 4) or a label has no row in them.

    Examples
    --------
    >>> features = np.array([[1.0, 0.5, 0.25, 0.5], [0.0, 0.5, 0.0, 0.5]])
    >>> disagreement(features, np.array([[0, 1, 1]]))
    0.25
    """
    _check_features(features, superpixels)
    area = np.bincount(superpixels.ravel(), minlength=len(features))  # pixels per region, (R,)
    return float(np.average(np.abs(features[:, 0] - features[:, 2]), weights=area))


def agreement(confidence: AnyArray, prediction: AnyArray) -> float:
    """How far a network kept to a pseudo label: the IoU of their masks at 0.5.

    Parameters
    ----------
    confidence, prediction : uint8 arrays of shape (H, W)
        Confidence maps, 0 .. 255.

    Returns
    -------
    agreement : float
        1 when both masks are the same, also when both are empty; 0 when they share no pixel.

    Examples
    --------
    >>> agreement(np.array([[0, 128, 255]], np.uint8), np.array([[0, 127, 200]], np.uint8))
    0.5
    """
    first, second = confidence >= HALF, prediction >= HALF
    either = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / either) if either else 1.0


def render(
    cards: Iterable[Card],
    failures: Iterable[Failure] = (),
    *,
    title: str,
    run: Mapping[str, object],
    totals: Mapping[str, int],
    stage: Literal["pseudo_labels", "predictions"] = "pseudo_labels",
    measured: Mapping[str, Measured] | None = None,
    trainings: Mapping[str, Mapping[str, AnyArray]] | None = None,
    max_cards: int = 200,
    max_failures: int = 200,
    thumbnail_side: int = THUMBNAIL_SIDE,
) -> str:
    """Draw the report of a run as one self-contained HTML page.

    Parameters
    ----------
    cards : iterable of Card
        Images with a result; read one at a time, each is let go once its thumbnails are made.
    failures : iterable of Failure
        Images without a result; all are counted, by kind.
    title : str
        Name of the run.
    run : mapping of str to object
        What made it (configuration, digest, version): plain values are listed in the order given,
        mappings and lists fold away as JSON.
    totals : mapping of str to int
        Counts of the whole run, in the order to show them; the page may hold fewer images.
    stage : {"pseudo_labels", "predictions"}
        Which result an image without one lacks.
    measured : mapping of str to Measured, optional
        By stage, in the order to show them, what its comparison with truth gave.
    trainings : mapping of str to mapping, optional
        By name, in the order they ran, the steps of each training: arrays ``step``, ``loss``,
        ``accuracy``, ``samples`` and ``seconds``, all of shape (steps,).
    max_cards : int
        The first so many cards are drawn; about 60 KB and 40 ms each.
    max_failures : int
        The first so many failures of each kind are listed.
    thumbnail_side : int
        Longest side of the pictures in pixels; smaller images keep their size.

    Returns
    -------
    html : str
        The page.  The same input gives the same text.

    Raises
    ------
    ValueError
        If a limit is below 0 or ``thumbnail_side`` below 1.
    """
    if max_cards < 0 or max_failures < 0 or thumbnail_side < 1:
        got = f"{max_cards}, {max_failures}, {thumbnail_side}"
        raise ValueError(
            f"max_cards and max_failures must be at least 0, thumbnail_side 1, got {got}"
        )
    source = iter(cards)
    views = [_view(card, thumbnail_side) for card in islice(source, max_cards)]
    labelled = [view for view in views if view["weights"]]
    limit = _bar_limit([view["weights"] for view in labelled])
    for view in labelled:
        view["bars"] = [
            {"name": name, "of": of, **_bar(weight, limit)}
            for (name, of), weight in zip(WEIGHTS, view["weights"], strict=True)
        ]
    folded = {key: value for key, value in run.items() if isinstance(value, Mapping | list | tuple)}
    return _template().render(
        title=_printable(title),
        facts=[(_printable(k), _printable(str(v))) for k, v in run.items() if k not in folded],
        folded=[
            (_printable(k), _printable(json.dumps(v, indent=2, ensure_ascii=False, default=str)))
            for k, v in folded.items()
        ],
        totals=[(_printable(name), count) for name, count in totals.items()],
        word={"pseudo_labels": "label", "predictions": "prediction"}[stage],
        done={"pseudo_labels": "labelled", "predictions": "predicted"}[stage],
        evaluation=_evaluation(measured or {}),
        training=_training(
            {k: steps for k, steps in (trainings or {}).items() if len(steps["step"])}
        ),
        cards=views,
        labels=bool(labelled),
        predictions=any(view["predicted"] for view in views),
        compared=any(view["agreement"] is not None for view in views),
        rated=any(view["quality"] is not None for view in views),
        more_cards=next(source, None) is not None,
        fallbacks=sum(1 for view in views if view["fallback"]),
        failures=_by_kind(failures, max_failures),
        bar_limit=limit,
        data={
            "palette": _palette().ravel().tolist(),
            "cards": [{key: view[key] for key in _SCRIPTED} for view in views],
        },
        gradient=[f"rgb({r} {g} {b})" for r, g, b in _palette()[:: 255 // 15].tolist()],
    )


_SCRIPTED = (  # what the script sorts by and shows
    "name",
    "image_confidence",
    "quality",
    "disagreement",
    "agreement",
    "foreground",
    "predicted_foreground",
)


def _view(card: Card, side: int) -> View:
    """One card as the template draws it; what it has not is None or empty."""
    height, width = card.image.shape[:2]
    view: View = {
        "name": _printable(card.image_id),
        "height": height,
        "width": width,
        "ratio": round(min(max(width / height, NARROWEST), WIDEST), 4),
        "panels": list(_panels(card, side)),
        "quality": None,
        "disagreement": None,
        "agreement": None,
        "foreground": None,
        "predicted": card.prediction is not None,
        "predicted_foreground": None,
        "weights": [],
        "fallback": "",
    }
    if card.prediction is not None:
        view["image_confidence"] = round(image_confidence(card.prediction), 4)
        view["predicted_foreground"] = _foreground_share(card.prediction)
    if (label := card.label) is not None:
        view |= {
            "image_confidence": round(image_confidence(label.confidence), 4),
            "disagreement": round(disagreement(label.features, label.superpixels), 4),
            "foreground": _foreground_share(label.confidence),
            "weights": [float(w) for w in label.weights],
            "seeds_foreground": int(label.seeds_foreground),
            "seeds_background": int(label.seeds_background),
            "fallback": _printable(label.fallback),
            "quality": None if label.quality is None else round(label.quality, 4),
        }
        if card.prediction is not None:
            view["agreement"] = round(agreement(label.confidence, card.prediction), 4)
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
            levels = np.rint(255 * np.clip(label.features[:, column], 0.0, 1.0)).astype(np.uint8)
            yield _Panel(kind, kind.capitalize(), _webp(_palette()[levels][regions]))
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


def _foreground_share(confidence: Grey) -> list[float]:
    """Share of pixels at or above each threshold 0, 0.01 .. 1 of the slider."""
    counts = np.bincount(confidence.ravel(), minlength=256)
    kept = np.cumsum(counts[::-1])[::-1] / confidence.size  # (256,), at or above each level
    levels = -(-255 * np.arange(SLIDER_STEPS + 1) // SLIDER_STEPS)  # ceil(255 t)
    return [round(share, 4) for share in kept[levels].tolist()]


@lru_cache(maxsize=1)
def _palette() -> Grey:
    """The colour map, (256, 3)."""
    colours: Grey = matplotlib.colormaps[COLOUR_MAP](np.arange(256), bytes=True)
    return colours[:, :3]


def _jpeg(picture: Pillow.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True, progressive=False)
    return _data_uri("image/jpeg", stream.getvalue())


def _webp(values: AnyArray) -> str:
    """Lossless: the script thresholds what it reads back.  A third smaller than PNG."""
    stream = io.BytesIO()
    Pillow.fromarray(values).convert("RGB").save(
        stream, "WEBP", lossless=True, method=1, quality=30
    )
    return _data_uri("image/webp", stream.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _bar_limit(weights: Sequence[Sequence[float]]) -> float:
    """Weight at the end of every bar of the page: the 95th percentile of all sizes, at least 1.

    One scale for all images, so that bars compare; a fit that ran away does not flatten the others.
    """
    sizes = np.abs([w for row in weights for w in row])
    return max(1.0, round(float(np.quantile(sizes, 0.95)), 1)) if sizes.size else 1.0


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


# Figures about the whole run


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """One line of a figure; those of one series have one colour."""

    series: int
    x: AnyArray
    y: AnyArray
    thin: bool = False
    mark: int | None = None
    """The point to mark, by its place in the line."""


def _evaluation(measured: Mapping[str, Measured]) -> View | None:
    """Precision over recall for each stage, and what else is known about it."""
    if not measured:
        return None
    lines = [
        _Line(number, m.curve.recall, m.curve.precision, mark=m.curve.best)
        for number, m in enumerate(measured.values())
    ]
    return {
        "plot": _plot("Precision over recall", "Recall", "Precision", lines, unit_square=True),
        "rows": [
            {"name": _printable(name), **m.summary, "beta_squared": m.curve.beta_squared}
            for name, m in measured.items()
        ],
    }


def _training(trainings: Mapping[str, Mapping[str, AnyArray]]) -> View | None:
    """Loss and accuracy over the steps of each training, and what it took."""
    if not trainings:
        return None
    plots = []
    for figure in ("loss", "accuracy"):
        raw, smooth = [], []
        for number, steps in enumerate(trainings.values()):
            finite = np.isfinite(steps[figure])  # a training may diverge
            x, y = steps["step"][finite], steps[figure][finite]
            raw.append(_Line(number, x, y, thin=True))
            smooth.append(_Line(number, x, _running_mean(y)))
        title = f"{figure.capitalize()} over steps"
        plots.append(_plot(title, "Step", figure.capitalize(), raw + smooth))
    rows = []
    for name, steps in trainings.items():
        seconds = float(steps["seconds"].sum())
        rows.append(
            {
                "name": _printable(name),
                "steps": len(steps["step"]),
                "duration": _duration(seconds),
                "loss": float(steps["loss"][-1]),
                "accuracy": float(steps["accuracy"][-1]),
                "rate": float(steps["samples"].sum()) / seconds if seconds > 0 else None,
            }
        )
    return {"plots": plots, "rows": rows}


def _running_mean(values: AnyArray) -> AnyArray:
    """Mean over the values around each, a twentieth of all and at least 5; fewer at the ends."""
    half = max(2, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    start, stop = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    mean: AnyArray = (sums[stop] - sums[start]) / (stop - start)
    return mean


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _plot(
    title: str, across: str, up: str, lines: Sequence[_Line], *, unit_square: bool = False
) -> View:
    """A figure as the template draws it: lines in a box of 1000 by 1000, ticks in percent."""
    drawn = [line for line in lines if line.x.size]
    if unit_square or not drawn:
        (left, right), (low, high) = (0.0, 1.0), (0.0, 1.0)
    else:
        left, right = (f(f(line.x) for line in drawn) for f in (min, max))
        right += right == left
        # a rare spike of a single step is cut off, or it would flatten all the rest
        low = min(np.quantile(line.y, 0.01 * line.thin, method="lower") for line in drawn)
        high = max(np.quantile(line.y, 1 - 0.01 * line.thin, method="higher") for line in drawn)
    ticks_up = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    low, high = min(low, ticks_up[0]), max(high, ticks_up[-1])
    ticks_across = MaxNLocator(6, steps=[1, 2, 5, 10], integer=not unit_square)
    shapes = []
    for line in drawn:
        kept = _highs_and_lows(line.y)
        columns = 1000 * (line.x - left) / (right - left)
        rows = 1000 * (high - line.y) / (high - low)
        places = np.stack([columns, rows], axis=1)
        shapes.append(
            {
                "series": line.series,
                "thin": line.thin,
                "points": " ".join(f"{x:.0f},{y:.0f}" for x, y in places[kept].tolist()),
                "mark": None if line.mark is None else (places[line.mark] / 10).round(2).tolist(),
            }
        )
    return {
        "title": title,
        "across": across,
        "up": up,
        "shapes": shapes,
        "columns": [
            (round(100 * (tick - left) / (right - left), 2), f"{tick:,.6g}")
            for tick in ticks_across.tick_values(left, right)
            if left <= tick <= right
        ],
        "rows": [
            (round(100 * (high - tick) / (high - low), 2), f"{tick:,.6g}") for tick in ticks_up
        ],
    }


def _highs_and_lows(values: AnyArray) -> list[int]:
    """Places of at most POINTS values: all of them, or the highest and lowest of each stretch."""
    if len(values) <= POINTS:
        return list(range(len(values)))
    edges = np.linspace(0, len(values), POINTS // 2 + 1).astype(int).tolist()
    parts = [(start, values[start:stop]) for start, stop in pairwise(edges)]
    return sorted({int(start + f(part)) for start, part in parts for f in (np.argmin, np.argmax)})


@dataclass(slots=True)
class _Kind:
    """Failures of one kind: how many, and the first of them."""

    name: str
    count: int = 0
    listed: list[tuple[str, str]] = field(default_factory=list)


def _by_kind(failures: Iterable[Failure], most: int) -> list[_Kind]:
    kinds: dict[str, _Kind] = {}
    for failure in failures:
        kind = kinds.setdefault(failure.error_kind, _Kind(_printable(failure.error_kind)))
        kind.count += 1
        if len(kind.listed) < most:
            kind.listed.append((_printable(failure.image_id), _printable(failure.error)))
    return sorted(kinds.values(), key=lambda kind: (-kind.count, kind.name))


# HTML drops or rewrites control characters, and UTF-8 cannot hold half a surrogate pair (which is
# how Python spells a file name that is not UTF-8): both get a character one can see.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
_VISIBLE = _CONTROLS | _SURROGATES


def _printable(text: str) -> str:
    return text.translate(_VISIBLE)


def _source_hash(script: str) -> str:
    """The content security policy's name for exactly this script."""
    digest = hashlib.sha256(str(script).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("saff"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["source_hash"] = _source_hash
    return environment.get_template("report.html.j2")
