"""The style of all figures: type, axes and legends."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from bench.analysis.bounds import Bounds
from bench.analysis.stats import Interval
from bench.store.conditions import value_text

WIDTH = 6.9  # inches: the text width of two columns
WIDTHS = {"page": WIDTH, "column": 3.3}  # type has the same size in both: include figures as they are, unscaled
NARROW = 5.0  # inches: below this, panels stand below each other
TYPE = 8.0  # points
PANEL_HEIGHT = 2.3
LEGEND_COLUMNS = 6
# Of the figure's width: text is a little wider at the resolution of the file than where it was measured.
LEGEND_SHARE = 0.94
NEUTRAL = "#555555"
LEGEND_SIZE = 7.5
HANDLE = 0.45  # inches beside a name in the legend
TICK_SIZE = 7.0
TICK_GAP = 0.02  # inches
RC: Any = {  # Any: matplotlib types its parameters by 300 literal names
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": TICK_SIZE,
    "ytick.labelsize": TICK_SIZE,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": LEGEND_SIZE,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # TrueType, embedded: editable, and what publishers accept
    "savefig.dpi": 200,
    "svg.hashsalt": "sam-bench",  # ids that are the same every time
}


_type: ContextVar[float] = ContextVar("type", default=TYPE)


@contextmanager
def looks(size: float = TYPE) -> Iterator[None]:
    """Apply our matplotlib settings only: a matplotlibrc of the user must not change the figures.

    Args:
        size: of the type, in points; ticks, legends and remarks are smaller by as much as they always are.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        token = _type.set(size)
        sizes = [name for name in RC if name.endswith(("size", "fontsize")) and name != "lines.markersize"]
        matplotlib.rcParams.update({name: points(RC[name]) for name in sizes})
        try:
            yield
        finally:
            _type.reset(token)


def points(size: float) -> float:
    """Return what a size of type, in points where the type has `TYPE`, is in the figure that is being drawn."""
    return size * _type.get() / TYPE


def settle(figure: Figure) -> None:
    """Compute and fix the figure's layout, so that writing its file formats does not repeat it."""
    _lay_out(figure)
    figure.set_layout_engine(None)  # "none" would leave a stand-in, for which matplotlib draws twice per form


def _lay_out(figure: Figure) -> None:
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def finish(figure: Figure, handles: Sequence[Artist], height: float) -> None:
    """Put one legend below all panels, and make the figure so tall that each panel is `height` inches tall.

    Names, ticks and legends take what they need beside that: a page grows, its panels never shrink.
    """
    # 1. Measure the legend, and lay the figure out with more height than it needs.
    below = _legend(figure, handles) if handles else 0.0
    rows = {spec.rowspan.start for ax in figure.axes if (spec := ax.get_subplotspec())}
    width = figure.get_figwidth()
    figure.set_size_inches(width, (height + 1.2) * len(rows) + below + 1.0)  # room for the layout to be measured in
    _lay_out(figure)
    # 2. Add what the lowest panel of each row lacks, which may be negative.
    lacking = sum(height - min(_heights(figure, row)) for row in rows)
    figure.set_size_inches(width, figure.get_figheight() + lacking)


def _heights(figure: Figure, row: int) -> Iterator[float]:
    """Yield the heights in inches of the panels in a row."""
    for ax in figure.axes:
        spec = ax.get_subplotspec()
        if spec and spec.rowspan.start == row:
            yield ax.get_position(original=True).height * figure.get_figheight()


def _legend(figure: Figure, handles: Sequence[Artist]) -> float:
    """Add a legend on as many lines as it takes, long names folded, and return its height in inches."""
    names = [str(handle.get_label()) for handle in handles]
    room = LEGEND_SHARE * figure.get_figwidth() - HANDLE
    while True:
        for handle, name in zip(handles, names, strict=True):
            handle.set_label(fold(name, room, LEGEND_SIZE))
        drawn, width, height = _on_fewest_lines(figure, handles)
        if width <= figure.get_figwidth() or room < HANDLE:
            return height
        # Names of wide letters (W, M) are longer than `fold` reckons.
        drawn.remove()
        room *= figure.get_figwidth() / width - 0.01


def _on_fewest_lines(figure: Figure, handles: Sequence[Artist]) -> tuple[Legend, float, float]:
    """Add a legend of as few lines as the figure is wide enough for; return it with its width and height in inches."""
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for lines in range(math.ceil(len(handles) / LEGEND_COLUMNS), len(handles) + 1):
        columns = math.ceil(len(handles) / lines)
        drawn = figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, handlelength=2.6)
        box = drawn.get_window_extent(renderer)
        if columns == 1 or box.width <= LEGEND_SHARE * figure.get_figwidth() * figure.dpi:
            break
        drawn.remove()
    return drawn, box.width / figure.dpi, box.height / figure.dpi


def fold(text: str, inches: float, size: float = 8.0) -> str:
    """Break a text into lines of at most this many inches; a longer word is broken, too."""
    if text_width(text, size) <= inches:
        return text
    letters = max(4, int(len(text) * inches / text_width(text, size)))
    return "\n".join(textwrap.wrap(text, letters))


def turn_ticks(ax: Axes) -> None:
    """Rotate the names below a panel, so that they need less width; the figure becomes taller."""
    ax.tick_params(axis="x", labelrotation=40)
    for text in ax.get_xticklabels():
        text.set(horizontalalignment="right", rotation_mode="anchor")


def bounds(interval: Interval) -> tuple[float, float]:
    """Return the bounds of an interval; both are the mean if the bounds are unknown."""
    return (interval.low, interval.high) if interval.known else (interval.mean, interval.mean)


def with_margin(values: Any, limits: Bounds = (-math.inf, math.inf), share: float = 0.06) -> tuple[float, float]:
    """Return axis limits with a little space around the values, but never beyond the possible values.

    Args:
        limits: the lowest and the highest value that there can be.
        share: the space on either side, as a share of the way from the lowest to the highest value.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    # Equal values span nothing: then a share of the value itself, or 1 if that is 0.
    margin = share * (high - low) or 0.05 * abs(high) or 1.0
    # Values beyond what is possible still lie inside the axis: limits cut the margin only.
    return max(low - margin, min(limits[0], low)), min(high + margin, max(limits[1], high))


def wide(values: Sequence[float]) -> bool:
    """Return whether ascending values span a decade or more, and so belong on a log axis."""
    # A little less than 10: a decade must not be missed by rounding.
    return values[0] > 0 and values[-1] > 9.99 * values[0]


def value_axis(ax: Axes, values: Sequence[float], width: float, *, log: bool) -> None:
    """Put ticks at the values themselves, ascending, without labels that have no room on a panel of `width` inches."""
    if log:
        ax.set_xscale("log")
    places = np.log(values) if log else np.asarray(values)
    # Ticks span about nine tenths of a panel; the places of their labels are compared in inches.
    inches = 0.9 * width * (places - places[0]) / (places[-1] - places[0] or 1.0)
    ax.xaxis.set_major_locator(FixedLocator(list(values)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FixedFormatter(_with_room([*map(value_text, values)], inches)))


def _with_room(texts: Sequence[str], centres: Any) -> list[str]:
    """Return tick labels at `centres`, "" for those that would touch another; the first and the last stay."""

    def apart(one: int, other: int) -> bool:
        room = (text_width(texts[one]) + text_width(texts[other])) / 2 + TICK_GAP
        return bool(abs(centres[one] - centres[other]) >= room)

    *others, last = range(len(texts))
    kept: list[int] = []
    for tick in others:
        if not kept or apart(kept[-1], tick):
            kept.append(tick)
    # The last label always stays, so those before it that would touch it go.
    kept = [tick for tick in kept if tick == 0 or apart(tick, last)]
    return [text if tick in (*kept, last) else "" for tick, text in enumerate(texts)]


def text_width(text: str, size: float = TICK_SIZE) -> float:
    """Return the approximate width of a text, in inches."""
    # Average widths per letter, in parts of the type size: exact ones would need a drawn figure.
    narrow = sum(text.count(letter) for letter in ".,:il ")
    return (0.62 * len(text) - 0.3 * narrow) * points(size) / 72


def panel_width(columns: int, width: float = WIDTH) -> float:
    """Return the approximate width in inches of each of this many panels, leaving room for their labels."""
    return width / columns - 0.55
