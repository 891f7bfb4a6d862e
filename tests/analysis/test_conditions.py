"""Experiments that vary task, model or data: conditions never mix, and every table says which one a number is of."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from itertools import product
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench.analysis import render, tables
from bench.analysis.render.table import Table
from bench.analysis.render.terminal import show
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.store.conditions import keyed, merged, names, under, value_text
from bench.store.records import Results

Make = Callable[..., Results]
pytestmark = pytest.mark.filterwarnings("error")

NOISE = {"label_noise": [0.2, 0.4, 0.6]}
TWO_KEYS = {"task.augment": ["basic", "cutout"], "task": ["cifar10", "cifar100"]}
SWEEP = ("rho", (0.1, 0.2, 0.4))
TWO = {"sgd": {"test": 0.92}, "sam": {"test": 0.937, "sweep": SWEEP}}
BOTH_SWEPT = {"sgd": {"sweep": ("lr", (0.01, 0.1, 1.0))}, "sam": {"test": 0.937, "sweep": SWEEP}}


def row(rows: list[Row], condition: str, label: str) -> Row:
    return next(row for row in rows if row.condition == condition and row.label == label and row.chosen)


def setting(column: str, values: dict[tuple[str, str, str], Any]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A change of one column of records: (condition, label, config) -> values over the seeds."""

    def change(records: pd.DataFrame) -> pd.DataFrame:
        records = keyed(records)
        for (condition, label, config), value in values.items():
            here = (records["condition"] == condition) & (records["optimizer"] == label)
            records.loc[here & (records["config"] == config), column] = value
        return records

    return change


def table(results: Results, name: str = "results") -> Table:
    return next(found for found in tables.build(Study(results)) if found.name == name)


def notes(found: Table) -> str:
    return "\n".join(found.footnotes)


def caption(found: Table) -> str:
    return " ".join(found.caption)


# ---- rows ----------------------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    """Equality of rows in which NaN equals NaN."""
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=1e-12, nan_ok=True)
    return bool(one == other)


@pytest.mark.parametrize("vary", [NOISE, TWO_KEYS])
def test_rows_are_those_of_each_condition_on_its_own(make_results: Make, vary: dict[str, list[Any]]) -> None:
    """All that is counted, chosen, paired, compared: as if the other conditions did not exist."""
    dice = np.random.default_rng(0)
    whole = make_results(BOTH_SWEPT, vary=vary)
    status = dice.choice(["done", "diverged", "failed", "missing"], len(whole.records), p=[0.7, 0.1, 0.1, 0.1])
    whole.records["status"] = status
    alone = {**whole.meta, "vary": {}, "conditions": [""]}
    shuffled = Results(whole.meta, whole.records.sample(frac=1, random_state=0), whole.curves)
    rows = Study(whole).rows
    assert [row.condition for row in rows[:: len(rows) // len(whole.meta["conditions"])]] == whole.meta["conditions"]
    for condition in whole.meta["conditions"]:
        records = whole.records[whole.records["condition"] == condition].assign(condition=np.nan)
        own = [row for row in rows if row.condition == condition]
        assert [row.label for row in own] == ["sgd"] * 3 + ["sam"] * 3
        assert len({id(row) for row in own if row.chosen}) == 2
        for ours, expected in zip(own, Study(Results(cast(Any, alone), records, whole.curves)).rows, strict=True):
            parts = [field.name for field in fields(Row) if field.name not in ("condition", "varied")]
            assert all(same(getattr(ours, part), getattr(expected, part)) for part in parts), (condition, ours.title)
    of_shuffled = {(row.condition, row.title): row.chosen for row in Study(shuffled).rows}
    assert of_shuffled == {(row.condition, row.title): row.chosen for row in rows}


def test_the_choice_is_made_under_each_condition(make_results: Make) -> None:
    best = {"label_noise=0.2": "rho=0.1", "label_noise=0.4": "rho=0.2", "label_noise=0.6": "rho=0.4"}
    values = {(condition, "sam", config): 0.99 for condition, config in best.items()}
    rows = Study(make_results(TWO, vary=NOISE, change=setting("val_acc", values))).rows
    assert {condition: row(rows, condition, "sam").config for condition in best} == best
    edges = [row(rows, condition, "sam").edges.get("rho", "") for condition in best]
    assert edges == ["smallest", "", "largest"]


def test_the_baseline_is_that_of_the_same_condition(make_results: Make) -> None:
    values: dict[tuple[str, str, str], Any] = {("label_noise=0.2", "sgd", ""): [0.90, 0.92, 0.94]}
    values |= {("label_noise=0.4", "sgd", ""): [0.10, 0.12, 0.14], ("label_noise=0.4", "adam", ""): [0.13, 0.13, 0.16]}
    values |= {("label_noise=0.2", "adam", ""): [0.93, 0.93, 0.96]}
    lost = {("label_noise=0.6", "sgd", "", seed): "failed" for seed in range(3)}
    change = setting("test_acc", values)
    rows = Study(make_results({"sgd": {}, "adam": {}}, (0, 1, 2), lost, change, NOISE)).rows
    for condition in ("label_noise=0.2", "label_noise=0.4"):
        assert row(rows, condition, "sgd").difference is None
        compared = row(rows, condition, "adam").difference
        assert compared is not None
        assert compared.difference.mean == pytest.approx(0.02)
        assert compared.p_t == pytest.approx(0.07418, abs=1e-5)
    without = row(rows, "label_noise=0.6", "adam")
    assert without.difference is not None
    assert without.difference.difference.n == 0
    assert math.isnan(without.seconds_ratio)
    assert math.isnan(without.passes_ratio)


def test_a_row_knows_its_condition(make_results: Make) -> None:
    found = row(Study(make_results(TWO, vary=TWO_KEYS)).rows, "augment=cutout, task=cifar100", "sgd")
    assert found.varied == {"task.augment": "cutout", "task": "cifar100"}
    sizes = Study(make_results(TWO, vary={"train_size": [500, 1000]})).rows
    assert [value_text(row.varied["train_size"]) for row in sizes if row.label == "sgd"] == ["500", "1000"]


def test_older_files_are_read_as_one_condition(make_results: Make) -> None:
    new = make_results(TWO)
    meta = {key: value for key, value in new.meta.items() if key not in ("vary", "conditions")}
    records = new.records.drop(columns=["condition", "data_verified"])
    old = Results(cast(Any, meta), records, new.curves.drop(columns="condition"))
    assert all(row.condition == "" and not row.varied for row in Study(old).rows)
    for before, now in zip(tables.build(Study(old)), tables.build(Study(new)), strict=True):
        for form in render.FORMATS:
            assert render.render(before, form) == render.render(now, form)
    assert "condition" not in render.render(table(new), "csv")


# ---- tables --------------------------------------------------------------------------------------------------


def test_tables_have_a_column_for_each_varied_key_and_a_block_for_each_condition(make_results: Make) -> None:
    found = table(make_results(TWO, vary=TWO_KEYS))
    assert found.columns[:3] == ["augment", "task", "optimizer"]
    named = [tuple(cells[:2]) for cells in found.rows]
    assert named[::2] == [("basic", "cifar10"), ("basic", "cifar100"), ("cutout", "cifar10"), ("cutout", "cifar100")]
    assert named[::2] == named[1::2]
    assert [cells[2].split()[0] for cells in found.rows] == ["sgd", "sam"] * 4


def test_markdown_names_a_condition_once(make_results: Make) -> None:
    lines = render.render(table(make_results(TWO, vary=NOISE)), "md").splitlines()
    assert lines[2].split("|")[1:3] == [" label noise   ", " optimizer     "]
    assert lines[3].startswith("|:--------------|:--------------|----")
    assert [line.split("|")[1].strip() for line in lines[4:10]] == ["0.2", "", "0.4", "", "0.6", ""]


def test_latex_has_a_heading_for_each_condition(make_results: Make) -> None:
    text = render.render(table(make_results({"sgd": {}, "sam": {}}, vary=TWO_KEYS)), "tex")
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert len(re.findall(r"\\begin\{tabular\}\{@\{\}l(?:r|S\[[^]]+\]){5}@\{\}\}", text)) == 1
    blocks = [block.strip().splitlines() for block in body.split(r"\addlinespace")]
    assert [len(block) for block in blocks] == [3] * 4
    assert blocks[3][0] == r"\multicolumn{6}{@{}l@{}}{\emph{augment=cutout, task=cifar100}} \\"
    assert [line.split()[0] for line in blocks[3][1:]] == ["sgd", "sam"]
    of_one = render.render(table(make_results(TWO)), "tex")
    assert r"\addlinespace" not in of_one
    assert "multicolumn" not in of_one


def test_csv_has_the_condition_on_every_line(make_results: Make) -> None:
    for found in tables.build(Study(make_results(TWO, vary=TWO_KEYS)))[1:]:  # for the table by task: test_by_task.py
        numbers = pd.read_csv(io.StringIO(render.render(found, "csv")))
        assert list(numbers.columns[:3]) == ["condition", "task.augment", "task"]
        assert "optimizer" in numbers
        assert numbers["condition"].nunique() == 4
        assert not numbers[["condition", "task.augment", "task"]].isna().any(axis=None)
        assert (numbers["condition"] == "augment=" + numbers["task.augment"] + ", task=" + numbers["task"]).all()


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_names_each_condition_above_its_rows(make_results: Make, width: int) -> None:
    labels = {"sgd": {}, "sgd-with-momentum": {"test": 0.91}, "sam": {"sweep": SWEEP}}
    for found in tables.build(Study(make_results(labels, vary=TWO_KEYS)))[1:]:
        file = io.StringIO()
        show([found], Console(width=width, file=file, color_system=None))
        lines = file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        for cells in found.rows * (found.name != "statistics"):  # whose columns go on below
            assert any(all(cell in line for cell in cells[found.keys + 1 :]) for line in lines)
        blocks = found.blocks()
        assert list(dict.fromkeys(name.split(", equal=")[0].split(", against=")[0] for name, _ in blocks)) == [
            f"augment={augment}, task={task}" for augment, task in product(*TWO_KEYS.values())
        ]
        places = [lines.index(name) for name, _ in blocks]
        assert places == sorted(places)
        assert all(
            lines[place + 1].startswith(rows[0][0].split()[0]) for place, (_, rows) in zip(places, blocks, strict=True)
        )


# ---- captions ------------------------------------------------------------------------------------------------


def test_captions_say_what_varies_and_that_conditions_stay_apart(make_results: Make) -> None:
    text = caption(table(make_results(TWO, vary=NOISE)))
    assert "Conditions: label noise 0.2, 0.4, 0.6." in text
    assert "minus that of sgd under the same condition, paired by seed" in text
    assert "chosen for each condition by itself, by mean validation accuracy (16.7% of the training data" in text
    assert "labels replaced" not in text  # the settings of the data are those of the first condition
    assert "Ratios are to sgd under the same condition" in caption(table(make_results(TWO, vary=NOISE), "cost"))
    both = caption(table(make_results(TWO, vary=TWO_KEYS, task="cifar10, cifar100")))
    assert "Tasks cifar10, cifar100 with 20% of the training labels replaced, model resnet8, seeds 0" in both
    assert "Conditions: every combination of augment basic, cutout and the tasks." in both
    models = {"model": ["a", "b"], "task.model": ["c", "d"]}
    assert "combination of the models and task.model c, d." in caption(table(make_results(TWO, vary=models)))
    assert "Conditions: model c, d." in caption(table(make_results(TWO, vary={"task.model": ["c", "d"]})))
    one = caption(table(make_results(TWO)))
    assert "ondition" not in one
    assert "16.7%" not in caption(table(make_results(TWO, vary={"validation": [0.1, 0.2]})))


@pytest.mark.parametrize(
    ("noise", "text"),
    [
        (0.0, "Task digits with 1,000 training examples, model"),
        (0.2, "Task digits with 1,000 training examples and 20% of the training labels replaced, model"),
    ],
)
def test_a_smaller_training_set_is_told(make_results: Make, noise: float, text: str) -> None:
    data = {"validation": 1 / 6, "train_size": 1000, "label_noise": noise}
    assert text in caption(table(make_results(TWO, data=data)))
    assert "1,000 training" not in caption(table(make_results(TWO, data=data, vary={"train_size": [1000, 2000]})))
    assert "training examples" not in caption(table(make_results(TWO)))


# ---- unverified data -----------------------------------------------------------------------------------------


def unverified(condition: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        return records.assign(data_verified=keyed(records)["condition"] != condition)

    return change


def test_every_table_says_that_data_are_unverified(make_results: Make) -> None:
    sentence = "Unverified data: the checksums of the data files are not their publisher's."
    for found in tables.build(Study(make_results(TWO, change=unverified("")))):
        assert found.caption.count(sentence) == 1
        assert sentence in render.render(found, "md")
    some = caption(table(make_results(TWO, vary=NOISE, change=unverified("label_noise=0.4"))))
    assert "Unverified data under label_noise=0.4: the checksums" in some


def test_one_diverged_run_on_unverified_data_is_enough(make_results: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        records["data_verified"] = records["data_verified"].astype(object)
        records.loc[0, "data_verified"] = False
        return records

    assert Study(make_results(TWO, status={("sgd", "", 0): "diverged"}, change=change)).source.caution
    text = io.StringIO(make_results(TWO, change=change).records.to_csv(index=False))
    read = make_results(TWO, change=lambda _: pd.read_csv(text))
    assert Study(read).source.caution


@pytest.mark.parametrize("value", [True, np.nan, None])
def test_verified_and_unknown_data_need_no_word(make_results: Make, value: Any) -> None:
    results = make_results(TWO, change=lambda records: records.assign(data_verified=value))
    assert Study(results).source.caution == ""
    assert "erified" not in caption(table(results))


# ---- footnotes -----------------------------------------------------------------------------------------------


def test_a_note_that_holds_everywhere_is_said_once_and_names_no_condition(make_results: Make) -> None:
    lost = {("sgd", "", 4): "failed", **{("adam", "", seed): "missing" for seed in range(5)}}
    labels = {**TWO, "adam": {"test": 0.91}}
    change = setting("val_acc", {(f"label_noise={noise}", "sam", "rho=0.4"): 1.0 for noise in NOISE["label_noise"]})
    found = table(make_results(labels, status=lost, change=change, vary=NOISE))
    assert found.footnotes == [
        "† sgd: 4 of 5 runs finished (1 failed); its numbers are over those.",
        "† no run finished: adam (5 unfinished).",
        "sam (rho=0.4) is the largest value of its sweep: the best may lie beyond it.",
        "Unequal searches (sgd, adam: not searched; sam: 3 configurations: rho 0.1, 0.2, 0.4): a wider or longer "
        "search is more likely to find a good setting.",
        "With n=4 pairs an exact sign-flip test cannot get below p=0.125 on any data: no stars.",
        "p values are corrected for 3 comparisons; the table of statistics has the others.",
        "Budgets differ: compare rows of equal epochs or rows of equal passes. 6 epochs: sgd, sam, adam; "
        "66 passes: sgd; 132 passes: sam.",
    ]


def test_a_note_on_one_condition_names_it(make_results: Make) -> None:
    lost = {("label_noise=0.4", "sgd", "", 0): "diverged", ("label_noise=0.6", "sam", "rho=0.1", 0): "failed"}
    lost |= {("label_noise=0.2", "sam", f"rho={rho}", seed): "missing" for rho in SWEEP[1] for seed in range(5)}
    best = {("label_noise=0.4", "sam", "rho=0.4"): 1.0, ("label_noise=0.6", "sam", "rho=0.4"): 1.0}
    found = table(make_results(TWO, status=lost, change=setting("val_acc", best), vary=NOISE))
    assert "† sgd under label_noise=0.4: 4 of 5 runs finished (1 diverged)" in notes(found)
    assert "† no run finished: sam (5 unfinished) under label_noise=0.2." in notes(found)
    assert "sam under label_noise=0.6: other configurations lack runs and rank behind" in notes(found)
    assert notes(found).count("other configurations") == 1
    assert "sam (rho=0.4) under label_noise=0.4 and 0.6 is the largest value of its sweep" in notes(found)
    assert [cells[1] for cells in found.rows if "†" in cells[1]] == ["sam (no run finished)†", "sgd†"]
    assert "† no run finished: sam (5 unfinished each of 3) under label_noise=0.2." in notes(
        table(make_results(TWO, status=lost, vary=NOISE), "sweep")
    )


def test_budgets_are_told_once_with_the_range_over_conditions(make_results: Make) -> None:
    sizes = {"train_size": [500, 1000, 20000]}

    def change(records: pd.DataFrame) -> pd.DataFrame:
        return records.assign(passes=records["passes"] * records["train_size"] / 500)

    labels = {"sgd": {}, "adam": {}, "sam": {"sweep": SWEEP}}
    lost = {("train_size=1000", "adam", "", seed): "failed" for seed in range(5)}
    assert (
        "6 epochs: sgd, adam, sam; 66 to 2,640 passes: sgd, adam; 132 to 5,280 passes: sam."
        in table(make_results(labels, status=lost, change=change, vary=sizes)).footnotes[-1]
    )
    alike = table(make_results({"sgd": {}, "adam": {}}, change=change, vary=sizes))
    assert alike.footnotes[-1] == "Under each condition every row has the same budget: 6 epochs, 66 to 2,640 passes."


def test_budgets_that_group_labels_otherwise_are_told_with_their_condition(make_results: Make) -> None:
    change = setting("passes", {("label_noise=0.6", "adam", ""): 132.0})
    note = table(make_results({"sgd": {}, "adam": {}}, change=change, vary=NOISE)).footnotes[-1]
    for part in (
        "6 epochs: sgd, adam;",
        "66 passes under label_noise=0.2 and 0.4: sgd, adam;",
        "66 passes under label_noise=0.6: sgd;",
        "132 passes under label_noise=0.6: adam.",
    ):
        assert part in note


# ---- words ---------------------------------------------------------------------------------------------------


def test_conditions_in_a_sentence() -> None:
    among = [f"label_noise={noise / 100}" for noise in range(9)]
    assert under(among, among) == ""
    assert under(among[:1], among) == " under label_noise=0.0"
    assert under(among[:3], among) == " under label_noise=0.0, 0.01 and 0.02"
    assert under(among[:7], among) == " under 7 of 9 conditions"
    two = [f"a={a}, b={b}" for a in (1, 2) for b in (1, 2, 3)]
    assert under(two[:2], two) == " under (a=1, b=1) and (a=1, b=2)"
    assert under(two[:4], two) == " under 4 of 6 conditions"
    said = [("a=1", "sgd", " fell."), ("a=2", "sgd", " fell."), ("a=2", "sam", " fell.")]
    assert list(merged(said, ["a=1", "a=2"])) == ["sgd fell.", "sam under a=2 fell."]


def test_columns_of_the_same_short_name_keep_their_long_one() -> None:
    assert names(["task.augment", "label_noise"]) == ["augment", "label noise"]
    assert names(["task.width", "model.width", "task"]) == ["task.width", "model.width", "task"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.2, "0.2"), (500, "500"), (50000.0, "50000"), (1281167, "1281167"), ("basic", "basic")]
)
def test_values_as_a_person_writes_them(value: Any, text: str) -> None:
    assert value_text(value) == text
