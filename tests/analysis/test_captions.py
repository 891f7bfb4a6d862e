"""What all tables say of several tasks and of texts: notes, units, losses, tokens a second, texts that were cut."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench.analysis import tables
from bench.analysis.render.table import Table
from bench.analysis.render.terminal import show
from bench.analysis.study import Study
from bench.store.records import Results

Make = Callable[..., Results]
pytestmark = pytest.mark.filterwarnings("error")

NOTE = "The dev set plays the part of the test set."
FOUR = ("glue/cola", "glue/mrpc", "glue/mnli", "glue/rte")
TWO = ("glue/mrpc", "glue/rte")
LABELS: dict[str, Any] = {"adamw": {}, "sam": {"test": 0.93, "sweep": ("rho", (0.1, 0.2, 0.4))}}


def table(results: Results, name: str = "tasks") -> Table:
    return next(found for found in tables.build(Study(results)) if found.name == name)


def caption(found: Table) -> str:
    return " ".join(found.caption)


def notes(found: Table) -> str:
    return "\n".join(found.footnotes)


# ---- captions ------------------------------------------------------------------------------------------------


def test_every_caption_carries_the_notes_once(make_glue: Make) -> None:
    other = "The weights are someone's."
    built = tables.build(Study(make_glue(TWO, LABELS, notes=[NOTE, other, NOTE])))
    assert [found.name for found in built] == [
        *("tasks", "results", "losses", "cost", "budgets", "statistics", "target", "sweep", "hyperparameters"),
    ]
    for found in built:
        assert found.caption.count(NOTE) == found.caption.count(other) == 1
        chosen, origin = (next(i for i, said in enumerate(found.caption) if key in said) for key in ("chosen", "Hardw"))
        assert chosen < found.caption.index(NOTE) < found.caption.index(other) < origin
    file = io.StringIO()
    show(built, Console(width=10_000, file=file, color_system=None))
    assert file.getvalue().count(NOTE) == 1


def test_the_caption_says_what_is_shown(make_glue: Make) -> None:
    text = caption(table(make_glue(TWO)))
    for part in (
        "Test scores (times 100) after the last epoch; higher is better. Mean over seeds ± half-width of the 95%",
        "Score: the task's official metric times 100.",
        "GLUE average: for each seed that finished every task the unweighted mean over the tasks",
        "Below: its difference to that of adamw, paired by seed, with its 95% t interval.",
        "Tasks glue/mrpc, glue/rte with 20% of the training labels replaced, model resnet8, seeds 0, 1",
        "Conditions: the tasks. Hardware: AMD EPYC",
    ):
        assert part in text
    by_task = table(make_glue(TWO, LABELS))
    assert "Budgets differ: compare columns of equal epochs or columns of equal passes." in notes(by_task)
    alike = "Every column has the same budget: 6 epochs, 66 passes."
    assert alike in table(make_glue(TWO)).footnotes


def test_a_metric_without_unit_is_shown_times_100(make_glue: Make) -> None:
    found = table(make_glue(TWO, LABELS, seeds=(0, 1, 2)), "results")
    assert found.columns == ["task", "optimizer", "test score", "difference to adamw", "p (Holm)", "gap", "n"]
    assert "Test score after the last epoch: the task's official metric times 100; higher" in caption(found)
    shown = found.rows[0][2].split(" ± ")
    assert [len(number.partition(".")[2]) for number in shown] == [2, 2]
    assert found.numbers.loc[0, "test_score_mean"] == pytest.approx(float(shown[0]), abs=0.005)
    sweep = table(make_glue(TWO, LABELS), "sweep")
    assert sweep.columns[2:5] == ["validation score", "test score", "gap"]


def test_a_share_of_the_training_set_is_told(make_glue: Make) -> None:
    data = {"validation": 0.1, "train_size": None, "train_share": 0.25, "label_noise": 0.0}
    assert "glue/rte with 25% of the training examples, model" in caption(table(make_glue(TWO, data=data)))
    varied = caption(table(make_glue(TWO, data=data, vary={"train_share": [0.25, 1.0]})))
    assert "of the training examples" not in varied


def test_losses_of_several_kinds(make_glue: Make) -> None:
    found = table(make_glue(("glue/mrpc", "glue/stsb", "glue/rte")), "losses")
    assert found.columns[2:] == ["train loss", "test loss", "gap", "n"]
    said = "Mean loss after the last epoch: cross-entropy (nats) for MRPC, RTE; squared error for STS-B. Train loss on"
    assert caption(found).startswith(said)
    of_one = table(make_glue(TWO), "losses")
    assert of_one.columns[2:] == ["train loss (nats)", "test loss (nats)", "gap (nats)", "n"]
    assert caption(of_one).startswith("Mean cross-entropy after the last epoch, train loss on true labels")


# ---- texts ---------------------------------------------------------------------------------------------------


def test_tokens_a_second_are_a_mean_of_runs(make_glue: Make) -> None:
    measured: dict[tuple[str, ...], dict[str, Any]] = {
        ("glue/mrpc", "adamw"): {"tokens": [6e5, 2e6, 3e6], "train_seconds": [10.0, 20.0, 40.0]},
        ("glue/rte", "adamw"): {"tokens": 0.0},
        ("glue/rte", "sgd"): {"tokens": np.nan},
    }
    found = table(make_glue(TWO, seeds=(0, 1, 2), measured=measured), "cost")
    assert found.columns[-2:] == ["tokens/s", "diverged, failed"]
    assert found.rows[0][-2] == "78,333"  # (60,000 + 100,000 + 75,000) / 3, not 5,600,000 / 70
    assert [row[-2] for row in found.rows[2:]] == ["–", "–"]
    assert found.numbers.loc[0, "tokens_per_second"] == pytest.approx(235_000 / 3)
    assert "without padding, each batch once whatever its passes" in caption(found)


@pytest.mark.parametrize("tokens", [0.0, np.nan, None])
def test_without_text_there_is_no_such_column(make_glue: Make, tokens: float | None) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        return records.drop(columns="tokens") if tokens is None else records.assign(tokens=tokens)

    found = table(make_glue(TWO, change=change), "cost")
    assert "tokens/s" not in found.columns
    assert "tokens_per_second" not in found.numbers
    assert "padding" not in caption(found)


def test_texts_that_were_cut_are_told(make_glue: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        records.loc[records["task"] == "glue/rte", ["sequences", "truncated"]] = [3047.0, 34.0]
        records.loc[records["task"] == "glue/mrpc", ["sequences", "truncated", "max_tokens"]] = [40000.0, 1234.0, 64.0]
        records.loc[records["task"] == "glue/mnli", ["sequences", "truncated"]] = [9000.0, 5.0]
        return records

    said = (
        "Texts longer than 64 tokens were cut: 1,234 of 40,000 of MRPC. "
        "Texts longer than 128 tokens were cut: 5 of 9,000 of MNLI, 34 of 3,047 of RTE."
    )
    for found in tables.build(
        Study(make_glue(FOUR, change=change, status={("task=glue/rte", "sgd", "", 0): "diverged"}))
    ):
        assert found.footnotes.count(said) == (found.name in ("tasks", "results"))
    assert "cut" not in notes(table(make_glue(FOUR)))
    images = ["sequences", "truncated", "max_tokens"]
    assert "cut" not in notes(table(make_glue(FOUR, change=lambda records: records.assign(**dict.fromkeys(images)))))


def test_texts_cut_under_one_condition_name_it(make_glue: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        records.loc[(records["task"] == "glue/rte") & (records["train_share"] == 1.0), "truncated"] = 3.0
        records.loc[(records["task"] == "glue/rte") & (records["train_share"] == 0.1), "truncated"] = 1.0
        records.loc[records["task"] == "glue/mrpc", "truncated"] = 2.0
        return records

    found = table(make_glue(TWO, change=change, vary={"train_share": [0.1, 1.0]}), "results")
    assert (
        "Texts longer than 128 tokens were cut: 2 of 1,000 of MRPC, "
        "1 of 1,000 of RTE under (task=glue/rte, train_share=0.1), "
        "3 of 1,000 of RTE under (task=glue/rte, train_share=1.0)."
    ) in found.footnotes
