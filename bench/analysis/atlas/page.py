"""The atlas as one HTML page: the answer, a forest that can be filtered, figures and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.analysis import render
from bench.analysis.atlas import BUDGETS, Atlas
from bench.analysis.atlas.answer import answer
from bench.analysis.atlas.points import Point
from bench.analysis.atlas.tables import difference_text
from bench.analysis.format import number
from bench.analysis.plots.rendering import Rendered
from bench.analysis.plots.style import bounds
from bench.analysis.render.table import Table
from bench.analysis.report.embedding import embedded, figure_on_page, policy, templates

HERE = Path(__file__).parent
STYLE = HERE.parent / "report" / "page.css"
MARGIN = 0.04  # of the width of the forest, on either side
SAID = {"better": "helped", "worse": "hurt", "open": "not shown", "unjudged": "not judged"}
FILTERS = {
    "family": "Family",
    "base": "Base",
    "noise": "Wrong labels",
    "tuned": "Tuned",
    "judged": "Judged",
}


@dataclass(frozen=True)
class Branch:
    """A row of the forest at one budget; places are in percent of the width, and None outside of a common unit."""

    name: str
    results: str
    filters: Mapping[str, str]
    budget: str
    side: str
    said: str
    text: str
    n: int
    passes: str
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Forest:
    """The rows of the page, by family, with the place of zero and the values at both ends of the axis."""

    blocks: Mapping[str, Sequence[Branch]]
    zero: float
    ends: tuple[str, str]


def page(atlas: Atlas, tables: Sequence[Table], figures: Mapping[str, Rendered]) -> str:
    """Return the page as HTML, which loads nothing.

    Args:
        tables: what `bench.analysis.atlas.tables.tables` gives.
        figures: the rendered figures, with "svg" among their forms.
    """
    css, own, script = (path.read_text(encoding="utf-8") for path in (STYLE, HERE / "atlas.css", HERE / "atlas.js"))
    css += own
    return (
        templates(HERE)
        .get_template("atlas.html.j2")
        .render(
            atlas=atlas,
            answers=answer(atlas),
            forest=_forest(atlas),
            filters=_filters(atlas),
            budgets=BUDGETS,
            tables=[(one, embedded(one)) for one in tables],
            figures=[figure_on_page("atlas", name, one) for name, one in figures.items()],
            policy=policy(css, script),
            css=css,
            script=script,
        )
    )


def _filters(atlas: Atlas) -> dict[str, tuple[str, list[str]]]:
    """Return the filters with more than one value, each with its title and its values."""
    values = {key: sorted({_keys(point)[key] for point in atlas.points}) for key in FILTERS}
    return {key: (FILTERS[key], found) for key, found in values.items() if len(found) > 1}


def _keys(point: Point) -> dict[str, str]:
    return {
        "family": point.family,
        "base": point.base,
        "noise": f"{100 * point.label_noise:g} %",
        "tuned": "no" if point.tuned == "nothing" else "yes",
        "judged": "yes" if point.counts("epochs") else "no",
    }


def _forest(atlas: Atlas) -> Forest:
    edges = [
        value
        for point in atlas.points
        if point.in_points
        for budget in BUDGETS
        if point.difference(budget).n
        for value in bounds(point.difference(budget))
    ]
    low, high = min([0.0, *edges]), max([0.0, *edges])
    room = MARGIN * ((high - low) or 1.0)
    low, high = low - room, high + room

    def place(value: float, point: Point) -> float | None:
        return round(100 * (value - low) / (high - low), 2) if point.in_points and math.isfinite(value) else None

    blocks: dict[str, list[Branch]] = {}
    for point in atlas.points:
        for budget in BUDGETS:
            one = point.difference(budget)
            if not one.n:
                continue
            left, right = bounds(point.difference(budget))
            told = point.side(budget)
            blocks.setdefault(point.family, []).append(
                Branch(
                    name=point.name,
                    results=point.results,
                    filters=_keys(point),
                    budget=budget,
                    side={"better": "better", "worse": "worse"}.get(told, "unclear"),
                    said=SAID[told],
                    text=difference_text(one),
                    n=one.n,
                    passes=number(point.passes_ratio, ".1f", "×") if budget == "epochs" else "1.0×",
                    mean=place(one.mean, point),
                    low=place(left, point),
                    high=place(right, point),
                )
            )
    return Forest(blocks, round(100 * -low / (high - low), 2), (f"{low:+.3g}", f"{high:+.3g}"))


def write(atlas: Atlas, tables: Sequence[Table], figures: Mapping[str, Rendered], folder: Path) -> Path:
    """Write tables, figures and, last, the page under a folder; return the page's path."""
    from bench.analysis import plots
    from bench.store.run_folder import write_atomic

    render.write(tables, folder)
    plots.write(figures, folder / "figures")
    path = folder / "report.html"
    write_atomic(path, page(atlas, tables, figures))
    return path
