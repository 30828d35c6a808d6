"""What a run made of its images, as one HTML page that opens from disk and needs no network.

Arrays in, text out: the caller reads the rows and stores the text.  Everything the page shows is
inside it (pictures as ``data:`` addresses, styles, the script), and a content security policy
forbids it to fetch anything else.  Names, messages and settings are untrusted text: the template
escapes every one of them.

A curve of the whole run is one more function of ``plots.py`` and one more section of
``templates/report.html.j2``.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from saff.arrays import AnyArray
from saff.html_templates import load_template
from saff.layout import Stage
from saff.metrics import Curve
from saff.report.cards import (
    THUMBNAIL_SIDE,
    Card,
    View,
    add_bars,
    bar_limit,
    card_view,
    colour_map,
)
from saff.report.plots import precision_recall_svg, training_svg
from saff.report.text import visible


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measured:
    """How well the maps of a stage agree with truth."""

    curve: Curve
    """Precision and recall, averaged over the images."""
    images: int
    mean_pr: float
    mean_f: float
    max_f: float
    """Maximal F in the three conventions of :mod:`saff.metrics`."""
    iou: float
    mae: float
    normalised: bool
    """Whether each map was stretched to 0..1 for the curve."""

    @classmethod
    def from_summary(cls, curve: Curve, summary: Mapping[str, Any]) -> "Measured":
        """Take the figures from what :meth:`saff.metrics.Evaluation.summary` gives.

        Raises
        ------
        LookupError, TypeError, ValueError
            If a figure is missing or no number.
        """
        conventions = {
            name: float(summary[name]["max_f"]) for name in ("mean_pr", "mean_f", "max_f")
        }
        return cls(
            curve=curve,
            images=int(summary["images"]),
            iou=float(summary["iou"]),
            mae=float(summary["mae"]),
            normalised=bool(summary["normalised"]),
            **conventions,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One image that has no label, or no prediction, and why."""

    image_id: str
    error_kind: str
    error: str


def render_page(
    cards: Iterable[Card],
    failures: Iterable[Failure] = (),
    *,
    title: str,
    run: Mapping[str, object],
    totals: Mapping[str, int],
    stage: Stage = Stage.PSEUDO_LABELS,
    measured: Mapping[str, Measured] | None = None,
    trainings: Mapping[str, Mapping[str, AnyArray]] | None = None,
    lost_photographs: Callable[[], str] = str,
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
    stage : Stage
        Which result an image without one lacks.
    measured : mapping of str to Measured, optional
        By stage, in the order to show them, what its comparison with truth gave.
    trainings : mapping of str to mapping, optional
        By name, in the order they ran, the steps of each training: arrays ``step``, ``loss``,
        ``accuracy``, ``samples`` and ``seconds``, all of shape (steps,).
    lost_photographs : callable
        Says which images have no card because their photographs are lost; called when the cards
        have been read, and nothing is shown if it gives an empty text.
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
    views = [card_view(card, thumbnail_side) for card in islice(source, max_cards)]
    rated = [view["prediction_quality"] for view in views]
    if any(quality is not None for quality in rated):  # the masks to doubt come first
        views.sort(key=lambda view: _last_if_none(view["prediction_quality"]))
    limit = bar_limit(views)
    add_bars(views, limit)
    folded = {key: value for key, value in run.items() if isinstance(value, Mapping | list | tuple)}
    return load_template("report.html.j2").render(
        title=visible(title),
        facts=[(visible(k), visible(str(v))) for k, v in run.items() if k not in folded],
        folded=[
            (visible(k), visible(json.dumps(v, indent=2, ensure_ascii=False, default=str)))
            for k, v in folded.items()
        ],
        totals=[(visible(name), count) for name, count in totals.items()],
        word={Stage.PSEUDO_LABELS: "label", Stage.PREDICTIONS: "prediction"}[stage],
        done={Stage.PSEUDO_LABELS: "labelled", Stage.PREDICTIONS: "predicted"}[stage],
        evaluation=_evaluation(measured or {}),
        training=_training(
            {k: steps for k, steps in (trainings or {}).items() if len(steps["step"])}
        ),
        cards=views,
        labels=any(view["weights"] for view in views),
        predictions=any(view["predicted"] for view in views),
        compared=any(view["label_iou"] is not None for view in views),
        rated=any(view["quality"] is not None for view in views),
        rated_predictions=any(quality is not None for quality in rated),
        more_cards=next(source, None) is not None,
        lost_photographs=visible(lost_photographs()),
        fallbacks=sum(1 for view in views if view["fallback"]),
        failures=_by_kind(failures, max_failures),
        bar_limit=limit,
        data={
            "palette": colour_map().ravel().tolist(),
            "cards": [{key: view[key] for key in _SCRIPTED} for view in views],
        },
        gradient=[f"rgb({r} {g} {b})" for r, g, b in colour_map()[:: 255 // 15].tolist()],
    )


_SCRIPTED = (  # what the script sorts by and shows
    "name",
    "image_confidence",
    "quality",
    "prediction_quality",
    "foreground_found",
    "cue_difference",
    "label_iou",
    "foreground",
    "predicted_foreground",
)


def _last_if_none(figure: float | None) -> tuple[bool, float]:
    return figure is None, figure or 0.0


# Figures about the whole run


def _evaluation(measured: Mapping[str, Measured]) -> View | None:
    """Precision over recall for each stage, and what else is known about it."""
    if not measured:
        return None
    svg = precision_recall_svg([m.curve for m in measured.values()])
    return {
        "plot": {"title": "Precision over recall", "svg": svg},
        "rows": [{"name": visible(name), "measured": m} for name, m in measured.items()],
    }


def _training(trainings: Mapping[str, Mapping[str, AnyArray]]) -> View | None:
    """Loss and accuracy over the steps of each training, and what it took."""
    if not trainings:
        return None
    plots = [
        {
            "title": f"{figure.capitalize()} over steps",
            "svg": training_svg(figure, list(trainings.values())),
        }
        for figure in ("loss", "accuracy")
    ]
    rows = []
    for name, steps in trainings.items():
        seconds = float(steps["seconds"].sum())
        rows.append(
            {
                "name": visible(name),
                "steps": len(steps["step"]),
                "duration": _duration(seconds),
                "loss": float(steps["loss"][-1]),
                "accuracy": float(steps["accuracy"][-1]),
                "rate": float(steps["samples"].sum()) / seconds if seconds > 0 else None,
            }
        )
    return {"plots": plots, "rows": rows}


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(slots=True)
class _Kind:
    """Failures of one kind: how many, and the first of them."""

    name: str
    count: int = 0
    listed: list[tuple[str, str]] = field(default_factory=list)


def _by_kind(failures: Iterable[Failure], most: int) -> list[_Kind]:
    kinds: dict[str, _Kind] = {}
    for failure in failures:
        kind = kinds.setdefault(failure.error_kind, _Kind(visible(failure.error_kind)))
        kind.count += 1
        if len(kind.listed) < most:
            kind.listed.append((visible(failure.image_id), visible(failure.error)))
    return sorted(kinds.values(), key=lambda kind: (-kind.count, kind.name))
