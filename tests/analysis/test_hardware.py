"""Runs of several machines in one table: all hardware is named, and seconds are compared within one kind of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.analysis import plots, tables
from bench.analysis.answer import answer
from bench.analysis.study import Study
from bench.analysis.tables.budgets import at_budgets
from bench.analysis.tables.time_to_target import costs_to_target
from bench.store.records import Results

Make = Callable[..., Results]
LABELS: Mapping[str, Any] = {"sgd": {}, "sgd-2x": {"epochs": 12}, "sam": {"test": 0.95}}
SLOW, FAST = "Slow CPU", "Fast CPU"


@pytest.fixture
def mixed(make_results: Make) -> Results:
    """Seeds 0 to 2 on one machine, 3 and 4 on another that takes a tenth of the time."""
    return make_results(LABELS, change=lambda frame: machines(frame, frame["seed"] > 2))


def machines(frame: pd.DataFrame, fast: pd.Series) -> pd.DataFrame:
    seconds = frame["train_seconds"].where(~fast, frame["train_seconds"] / 10)
    return frame.assign(train_seconds=seconds, device=fast.map({True: FAST, False: SLOW}))


def of(results: Results, name: str) -> Any:
    return next(table for table in tables.build(Study(results)) if table.name == name)


def test_captions_name_all_hardware_and_a_note_says_whose_times_count(mixed: Results) -> None:
    note = "Times are those of the hardware with the most runs: 9 of 15 finished runs on Slow CPU (2 threads)."
    for name in ("results", "cost", "budgets", "target"):
        assert "Hardware: Fast CPU (2 threads, fp32); Slow CPU (2 threads, fp32)." in " ".join(of(mixed, name).caption)
        if name != "results":
            assert any(one.endswith(note) for one in of(mixed, name).footnotes)


def test_seconds_are_those_of_one_kind_of_hardware(mixed: Results, make_results: Make) -> None:
    alone = make_results(LABELS, seeds=(0, 1, 2))
    for row, same in zip(Study(mixed).rows, Study(alone).rows, strict=True):
        assert row.done == 5
        assert row.train_seconds == same.train_seconds
        assert row.seconds_ratio == same.seconds_ratio
    assert "times the training time on Slow CPU (2 threads)" in " ".join(answer(Study(mixed)))


def test_equal_time_is_equal_on_the_same_machine_only(mixed: Results, make_results: Make) -> None:
    here, alone = (
        {one.row.label: one for one in at_budgets(Study(results)) if one.equal == "time"}
        for results in (mixed, make_results(LABELS, seeds=(0, 1, 2)))
    )
    for label, one in here.items():
        assert list(one.values.index) == [0, 1, 2]
        assert (one.budget, one.used, one.without) == (alone[label].budget, alone[label].used, alone[label].without)
    passes = [one for one in at_budgets(Study(mixed)) if one.equal == "passes"]
    assert [len(one.values) for one in passes] == [5, 5, 5]


def test_the_time_to_a_target_is_of_runs_on_one_kind(mixed: Results) -> None:
    for one in costs_to_target(Study(mixed)):
        assert (len(one.passes), len(one.train_seconds)) == (5, 3)


def test_an_optimizer_without_a_run_on_that_hardware_has_no_times(make_results: Make, tmp_path: Path) -> None:
    results = make_results(LABELS, change=lambda frame: machines(frame, frame["optimizer"] == "sam"))
    sam = next(row for row in Study(results).rows if row.label == "sam")
    assert (sam.done, sam.train_seconds.n, math.isnan(sam.seconds_ratio)) == (5, 0, True)
    said = " ".join(answer(Study(results)))
    assert "times the passes" in said
    assert "training time" not in said.partition("At equal")[0]
    assert tables.build(Study(results))
    assert plots.build(Study(results), tmp_path)


def test_other_threads_are_another_kind_and_one_kind_says_nothing(make_results: Make) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(threads=frame["seed"].gt(2).map({True: 8, False: 1}))

    assert any("on AMD EPYC (1 thread)." in note for note in of(make_results(LABELS, change=change), "cost").footnotes)
    assert not any("times" in note for note in of(make_results(LABELS), "cost").footnotes)


def test_each_condition_has_the_hardware_of_most_of_its_runs(make_results: Make, tmp_path: Path) -> None:
    vary = {"label_noise": [0.0, 0.2]}
    apart = make_results(LABELS, vary=vary, change=lambda frame: machines(frame, frame["label_noise"] > 0))
    assert [row.train_seconds.n for row in Study(apart).rows] == [5] * 6
    assert all(not math.isnan(row.seconds_ratio) for row in Study(apart).rows)
    lonely = make_results(LABELS, vary=vary, change=lambda frame: machines(frame, frame["seed"] == 4))
    assert [row.train_seconds.n for row in Study(lonely).rows] == [4] * 6
    assert plots.build(Study(apart), tmp_path)
    quiet, noisy = answer(Study(apart))
    assert "training time on Slow CPU" in quiet
    assert "training time on Fast CPU" in noisy


def test_other_commits_are_no_other_hardware(make_results: Make) -> None:
    results = make_results(LABELS, change=lambda frame: frame.assign(commit=frame["seed"].astype(str)))
    notes = of(results, "cost").footnotes
    assert any(note.startswith("The runs have different versions, commits or precisions") for note in notes)
    assert not any("different hardware" in note for note in notes)
