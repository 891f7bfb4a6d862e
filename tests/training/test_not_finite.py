"""A run whose scores or losses are not finite outside of training is done, told of, and in nobody's way."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.config.file import load
from bench.launch.tuning import choose
from bench.store import records
from bench.store.run_folder import Store
from bench.tasks.base import ACCURACY
from bench.train import _final_metrics

ABSURD = """
import numpy as np, torch
from bench import Split, Task, register_task
from bench.tasks.scores import NUMBERS


@register_task("absurd")
class Absurd(Task):
    num_outputs, input_shape, metric = 1, (1,), NUMBERS["r2"].metric

    def load(self):
        x = torch.linspace(-1, 1, 64)
        y = 2 * x
        y[-1] = 1e37  # its square is beyond float32
        return Split(x[:48, None], y[:48]), Split(x[48:, None], y[48:])

    def losses(self, outputs, targets):
        return (outputs[:, 0] - targets) ** 2

    def score(self, outputs, targets):
        return -self.losses(outputs, targets).double().median().item() / 2
"""


def test_one_absurd_target_leaves_tables_figures_and_report(
    bench: Callable[..., Any],
    write_experiment: Callable[..., Path],
    write_plugin: Callable[..., Path],
    tiny: Callable[..., dict[str, Any]],
    registries: object,
    tmp_path: Path,
) -> None:
    about = {"plugins": [str(write_plugin(ABSURD))], "task": "absurd", "train": {"epochs": 1, "batch_size": 8}}
    path = write_experiment(tiny({**about, "data.validation": 0.25, "optimizers.sam.sweep": {"rho": [0.05]}}))
    said = bench("run", path)
    found = records.read(tmp_path / "cwd" / "results" / "tiny")
    assert (said.status, set(found.records["status"])) == (0, {"done"})
    assert set(found.records["not_finite"]) == {"test_loss inf"}
    assert "† sgd: not finite, and in no mean: seed 0 (test_loss inf)" in said.out
    for command in ("table", "plot", "report"):
        assert bench(command, path).status == 0
    assert "not finite, and in no mean" in (tmp_path / "cwd/results/tiny/report.html").read_text()


def test_the_selected_epoch_is_one_with_a_finite_score() -> None:
    class Task:
        metric = ACCURACY

    scores = [math.nan, 0.5, math.inf, 0.6, math.nan]
    curve = [{"epoch": n, "val_acc": score, "val_loss": 1.0, "test_acc": 0.1 * n} for n, score in enumerate(scores, 1)]
    assert _final_metrics(Task(), curve)["selected_epoch"] == 4  # type: ignore[arg-type]


@pytest.mark.parametrize(("scores", "chosen"), [([math.inf, 0.5], "rho=0.1"), ([math.inf, math.nan], None)])
def test_tuning_chooses_nothing_by_a_score_that_is_not_finite(
    write_experiment: Callable[..., Path],
    tiny: Callable[..., dict[str, Any]],
    tmp_path: Path,
    scores: list[float],
    chosen: str | None,
) -> None:
    phases = {"seeds": ..., "tune": {"seeds": 1, "trials": 2}, "final": {"seeds": 1}, "optimizers.sgd.tune": False}
    resolved, store = load(write_experiment(tiny(phases))), Store(tmp_path / "results")
    for run, score in zip(resolved.tuning, scores, strict=True):
        result = {"run_id": run.spec.run_id, "status": "done", "metrics": {"val_acc": score, "val_loss": 1.0}}
        store.run(run.spec.run_id).path.mkdir(parents=True)
        store.run(run.spec.run_id).write_result(result, [])
    found = choose(resolved, store)
    assert found.chosen == ({("", "sam"): chosen} if chosen else {})
