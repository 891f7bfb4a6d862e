"""The figures of an experiment: training, sweep, cost and conditions, as PNG and PDF for a paper."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from bench.analysis.plots import conditions, cost, sweep, training
from bench.analysis.plots.style import RC
from bench.analysis.plots.view import View, view_of
from bench.errors import BenchError
from bench.store import write_atomic

if TYPE_CHECKING:
    from bench.records import Results


def build(results: Results, folder: Path) -> list[Path]:
    """Draw every figure into <folder>/figures/<name>.{png,pdf}, atomically; gives the paths written.

    Figures: "curves" and "gap" over training, of runs evaluated more than once (mean and 95% t band over the finished
    seeds of the configuration chosen on validation data), "cost" (test metric against seconds of training), "sweep"
    where a label sweeps one number, and "conditions" (test metric against what is varied) where there are several. A
    figure that does not fit on a page goes on in "curves-2" and so on. One seed draws without bands. The same results
    give the same bytes.

    Raises:
        BenchError: the experiment has no finished run.
    """
    view = view_of(results)
    if not view.conditions:
        raise BenchError(f"{results.meta['name']}: no finished run to draw; `bench status` tells where they stand")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user must not change the figures
        matplotlib.rcParams.update(RC)
        figures = _figures(results, view)
        return [path for name, figure in figures.items() for path in _save(figure, folder / "figures" / name)]


def _figures(results: Results, view: View) -> dict[str, Figure]:
    runs = training.chosen_curves(results, view)
    over_time = {"curves": training.curves(view, runs), "gap": training.gap(view, runs)}
    families: dict[str, Iterator[Figure]] = {
        **(over_time if training.evaluated_often(runs) else {}),
        "sweep": sweep.figures(view),
        "cost": cost.figures(view),
        "conditions": conditions.figures(view),
    }
    return {
        name if page == 1 else f"{name}-{page}": figure
        for name, pages in families.items()
        for page, figure in enumerate(pages, start=1)
    }


def _save(figure: Figure, stem: Path) -> list[Path]:
    """Write <stem>.png and <stem>.pdf, without the time of writing in them."""
    paths = []
    for form, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, metadata=metadata)
        path = stem.with_name(f"{stem.name}.{form}")
        write_atomic(path, buffer.getvalue())
        paths.append(path)
    return paths
