"""The figures of an experiment: training, sweep, cost, seeds and conditions, as PNG and PDF for a paper, and as CSV."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis.plots import bases, conditions, cost, paired, sharpness, sweep, training
from bench.analysis.plots.context import Drawing, FigureContext, context_of
from bench.analysis.plots.rendering import Rendered, render_all
from bench.analysis.plots.style import TYPE, WIDTH, WIDTHS, looks, settle
from bench.analysis.study import Study
from bench.core.errors import BenchError
from bench.store.conditions import first_few
from bench.store.records import Results
from bench.store.run_folder import write_atomic

FORMS = ("png", "pdf")
"""What is written beside the CSV, unless other forms are asked for."""

FAMILIES = ("curves", "gap", "paired", "bases", "sweep", "cost", "conditions", "sharpness", "planes")
"""The figures by their names, in the order of the page."""


def draw(
    study: Study, width: float = WIDTH, only: Collection[str] | None = None, size: float = TYPE
) -> dict[str, Drawing]:
    """Draw every figure, `width` inches wide, in type of `size` points.

    With `only`, those figures alone, each with all its pages.

    Figures: "curves" and "gap" over training, of runs evaluated more than once (mean and 95% t band over the finished
    seeds of the configuration chosen on validation data), "sweep" where a label sweeps one number, "cost" (test metric
    against seconds and passes, with the Pareto front), "paired" (seed by seed against the baseline), "bases" (each
    method minus what it wraps) where several optimizers are wrapped, "conditions" (test metric against what is varied)
    where there are several, "sharpness" and "planes" (loss along one direction and two) where `bench measure` was
    called. A figure that does not fit on a page goes on in "curves-2" and so on. One seed draws without bands.

    Raises:
        BenchError: the experiment has no finished run with a score.
    """
    context = context_of(_without_mathematics(study), width)
    if not context.conditions:
        raise BenchError(
            f"{study.meta['name']}: no finished run with a score to draw; `bench status` shows their status"
        )
    # Layout depends on sizes of type, so it is computed under our settings, too.
    with looks(size):
        drawings = {name: _as_written(drawing) for name, drawing in _figures(context, only).items()}
        for drawing in drawings.values():
            settle(drawing.figure)
        return drawings


def rendered(
    study: Study, width: float = WIDTH, forms: Sequence[str] = FORMS, size: float = TYPE
) -> dict[str, Rendered]:
    """Return every figure rendered in the given forms and as CSV, drawn by one process per core.

    The same results give the same bytes.

    Raises:
        BenchError: the experiment has no finished run with a score.
    """
    study = _without_mathematics(study)
    context_of(study)  # computes rows and choices, which all families need, once: before the processes part
    return render_all(lambda family: draw(study, width, [family], size), FAMILIES, forms)


def write(figures: Mapping[str, Rendered], folder: Path, forms: Sequence[str] = FORMS) -> list[Path]:
    """Write <folder>/<name>.<form> of each figure, and its CSV, atomically; return the paths."""
    paths = []
    for name, figure in figures.items():
        for form in (*forms, "csv"):
            paths.append(folder / f"{name}.{form}")
            write_atomic(paths[-1], figure.content[form])
    return paths


def build(
    study: Study, folder: Path, width: str = "page", forms: Sequence[str] = FORMS, size: float = TYPE
) -> list[Path]:
    """Draw and write every figure under <folder>/figures; those of another width or size in a folder named after it.

    Args:
        width: "page" (two columns, 6.9 inches), "column" (3.3 inches), or inches.
        forms: endings, of "png", "pdf", "svg" and "pgf".
        size: of the type, in points.

    Raises:
        BenchError: the experiment has no finished run; or there is no LaTeX, which "pgf" needs.
    """
    if "pgf" in forms and not shutil.which("pdflatex"):
        raise BenchError("--format pgf needs pdflatex, which is not installed (Debian: texlive-pictures); or take pdf")
    inches = WIDTHS[width] if width in WIDTHS else float(width)
    named = [] if width == "page" else [width if width in WIDTHS else f"{inches:g}in"]
    named += [] if size == TYPE else [f"{size:g}pt"]
    return write(rendered(study, inches, forms, size), folder / "figures" / "-".join(named), forms)


def _without_mathematics(study: Study) -> Study:
    """Return the study with every "$" escaped, which matplotlib would otherwise take for the start of a formula."""
    # `rendered` escapes before it calls `draw`: escaped twice, a backslash would be seen.
    if study.escaped:
        return study
    results = study.results
    # In the text of JSON a backslash is written as two, so each "$" gets one.
    meta = json.loads(json.dumps(results.meta).replace("$", r"\\$"))
    records, curves, measures, directions = (
        frame if frame is None else _replaced(frame, "$", r"\$")
        for frame in (results.records, results.curves, results.measures, results.directions)
    )
    assert records is not None
    assert curves is not None
    return Study(Results(meta, records, curves, measures, directions), escaped=True)


def _as_written(drawing: Drawing) -> Drawing:
    """Return a drawing with caption and numbers that hold each "$" as it was."""
    return drawing._replace(caption=drawing.caption.replace(r"\$", "$"), data=_replaced(drawing.data, r"\$", "$"))


def _replaced(frame: pd.DataFrame, old: str, new: str) -> pd.DataFrame:
    def of(value: Any) -> Any:
        return value.replace(old, new) if isinstance(value, str) else value

    # Names of columns are replaced, too: labels, settings and scores have users' own names.
    texts = [column for column in frame.columns if not pd.api.types.is_numeric_dtype(frame[column])]
    return frame.assign(**{column: frame[column].map(of) for column in texts}).rename(columns=of)


def _figures(context: FigureContext, only: Collection[str] | None) -> dict[str, Drawing]:
    runs = training.chosen_curves(context)
    over_time = {"curves": training.curves(context, runs), "gap": training.gap(context, runs)}
    # Generators: a family that is not asked for is never drawn.
    families: dict[str, Iterator[Drawing]] = {
        **(over_time if training.evaluated_often(runs) else {}),
        "paired": paired.figures(context),
        "bases": bases.figures(context),
        "sweep": sweep.figures(context),
        "cost": cost.figures(context),
        "conditions": conditions.figures(context),
        "sharpness": sharpness.lines(context),
        "planes": sharpness.planes(context),
    }
    # In the caption of every figure, since all of them leave the same runs out.
    odd = [f"{row.title}, {run}" for row in context.rows for run in row.not_finite if row.chosen]
    beside = f" Not finite, and not drawn: {first_few(odd)}." if odd else ""
    return {
        name if page == 1 else f"{name}-{page}": drawing._replace(caption=drawing.caption + beside)
        for name, pages in families.items()
        if only is None or name in only
        for page, drawing in enumerate(pages, start=1)
    }
