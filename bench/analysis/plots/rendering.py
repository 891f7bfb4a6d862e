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

from matplotlib.figure import Figure

from bench.analysis.plots.context import Drawing
from bench.analysis.plots.style import looks

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
    """Return the figure as "png", "pdf" or "svg", without the time of writing in it."""
    buffer = io.BytesIO()
    # Some settings are read when a file is written: resolution, fonts of a PDF, ids of an SVG.
    with looks():
        figure.savefig(buffer, format=form, metadata=WITHOUT_TIME[form])
    return buffer.getvalue()


def render(drawing: Drawing, forms: Sequence[str]) -> Rendered:
    """Return a figure in the given forms and, beside them, as "csv"."""
    content = {form: as_bytes(drawing.figure, form) for form in forms}
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
