"""Run folders as finished runs leave them, without the training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.core.experiment import PlannedRun
from bench.store.run_folder import Store

ENVIRONMENT = {
    "device": "a CPU",
    "threads": 1,
    "torch": "2.13.0",
    "python": "3.11.9",
    "commit": "0",
    "dirty": False,
}
SPLITS = ("train", "train_clean", "val", "test")


def finish(store: Store, runs: Iterable[PlannedRun], among: Iterable[PlannedRun] | None = None, **changes: Any) -> None:
    """Write the folders of runs that are done, each with numbers of its own; `changes` are put into result.json.

    Args:
        among: all runs of their experiment, for numbers that do not depend on which others are written.
    """
    runs = list(runs)
    places = {run_id: place for place, run_id in enumerate(dict.fromkeys(run.spec.run_id for run in among or runs))}
    for run in runs:
        place = places[run.spec.run_id]
        folder = store.run(run.spec.run_id)
        folder.write_start(run.spec.model_dump_json(), ENVIRONMENT)
        curve = [_point(epoch, 0.1 + 0.2 * epoch + 0.01 * place) for epoch in range(1, run.spec.train.epochs + 1)]
        last = {key: value for key, value in curve[-1].items() if key.partition("_")[0] in ("train", "val", "test")}
        metrics = {**last, "gap_loss": 0.1, "gap_acc": 0.1, "selected_epoch": 1, "selected_test_acc": 0.3}
        metrics.pop("train_seconds")
        result = {"run_id": folder.run_id, "status": "done", "metrics": metrics, "weights_sha256": f"{place:016x}"}
        costs = {"setup_seconds": 0.1, "train_seconds": 2.0, "eval_seconds": 0.2, "passes": 20, "examples": 200}
        folder.write_result({**result, **costs, **changes}, curve)


def _point(epoch: int, score: float) -> dict[str, float]:
    spent = {"epoch": epoch, "passes": 10 * epoch, "train_seconds": 1.0 * epoch, "lr": 0.1, "batch_loss": 1 - score}
    return {
        **spent,
        **{f"{split}_{what}": value for split in SPLITS for what, value in (("loss", 1 - score), ("acc", score))},
    }
