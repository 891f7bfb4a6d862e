"""How the figures look: type, colours, axes and legends, the same in all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from bench.analysis.conditions import value_text
from bench.analysis.stats import Interval

Style = dict[str, Any]

WIDTH = 6.9  # inches: the text width of two columns
WIDTHS = {"page": WIDTH, "column": 3.3}  # type has the same size in both: include figures as they are, unscaled
PANEL_HEIGHT = 2.3
LEGEND_COLUMNS = 6
LEGEND_SHARE = 0.94  # of the width: type that is saved at more dots an inch than it was measured at is a little wider
BASELINE_COLOUR = "#000000"
NEUTRAL = "#555555"
# Okabe & Ito, Color Universal Design (2008), without the yellow that vanishes on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.5, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
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
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # TrueType, embedded: editable, and what publishers accept
    "savefig.dpi": 200,
    "svg.hashsalt": "sam-bench",  # ids that are the same every time
}


def label_styles(labels: Sequence[str], baseline: str) -> dict[str, Style]:
    """Colour, dash and marker of each label, the same in every figure; the baseline is black and solid."""
    others = [label for label in labels if label != baseline]
    looks = zip(cycle(COLOURS), cycle(DASHES[1:] + DASHES[:1]), cycle(MARKERS[1:] + MARKERS[:1]), strict=False)
    styles: dict[str, Style] = {
        label: {"color": colour, "linestyle": dash, "marker": marker}
        for label, (colour, dash, marker) in zip(others, looks, strict=False)
    }
    styles[baseline] = {"color": BASELINE_COLOUR, "linestyle": DASHES[0], "marker": MARKERS[0]}
    return styles


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend for all panels, below them, on as many lines as it takes."""
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for lines in range(math.ceil(len(handles) / LEGEND_COLUMNS), len(handles) + 1):
        columns = math.ceil(len(handles) / lines)
        drawn = figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, handlelength=2.6)
        if drawn.get_window_extent(renderer).width <= LEGEND_SHARE * figure.bbox.width:
            return
        drawn.remove()
    figure.legend(handles=list(handles), loc="outside lower center", handlelength=2.6)


def bounds(interval: Interval) -> tuple[float, float]:
    """The bounds of an interval, both the mean where it has none."""
    return (interval.low, interval.high) if interval.n > 1 else (interval.mean, interval.mean)


def with_margin(values: Any) -> tuple[float, float]:
    """Limits of an axis that leave a little space around the values."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def wide(values: Sequence[float]) -> bool:
    """Whether ascending values span a decade or more, and so belong on a log axis."""
    return values[0] > 0 and values[-1] > 9.99 * values[0]


def value_axis(ax: Axes, values: Sequence[float], width: float, *, log: bool) -> None:
    """Ticks at the values themselves, ascending; labels that have no room on a panel of `width` inches are left out."""
    if log:
        ax.set_xscale("log")
    places = np.log(values) if log else np.asarray(values)
    inches = 0.9 * width * (places - places[0]) / (places[-1] - places[0] or 1.0)
    ax.xaxis.set_major_locator(FixedLocator(list(values)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FixedFormatter(_with_room([*map(value_text, values)], inches)))


def _with_room(texts: Sequence[str], centres: Any) -> list[str]:
    """Tick labels at `centres`, "" for those that would touch another; the first and the last stay."""

    def apart(one: int, other: int) -> bool:
        room = (text_width(texts[one]) + text_width(texts[other])) / 2 + TICK_GAP
        return bool(abs(centres[one] - centres[other]) >= room)

    *others, last = range(len(texts))
    kept: list[int] = []
    for tick in others:
        if not kept or apart(kept[-1], tick):
            kept.append(tick)
    kept = [tick for tick in kept if tick == 0 or apart(tick, last)]
    return [text if tick in (*kept, last) else "" for tick, text in enumerate(texts)]


def text_width(text: str, size: float = TICK_SIZE) -> float:
    """About how wide a text is, in inches."""
    narrow = sum(text.count(letter) for letter in ".,:il ")
    return (0.62 * len(text) - 0.3 * narrow) * size / 72


def panel_width(columns: int, width: float = WIDTH) -> float:
    """About how wide each of so many panels is, in inches; what is left beside them is for their labels."""
    return width / columns - 0.55
