"""Scores and losses that are not finite: everything is made all the same, and the runs are named."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis import plots, report, tables
from bench.analysis.answer import answer
from bench.analysis.diff import compare
from bench.analysis.study import Study
from bench.core.errors import BenchError
from bench.store import contract, records
from bench.store import run_folder as store
from bench.store.records import Results

Make = Callable[..., Results]
INF = math.inf
SCORES = ["val_acc", "val_loss", "test_acc", "test_loss", "gap_acc", "gap_loss", "selected_test_acc"]
FEW = {"sgd": {"test": 0.92}, "sam": {"test": 0.93, "sweep": ("rho", (0.1, 0.2, 0.5))}}


@pytest.fixture
def with_bad(make_results: Make, tmp_path: Path) -> Callable[..., Results]:
    """with_bad({(label, seed): value}, columns): results, read from files as an older version left them, in which all
    evaluations of these runs have the value in the columns."""

    def make(bad: Mapping[tuple[str, int], float], columns: list[str] = SCORES, **settings: Any) -> Results:
        def change(frame: pd.DataFrame) -> pd.DataFrame:
            for (label, seed), value in bad.items():
                here = (frame["optimizer"] == label) & (frame["seed"] == seed)
                frame.loc[here, [column for column in columns if column in frame]] = value
            return frame

        made = make_results(**{"labels": FEW, **settings}, change=change)
        records.publish(Results(made.meta, made.records, change(made.curves)), tmp_path)
        return records.read(tmp_path)

    return make


def notes(results: Results) -> str:
    return "\n".join(note for table in tables.build(Study(results)) for note in table.footnotes)


@pytest.mark.parametrize(
    ("labels", "seeds", "value", "vary"),
    [
        (["sam"], [2], INF, None),
        (["sgd"], range(5), -INF, None),
        (["sam"], range(5), INF, {"label_noise": [0.2, 0.4]}),
        (["sgd", "sam"], range(5), INF, None),
    ],
)
def test_tables_figures_and_page_come_all_the_same(
    with_bad: Callable[..., Results], tmp_path: Path, labels: list[str], seeds: list[int], value: float, vary: Any
) -> None:
    results = with_bad({(label, seed): value for label in labels for seed in seeds}, vary=vary)
    assert not np.isinf(results.records.select_dtypes("number")).any(axis=None)
    built = tables.build(Study(results))
    paths = report.build(Study(results), built, tmp_path)
    assert paths[-1].exists()
    assert {path.name for path in paths} >= ({"cost.png"} if len(labels) == 1 else {"results.md"})
    for path in paths:
        if path.suffix in (".md", ".tex"):
            assert not re.search(r"\b(nan|inf)\b(?!\))", re.sub(r"\((val|test)[^)]*\)", "", path.read_text())), path
    assert compare(Study(results), Study(results)).same
    assert f"seed {seeds[0]} (val_loss {value}, val_acc {value}, test_loss {value}, test_acc {value})" in notes(results)


def test_a_number_that_is_not_finite_is_in_no_mean_and_its_run_is_named(with_bad: Callable[..., Results]) -> None:
    whole, bad = with_bad({}), with_bad({("sgd", 3): INF}, ["test_loss", "gap_loss"])
    before, after = (next(row for row in Study(results).rows if row.label == "sgd") for results in (whole, bad))
    losses = [value for seed, value in enumerate(whole.records.query("optimizer == 'sgd'")["test_loss"]) if seed != 3]
    assert after.test_loss.mean == pytest.approx(np.mean(losses))
    assert (after.test_loss.n, after.test_metric, after.scored) == (4, before.test_metric, 5)
    assert (before.complete, after.complete, after.not_finite) == (True, False, ("seed 3 (test_loss inf)",))
    assert "† sgd: not finite, and in no mean: seed 3 (test_loss inf)." in notes(bad)
    assert "not finite" not in notes(whole)


def test_figures_name_what_they_do_not_draw(with_bad: Callable[..., Results]) -> None:
    drawings = plots.draw(Study(with_bad({("sam", 1): INF}, ["test_acc"])))
    assert all("Not finite, and not drawn: sam (rho=" in one.caption for one in drawings.values())
    assert "Not finite, and left out: sam, seed 1 (epoch 1, 2, 3, 4, 5, 6)." in drawings["curves"].caption


def test_the_words_say_over_how_many_runs_they_are(with_bad: Callable[..., Results]) -> None:
    said = " ".join(answer(Study(with_bad({("sgd", 0): INF, ("sgd", 1): -INF}, ["test_acc"]))))
    assert "The score of 2 of 5 finished runs of sgd is not finite: it counts in no mean." in said
    assert "n = 3" in said


def test_without_any_score_a_figure_is_refused_and_the_table_says_so(with_bad: Callable[..., Results]) -> None:
    results = with_bad({(label, seed): INF for label in FEW for seed in range(5)})
    with pytest.raises(BenchError, match="no finished run with a score"):
        plots.draw(Study(results))
    assert "sam (no finite score)" in tables.build(Study(results))[0].rows[1][0]


def test_a_configuration_without_a_finite_score_for_every_seed_ranks_behind_complete_ones(
    make_results: Make,
) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        for config, scores in {"rho=0.1": 0.90, "rho=0.2": 0.95, "rho=0.5": 0.89}.items():
            frame.loc[frame["config"] == config, "val_acc"] = scores
        frame.loc[(frame["config"] == "rho=0.2") & (frame["seed"] == 4), "val_acc"] = math.nan
        return frame

    chosen = [row.config for row in Study(make_results(FEW, change=change)).rows if row.chosen]
    assert chosen == ["", "rho=0.1"]


def test_what_is_collected_has_no_infinite_number_and_says_which_were(tmp_path: Path) -> None:
    metrics = {"test_loss": INF, "test_r2": math.nan, "gap_loss": INF, "val_loss": 0.5}
    assert contract.finite(metrics)[1] == "test_loss inf, test_r2 nan"
    assert contract.finite({"val_loss": 0.5, "tokens": 3, "name": "x"}) == (
        {"val_loss": 0.5, "tokens": 3, "name": "x"},
        None,
    )
    path = tmp_path / "result.json"
    store.write_atomic(path, store.to_json(metrics))
    assert json.loads(path.read_text())["test_loss"] == INF, "the run's own file keeps what was measured"
