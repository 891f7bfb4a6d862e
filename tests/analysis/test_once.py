"""That what everything made of results needs is computed once, and forgotten with them."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from bench.analysis import contrasts, plots, report, stats, tables
from bench.analysis.once import once
from bench.store import selection as choice
from bench.store.records import Results

Make = Callable[..., Results]


def test_rows_and_contrasts_are_computed_once_for_all_tables_and_the_page(
    make_results: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, correct = Mock(wraps=choice.candidates), Mock(wraps=stats.holm)
    monkeypatch.setattr(choice, "candidates", choose)
    monkeypatch.setattr(contrasts, "holm", correct)
    results = make_results()
    report.page(results, tables.build(results), {})
    assert choose.call_count == 1
    assert correct.call_count == len(contrasts.rivals(results)), "once per family of comparisons"


def test_figures_are_drawn_for_those_who_ask(make_results: Make) -> None:
    results = make_results()
    assert list(plots.draw(results, only={"cost", "gap"})) == ["gap", "cost"]
    several = plots.draw(make_results(vary={"label_noise": [0.2, 0.4]}), only=["cost"])
    assert set(several) == {"cost", "cost-2"}


def test_other_results_are_other_results_and_nothing_outlives_them(make_results: Make) -> None:
    asked: list[Results] = []

    @once
    def count(results: Results) -> int:
        asked.append(results)
        return len(results.records)

    whole = make_results()
    half = dataclasses.replace(whole, records=whole.records[::2])
    assert [count(whole), count(half), count(whole)] == [55, 28, 55]
    assert list(map(id, asked)) == [id(whole), id(half)]
    gone = weakref.ref(half)
    asked.clear()
    del half
    gc.collect()
    assert gone() is None
