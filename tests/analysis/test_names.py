"""Names and values of a user's own, whatever is in them, reach tables and figures as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.analysis import plots, render, tables
from bench.analysis.plots.rendering import as_bytes
from bench.analysis.study import Study
from bench.store.records import Results

VALUES = ["$x_{$", "a$b", r"\frac$"]


@pytest.fixture
def results(make_results: Callable[..., Results]) -> Results:
    two: dict[str, dict[str, Any]] = {"sgd": {}, "sam": {"test": 0.93}}
    found = make_results(two, seeds=(0, 1, 2), vary={"task.kind": VALUES}, name="100%_{x}\\$ #~^ y")
    return Results({**found.meta, "metric": {**found.meta["metric"], "unit": "$"}}, found.records, found.curves)


def test_a_dollar_is_no_formula_in_a_figure(results: Results) -> None:
    drawings = plots.draw(Study(results))
    for name in ("paired", "conditions"):
        as_bytes(drawings[name].figure, "png")
    numbers = drawings["conditions"].data.to_csv()
    assert all(f"{value}," in numbers for value in VALUES)
    assert r"\$" not in numbers
    assert not any(r"\$" in drawing.caption for drawing in drawings.values())


def test_the_label_of_a_table_has_nothing_that_latex_would_read(results: Results) -> None:
    text = render.render(tables.build(Study(results))[0], "tex")
    label = text.partition("\\label{")[2].partition("}")[0]
    assert label == "tab:100-_-x-y-results"
