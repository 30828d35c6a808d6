"""What a run made of its images, as one HTML page that opens from disk and needs no network.

Arrays in, text out: the caller reads the rows and stores the text.  Everything the page shows is
inside it (pictures as ``data:`` addresses, styles, the script), and a content security policy
forbids it to fetch anything else.  Names, messages and settings are untrusted text: the template
escapes every one of them.

A picture beside the others is one more entry of `_panels`; a figure about the whole run is one more
section of ``templates/report.html.j2``.
"""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, TypeAlias

import jinja2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from saff.arrays import AnyArray, Features, Image, LabelMap

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
class Card:
    """One labelled image, ready to draw."""

    image_id: str
    image: Image
    """uint8 (H, W, 3), RGB."""
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

    def __post_init__(self) -> None:
        size = self.image.shape[:2]
        if self.image.shape != (*size, 3) or self.image.dtype != np.uint8 or 0 in size:
            came = f"{self.image.dtype} {self.image.shape}"
            raise ValueError(f"image must be uint8 (H, W, 3) with pixels, got {came}")
        if self.confidence.shape != size or self.confidence.dtype != np.uint8:
            came = f"{self.confidence.dtype} {self.confidence.shape}"
            raise ValueError(f"confidence must be uint8 {size} like the image, got {came}")
        if self.superpixels.shape != size:
            came = f"{self.superpixels.shape}"
            raise ValueError(f"superpixels must be {size} like the image, got {came}")
        _check_features(self.features, self.superpixels)
        if len(self.weights) != len(WEIGHTS) or not np.isfinite(self.weights).all():
            came = f"{[float(w) for w in self.weights]}"
            raise ValueError(f"weights must be 5 finite numbers (4 and the bias), got {came}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One image that has no label, and why."""

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


def render(
    cards: Iterable[Card],
    failures: Iterable[Failure] = (),
    *,
    title: str,
    run: Mapping[str, object],
    totals: Mapping[str, int],
    max_cards: int = 200,
    max_failures: int = 200,
    thumbnail_side: int = THUMBNAIL_SIDE,
) -> str:
    """Draw the report of a run as one self-contained HTML page.

    Parameters
    ----------
    cards : iterable of Card
        Labelled images; read one at a time, each is let go once its thumbnails are made.
    failures : iterable of Failure
        Images without a label; all are counted, by kind.
    title : str
        Name of the run.
    run : mapping of str to object
        What made it (configuration, digest, version): plain values are listed in the order given,
        mappings and lists fold away as JSON.
    totals : mapping of str to int
        Counts of the whole run, in the order to show them; the page may hold fewer images.
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
    limit = _bar_limit([view["weights"] for view in views])
    for view in views:
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
        cards=views,
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


_SCRIPTED = ("name", "image_confidence", "disagreement", "foreground")  # what the script sorts by


def _view(card: Card, side: int) -> View:
    """One card as the template draws it."""
    height, width = card.image.shape[:2]
    return {
        "name": _printable(card.image_id),
        "height": height,
        "width": width,
        "ratio": round(min(max(width / height, NARROWEST), WIDEST), 4),
        "panels": list(_panels(card, side)),
        "image_confidence": round(image_confidence(card.confidence), 4),
        "disagreement": round(disagreement(card.features, card.superpixels), 4),
        "foreground": _foreground_share(card.confidence),
        "weights": [float(w) for w in card.weights],
        "seeds_foreground": int(card.seeds_foreground),
        "seeds_background": int(card.seeds_background),
        "fallback": _printable(card.fallback),
    }


@dataclass(frozen=True, slots=True)
class _Panel:
    """One picture: given (``src``), drawn by the script on a canvas, or both: drawn from it."""

    kind: str
    caption: str
    src: str = ""
    canvas: bool = False


def _panels(card: Card, side: int) -> Iterator[_Panel]:
    """The pictures of one card, left to right."""
    height, width = _thumbnail_size(card.image, side)
    small = Pillow.fromarray(card.image).resize((width, height), Pillow.Resampling.LANCZOS)
    yield _Panel("original", "Original", _jpeg(small))
    labels = _subsample(card.superpixels, height, width)
    for kind, column in (("semantic", 0), ("saliency", 2)):
        levels = np.rint(255 * np.clip(card.features[:, column], 0.0, 1.0)).astype(np.uint8)
        yield _Panel(kind, kind.capitalize(), _webp(_palette()[levels][labels]))
    # subsampled, not averaged: the mask on the page is the real one at these pixels
    grey = _subsample(card.confidence, height, width)
    yield _Panel("confidence", "Confidence", _webp(grey), canvas=True)
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


def _thumbnail_size(image: Image, side: int) -> tuple[int, int]:
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _subsample(pixels: AnyArray, height: int, width: int) -> AnyArray:
    """The nearest pixel to each centre of a grid of that size."""
    rows = ((np.arange(height) + 0.5) * pixels.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * pixels.shape[1] / width).astype(np.intp)
    return pixels[np.ix_(rows, columns)]


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
