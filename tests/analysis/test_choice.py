"""Choosing on validation: the one rule, where a choice lies in its space, and what phases make of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.analysis import report, tables
from bench.analysis.answer import answer
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.store import selection as choice
from bench.store.records import Results
from bench.store.selection import phased

Make = Callable[..., Results]
LABELS = {
    "sgd": {"sweep": ("lr", (0.01, 0.1, 1.0)), "test": 0.92},
    "sam": {"sweep": ("rho", (0.05, 0.1, 0.2)), "test": 0.94},
    "plain": {"test": 0.9},
}
CHOSEN = {"sgd": "lr=0.1", "sam": "rho=0.2", "plain": ""}


def setting(value: dict[tuple[str, str], float], column: str = "val_acc") -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A change of records that gives configurations of the phase "tune" a value."""

    def change(records: pd.DataFrame) -> pd.DataFrame:
        for (label, config), number in value.items():
            here = (records["optimizer"] == label) & (records["config"] == config) & (records["phase"] == "tune")
            records.loc[here, column] = number
        return records

    return change


BEST = setting({("sgd", "lr=0.1"): 0.99, ("sam", "rho=0.2"): 0.99})


def row(rows: list[Row], label: str, config: str | None = None) -> Row:
    (found,) = [row for row in rows if row.label == label and (row.chosen if config is None else row.config == config)]
    return found


# ---- phases --------------------------------------------------------------------------------------------------


def test_a_chosen_row_is_over_final_runs_and_all_others_over_those_of_tuning(make_phased: Make) -> None:
    results = make_phased(CHOSEN, LABELS, change=BEST)
    rows = Study(results).rows
    assert [(one.label, one.config, one.chosen, one.phase, one.done) for one in rows] == [
        ("sgd", "lr=0.01", False, "tune", 2),
        ("sgd", "lr=0.1", True, "final", 3),
        ("sgd", "lr=1", False, "tune", 2),
        ("sam", "rho=0.05", False, "tune", 2),
        ("sam", "rho=0.1", False, "tune", 2),
        ("sam", "rho=0.2", True, "final", 3),
        ("plain", "", True, "final", 3),
    ]
    final = results.records[results.records["phase"] == "final"].groupby("optimizer")["test_acc"].mean()
    for label in LABELS:
        assert row(rows, label).test_metric.mean == pytest.approx(final[label])
        assert row(rows, label).val_metric.n == 0, "validation was trained on"
    compared = row(rows, "sam").difference
    assert compared is not None
    assert compared.difference.n == 3
    assert all(one.test_metric.n == one.gap_metric.n == 0 for one in rows if one.phase == "tune")


def test_what_was_tried_has_its_own_rows_with_validation_alone(make_phased: Make) -> None:
    rows = Study(make_phased(CHOSEN, LABELS, change=BEST)).tried
    assert [(one.label, one.config) for one in rows if one.chosen] == [("sgd", "lr=0.1"), ("sam", "rho=0.2")]
    assert {(one.phase, one.done, one.val_metric.n, one.test_metric.n) for one in rows} == {("tune", 2, 2, 0)}
    assert row(rows, "sgd", "lr=0.1").val_metric.mean == 0.99


def test_without_phases_what_was_tried_is_all_there_is(make_results: Make) -> None:
    results = make_results()
    assert repr(Study(results).tried) == repr(Study(results).rows)


def test_no_number_of_a_final_run_changes_a_choice(make_phased: Make) -> None:
    def spoil(records: pd.DataFrame) -> pd.DataFrame:
        records = BEST(records)
        final = records["phase"] == "final"
        numbers = [
            column for column in map(str, records) if column.startswith(("test", "val", "gap", "train", "selected"))
        ]
        records.loc[final, numbers] = np.random.default_rng(0).random((int(final.sum()), len(numbers)))
        return records

    chosen = [(one.label, one.config) for one in Study(make_phased(CHOSEN, LABELS, change=spoil)).rows if one.chosen]
    assert chosen == list(CHOSEN.items())


def test_final_runs_that_are_not_there_yet_are_planned_all_the_same(make_phased: Make) -> None:
    results = make_phased({"plain": ""}, LABELS, change=BEST)
    sam = row(Study(results).rows, "sam")
    assert (sam.config, sam.planned, sam.done, sam.unfinished, sam.test_metric.n) == ("rho=0.2", 3, 0, 3, 0)
    assert (sam.swept, sam.epochs) == ({"rho": 0.2}, 6)


def test_final_runs_of_an_earlier_choice_are_not_mixed_in(make_phased: Make) -> None:
    results = make_phased({**CHOSEN, "sam": "rho=0.05"}, LABELS, change=BEST)
    sam = row(Study(results).rows, "sam")
    assert (sam.config, sam.done) == ("rho=0.2", 0)


def test_diverged_final_runs_count(make_phased: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        records = BEST(records)
        records.loc[(records["optimizer"] == "sam") & (records["seed"] == 3), "status"] = "diverged"
        return records

    sam = row(Study(make_phased(CHOSEN, LABELS, change=change)).rows, "sam")
    assert (sam.planned, sam.done, sam.diverged, sam.unfinished) == (3, 2, 1, 0)


# ---- the rule and where the choice lies ----------------------------------------------------------------------


def test_candidates_are_ranked_by_validation_completeness_first(make_phased: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        records = setting({("sgd", "lr=1"): 0.999})(BEST(records))
        records.loc[(records["config"] == "lr=1") & (records["seed"] == 1), "status"] = "failed"
        return records

    results = make_phased(CHOSEN, LABELS, change=change)
    frame = choice.candidates(choice.tuning(results.records), results.meta["metric"])
    assert frame.index[frame["chosen"]].tolist() == [("", "sgd", "lr=0.1"), ("", "sam", "rho=0.2")]
    assert frame["done"].to_dict()["", "sgd", "lr=1"] == 1


RANGE = {"low": 1e-4, "high": 1.0, "log": True}


@pytest.mark.parametrize(
    ("lr", "end"), [(1e-4, "smallest"), (2e-4, "smallest"), (3e-4, ""), (0.01, ""), (0.35, ""), (0.5, "largest")]
)
def test_the_outer_tenth_of_a_range_is_its_edge_on_its_own_scale(lr: float, end: str) -> None:
    assert choice.edges({"lr": lr}, [{"lr": lr}], {"lr": RANGE}) == ({"lr": end} if end else {})


def test_edges_of_several_axes_are_each_their_own() -> None:
    others = [{"lr": lr, "rho": rho, "base": "sgd"} for lr in (0.1, 0.2, 0.3) for rho in (1, 2, 3)]
    assert choice.edges({"lr": 0.1, "rho": 3, "base": "sgd"}, others) == {"lr": "smallest", "rho": "largest"}
    assert choice.edges({"lr": 0.2, "rho": 2, "base": "sgd"}, others) == {}
    linear = {"low": 0, "high": 10, "log": False}
    assert choice.edges({"lr": 0.2, "rho": 9.5}, others, {"rho": linear, "lr": [0.2]}) == {"rho": "largest"}


def test_the_answer_says_that_a_choice_lies_at_an_edge(make_phased: Make) -> None:
    assert answer(Study(make_phased(CHOSEN, LABELS, change=BEST)))[-2] == (
        "The chosen setting of sam is at the edge of the values that were tried. A value beyond that edge may be "
        "better and may change the comparison."
    )


def test_edges_of_what_was_chosen_go_with_the_final_row(make_phased: Make) -> None:
    rows = Study(make_phased(CHOSEN, LABELS, change=BEST)).rows
    assert (row(rows, "sam").edges, row(rows, "sgd").edges) == ({"rho": "largest"}, {})


def test_an_end_beyond_which_nothing_is_valid_is_no_edge(make_phased: Make) -> None:
    spaces = {"sgd": {"lr": [0.1, 0.3]}, "sam": {"rho": {"low": 0.0, "high": 4.0}}}
    limits = {"sam": {"rho": ["smallest"]}}
    free = Study(make_phased(CHOSEN, LABELS, change=BEST, spaces=spaces)).rows
    limited = Study(make_phased(CHOSEN, LABELS, change=BEST, spaces=spaces, limits=limits)).rows
    assert row(free, "sam").edges == {"rho": "smallest"}
    assert row(limited, "sam").edges == {}
    assert row(limited, "sgd").edges == row(free, "sgd").edges != {}


# ---- tables --------------------------------------------------------------------------------------------------


def test_tables_say_what_tuning_had_and_where_the_choice_lies(make_phased: Make) -> None:
    spaces = {"sgd": {"lr": {"low": 0.01, "high": 1.0, "log": True}}, "sam": {"rho": [0.05, 0.1, 0.2]}}
    results = make_phased(CHOSEN, LABELS, change=BEST, spaces=spaces)
    table = {one.name: one for one in tables.build(Study(results))}["tuning"]
    passes = {"sgd": 3 * 2 * 66, "sam": 3 * 2 * 132}  # trials, seeds, passes a run
    assert table.rows == [
        ["sgd", "3", f"{passes['sgd']}", "lr=0.1", "99.00 (all equal)", "lr 50%"],
        ["sam", "3", f"{passes['sam']}", "rho=0.2", "99.00 (all equal)", "rho 3 of 3 (edge)"],
        ["plain", "0", "0", "not tuned", "–", "–"],
    ]
    notes = " ".join(table.footnotes)
    assert "Not tuned, at its fixed setting: plain." in notes
    assert "sam (rho=0.2) lies at the edge of what was tried, its rho at the largest end" in notes
    assert "Searched: lr from 0.01 to 1 on a log scale (sgd); rho 0.05, 0.1, 0.2 (sam)." in notes


def test_captions_say_how_it_was_chosen_and_of_what_the_numbers_are(make_phased: Make) -> None:
    (caption,) = [
        " ".join(one.caption) for one in tables.build(Study(make_phased(CHOSEN, LABELS))) if one.name == "results"
    ]
    assert (
        "Hyperparameters were chosen by mean validation accuracy (16.7% of the training data, held out) over 2 seeds "
        "(grid search, 3 trials for every optimizer), never by the test set; the numbers are of what was chosen, on "
        "fresh seeds, trained on training and validation data together."
    ) in caption
    assert "seeds 2, 3, 4." in caption


def test_the_sweep_table_is_of_validation_alone(make_phased: Make) -> None:
    sweep = {one.name: one for one in tables.build(Study(make_phased(CHOSEN, LABELS, change=BEST)))}["sweep"]
    assert sweep.columns == ["optimizer", "validation accuracy (%)", "n", "chosen"]
    assert [row[-1] for row in sweep.rows] == ["", "chosen", "", "", "", "chosen"]
    assert not [column for column in map(str, sweep.numbers) if "test" in column]
    assert " ".join(sweep.caption).startswith("Validation accuracy (%)")


def test_unfinished_tuning_and_earlier_choices_are_told_under_the_results(make_phased: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        records = BEST(records)
        records.loc[(records["config"] == "rho=0.05") & (records["seed"] == 1), "status"] = "missing"
        return records

    results = make_phased({"sgd": "lr=0.1", "plain": ""}, LABELS, change=change)
    earlier = {"condition": "", "label": "sgd", "config": "lr=1", "finished": 3}
    phased(results.meta)["superseded"] = [earlier]
    (notes,) = [" ".join(one.footnotes) for one in tables.build(Study(results)) if one.name == "results"]
    assert "Tuning is not finished, so nothing is chosen yet: sam (5 of 6 runs)." in notes
    assert "sgd: lr=1 had been chosen before, from fewer or other runs of tuning; its 3 final runs are not" in notes


def test_what_is_chosen_depends_on_nothing_but_validation_in_every_table(make_phased: Make) -> None:
    def spoil(records: pd.DataFrame) -> pd.DataFrame:
        return BEST(records).assign(test_acc=0.5, test_loss=1.0, gap_acc=0.0, gap_loss=0.0)

    by_name = [
        {one.name: one for one in tables.build(Study(make_phased(CHOSEN, LABELS, change=c)))} for c in (BEST, spoil)
    ]
    for name in ("tuning", "sweep"):
        assert by_name[0][name] == replace(by_name[1][name], numbers=by_name[0][name].numbers)


def test_while_only_tuning_is_done_all_is_made_and_nothing_is_said_of_the_test_set(
    make_phased: Make, tmp_path: Path
) -> None:
    def only_tuning(records: pd.DataFrame) -> pd.DataFrame:
        records = BEST(records)
        records.loc[records["phase"] == "final", "status"] = "missing"
        return records

    results = make_phased({"plain": ""}, LABELS, change=only_tuning)
    built = tables.build(Study(results))
    assert {"results", "tuning", "sweep"} <= {table.name for table in built}
    assert answer(Study(results)) == ["No final run has finished: there is no answer yet."]
    paths = report.build(Study(results), built, tmp_path)
    assert (tmp_path / "report.html").exists()
    assert not [path for path in paths if path.suffix == ".png"]
