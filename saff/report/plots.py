"""Curves of a whole run as SVG for the page: drawn by matplotlib, coloured by the page's styles.

The same input gives the same text.  Nothing is fetched: words stay text, in the page's own fonts.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from saff.arrays import AnyArray
from saff.metrics import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1200  # of all lines of a plot; longer ones keep their highs and lows
FEWEST_POINTS = 16  # of one line
WIDTH, HEIGHT = 4.4, 3.3  # inches, of 72 units each; the page stretches the plot to its column
SERIES = 6  # colours of the page; more lines begin again
PLAIN = ("#010101", "#020202", "#030303")  # stand for the page's colours until the plot is drawn
PAGE_COLOURS = dict(zip(PLAIN, ("var(--quiet)", "var(--line)", "var(--paper)"), strict=True))
INK, GRID, PAPER = PLAIN
SERIES_COLOURS = [f"#04040{number}" for number in range(SERIES)]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "path.simplify": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.major.size": 0,
    "font.size": 9,
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
}


def precision_recall_svg(curves: Sequence[Curve]) -> Markup:
    """Draw precision over recall, one line per curve, its maximal F marked.

    Parameters
    ----------
    curves : sequence of Curve
        In the order of the page's colours.

    Returns
    -------
    svg : markupsafe.Markup
        An ``<svg>`` element whose ids begin with ``precision-recall``.
    """
    with _drawing("precision-recall", "Precision over recall") as (axes, drawn):
        for number, curve in enumerate(curves):
            _line(axes, number, curve.recall, curve.precision, mark=curve.best)
        axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1), ylim=(0, 1))
    return drawn.svg


def training_svg(figure: str, trainings: Sequence[Mapping[str, AnyArray]]) -> Markup:
    """Draw a figure over the steps of each training: thin as it is, and thick its running mean.

    Parameters
    ----------
    figure : str
        ``"loss"`` or ``"accuracy"``.
    trainings : sequence of mapping
        Arrays ``step`` and the figure, both of shape (steps,); values that are not finite are left
        out.

    Returns
    -------
    svg : markupsafe.Markup
        An ``<svg>`` element whose ids begin with the figure's name.
    """
    title = f"{figure.capitalize()} over steps"
    with _drawing(figure, title) as (axes, drawn):
        most = max(FEWEST_POINTS, POINTS // (2 * max(1, len(trainings))))
        heights = []
        for number, steps in enumerate(trainings):
            finite = np.isfinite(steps[figure])  # a training may diverge
            x, y = steps["step"][finite], steps[figure][finite]
            if y.size:
                smooth = running_mean(y)
                _line(axes, number, x, y, most=most, thin=True)
                _line(axes, number, x, smooth, most=most)
                # a rare spike of a single step is cut off, or it would flatten all the rest
                heights += [np.quantile(y, 0.01, method="lower"), smooth.min()]
                heights += [np.quantile(y, 0.99, method="higher"), smooth.max()]
        if heights:
            _limit(axes, min(heights), max(heights))
        axes.set(xlabel="Step", ylabel=figure.capitalize())
        axes.margins(x=0)
    return drawn.svg


def running_mean(values: AnyArray) -> AnyArray:
    """Mean over the values around each, a twentieth of all and at least 5; fewer at the ends."""
    half = max(2, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    start, stop = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    mean: AnyArray = (sums[stop] - sums[start]) / (stop - start)
    return mean


def highs_and_lows(values: AnyArray, most: int) -> list[int]:
    """Places of at most ``most`` values: all, or the highest and lowest of each stretch."""
    if len(values) <= most:
        return list(range(len(values)))
    edges = np.linspace(0, len(values), most // 2 + 1).astype(int).tolist()
    parts = [(start, values[start:stop]) for start, stop in pairwise(edges)]
    return sorted({int(start + f(part)) for start, part in parts for f in (np.argmin, np.argmax)})


@dataclass(slots=True)
class _Drawn:
    """What a drawing gives once its block has ended."""

    svg: Markup = field(default_factory=Markup)


@contextmanager
def _drawing(name: str, title: str) -> Iterator[tuple["Axes", _Drawn]]:
    """Give axes to draw on, and then the SVG."""
    import matplotlib  # not at the top: whoever only reads rows need not load it
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    drawn = _Drawn()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set(visible=True, facecolor="none", gid="box")
        for axis, bins in ((axes.xaxis, 6), (axes.yaxis, 5)):
            axis.set_major_locator(MaxNLocator(bins, steps=[1, 2, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.grid(visible=False, axis="x")
        yield axes, drawn
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing)
    drawn.svg = _for_page(stream.getvalue(), name, title)


def _line(
    axes: "Axes",
    number: int,
    x: AnyArray,
    y: AnyArray,
    *,
    most: int = POINTS,
    thin: bool = False,
    mark: int | None = None,
) -> None:
    """Draw one line in the colour of its series; one point of it may be marked."""
    colour = SERIES_COLOURS[number % SERIES]
    kept = highs_and_lows(y, most)
    style: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.35} if thin else {}
    name = f"series-{number}" + ("-raw" if thin else "")
    axes.plot(x[kept], y[kept], color=colour, gid=name, clip_on=thin, **style)
    if mark is not None:
        edge: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 1.2, "markersize": 7}
        axes.plot(x[mark], y[mark], "o", color=colour, gid=f"mark-{number}", clip_on=False, **edge)


def _limit(axes: "Axes", low: float, high: float) -> None:
    """Let the vertical axis begin and end at a tick."""
    ticks = axes.yaxis.get_major_locator().tick_values(low, high)
    axes.set_ylim(min(low, ticks[0]), max(high, ticks[-1]))


def _for_page(svg: str, name: str, title: str) -> Markup:
    """Make an SVG file an element of the page: its colours, ids that are no other plot's.

    It is markup, not text to escape: matplotlib wrote it, and no word of a run is in it.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would be the whole page's
    for stand_in, colour in PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    for number, colour in enumerate(SERIES_COLOURS):
        svg = svg.replace(colour, f"var(--series-{number})")
    svg = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\1{name}-", svg)
    label = f'<svg role="img" aria-label="{title}; the table has its figures" '
    return Markup(svg.replace("<svg ", label, 1))
