"""A study computes what tables, figures and page need once, and other results are another study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from bench.analysis import contrasts, plots, report, stats, tables
from bench.analysis.study import Study
from bench.store import selection as choice
from bench.store.records import Results

Make = Callable[..., Results]


def test_rows_and_contrasts_are_computed_once_for_all_tables_and_the_page(
    make_results: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, correct = Mock(wraps=choice.candidates), Mock(wraps=stats.holm)
    monkeypatch.setattr(choice, "candidates", choose)
    monkeypatch.setattr(contrasts, "holm", correct)
    study = Study(make_results())
    report.page(study, tables.build(study), {})
    assert choose.call_count == 1
    assert correct.call_count == len(contrasts.competitors(study.results)), "once per family of comparisons"


def test_figures_are_drawn_for_those_who_ask(make_results: Make) -> None:
    results = make_results()
    assert list(plots.draw(Study(results), only={"cost", "gap"})) == ["gap", "cost"]
    several = plots.draw(Study(make_results(vary={"label_noise": [0.2, 0.4]})), only=["cost"])
    assert set(several) == {"cost", "cost-2"}


def test_other_results_are_another_study(make_results: Make) -> None:
    whole = make_results()
    study, half = Study(whole), Study(dataclasses.replace(whole, records=whole.records[whole.records["seed"] < 2]))
    assert study.rows is study.rows
    assert {row.done for row in study.chosen} == {5}
    assert {row.done for row in half.chosen} == {2}
