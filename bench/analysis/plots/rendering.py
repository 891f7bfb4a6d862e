"""The files of the figures: drawn by several processes at once if the machine has several cores."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.analysis.plots.context import Drawing
from bench.analysis.plots.style import looks
from bench.analysis.render import latex

# None removes an entry: times and versions would make other bytes of the same figure.
WITHOUT_TIME = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


@dataclass(frozen=True)
class Rendered:
    """A figure as the bytes of its files.

    Attributes:
        caption: what it shows.
        size: width and height in inches.
        content: by ending; "csv" has the numbers as they are drawn, unrounded, with one header line.
    """

    caption: str
    size: tuple[float, float]
    content: Mapping[str, bytes]


def as_bytes(figure: Figure, form: str) -> bytes:
    """Return the figure as "png", "pdf", "svg" or "pgf", without the time of writing in it."""
    # Some settings are read when a file is written: resolution, fonts of a PDF, ids of an SVG.
    with looks():
        if form == "pgf":
            # The type is the document's. Without a setting, matplotlib takes xelatex, which fewer have.
            matplotlib.rcParams.update({"pgf.texsystem": "pdflatex", "pgf.rcfonts": False})
            _in_latex(figure)
            text = io.StringIO()
            figure.savefig(text, format=form)
            return text.getvalue().encode()
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, metadata=WITHOUT_TIME[form])
        return buffer.getvalue()


def _in_latex(figure: Figure) -> None:
    """Write every text of a figure as LaTeX reads it."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for formatter in (axis.get_major_formatter(), axis.get_minor_formatter()):
                # Texts of ticks are made anew whenever a figure is drawn.
                formatter.format_ticks = partial(_ticks, formatter.format_ticks)  # type: ignore[method-assign]
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(_escaped(text.get_text()))


def _ticks(texts: Callable[[list[float]], list[str]], values: list[float]) -> list[str]:
    return [_escaped(text) for text in texts(values)]


def _escaped(text: str) -> str:
    # Labels of powers are formulas already, in $...$; a dollar of a user's own has a backslash.
    return text if "$" in text.replace(r"\$", "") else latex.escape(text.replace(r"\$", "$"))


def render(drawing: Drawing, forms: Sequence[str]) -> Rendered:
    """Return a figure in the given forms and, beside them, as "csv"."""
    # The last is "pgf", for which the texts of the figure are changed.
    content = {form: as_bytes(drawing.figure, form) for form in sorted(forms, key="pgf".__eq__)}
    content["csv"] = drawing.data.to_csv(index=False, lineterminator="\n").encode()
    width, height = drawing.figure.get_size_inches()
    return Rendered(drawing.caption, (float(width), float(height)), content)


def render_all(
    draw: Callable[[str], Mapping[str, Drawing]],
    families: Sequence[str],
    forms: Sequence[str],
    processes: int | None = None,
) -> dict[str, Rendered]:
    """Return every rendered figure by its name; the bytes do not depend on the number of processes.

    Args:
        draw: gives the figures of a family.
        processes: how many draw at once. Default: one per core, or this process alone if a fork could go wrong: on
            systems other than Linux, and beside other threads.
    """
    # A fork copies only the thread that calls it: a lock held by any other thread would stay locked in the child.
    forkable = sys.platform == "linux" and threading.active_count() == 1
    # The cores that this process may use, which can be fewer than the machine has.
    processes = processes or (len(os.sched_getaffinity(0)) if forkable else 1)
    make = partial(_family, draw, forms)
    if processes == 1 or len(families) == 1:
        made = list(map(make, families))
    else:
        made = _forked(make, families, processes)
    return {name: one for family in made for name, one in family.items()}


def _family(draw: Callable[[str], Mapping[str, Drawing]], forms: Sequence[str], family: str) -> dict[str, Rendered]:
    return {name: render(drawing, forms) for name, drawing in draw(family).items()}


_work: Callable[[str], dict[str, Rendered]]
"""The function that forked processes run: it and the results are inherited by the fork, so nothing is pickled."""


def _forked(
    make: Callable[[str], dict[str, Rendered]], families: Sequence[str], processes: int
) -> list[dict[str, Rendered]]:
    global _work
    # Set before the pool exists: the children get it by the fork.
    _work = make
    try:
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(min(processes, len(families)), context, _leave_signals_to_the_parent) as pool:
            # `map` keeps the order of the families, whichever child is done first.
            return list(pool.map(_in_child, families))
    finally:
        # It holds the whole study.
        del _work


def _leave_signals_to_the_parent() -> None:
    # Ctrl-C reaches all processes of the terminal: the parent alone acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A handler that the parent may have for SIGTERM came with the fork: a child simply ends.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_child(family: str) -> dict[str, Rendered]:
    return _work(family)
