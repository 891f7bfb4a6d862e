"""Two result sets side by side: the same experiment on two machines, with two versions, or changed on purpose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.analysis import bounds
from bench.analysis.format import signed_bounds
from bench.analysis.render.table import EMPTY, Table
from bench.analysis.stats import Interval, paired_test
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.core.errors import BenchError
from bench.store.columns import COLUMNS
from bench.store.conditions import keyed, names, value_text, varied
from bench.store.selection import reported

if TYPE_CHECKING:
    from bench.store.records import Results

A, B = "A", "B"
FINISHED = ("done", "diverged")
ABOUT = ("title", "task", "model", "baseline", "seeds", "protocol", "vary", "sweeps", "phases")
"""Keys of experiment.json that must be equal for two result sets of the same experiment."""

ENVIRONMENT = ("device", "threads", "torch", "python", "commit")
MEASURED = ("train", "val", "test", "gap", "selected")
"""First words of the columns of metrics; all other columns that `bench.store.columns` does not know are settings."""


@dataclass(frozen=True)
class Comparison:
    """The common part of two result sets.

    Attributes:
        tables: "runs", "differences" and, where anything differs in them, "settings".
        same: whether both hold the same runs with the same bits; times, machines and versions may differ.
    """

    tables: list[Table]
    same: bool


def compare(a: Study, b: Study) -> Comparison:
    """Compare two result sets of the same metric.

    Raises:
        BenchError: they are of different metrics, or have no optimizer in common.
    """
    key, other = (study.meta["metric"]["key"] for study in (a, b))
    if key != other:
        raise BenchError(f"A measures {a.meta['metric']['name']}, B {b.meta['metric']['name']}: nothing to compare")
    labels = [label for label in a.meta["labels"] if label in b.meta["labels"]]
    if not labels:
        theirs = ", ".join(b.meta["labels"])
        raise BenchError(f"no optimizer is in both: A has {', '.join(a.meta['labels'])}, B has {theirs}")
    runs, same = _runs(a, b, key)
    settings = _settings(a, b, labels)
    return Comparison([runs, _differences(a, b, labels), *([settings] if settings else [])], same)


# ---- the same runs, bit by bit -------------------------------------------------------------------------------


def _runs(a: Study, b: Study, key: str) -> tuple[Table, bool]:
    # A run that stands on several lines of a label is counted once.
    frames = [keyed(study.results.records).drop_duplicates(["optimizer", "run_id"]) for study in (a, b)]
    exact = ["status", "weights_sha256", f"test_{key}", "test_loss", f"val_{key}", "val_loss", "train_loss"]
    # An older version may not have recorded all of these: only what both sides have is compared.
    columns = [name for name in exact if all(name in frame for frame in frames)]
    ours_too, theirs_too = (frame[["optimizer", "run_id", *columns]] for frame in frames)
    both = pd.merge(ours_too, theirs_too, on=["optimizer", "run_id"])
    equal = pd.Series(True, both.index)
    for name in columns:
        left, right = both[f"{name}_x"], both[f"{name}_y"]
        # NaN is not equal to itself: a score that both sides lack must not count as a difference.
        equal &= (left == right) | (left.isna() & right.isna())
    finished = both["status_x"].isin(FINISHED) & both["status_y"].isin(FINISHED)
    labels = list(dict.fromkeys([*a.meta["labels"], *b.meta["labels"]]))
    lines: list[list[Any]] = []
    for label in labels:
        here = both["optimizer"] == label
        planned = [int((frame["optimizer"] == label).sum()) for frame in frames]
        lines.append(
            [label, *planned, *(int(which.sum()) for which in (here, here & finished, here & finished & equal))]
        )
    lines.append(["all", *np.sum([line[1:] for line in lines], axis=0).tolist()])
    *_, in_a, in_b, shared, _, alike = lines[-1]
    head = ["optimizer", "in A", "in B", "in both", "finished in both", "same bits"]
    caption = [
        f"Runs by their run_id, which is a hash of all that decides a run's numbers. A: {_where(a)} B: {_where(b)}",
        "Same bits: finished in both, with the same final weights, losses and scores.",
    ]
    table = Table(
        a.meta["name"],
        "runs",
        f"{_titles(a, b)}: runs",
        caption,
        head,
        [[str(cell) for cell in line] for line in lines],
        [],
        pd.DataFrame(lines, columns=[name.replace(" ", "_") for name in head]),
    )
    # Runs that are not finished on both sides are in no "same bits", so they make the sets differ.
    return table, bool(in_a == in_b == shared == alike)


# ---- differences by label ------------------------------------------------------------------------------------


def _differences(a: Study, b: Study, labels: list[str]) -> Table:
    """Return B minus A, label by label: each side's chosen configuration, paired by seed."""
    captions = a.captions
    key = a.meta["metric"]["key"]
    rows, numbers = [], []
    for ours, theirs in _pairs(a, b, labels):
        mine, yours = (_by_seed(study, row) for study, row in ((a, ours), (b, theirs)))
        together = pd.merge(mine, yours, left_index=True, right_index=True, suffixes=("_a", "_b"))
        limits = bounds.of_difference(a.meta["metric"])
        # B comes first, so the difference is B minus A.
        metric = paired_test(together[f"test_{key}_b"], together[f"test_{key}_a"], bounds=limits)
        seconds = paired_test(together["train_seconds_b"], together["train_seconds_a"])
        point = [value_text(value) for value in ours.varied.values()]
        rows.append(
            [
                *point,
                ours.name if ours.name == theirs.name else f"{ours.name} → {theirs.name}",
                captions.mean(ours.test_metric),
                captions.mean(theirs.test_metric),
                _signed(metric.difference.scaled(captions.scale), f".{captions.digits}f"),
                _signed(seconds.difference, ".2f"),
                str(len(together)),
            ]
        )
        numbers.append(
            {
                **ours.varied,
                "optimizer": ours.label,
                "config_a": ours.config,
                "config_b": theirs.config,
                **_bounds(
                    f"difference [{captions.unit}]" if captions.unit else "difference",
                    metric.difference,
                    captions.scale,
                ),
                "p_paired_t": metric.p_t,
                "p_sign_flip": metric.p_sign_flip,
                **_bounds("seconds", seconds.difference, 1.0),
                "pairs": len(together),
            }
        )
    metric_name = f"test {captions.metric}{captions.brackets}"
    head = [f"{metric_name} of A", f"{metric_name} of B", f"B − A{captions.points}", "time, B − A (s)", "pairs"]
    caption = [
        f"Each side's chosen configuration (A → B where they differ); {captions.measured()}",
        "B − A: mean over the seeds that both finished, paired by seed, with its 95% t interval.",
    ]
    keys = names(varied(a.meta))
    title = f"{_titles(a, b)}: differences"
    frame = pd.DataFrame(numbers)
    return Table(a.meta["name"], "differences", title, caption, [*keys, "optimizer", *head], rows, [], frame, len(keys))


def _pairs(a: Study, b: Study, labels: list[str]) -> Iterator[tuple[Row, Row]]:
    """Yield the chosen rows that both results have, by condition and label."""
    theirs = {(row.condition, row.label): row for row in b.chosen}
    for row in a.chosen:
        if row.label in labels and (row.condition, row.label) in theirs:
            yield row, theirs[row.condition, row.label]


def _by_seed(study: Study, row: Row) -> pd.DataFrame:
    frame = keyed(reported(study.results.records))
    here = (frame["condition"] == row.condition) & (frame["optimizer"] == row.label) & (frame["config"] == row.config)
    columns = [f"test_{study.meta['metric']['key']}", "train_seconds"]
    # A seed without one of the two numbers is left out of both, so all columns are over the same pairs.
    return frame[here & (frame["status"] == "done")].set_index("seed")[columns].astype(float).dropna()


# ---- what was set, and where ---------------------------------------------------------------------------------


def _settings(a: Study, b: Study, labels: list[str]) -> Table | None:
    """Return the differences of the experiment, the hyperparameters and the environment; None if there are none."""
    lines = [
        *_unequal("experiment", {name: a.meta.get(name) for name in ABOUT}, {name: b.meta.get(name) for name in ABOUT}),
        *_unequal("data", a.meta["data"], b.meta["data"]),
        *_unequal("optimizers", _presence(a, b), _presence(b, a)),
    ]
    for label in labels:
        lines += _unequal(label, _hyperparameters(a.results, label), _hyperparameters(b.results, label))
    lines += _unequal("environment", _environment(a.results), _environment(b.results))
    if not lines:
        return None
    caption = ["Settings and circumstances that are not the same in both; several values of one side stand in a row."]
    title = f"{_titles(a, b)}: settings"
    head = ["of", "setting", A, B]
    frame = pd.DataFrame(lines, columns=["of", "setting", "a", "b"])
    return Table(a.meta["name"], "settings", title, caption, head, lines, [], frame)


def _presence(a: Study, b: Study) -> dict[str, str]:
    return {label: "there" if label in a.meta["labels"] else EMPTY for label in [*a.meta["labels"], *b.meta["labels"]]}


def _hyperparameters(results: Results, label: str) -> dict[str, Any]:
    """Return every setting of a label's runs, with the distinct values that it has."""
    frame = results.records[results.records["optimizer"] == label]
    columns = [
        name
        for name in frame.columns
        # A column of settings may be there for other labels only: empty for this label, it is none of its settings.
        if name not in COLUMNS and name.partition("_")[0] not in MEASURED and not frame[name].isna().all()
    ]
    return {name: _distinct(frame[name]) for name in columns}


def _environment(results: Results) -> dict[str, Any]:
    frame = results.records[results.records["status"].isin(FINISHED)]
    return {name: _distinct(frame[name]) for name in ENVIRONMENT if name in frame}


def _distinct(column: pd.Series[Any]) -> str:
    # Sorted, so that runs in another order are no difference.
    return ", ".join(value_text(value) for value in dict.fromkeys(column.dropna().sort_values()))


def _unequal(of: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the settings that differ; a setting that one side lacks is taken as the default, for older versions."""
    for name in dict.fromkeys([*ours, *theirs]):
        one, other = (side.get(name) for side in (ours, theirs))
        # A missing key and an empty table both mean that nothing was set.
        if one != other and not (one in (None, {}) and other in (None, {})):
            yield [of, name, *(EMPTY if value is None else str(value) for value in (one, other))]


# ---- words ---------------------------------------------------------------------------------------------------


def _titles(a: Study, b: Study) -> str:
    ours, theirs = a.meta["name"], b.meta["name"]
    return ours if ours == theirs else f"{ours} (A) and {theirs} (B)"


def _where(study: Study) -> str:
    source = study.source
    devices = "; ".join(source.devices) or "no finished run"
    return f"{devices}, torch {', '.join(source.torch)}, commit {', '.join(source.commits) or 'unknown'}."


def _signed(difference: Interval, form: str) -> str:
    if difference.n == 0:
        return EMPTY
    mean = f"{difference.mean:+z{form}}"
    return mean if difference.n < 2 else f"{mean} {signed_bounds(difference, form)}"


def _bounds(name: str, interval: Interval, scale: float) -> dict[str, float]:
    shown = interval.scaled(scale)
    # The part goes before the unit: "difference_mean [%]".
    stem, bracket, unit = name.partition(" [")
    return {f"{stem}_{part}{bracket}{unit}": getattr(shown, part) for part in ("mean", "low", "high")}
