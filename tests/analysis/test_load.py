"""Seconds that contradict their passes: a note wherever they are shown, with the load that was recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from bench.analysis import tables
from bench.analysis.answer import answer
from bench.analysis.load import contradict, cpu_share
from bench.analysis.study import Study
from bench.store.records import Results

LABELS = {"sgd": {}, "sam": {"test": 0.95}}


def spent(seconds_per_pass: dict[str, float], cpu: dict[str, float] | None = None) -> Callable[..., pd.DataFrame]:
    """Training seconds per pass of each label, and its CPU time per second."""

    def change(records: pd.DataFrame) -> pd.DataFrame:
        seconds = records["passes"] * records["optimizer"].map(seconds_per_pass)
        records = records.assign(train_seconds=seconds)
        return records.assign(train_cpu_seconds=seconds * records["optimizer"].map(cpu)) if cpu else records

    return change


@pytest.fixture
def make(make_results: Callable[..., Results]) -> Callable[..., Results]:
    return lambda *spending: make_results(LABELS, change=spent(*spending))


def notes_of(results: Results, name: str) -> str:
    (table,) = (table for table in tables.build(Study(results)) if table.name == name)
    return " ".join(table.footnotes)


def test_times_that_contradict_the_passes_carry_a_note_with_the_load(make: Any) -> None:
    results = make({"sgd": 0.15, "sam": 0.05}, {"sgd": 0.33, "sam": 0.98})
    (paragraph, *_) = answer(Study(results))
    passes = results.records.groupby("optimizer")["passes"].mean()
    ratio = passes["sam"] / passes["sgd"]
    doubt = (
        "(these differ by more than a third: the machine was busy with other work, or their passes cost differently)"
    )
    assert f"at {ratio:.2f} times the passes and {ratio / 3:.2f} times the training time {doubt}" in paragraph
    note = (
        f"sam took {ratio:.2f} times the passes of sgd and {ratio / 3:.2f} times the seconds, which differ by more "
        "than a third (own CPU time per second of training: sam 0.98, sgd 0.33): the machine was busy"
    )
    for name in ("cost", "budgets"):
        assert note in notes_of(results, name)


def test_times_that_follow_the_passes_carry_none(make: Any) -> None:
    results = make({"sgd": 0.05, "sam": 0.06}, {"sgd": 0.98, "sam": 0.98})
    assert "differ by more than a third" not in " ".join(answer(Study(results)))
    assert "more than a third" not in notes_of(results, "cost")


def test_results_from_before_the_load_was_recorded_have_the_note_without_it(make: Any) -> None:
    results = make({"sgd": 0.15, "sam": 0.05})
    note = notes_of(results, "cost")
    assert "which differ by more than a third: the machine was busy" in note
    (row, *_) = Study(results).rows
    assert cpu_share(results, row) != cpu_share(results, row)  # not a number


def test_runs_of_several_versions_have_one_note_only(make_results: Callable[..., Results]) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        records = spent({"sgd": 0.15, "sam": 0.05})(records)
        return records.assign(torch=["one", *["other"] * (len(records) - 1)])

    results = make_results(LABELS, change=change)
    assert "times are not comparable" in notes_of(results, "cost")
    assert "more than a third" not in notes_of(results, "cost")


@pytest.mark.parametrize(
    ("seconds", "passes", "said"),
    [
        (0.67, 2.0, True),
        (1.34, 2.0, False),
        (1.33, 2.0, True),
        (2.66, 2.0, False),
        (2.67, 2.0, True),
        (1.0, 1.0, False),
    ],
)
def test_more_than_a_third_is_a_contradiction(seconds: float, passes: float, said: bool) -> None:
    assert contradict(seconds, passes) is said
    assert not contradict(float("nan"), passes)
