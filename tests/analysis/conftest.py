"""Synthetic results with every column of the contract, so that the tests need no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from bench.store.records import Results

STEPS = 11  # batches an epoch
TWO_PASSES = ("sam", "asam")


@dataclass(frozen=True)
class Entry:
    """One label: its swept values (key -> values, at most one key) and how well it does."""

    test: float = 0.9
    sweep: tuple[str, Sequence[float]] | None = None
    epochs: int = 6

    def configs(self) -> list[tuple[str, dict[str, float]]]:
        if self.sweep is None:
            return [("", {})]
        key, values = self.sweep
        return [(f"{key}={value:g}", {key: value}) for value in values]


RHO = ("rho", (0.05, 0.1, 0.2, 0.5))
LABELS: dict[str, dict[str, Any]] = {
    "sgd": {"test": 0.921},
    "sgd-2x": {"test": 0.926, "epochs": 12},
    "adam": {"test": 0.909},
    "sam": {"test": 0.938, "sweep": RHO},
    "asam": {"test": 0.941, "sweep": RHO},
}
METRIC = {
    "key": "acc",
    "name": "accuracy",
    "unit": "%",
    "scale": 100.0,
    "higher_is_better": True,
    "definition": "share of examples whose largest logit is the label's",
}
METRIC_COLUMNS = [
    *(
        f"{part}_{what}"
        for part in ("train", "train_clean", "train_noisy", "val", "test", "gap")
        for what in ("loss", "acc")
    ),
    "selected_epoch",
    "selected_test_acc",
]
COST_COLUMNS = ["setup_seconds", "train_seconds", "eval_seconds", "passes", "examples", "peak_memory_mb"]


SCORE = {**METRIC, "key": "score", "name": "score", "unit": "", "definition": "the task's official metric times 100"}
ACCURACY = {"test_acc": "accuracy"}
WITH_F1 = {**ACCURACY, "test_f1": "F1"}
CORRELATIONS = {"test_pearson": "Pearson corr.", "test_spearman": "Spearman corr."}
GLUE: dict[str, tuple[str, dict[str, str]]] = {
    "glue/cola": ("CoLA", {"test_mcc": "Matthews corr."}),
    "glue/sst2": ("SST-2", ACCURACY),
    "glue/mrpc": ("MRPC", WITH_F1),
    "glue/stsb": ("STS-B", CORRELATIONS),
    "glue/qqp": ("QQP", WITH_F1),
    "glue/mnli": ("MNLI", {"test_acc": "matched accuracy", "mismatched_acc": "mismatched accuracy"}),
    "glue/qnli": ("QNLI", ACCURACY),
    "glue/rte": ("RTE", ACCURACY),
}
TEXTS = {"sequences": 1000.0, "truncated": 0.0, "max_tokens": 128.0}


@pytest.fixture(name="make_results")
def _make_results() -> Callable[..., Results]:
    """The factory, as a fixture so that no test need import this file."""
    return make_results


@pytest.fixture(name="make_glue")
def _make_glue() -> Callable[..., Results]:
    return make_glue


def make_glue(
    tasks: Sequence[str] = tuple(GLUE),
    labels: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    measured: Mapping[tuple[str, ...], Mapping[str, Any]] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    change: Callable[[pd.DataFrame], pd.DataFrame] = lambda records: records,
    **meta: Any,
) -> Results:
    """Results on tasks of GLUE, each with its own scores; `adamw` is the baseline unless meta says otherwise.

    `measured` sets columns of records to values over seeds, for a (task, label) or a (task, label, value of a further
    varied column, ...). The rest as in `make_results`.
    """

    def score(records: pd.DataFrame) -> pd.DataFrame:
        records = records.rename(columns=_score).assign(**TEXTS, tokens=500.0 * records["passes"])
        for task in tasks:
            here = records["task"] == task
            for number, column in enumerate(GLUE[task][1]):
                records.loc[here, column] = records.loc[here, "test_score"] - 0.01 * number
        for (task, label, *values), columns in (measured or {}).items():
            here = (records["task"] == task) & (records["optimizer"] == label)
            for column, value in zip(vary or {}, values, strict=False):
                here &= records[column] == value
            records.loc[here, list(columns)] = pd.DataFrame(columns, index=records.index[here])
        return change(records)

    about = {
        task: {
            "title": GLUE[task][0],
            "loss": "squared error" if task == "glue/stsb" else "cross-entropy (nats)",
            "reported": GLUE[task][1],
            "suite": {"name": "GLUE", "tasks": 9},
        }
        for task in tasks
    }
    settings = {"baseline": "adamw", "metric": SCORE, "tasks": about, "task": ", ".join(tasks), **meta}
    chosen = labels or {"adamw": {}, "sgd": {"test": 0.85}}
    results = make_results(chosen, seeds, change=score, vary={"task": tasks, **(vary or {})}, **settings)
    return Results(results.meta, results.records, results.curves.rename(columns=_score))


def _score(column: str) -> str:
    return column.replace("_acc", "_score")


def make_results(
    labels: Mapping[str, Mapping[str, Any]] = LABELS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    status: Mapping[tuple[Any, ...], str] | None = None,
    change: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    **meta: Any,
) -> Results:
    """Results of an invented experiment, the same for the same arguments.

    `labels` gives the fields of Entry for each label, `status` the (label, config, seed) that are not "done", or the
    (condition, label, config, seed); `vary` gives the values of each varied column; `change` edits the records at the
    end; further keywords replace entries of meta.
    """
    records, curves = [], []
    entries = {label: Entry(**entry) for label, entry in labels.items()}
    points = [dict(zip(vary or {}, values, strict=True)) for values in product(*(vary or {}).values())]
    conditions = [condition_text(point) for point in points]
    lost = status or {}
    for number, (condition, point) in enumerate(zip(conditions, points, strict=True)):
        for label, entry in entries.items():
            harder = replace(entry, test=entry.test - number * (0.05 + 2 * (0.93 - entry.test)))
            for place, (config, swept) in enumerate(entry.configs()):
                for seed in seeds:
                    curve = _curve(condition, label, harder, config, place, seed)
                    ended = lost.get((condition, label, config, seed), lost.get((label, config, seed), "done"))
                    record = _record(label, entry, config, swept, seed, curve, ended)
                    records.append({**record, "condition": condition or np.nan, **point, "run_id": curve["run_id"]})
                    curves += [pd.DataFrame(curve)] if ended == "done" else []
    frame = pd.DataFrame(records)
    described = {
        "name": "digits_noise",
        "title": "Digits with 20% label noise",
        "baseline": "sgd",
        "task": "digits",
        "model": "resnet8",
        "protocol": 1,
        "labels": list(labels),
        "seeds": list(seeds),
        "sweeps": {label: [entry.sweep[0]] for label, entry in entries.items() if entry.sweep},
        "vary": {column: list(values) for column, values in (vary or {}).items()},
        "conditions": conditions,
        "data": {"validation": 1 / 6, "train_size": None, "label_noise": 0.2},
        "metric": METRIC,
    }
    return Results(
        cast(Any, {**described, **meta}), change(frame) if change else frame, pd.concat(curves, ignore_index=True)
    )


@pytest.fixture(name="make_phased")
def _make_phased() -> Callable[..., Results]:
    return make_phased


def make_phased(
    chosen: Mapping[str, str],
    labels: Mapping[str, Mapping[str, Any]],
    tune_seeds: Sequence[int] = (0, 1),
    final_seeds: Sequence[int] = (2, 3, 4),
    change: Callable[[pd.DataFrame], pd.DataFrame] = lambda records: records,
    refit: bool = True,
    spaces: Mapping[str, Mapping[str, Any]] | None = None,
    limits: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    **meta: Any,
) -> Results:
    """Results of an experiment that tunes first: as of `make_results`, with test numbers in the final runs alone.

    `chosen` gives the configuration of each label that has final runs; labels without a sweep are not tuned.
    """
    results = make_results(labels, (*tune_seeds, *final_seeds), **meta)
    swept = {label: entry["sweep"] for label, entry in labels.items() if "sweep" in entry}

    def phase(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
        tune = frame["seed"].isin(tune_seeds)
        planned = tune & frame["optimizer"].isin(swept) | ~tune & (
            frame["optimizer"].map(chosen) == frame["config"].fillna("")
        )
        frame = frame.assign(phase=np.where(tune, "tune", "final"))
        of_test = [column for column in columns if column.startswith(("test", "gap", "selected_test"))]
        frame.loc[tune, of_test] = np.nan
        if refit:
            frame.loc[~tune, [column for column in columns if column.startswith(("val", "selected"))]] = np.nan
        return frame[planned].reset_index(drop=True)

    phases = {
        "tune": {
            "seeds": list(tune_seeds),
            "search": "grid",
            "budget": "trials",
            "trials": {label: len(values) for label, (_, values) in swept.items()},
            "passes": {label: 1000 * len(values) for label, (_, values) in swept.items()},
            "spaces": spaces or {label: {key: list(values)} for label, (key, values) in swept.items()},
            **({"limits": limits} if limits else {}),
        },
        "final": {"seeds": list(final_seeds), "refit": refit},
        "untuned": [label for label in labels if label not in swept],
    }
    described = {**results.meta, "seeds": list(final_seeds), "phases": phases}
    records, curves = (phase(frame, list(frame.columns)) for frame in (results.records, results.curves))
    return Results(cast(Any, described), change(records), curves)


def condition_text(point: Mapping[str, Any]) -> str:
    """{"task.augment": "basic", "label_noise": 0.2} as "augment=basic, label_noise=0.2"."""
    return ", ".join(f"{column.rpartition('.')[2]}={value}" for column, value in point.items())


def _curve(condition: str, label: str, entry: Entry, config: str, place: int, seed: int) -> dict[str, Any]:
    """A run's evaluations: an approach to the final values, with noise of the seed and of the label."""
    noise = np.random.default_rng([seed, *f"{condition}{label}{config}".encode()])
    shared = 0.004 * np.random.default_rng(seed).normal()  # what a seed does to every optimizer alike
    epoch = np.arange(1, entry.epochs + 1)
    rise = 1 - np.exp(-5 * epoch / entry.epochs)
    final = entry.test + shared + 0.002 * noise.normal() - 0.004 * abs(place - 1.6)
    test = final - 0.35 * (1 - rise) + 0.004 * noise.normal(size=len(epoch)) * (1 - rise)
    clean = test + (0.99 - final) * rise + 0.002 * noise.normal(size=len(epoch))
    loss = 2.3 * (1 - rise) + 0.25
    passes = STEPS * epoch * (2 if label in TWO_PASSES else 1)
    return {
        "run_id": f"{condition}{label}-{config}-{seed}",
        "condition": condition or np.nan,
        "optimizer": label,
        "config": config or np.nan,
        "seed": seed,
        "epoch": epoch,
        "passes": passes,
        "train_seconds": passes * 0.051 * (1 + 0.03 * noise.normal()),
        "lr": 0.1 * (1 - epoch / entry.epochs),
        "batch_loss": loss + 0.4,
        "train_loss": loss + 0.3,
        "train_acc": 0.8 * clean,
        "train_clean_loss": loss - 0.2 * rise,
        "train_clean_acc": clean,
        "train_noisy_loss": loss + 1.5,
        "train_noisy_acc": 0.1 * rise + 0.01 * noise.random(),
        "val_loss": loss + 0.02,
        "val_acc": test + 0.002 * noise.normal(),
        "test_loss": loss + 0.2 * (1 - final),
        "test_acc": test,
    }


def _record(
    label: str,
    entry: Entry,
    config: str,
    swept: Mapping[str, float],
    seed: int,
    curve: Mapping[str, Any],
    status: str,
) -> dict[str, Any]:
    last = {name: column[-1] for name, column in curve.items() if isinstance(column, np.ndarray)}
    measured: dict[str, Any] = {column: last[column] for column in METRIC_COLUMNS if column in last}
    measured["gap_loss"] = last["test_loss"] - last["train_clean_loss"]
    measured["gap_acc"] = last["train_clean_acc"] - last["test_acc"]
    measured["selected_epoch"] = last["epoch"]
    measured["selected_test_acc"] = last["test_acc"]
    spent = dict(zip(COST_COLUMNS, (0.5, last["train_seconds"], 0.4, last["passes"], 960, 310.0), strict=True))
    done = status == "done"
    host = {"device": "AMD EPYC", "threads": 2, "precision": "fp32", "torch": "2.11.0", "python": "3.11.9"}
    traced = {
        **host,
        "commit": "0123456789abcdef",
        "dirty": False,
        "data_verified": True,
        "resumes": 0,
        "weights_sha256": "ab",
    }
    return {
        "experiment": "digits_noise",
        "task": "digits",
        "model": "resnet8",
        "optimizer": label,
        "config": config or np.nan,
        "seed": seed,
        "status": status,
        "error": "RuntimeError: out of memory" if status == "failed" else np.nan,
        "method": "sam" if label in TWO_PASSES else label.split("-")[0],
        "base": "sgd" if label in TWO_PASSES else np.nan,
        "lr": swept.get("lr", 0.1),
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "rho": swept.get("rho", np.nan),
        "eta": np.nan,
        "epochs": entry.epochs,
        "batch_size": 128,
        "label_noise": 0.2,
        **{column: measured[column] if done else np.nan for column in METRIC_COLUMNS},
        **{column: spent[column] if done else np.nan for column in COST_COLUMNS},
        **{column: value if done else np.nan for column, value in traced.items()},
    }
