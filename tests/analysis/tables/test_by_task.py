"""The table by task against hand-worked numbers: cells, averages, what is missing, further axes, its forms."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench.analysis import render, tables
from bench.analysis.render.table import Table
from bench.analysis.render.terminal import show
from bench.analysis.study import Study
from bench.store.records import Results

Make = Callable[..., Results]
pytestmark = pytest.mark.filterwarnings("error")

FOUR = ("glue/cola", "glue/mrpc", "glue/mnli", "glue/rte")
TWO = ("glue/mrpc", "glue/rte")
# Of adamw, seeds 0 to 2: MRPC is .80 .82 .84, RTE .60 .62 .64, so the average .70 .72 .74; of sgd: MRPC .83 .85 .84
# and RTE .61 .59 .66, so the average .72 .72 .75. Plain means of the three columns would be others.
BY_HAND: dict[tuple[str, ...], dict[str, Any]] = {
    ("glue/mrpc", "adamw"): {"test_acc": [0.78, 0.80, 0.82], "test_f1": [0.82, 0.84, 0.86]},
    ("glue/rte", "adamw"): {"test_acc": [0.60, 0.62, 0.64]},
    ("glue/mrpc", "sgd"): {"test_acc": [0.80, 0.84, 0.84], "test_f1": [0.86, 0.86, 0.84]},
    ("glue/rte", "sgd"): {"test_acc": [0.61, 0.59, 0.66]},
}
T2 = 4.302652729749464  # the 97.5% quantile of t with two degrees of freedom


def table(results: Results, name: str = "tasks") -> Table:
    return next(found for found in tables.build(Study(results)) if found.name == name)


def caption(found: Table) -> str:
    return " ".join(found.caption)


def notes(found: Table) -> str:
    return "\n".join(found.footnotes)


def cells(found: Table, name: str) -> list[str]:
    return next(row[1:] for row in found.rows if row[0] == name)


def lost(task: str, label: str, *seeds: int, status: str = "failed") -> dict[tuple[str, ...], str]:
    return {(f"task={task}", label, "", seed): status for seed in seeds}  # type: ignore[misc]


# ---- cells ---------------------------------------------------------------------------------------------------


def test_cells_by_hand(make_glue: Make) -> None:
    found = table(make_glue(TWO, seeds=(0, 1, 2), measured=BY_HAND))
    assert found.columns == ["task", "adamw", "sgd"]
    # sd 2 points everywhere but sgd: MRPC accuracy sqrt(16/3), F1 sqrt(4/3), RTE sqrt(13); times 4.302653 / sqrt(3).
    # Averages: sd 2 and sqrt(3); differences 2, 0, 1: mean 1, sd 1.
    assert found.rows == [
        ["MRPC, accuracy", "80.00 ± 4.97", "82.67 ± 5.74"],
        ["MRPC, F1", "84.00 ± 4.97", "85.33 ± 2.87"],
        ["RTE, accuracy", "62.00 ± 4.97", "62.00 ± 8.96"],
        ["GLUE average", "72.00 ± 4.97", "73.00 ± 4.30"],
        ["difference to adamw", "–", "+1.00"],
        ["95% interval", "–", "[-1.48, +3.48]"],
    ]


def test_one_answer_to_everything_is_marked_in_the_cells_of_its_task(make_glue: Make) -> None:
    def constant(records: pd.DataFrame) -> pd.DataFrame:
        here = (records["task"] == "glue/rte") & (records["optimizer"] == "sgd")
        return records.assign(test_constant=here.astype(float))

    found = table(make_glue(TWO, seeds=(0, 1, 2), measured=BY_HAND, change=constant))
    assert cells(found, "RTE, accuracy")[1] == "62.00 ± 8.96§"
    assert sum("§" in cell for row in found.rows for cell in row) == 1
    (note,) = [note for note in found.footnotes if note.startswith("§ sgd")]
    assert "is degenerate: the same answer to every test example in 3 of 3 runs" in note


def test_a_task_counts_once_however_many_scores_it_has(make_glue: Make) -> None:
    measured: dict[tuple[str, ...], dict[str, Any]] = {
        ("glue/cola", "adamw"): {"test_mcc": 0.5},
        ("glue/mrpc", "adamw"): {"test_acc": 0.8, "test_f1": 0.9},  # .85
        ("glue/mnli", "adamw"): {"test_acc": 0.7, "mismatched_acc": 0.6},  # .65
        ("glue/rte", "adamw"): {"test_acc": 0.6},
    }
    found = table(make_glue(FOUR, {"adamw": {}}, measured=measured))
    assert [row[0] for row in found.rows] == [
        "CoLA, Matthews corr.",
        "MRPC, accuracy",
        "MRPC, F1",
        "MNLI, matched accuracy",
        "MNLI, mismatched accuracy",
        "RTE, accuracy",
        "GLUE average",
    ]
    assert cells(found, "GLUE average") == ["65.00 (all equal)"]


def test_csv_is_unrounded_and_has_a_line_for_each_number(make_glue: Make) -> None:
    numbers = table(make_glue(TWO, seeds=(0, 1, 2), measured=BY_HAND)).numbers
    assert list(numbers) == ["task", "score", "optimizer", "config", "tasks", "n", "mean", "low", "high"]
    assert numbers[["task", "score", "optimizer"]].to_numpy().tolist() == [
        *([task, score, label] for task, score in scores() for label in ("adamw", "sgd")),
        ["GLUE average", "difference to adamw", "sgd"],
    ]
    assert numbers["n"].tolist() == [3] * 9
    assert numbers["tasks"].tolist() == [1] * 6 + [2] * 3
    last = numbers.iloc[-1]
    half = T2 / np.sqrt(3)
    assert [last["mean"], last["low"], last["high"]] == pytest.approx([1, 1 - half, 1 + half], rel=1e-12)


def scores() -> list[tuple[str, str]]:
    return [("glue/mrpc", "test_acc"), ("glue/mrpc", "test_f1"), ("glue/rte", "test_acc"), ("GLUE average", "")]


def test_the_choice_is_made_by_task_and_by_validation(make_glue: Make) -> None:
    labels: dict[str, Any] = {"adamw": {}, "sam": {"sweep": ("rho", (0.1, 0.2, 0.4))}}

    def change(records: pd.DataFrame) -> pd.DataFrame:
        for task, best in (("glue/mrpc", "rho=0.4"), ("glue/rte", "rho=0.1")):
            here = (records["task"] == task) & (records["config"] == best)
            records.loc[here, ["val_score", "test_acc", "test_f1"]] = [0.99, 0.5, 0.5]
        return records

    found = table(make_glue(TWO, labels, change=change))
    assert [row[2] for row in found.rows[:4]] == ["50.00 (all equal)"] * 4
    configs = found.numbers.loc[found.numbers["optimizer"] == "sam", "config"].tolist()
    assert configs == ["rho=0.4", "rho=0.4", "rho=0.1", "", ""]
    assert "chosen for each condition by itself, by mean validation score" in caption(found)
    assert "sam (rho=0.4) under task=glue/mrpc is the largest value of its sweep" in notes(found)


def test_one_seed_has_no_interval(make_glue: Make) -> None:
    measured = {key: {name: values[0] for name, values in columns.items()} for key, columns in BY_HAND.items()}
    found = table(make_glue(TWO, seeds=(0,), measured=measured))
    assert [row[1:] for row in found.rows[-3:]] == [["70.00 (n=1)", "72.00 (n=1)"], ["–", "+2.00 (n=1)"], ["–", "–"]]


def test_one_optimizer_is_compared_with_none(make_glue: Make) -> None:
    found = table(make_glue(TWO, {"adamw": {}}))
    assert [row[0] for row in found.rows] == ["MRPC, accuracy", "MRPC, F1", "RTE, accuracy", "GLUE average"]
    assert "difference" not in caption(found)


def test_tasks_of_no_suite_or_of_two_have_no_average(make_glue: Make, make_results: Make) -> None:
    labels: dict[str, Any] = {"sgd": {}, "adam": {}}
    vary = {"task": ["cifar10", "cifar100"]}
    about = {"cifar10": {"title": "CIFAR-10", "reported": {"test_acc": "accuracy"}, "suite": None}}
    old = table(make_results(labels, vary=vary))
    assert [row[0] for row in old.rows] == ["cifar10", "cifar100"]
    assert [row[0] for row in table(make_results(labels, vary=vary, tasks=about)).rows] == ["CIFAR-10", "cifar100"]
    assert "average" not in caption(old) + notes(old)
    assert "Test scores (%) after the last epoch; higher is better." in caption(old)
    assert list(old.numbers)[-3:] == ["mean [%]", "low [%]", "high [%]"]
    results = make_glue(TWO)
    of_two = {"glue/rte": {**results.meta["tasks"]["glue/rte"], "suite": {"name": "SuperGLUE", "tasks": 8}}}
    meta = {**results.meta, "tasks": {**results.meta["tasks"], **of_two}}
    mixed = table(Results(cast(Any, meta), *results_frames(results)))
    assert [row[0] for row in mixed.rows] == ["MRPC, accuracy", "MRPC, F1", "RTE, accuracy"]


def results_frames(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    return results.records, results.curves


def test_the_table_is_there_for_several_tasks_only_and_comes_first(make_glue: Make, make_results: Make) -> None:
    assert [found.name for found in tables.build(Study(make_glue(TWO)))][:4] == ["tasks", "results", "losses", "cost"]
    assert "tasks" not in [found.name for found in tables.build(Study(make_glue(TWO[:1])))]
    assert "tasks" not in [found.name for found in tables.build(Study(make_results(vary={"label_noise": [0.2, 0.4]})))]


# ---- what is missing -----------------------------------------------------------------------------------------


def test_a_seed_that_lacks_a_task_is_in_no_average(make_glue: Make) -> None:
    found = table(make_glue(TWO, seeds=(0, 1, 2), measured=BY_HAND, status=lost("glue/rte", "sgd", 1)))
    assert cells(found, "MRPC, F1")[1] == "85.33 ± 2.87"
    # sgd .72 and .75 are left; differences 2 and 1, half-width 12.706205 * sqrt(.5) / sqrt(2).
    assert cells(found, "RTE, accuracy")[1] == "63.50 ± 31.77†"
    assert cells(found, "GLUE average") == ["72.00 ± 4.97", "73.50 ± 19.06†"]
    assert cells(found, "difference to adamw") == ["–", "+1.50†"]
    assert cells(found, "95% interval") == ["–", "[-4.85, +7.85]"]
    assert "† sgd under task=glue/rte: 2 of 3 runs finished (1 failed); its numbers are over those." in found.footnotes
    assert "† GLUE average of sgd: over the 2 of 3 seeds that finished all of its tasks." in found.footnotes


def test_pairs_are_of_the_seeds_that_both_have(make_glue: Make) -> None:
    status = lost("glue/rte", "sgd", 1) | lost("glue/mrpc", "adamw", 0)
    found = table(make_glue(TWO, seeds=(0, 1, 2), measured=BY_HAND, status=status))
    assert cells(found, "difference to adamw") == ["–", "+1.00 (n=1)†"]


def test_an_average_over_fewer_tasks_is_marked_and_told(make_glue: Make) -> None:
    found = table(make_glue(TWO, seeds=(0, 1, 2), measured=BY_HAND, status=lost("glue/rte", "sgd", 0, 1, 2)))
    assert cells(found, "RTE, accuracy") == ["62.00 ± 4.97", "–†"]
    assert cells(found, "GLUE average") == ["72.00 ± 4.97", "84.00 ± 2.48†"]
    # over MRPC alone: .83 .85 .84 less .80 .82 .84
    assert cells(found, "difference to adamw") == ["–", "+2.00†"]
    assert found.numbers.loc[found.numbers["task"] == "GLUE average", "tasks"].tolist() == [2, 1, 1]
    told = "† GLUE average of sgd: without RTE, and not to be compared with averages over other tasks;"
    assert told in notes(found)
    assert "† no run finished: sgd (3 failed) under task=glue/rte." in found.footnotes


def test_a_baseline_without_a_task_marks_every_difference(make_glue: Make) -> None:
    found = table(make_glue(TWO, seeds=(0, 1, 2), measured=BY_HAND, status=lost("glue/rte", "adamw", 0, 1, 2)))
    assert cells(found, "GLUE average") == ["82.00 ± 4.97†", "73.00 ± 4.30"]
    assert cells(found, "difference to adamw") == ["–", "+2.00†"]
    assert "† GLUE average of adamw: without RTE" in notes(found)


def test_no_seed_and_no_run_leave_dashes(make_glue: Make) -> None:
    status = lost("glue/rte", "sgd", 0, 1) | lost("glue/mrpc", "sgd", 2)
    found = table(make_glue(TWO, seeds=(0, 1, 2), measured=BY_HAND, status=status))
    assert [row[2] for row in found.rows[-3:]] == ["–†", "–†", "–"]
    assert "† GLUE average of sgd: no seed finished all of its tasks." in found.footnotes
    nothing = table(make_glue(TWO, change=lambda records: records.assign(status="missing")))
    assert {cell for row in nothing.rows for cell in row[1:]} == {"–†", "–"}
    assert "GLUE average of" not in notes(nothing)


def test_a_score_that_nobody_measured_is_told(make_glue: Make) -> None:
    found = table(make_glue(TWO, change=lambda records: records.drop(columns="test_f1")))
    assert cells(found, "MRPC, F1") == ["–†", "–†"]
    assert "† MRPC, F1 of sgd: in 0 of 5 finished runs." in found.footnotes
    assert "† GLUE average of adamw, sgd: without MRPC" in notes(found)


def test_how_many_of_the_tasks_of_the_suite(make_glue: Make) -> None:
    note = table(make_glue(FOUR)).footnotes[0]
    assert note == (
        "The GLUE average is over 4 of GLUE's 9 tasks: CoLA, MRPC, MNLI, RTE. It cannot be compared with an average "
        "over other tasks."
    )
    results = make_glue(FOUR)
    for about in results.meta["tasks"].values():
        about["suite"] = {"name": "GLUE", "tasks": 4}
    assert "of GLUE's" not in notes(table(results))


# ---- further axes --------------------------------------------------------------------------------------------

SHARES = {"model.checkpoint": ["base", "large"], "train_share": [0.1, 1.0]}


def test_a_block_for_each_combination_of_what_else_is_varied(make_glue: Make) -> None:
    measured = {(task, label, "large", 0.1): values for (task, label), values in BY_HAND.items()}
    found = table(make_glue(TWO, seeds=(0, 1, 2), measured=measured, vary=SHARES))
    assert (found.keys, found.columns) == (2, ["checkpoint", "train share", "task", "adamw", "sgd"])
    blocks = dict(found.blocks())
    assert list(blocks) == [
        f"checkpoint={name}, train share={share}" for name in ("base", "large") for share in (0.1, 1)
    ]
    assert blocks["checkpoint=large, train share=0.1"][-3:] == [
        ["GLUE average", "72.00 ± 4.97", "73.00 ± 4.30"],
        ["difference to adamw", "–", "+1.00"],
        ["95% interval", "–", "[-1.48, +3.48]"],
    ]
    assert sum(row[2:] == ["MRPC, F1", "84.00 ± 4.97", "85.33 ± 2.87"] for row in found.rows) == 1
    assert list(found.numbers)[:4] == ["model.checkpoint", "train_share", "task", "score"]
    assert len(found.numbers) == 4 * 9
    assert "Conditions: every combination of the tasks and checkpoint base, large and train share 0.1, 1." in caption(
        found
    )


def test_notes_on_one_block_name_it(make_glue: Make) -> None:
    failed = {f"task=glue/rte, checkpoint=large, train_share={share}": "failed" for share in (0.1, 1.0)}
    status = {(condition, "sgd", "", seed): "failed" for condition in failed for seed in range(3)}
    status |= {("task=glue/mrpc, checkpoint=base, train_share=0.1", "adamw", "", 0): "diverged"}
    found = table(make_glue(TWO, seeds=(0, 1, 2), status=status, vary=SHARES))
    without = "† GLUE average of sgd under (checkpoint=large, train_share=0.1) and (checkpoint=large, train_share=1): "
    assert without + "without RTE" in notes(found)
    fewer = "† GLUE average of adamw under (checkpoint=base, train_share=0.1): over the 2 of 3 seeds"
    assert fewer in notes(found)


# ---- forms ---------------------------------------------------------------------------------------------------


def printed(found: list[Table], width: int) -> list[str]:
    file = io.StringIO()
    show(found, Console(width=width, file=file, color_system=None))
    return file.getvalue().splitlines()


FOUR_LABELS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"test": 0.85},
    "sam": {"test": 0.93, "sweep": ("rho", (0.1, 0.2, 0.4))},
    "adamw-2x": {"test": 0.93, "epochs": 12},
}


@pytest.mark.parametrize("width", [80, 100, 120])
def test_eight_tasks_and_four_labels_fit_the_terminal(make_glue: Make, width: int) -> None:
    results = make_glue(labels=FOUR_LABELS, status=lost("glue/rte", "sgd", 0) | lost("glue/mnli", "sam", 1))
    for found in tables.build(Study(results)):
        lines = printed([found], width)
        assert max(map(len, lines)) <= width
        for row in found.rows * (found.name not in ("statistics", "hyperparameters")):  # whose columns go on below
            assert any(all(cell in line for cell in row[-4:]) for line in lines), "side by side, not in panels"
    lines = printed(tables.build(Study(results)), width)
    titles = [line for line in lines if line.startswith(results.meta["title"])]
    assert titles[-1].endswith(": by task")


def test_columns_that_do_not_fit_go_into_a_second_panel(make_glue: Make) -> None:
    labels = {**FOUR_LABELS, "asam": {}, "asam-2x": {}, "lion": {}}
    found = table(make_glue(labels=labels, vary=SHARES))
    lines = printed([found], 80)
    assert max(map(len, lines)) <= 80
    assert sum(line == "checkpoint=base, train share=0.1" for line in lines) == 2
    heads = [line.split() for line in lines if line.startswith("task ")]
    assert [head[0] for head in heads] == ["task", "task"]
    assert [label for head in heads for label in head[1:]] == list(labels)
    for row in found.rows:
        assert all(any(cell in line for line in lines) for cell in row[2:])


def test_markdown_and_latex(make_glue: Make) -> None:
    found = table(make_glue(TWO, seeds=(0, 1, 2), measured=BY_HAND, status=lost("glue/rte", "sgd", 1)))
    lines = render.render(found, "md").splitlines()
    assert lines[0] == "**Digits with 20% label noise: by task**"
    assert lines[3].count(":") == 3  # names to the left, numbers to the right
    assert [cell.strip() for cell in lines[7].split("|")] == ["", "GLUE average", "72.00 ± 4.97", "73.50 ± 19.06†", ""]
    latex = render.render(found, "tex")
    assert r"\begin{tabular}{@{}lS[table-format=2.2(3)]r@{}}" in latex, "of intervals and numbers: text"
    assert r"GLUE average & 72.00 \pm 4.97 & 73.50 $\pm$ 19.06$^\dagger$ \\" in latex
    assert r"95\% interval & {--} & [$-$4.85, +7.85] \\" in latex
    assert r"\label{tab:digits_noise-tasks}" in latex
    assert latex.isascii()


def test_records_read_from_a_file_give_the_same_table(make_glue: Make) -> None:
    results = make_glue(TWO, FOUR_LABELS, vary=SHARES, status=lost("glue/rte", "sgd", 0))
    records = pd.read_csv(io.StringIO(results.records.to_csv(index=False)))
    again = Results(results.meta, records, results.curves)
    for one, other in zip(tables.build(Study(results)), tables.build(Study(again)), strict=True):
        assert render.render(one, "md") == render.render(other, "md")
