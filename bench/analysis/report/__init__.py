"""The report of an experiment: one HTML file with the question, the answer, tables, figures and every run in it.

It loads nothing: style sheet, script, figures and data are inside, and its content security policy forbids the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.analysis import plots, render
from bench.analysis.answer import answer, question
from bench.analysis.headline import at_equal_passes, dates, forest, headline
from bench.analysis.plots.looks import styles_of
from bench.analysis.plots.rendering import Rendered
from bench.analysis.render.table import Table
from bench.analysis.report.embedding import embedded, figure_on_page, policy, templates
from bench.analysis.report.runs import data
from bench.analysis.study import Study
from bench.store.conditions import conditions
from bench.store.run_folder import write_atomic

if TYPE_CHECKING:
    from bench.store.records import Results

HERE = Path(__file__).parent
SETUP = ["device", "threads", "precision", "torch", "python", "commit"]
NAMED = 5  # so many runs of one failure are named
ENDED = {"diverged": "the training loss was not finite", "failed": "no reason was recorded"}
STATES = ("done", "diverged", "failed", "running", "partial", "missing")


@dataclass(frozen=True)
class Failure:
    """Runs that ended in the same way for the same reason; of `names` only the first few."""

    status: str
    reason: str
    count: int
    names: list[str]


def build(study: Study, tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write all that is made from the records: tables, figures and, last of the paths given, <folder>/report.html.

    Without a score there are no figures. The same results give the same bytes.
    """
    # Without a score `plots` raises; tables and page are made all the same.
    scored = any(row.scored for row in study.chosen)
    figures = plots.rendered(study, forms=("png", "pdf", "svg")) if scored else {}
    # Evaluated in this order: the page is written when all files beside it are.
    paths = [*render.write(tables, folder), *plots.write(figures, folder / "figures"), folder / "report.html"]
    write_atomic(paths[-1], page(study, tables, figures))
    return paths


def page(study: Study, tables: Sequence[Table], figures: Mapping[str, Rendered]) -> str:
    """Return the report as HTML.

    Args:
        tables: what `bench.analysis.tables.build` gives.
        figures: what `bench.analysis.plots.rendered` gives, with "svg" among the forms; empty if no run has finished.
    """
    css, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        templates(HERE)
        .get_template("page.html.j2")
        .render(
            meta=study.meta,
            headline=headline(study),
            equal=at_equal_passes(study),
            forest=forest(study),
            colours={label: style["color"] for label, style in styles_of(study.meta).items()},
            question=question(study),
            answers=answer(study),
            source=study.source,
            counts=_counts(study.results),
            dates=dates(study.results.records),
            conditions=[name for name in conditions(study.meta) if name],
            tables=[(one, embedded(one)) for one in tables],
            figures=[figure_on_page(study.meta["name"], name, one) for name, one in figures.items()],
            failures=list(_failures(study.results.records)),
            setups=list(_setups(study.results.records)),
            policy=policy(css, script),
            css=css,
            script=script,
            data=_script_safe(data(study)),
        )
    )


def _counts(results: Results) -> dict[str, int]:
    """Return how many planned runs are in each state; states without runs are left out."""
    counts = results.records["status"].value_counts()
    return {state: int(counts[state]) for state in STATES if state in counts}


def _failures(records: pd.DataFrame) -> Iterator[Failure]:
    lost = records[records["status"].isin(list(ENDED))]
    # Runs without a recorded error are grouped under what their status means.
    reasons = lost["error"].astype(object).where(lost["error"].notna(), lost["status"].map(ENDED))
    for (status, reason), runs in lost.groupby(["status", reasons], sort=True):
        columns = runs.reindex(columns=["optimizer", "config", "condition", "seed"]).head(NAMED)
        names = [
            ", ".join([*(str(part) for part in parts if not pd.isna(part) and part != ""), f"seed {seed}"])
            for *parts, seed in columns.itertuples(index=False, name=None)
        ]
        yield Failure(str(status), str(reason), len(runs), names)


def _setups(records: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield every combination of hardware and versions among the finished runs, with its number of runs."""
    done = records[records["status"].isin(["done", "diverged"])]
    dirty = done["dirty"].astype(str).str.lower() == "true"
    # As text a missing commit would read "nan": it has to stay missing, and then it is "unknown" below.
    known = done["commit"].notna()
    commits = done["commit"].astype(object).where(~known, done["commit"].astype(str).str[:10])
    marked = done.assign(commit=commits.where(~(dirty & known), commits.astype(str) + " + uncommitted changes"))
    values: Any
    # dropna=False: a setup of which a part is not recorded is a setup, too.
    for values, runs in marked.groupby(SETUP, sort=True, dropna=False):
        shown = (
            "unknown" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else value for value in values
        )
        yield {**dict(zip(SETUP, shown, strict=True)), "runs": len(runs)}


def _script_safe(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    # allow_nan=False: NaN is no JSON, and a browser would refuse all data because of one.
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    # "</script>" inside a text would end the element; as escapes these characters mean the same in JSON.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
