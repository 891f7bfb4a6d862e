"""The words: every claim in them is one that the numbers support, and what they do not support is said."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench.analysis import render, tables
from bench.analysis.answer import answer, question
from bench.analysis.render.terminal import say
from bench.analysis.study import Study
from bench.store.records import Results

Make = Callable[..., Results]

SGD = np.array([0.90, 0.91, 0.92, 0.93, 0.94])
SPREAD = np.array([0.01, -0.01, 0.0, 0.02, -0.02])  # sd 1.581 points: se .707, half-width 2.776 * .707 = 1.96
TWO: dict[str, Any] = {"sgd": {}, "sam": {}}


def scores(**by_label: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        for label, values in by_label.items():
            records.loc[records["optimizer"] == label.replace("_", "-"), "test_acc"] = values
        return records.assign(train_seconds=records["passes"] * 0.05)

    return change


def test_the_question_names_sam_its_rivals_and_the_data(make_results: Make) -> None:
    asked = question(Study(make_results()))
    assert asked == (
        "Do sam and asam beat sgd, sgd-2x and adam on digits with 20% of the training labels replaced (resnet8), "
        "and at what price?"
    )
    assert question(Study(make_results(TWO))).startswith("Does sam beat sgd on")
    assert question(Study(make_results({"sgd": {}, "adam": {}}))).startswith("Does adam beat sgd on")
    assert question(Study(make_results({"sgd": {}}))).startswith("How well does sgd do on")


def test_the_question_counts_what_is_varied(make_glue: Callable[..., Results]) -> None:
    asked = question(Study(make_glue(("glue/cola", "glue/rte"), vary={"train_share": [0.1, 0.5, 1.0]})))
    assert "on CoLA and RTE" in asked
    assert "over 3 values of train share" in asked


def test_a_win_by_hand(make_results: Make) -> None:
    (said,) = answer(Study(make_results(TWO, change=scores(sgd=SGD, sam=SGD + 0.05 + SPREAD))))
    assert said == (
        "sam is better than sgd: test accuracy of sam 97.00 ± 2.32 % against sgd 92.00 ± 1.96 %, that is +5.00 points "
        "[+3.04, +6.96], n = 5, at 2.00 times the passes and 2.00 times the training time."
    )


def test_many_optimizers_are_told_of_together(make_results: Make) -> None:
    many: dict[str, Any] = {"sgd": {}, **{f"sam-{n}": {} for n in range(5)}}
    shifts = {f"sam_{n}": SGD + shift + SPREAD for n, shift in enumerate((0.05, -0.05, 0.0, 0.0, 0.0))}
    (said,) = answer(Study(make_results(many, change=scores(sgd=SGD, **shifts))))
    assert said.startswith("Against sgd (p corrected by Holm's method for 5 comparisons; ×: passes, sgd's are 1): ")
    better, worse, unclear = said.partition("): ")[2].rstrip(".").split("; ")
    assert better == "better: sam-0 (+5.00 points [+3.04, +6.96], 1.00×)"
    assert worse == "worse: sam-1 (-5.00 points [-6.96, -3.04], 1.00×)"
    assert unclear.startswith("no difference could be shown: sam-2 (+0.00 points [-1.96, +1.96], 1.00×), sam-3 (")


def test_many_optimizers_are_told_of_together_under_each_condition(make_results: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        seeds, noisy = SGD[records["seed"]], records["label_noise"] == 0.4
        wins = (records["optimizer"] == "sam-1") & noisy
        test_acc = seeds - 0.1 * noisy + 0.05 * wins
        return records.assign(test_acc=test_acc + (records["optimizer"] != "sgd") * SPREAD[records["seed"]])

    many: dict[str, Any] = {"sgd": {}, **{f"sam-{n}": {} for n in range(5)}}
    clean, noisy = answer(Study(make_results(many, change=change, vary={"label_noise": [0.2, 0.4]})))
    assert clean.startswith("label_noise=0.2: against sgd (p corrected by Holm's method for 10 comparisons; ×: passes")
    assert "better" not in clean
    assert noisy.startswith("label_noise=0.4: against sgd (")
    assert "better: sam-1 (+5.00 points" in noisy
    assert "no difference could be shown: sam-0 (+0.00 points" in noisy


def test_a_loss_is_told_like_a_win(make_results: Make) -> None:
    (said,) = answer(Study(make_results(TWO, change=scores(sgd=SGD, sam=SGD - 0.05 + SPREAD))))
    assert said.startswith("sam is worse than sgd: ")
    assert "-5.00 points [-6.96, -3.04]" in said


def test_no_difference_names_what_would_have_been_found(make_results: Make) -> None:
    (said,) = answer(Study(make_results(TWO, change=scores(sgd=SGD, sam=SGD + 0.001 + SPREAD))))
    # d_z = 1.682 is found with 80% power at n=5: 1.682 * 1.581 points
    assert said.startswith(
        "No difference between sam and sgd could be shown (at this n one of 2.66 points would be found"
    )
    assert "better" not in said
    assert "worse" not in said


def test_equal_passes_and_equal_epochs_are_told_apart(make_results: Make) -> None:
    labels = {"sgd": {}, "sgd-2x": {"epochs": 12}, "adam": {}, "sam": {}}
    change = scores(sgd=SGD, sgd_2x=SGD + 0.06, adam=SGD - SPREAD, sam=SGD + 0.05 + SPREAD)
    (said,) = answer(Study(make_results(labels, change=change)))
    assert "At equal passes it is not shown to differ from sgd-2x (-1.00 points [-2.96, +0.96]; at this n" in said
    assert "At equal epochs it is better than adam (+5.00 points [+1.07, +8.93])." in said


def test_one_test_among_many_is_no_finding(make_results: Make) -> None:
    labels: dict[str, Any] = {label: {} for label in ("sgd", "a", "b", "c", "sam")}
    change = scores(sgd=SGD, a=SGD + SPREAD, b=SGD + SPREAD, c=SGD + SPREAD, sam=SGD + 0.02 + SPREAD)
    (said,) = answer(Study(make_results(labels, change=change)))
    assert said.startswith("No difference between sam and sgd could be shown (p = 0.190 after Holm's correction for 4")
    assert "+2.00 points [+0.04, +3.96]" in said


def test_lost_runs_are_told(make_results: Make) -> None:
    lost = {("sam", "", 4): "diverged"}
    (said,) = answer(Study(make_results(TWO, status=lost)))
    assert "n = 4" in said
    assert "1 of 5 runs of sam did not finish and count in no mean." in said


def test_one_seed_is_no_comparison(make_results: Make) -> None:
    (said,) = answer(Study(make_results(TWO, seeds=(0,))))
    assert said.startswith("sam against sgd (one seed gives no test): ")
    assert "[" not in said


def test_no_spread_is_no_finding(make_results: Make) -> None:
    (said,) = answer(Study(make_results(TWO, change=scores(sgd=0.9, sam=0.95))))
    assert said.startswith("sam against sgd (differences without spread give no test): ")


def test_nothing_finished_or_nothing_in_common(make_results: Make) -> None:
    assert answer(Study(make_results(TWO, change=lambda records: records.assign(status="missing")))) == [
        "No run has finished: there is no answer yet."
    ]
    lost = {("sgd", "", seed): "missing" for seed in range(3)} | {("sam", "", seed): "failed" for seed in (3, 4)}
    (said,) = answer(Study(make_results(TWO, status=lost)))
    assert "no seed in common that both finished: nothing to compare" in said
    assert answer(Study(make_results({"sgd": {}}))) == ["sgd is compared with nothing: there is no difference to tell."]


def test_few_conditions_get_a_paragraph_each(make_results: Make) -> None:
    said = answer(Study(make_results(TWO, vary={"label_noise": [0.2, 0.4]})))
    assert [paragraph.partition(":")[0] for paragraph in said] == ["label_noise=0.2", "label_noise=0.4"]


def test_many_conditions_are_counted(make_results: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        noise = SPREAD[records["seed"]]
        gain = records["label_noise"].map({0.0: 0.05, 0.2: 0.05, 0.4: 0.0, 0.6: -0.05})
        return records.assign(test_acc=0.9 + np.where(records["optimizer"] == "sam", gain + noise, 0.0))

    (said,) = answer(Study(make_results(TWO, vary={"label_noise": [0.0, 0.2, 0.4, 0.6]}, change=change)))
    assert said == (
        "sam against sgd at equal epochs, 4 conditions: better under label_noise=0.0 and 0.2; worse under "
        "label_noise=0.6; no difference could be shown under label_noise=0.4 (differences -5.00 to +5.00 points)."
    )


def test_unverified_data_is_told_beside_the_answer(make_results: Make) -> None:
    said = answer(Study(make_results(TWO, change=lambda records: records.assign(data_verified=False))))
    assert said[-1].startswith("Unverified data")


@pytest.mark.parametrize("column", ["torch", "commit"])
def test_other_versions_have_no_price_in_time(make_results: Make, column: str) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        return records.assign(**{column: np.where(records["seed"] == 0, "another", records[column])})

    (said,) = answer(Study(make_results(TWO, change=change)))
    assert "at 2.00 times the passes." in said
    assert "training time" not in said


def test_other_hardware_has_the_price_of_one_kind(make_results: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        return records.assign(device=np.where(records["seed"] == 0, "another", records["device"]))

    (said,) = answer(Study(make_results(TWO, change=change)))
    assert "times the training time on AMD EPYC (2 threads)." in said


@pytest.mark.parametrize("form", ["md", "tex"])
def test_the_answer_stands_under_the_results_and_at_the_terminals_end(make_results: Make, form: str) -> None:
    results = make_results(TWO, change=scores(sgd=SGD, sam=SGD + 0.05 + SPREAD))
    found = {table.name: render.render(table, form) for table in tables.build(Study(results))}
    assert [name for name, text in found.items() if "sam is better than sgd: test accuracy" in text] == ["results"]
    console = Console(width=80, file=io.StringIO(), color_system=None)
    say(question(Study(results)), answer(Study(results)), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("Does sam beat sgd on digits")
    assert max(map(len, lines)) <= 80
