"""The figures of an experiment: training, sweep, cost, seeds and conditions, as PNG and PDF for a paper, and as CSV."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from bench.analysis.plots import conditions, cost, paired, sharpness, sweep, training
from bench.analysis.plots.style import RC
from bench.analysis.plots.view import Drawing, View, view_of
from bench.errors import BenchError
from bench.store import write_atomic

if TYPE_CHECKING:
    from bench.records import Results

WITHOUT_TIME = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


def draw(results: Results, width: str = "page") -> dict[str, Drawing]:
    """Every figure by its name, for a "page" (two columns, 6.9 inches) or a "column" (3.3 inches), in type of one size.

    Figures: "curves" and "gap" over training, of runs evaluated more than once (mean and 95% t band over the finished
    seeds of the configuration chosen on validation data), "sweep" where a label sweeps one number, "cost" (test metric
    against seconds and passes, with the Pareto front), "paired" (seed by seed against the baseline), and "conditions"
    (test metric against what is varied) where there are several, "sharpness" and "planes" (loss along one direction
    and two) where `bench measure` was called. A figure that does not fit on a page goes on in
    "curves-2" and so on. One seed draws without bands.

    Raises:
        BenchError: the experiment has no finished run.
    """
    view = view_of(results, width)
    if not view.conditions:
        raise BenchError(f"{results.meta['name']}: no finished run to draw; `bench status` tells where they stand")
    with _looks():
        return _figures(results, view)


def write(drawings: Mapping[str, Drawing], folder: Path) -> list[Path]:
    """Write <folder>/<name>.{png,pdf,csv} of each figure, atomically; gives the paths.

    The same results give the same bytes. The CSV has the numbers as they are drawn, unrounded, with one header line.
    """
    paths = []
    for name, drawing in drawings.items():
        files = {form: rendered(drawing.figure, form) for form in ("png", "pdf")}
        files["csv"] = drawing.data.to_csv(index=False, lineterminator="\n").encode()
        for form, content in files.items():
            paths.append(folder / f"{name}.{form}")
            write_atomic(paths[-1], content)
    return paths


def build(results: Results, folder: Path, width: str = "page") -> list[Path]:
    """Draw and write every figure under <folder>/figures; those a column wide under <folder>/figures/column.

    Raises:
        BenchError: the experiment has no finished run.
    """
    return write(draw(results, width), folder / "figures" / ("" if width == "page" else width))


def rendered(figure: Figure, form: str) -> bytes:
    """The figure as "png", "pdf" or "svg", without the time of writing in it."""
    buffer = io.BytesIO()
    with _looks():
        figure.savefig(buffer, format=form, metadata=WITHOUT_TIME[form])
    return buffer.getvalue()


@contextmanager
def _looks() -> Iterator[None]:
    """Our looks and no others: a matplotlibrc of the user must not change the figures."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def _figures(results: Results, view: View) -> dict[str, Drawing]:
    runs = training.chosen_curves(results, view)
    over_time = {"curves": training.curves(view, runs), "gap": training.gap(view, runs)}
    families: dict[str, Iterator[Drawing]] = {
        **(over_time if training.evaluated_often(runs) else {}),
        "paired": paired.figures(view, results),
        "sweep": sweep.figures(view),
        "cost": cost.figures(view),
        "conditions": conditions.figures(view),
        "sharpness": sharpness.lines(view, results),
        "planes": sharpness.planes(view, results),
    }
    return {
        name if page == 1 else f"{name}-{page}": drawing
        for name, pages in families.items()
        for page, drawing in enumerate(pages, start=1)
    }
