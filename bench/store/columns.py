"""The columns of records.csv and curves.csv: what each is for, and what kind of value it has, in one table.

Hyperparameters and the metrics of a task have columns of their own beside these: `setting_columns` tells the former
from all others, `metric_columns` names the latter.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Literal

Role = Literal["run", "cost", "circumstance"]
"""What a column is for: it says which run a row is of, what the run cost, or under which circumstances it was done."""

Kind = Literal["text", "count", "number"]

COLUMNS: dict[str, tuple[Role, Kind]] = {
    "experiment": ("run", "text"),
    "task": ("run", "text"),
    "model": ("run", "text"),
    "condition": ("run", "text"),
    "phase": ("run", "text"),
    "optimizer": ("run", "text"),
    "config": ("run", "text"),
    "seed": ("run", "number"),
    "status": ("run", "text"),
    "error": ("run", "text"),
    "run_id": ("run", "text"),
    # Seconds of wall-clock time, but train_cpu_seconds of processor time; all are summed over interruptions.
    "setup_seconds": ("cost", "number"),
    "train_seconds": ("cost", "number"),
    "train_cpu_seconds": ("cost", "number"),
    "eval_seconds": ("cost", "number"),
    # Forward-backward passes over a batch, not over the training set.
    "passes": ("cost", "count"),
    "examples": ("cost", "count"),
    "tokens": ("cost", "count"),
    # 1 MB is 10**6 bytes.
    "peak_memory_mb": ("cost", "number"),
    "device": ("circumstance", "text"),
    "device_type": ("circumstance", "text"),
    "threads": ("circumstance", "count"),
    "torch": ("circumstance", "text"),
    "python": ("circumstance", "text"),
    "commit": ("circumstance", "text"),
    "dirty": ("circumstance", "number"),
    "data_fingerprint": ("circumstance", "text"),
    "data_verified": ("circumstance", "number"),
    # Entries of environment.json: a resume on another machine, or with other versions, adds one.
    "environments": ("circumstance", "count"),
    "sequences": ("circumstance", "count"),
    "truncated": ("circumstance", "count"),
    "max_tokens": ("circumstance", "count"),
    "finished_at": ("circumstance", "text"),
    "resumes": ("circumstance", "count"),
    "skipped_steps": ("circumstance", "count"),
    "initial_weights_sha256": ("circumstance", "text"),
    "weights_sha256": ("circumstance", "text"),
    "not_finite": ("circumstance", "text"),
}
"""By name, in the order of records.csv, where hyperparameters and metrics stand before the costs."""


def _of(role: Role) -> tuple[str, ...]:
    return tuple(name for name, (its_role, _) in COLUMNS.items() if its_role == role)


RUN, COSTS, CIRCUMSTANCES = _of("run"), _of("cost"), _of("circumstance")

PLACE = ("condition", "phase", "optimizer", "config", "seed")
"""Columns that identify a run's place in an experiment."""

PROGRESS = ("epoch", "passes", "train_seconds", "lr", "batch_loss")
"""Columns of curves.csv beside those of the place and what is measured."""

TEXT_SETTINGS = ("method", "base")
"""Settings that are text even where all of them look like numbers: plug-ins name their optimizers as they like."""

# Read as text by `records.read`: a config or commit that consists of digits must not become a number.
TEXT = (*(name for name, (_, kind) in COLUMNS.items() if kind == "text"), *TEXT_SETTINGS)
# Whole numbers; pandas makes floats of them as soon as one cell of the column is missing.
COUNTS = (*(name for name, (_, kind) in COLUMNS.items() if kind == "count"), "selected_epoch")
SECONDS = tuple(name for name in COSTS if name.endswith("_seconds"))

TAKEN = {*COLUMNS, "epoch", "batch_loss", "method", "base"}
"""Columns that no hyperparameter can have the name of, beside the metrics and the settings of training and data."""

# train_noisy has no values where no labels were replaced, and train_clean is then the same as train.
SPLITS = ("train", "train_clean", "train_noisy", "val", "test")


def metric_columns(key: str) -> list[str]:
    """Return the measured columns of a task whose score is called `key`, in the order of records.csv."""
    measured = [f"{split}_{what}" for split in SPLITS for what in ("loss", key)]
    return [*measured, "gap_loss", f"gap_{key}", "selected_epoch", f"selected_test_{key}"]


def setting_columns(columns: Iterable[str]) -> list[str]:
    """Return the columns of records.csv that are settings: they stand between those of the run and the metrics."""
    # train_loss is the first of `metric_columns`.
    before = list(itertools.takewhile(lambda name: name != "train_loss", columns))
    # The last column of RUN before the metrics: run_id stands at the end of the table.
    places = [number for number, name in enumerate(before) if name in RUN]
    return before[max(places, default=-1) + 1 :]
