"""Runs that give one answer to everything are flagged in tables, words and page; older records say nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis import render, report, tables
from bench.analysis.answer import answer
from bench.analysis.headline import at_equal_passes, forest, headline
from bench.analysis.render.table import Table
from bench.analysis.study import Study
from bench.store.records import Results

Make = Callable[..., Results]
SPREAD = np.array([0.01, -0.01, 0.0, 0.02, -0.02])
TWO: dict[str, Any] = {"sgd": {}, "sam": {}}
ONE_CLASS = "the same answer to every test example in 5 of 5 runs"


def collapsed(*labels: str, runs: int = 5, split: str = "test", **scores: float) -> Callable[..., pd.DataFrame]:
    """Records in which the first runs of these labels give one class, and every test score is that of its label."""

    def change(records: pd.DataFrame) -> pd.DataFrame:
        records = records.assign(**{f"{split}_constant": 0.0, f"{split}_dummy_acc": 0.678})
        for label in labels:
            here = (records["optimizer"] == label) & (records["seed"] < runs)
            records.loc[here, f"{split}_constant"] = 1.0
        for label, score in scores.items():
            here = records["optimizer"] == label
            records.loc[here, "test_acc"] = score + SPREAD[records.loc[here, "seed"]] * (label != "sgd")
        return records

    return change


def table(results: Results, name: str = "results") -> Table:
    return next(found for found in tables.build(Study(results)) if found.name == name)


def test_better_than_a_degenerate_rival_is_said_with_that(make_results: Make) -> None:
    results = make_results(TWO, change=collapsed("sgd", sgd=0.678, sam=0.75))
    (said,) = answer(Study(results))
    assert said.startswith(f"sam is better than sgd (degenerate: {ONE_CLASS}): test accuracy of ")
    (healthy,) = answer(Study(make_results(TWO, change=collapsed(sgd=0.7, sam=0.75))))
    assert healthy.startswith("sam is better than sgd: ")


def test_a_degenerate_optimizer_is_marked_and_explained_in_tables_and_page(make_results: Make) -> None:
    results = make_results(TWO, change=collapsed("sgd", runs=2, sgd=0.7, sam=0.75))
    note = "§ sgd is degenerate: the same answer to every test example in 2 of 5 runs."
    for name in ("results", "losses", "cost", "budgets", "statistics"):
        found = table(results, name)
        assert note in found.footnotes
        assert name == "statistics" or "sgd§" in {cell for row in found.rows for cell in row}
    assert list(table(results).numbers["degenerate"]) == ["the same answer to every test example in 2 of 5 runs", ""]
    assert r"sgd\S{}" in render.render(table(results), "tex")
    page = report.page(Study(results), tables.build(Study(results)), {})
    assert note in page
    assert "(degenerate: the same answer to every test example in 2 of 5 runs)" in page


@pytest.mark.parametrize(("score", "flagged"), [(0.678, True), (0.67804, True), (0.6781, False)])
def test_a_score_that_is_a_constant_answers_within_rounding_is_flagged(
    make_results: Make, score: float, *, flagged: bool
) -> None:
    rows = Study(make_results(TWO, change=collapsed(sgd=score, sam=0.75))).rows
    assert rows[0].degenerate == ("the test accuracy of one constant answer" if flagged else "")
    assert rows[1].degenerate == ""


def test_other_ways_of_saying_it_carry_the_flag_too(make_results: Make) -> None:
    many: dict[str, Any] = {"sgd": {}, **{f"sam-{n}": {} for n in range(5)}}
    (together,) = answer(Study(make_results(many, change=collapsed("sgd", "sam-1", sgd=0.678))))
    assert f"sgd's are 1; degenerate: {ONE_CLASS}): " in together
    assert f"×; degenerate: {ONE_CLASS})" in together.partition("sam-1 (")[2].partition(",  ")[0]
    four = {"label_noise": [0.0, 0.2, 0.4, 0.6]}
    (counted,) = answer(Study(make_results(TWO, vary=four, change=collapsed("sgd", sgd=0.678))))
    assert counted.endswith(f" sgd is degenerate: {ONE_CLASS}.")
    three: dict[str, Any] = {"sgd": {}, "adam": {}, "sam": {}}
    (said,) = answer(Study(make_results(three, change=collapsed("adam", sgd=0.9, adam=0.678, sam=0.92))))
    assert f"; degenerate: {ONE_CLASS})" in said.partition("adam (")[2]


def test_a_configuration_that_was_tuned_is_flagged_by_its_validation_answers(make_phased: Make) -> None:
    labels = {"sgd": {"sweep": ("lr", (0.1, 1.0))}, "sam": {"sweep": ("rho", (0.1, 0.2))}}

    def change(records: pd.DataFrame) -> pd.DataFrame:
        of_tuning = records["phase"] == "tune"
        constant = (of_tuning & (records["config"] == "lr=1")).astype(float).where(of_tuning)
        return records.assign(val_constant=constant, val_dummy_acc=0.5, test_constant=0.0, test_dummy_acc=0.5)

    results = make_phased({"sgd": "lr=0.1", "sam": "rho=0.1"}, labels, change=change)
    found = {row.title: row.degenerate for row in Study(results).tried}
    assert found.pop("sgd (lr=1)") == "the same answer to every validation example in 2 of 2 runs"
    assert set(found.values()) == {""}
    assert {row[0] for row in table(results, "sweep").rows} >= {"sgd (lr=1)§", "sam (rho=0.1)"}


def test_a_degenerate_choice_is_flagged_in_the_table_of_tuning(make_phased: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        mine = (records["phase"] == "tune") & (records["config"] == "lr=1")
        return records.assign(val_acc=records["val_acc"].where(~mine, 0.99), val_constant=mine.astype(float))

    labels = {"sgd": {"sweep": ("lr", (0.1, 1.0))}, "sam": {"sweep": ("rho", (0.1, 0.2))}}
    found = table(make_phased({"sgd": "lr=1", "sam": "rho=0.1"}, labels, change=change), "tuning")
    assert found.rows[0][3] == "lr=1§"
    assert "§ sgd (lr=1) is degenerate: the same answer to every validation example in 2 of 2 runs." in found.footnotes


def test_records_that_do_not_know_it_say_nothing(make_results: Make) -> None:
    assert {row.degenerate for row in Study(make_results()).rows} == {""}


def test_the_first_line_and_the_forest_of_the_page_say_it_too(make_results: Make) -> None:
    study = Study(make_results(TWO, change=collapsed("sgd", sgd=0.678, sam=0.75)))
    assert headline(study).startswith("SAM: yes, +7.")
    assert headline(study).endswith(" points for 2.0 times the passes (sgd is degenerate)")
    drawn = forest(study)
    assert drawn
    (branch,) = drawn.blocks[""]
    assert branch.said == "better; sgd is degenerate"
    longer: dict[str, Any] = {"sgd": {}, "sgd-2x": {"epochs": 12}, "sam": {}}
    compared = Study(make_results(longer, change=collapsed("sgd-2x", sgd=0.7, sam=0.75)))
    assert "degenerate" not in headline(compared)
    assert at_equal_passes(compared).endswith(" points (sgd-2x is degenerate)")
    four = {"label_noise": [0.0, 0.2, 0.4, 0.6]}
    several = Study(make_results(TWO, vary=four, change=collapsed("sam", sam=0.75)))
    assert headline(several).endswith(" (sam is degenerate in 4 of 4 conditions)")
