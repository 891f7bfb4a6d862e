"""From the records of all runs to one row per optimizer and condition: choose on validation, report on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.analysis import bounds, degenerate, not_finite
from bench.analysis.provenance import Clock, timed
from bench.analysis.stats import Interval, PairedTest, half_width, paired_test, without_rounding
from bench.core.meta import Meta
from bench.store import selection
from bench.store.conditions import KEY, conditions, keyed, varied

if TYPE_CHECKING:
    from bench.store.records import Results

Comparison = tuple[PairedTest | None, float, float]  # of the test metric; ratio of seconds; ratio of passes
MEANS = ["passes", "peak_memory_mb", "tokens_per_second"]


@dataclass(frozen=True)
class Row:
    """One configuration of one optimizer under one condition, over its seeds.

    `condition` is its name ("" where nothing is varied), `varied` the same as {column: value}. `config` is the text of
    the swept values ("" without a sweep), `swept` the same as {key: value}. `edges` are the swept numbers of a chosen
    configuration that lie at an end of what was tried, as {key: "smallest" or "largest"}. `phase` is that of its runs:
    "tune" (they have no test numbers), "final" or "". `degenerate` says in words how far the runs give one answer to
    everything ("" where they do not, or where it was not recorded; see `degenerate.py`).
    `not_finite` names the finished runs with a number that is not finite, and so in no mean, each with what that is.

    Intervals are over the finished (`done`) runs, cut at the bounds of their numbers: metrics, losses and gaps as
    stored (fractions, not percent), seconds of training. `passes` are forward-backward passes, `peak_memory_mb` MB,
    `tokens_per_second` tokens trained on without padding (NaN where there is no text), all means over the finished
    runs. Ratios and `difference` (of the test metric) are to the baseline's chosen configuration
    under the same condition, over the seeds that both have finished; `difference` is None for that configuration.
    """

    condition: str
    varied: Mapping[str, Any]
    label: str
    config: str
    swept: Mapping[str, Any]
    chosen: bool
    edges: Mapping[str, str]
    phase: str
    epochs: float
    planned: int
    done: int
    diverged: int
    failed: int
    unfinished: int
    degenerate: str
    not_finite: tuple[str, ...]
    test_metric: Interval
    val_metric: Interval
    train_metric: Interval
    noisy_metric: Interval
    selected_metric: Interval
    gap_metric: Interval
    test_loss: Interval
    val_loss: Interval
    train_loss: Interval
    gap_loss: Interval
    train_seconds: Interval
    passes: float
    peak_memory_mb: float
    tokens_per_second: float
    seconds_ratio: float
    passes_ratio: float
    difference: PairedTest | None

    @property
    def complete(self) -> bool:
        """Return whether every planned run finished, all its numbers finite."""
        return self.done == self.planned and not self.not_finite

    @property
    def scored(self) -> int:
        """Return how many finished runs have a score: on the test set or, of those for choosing, on validation."""
        # Runs of the phase "tune" are never measured on the test set.
        return self.val_metric.n if self.phase == "tune" else self.test_metric.n

    @property
    def title(self) -> str:
        """Return the label with its configuration, e.g. "sam (rho=0.1)"."""
        return f"{self.label} ({self.config})" if self.config else self.label

    @property
    def name(self) -> str:
        """Return the title of a choice, or the label with the reason if no configuration of the label has a score."""
        lost = "no finite score" if self.done else "no run finished"
        return self.title if self.scored or not self.config else f"{self.label} ({lost})"


def all_rows(results: Results, tried: Sequence[Row], clock: Clock) -> list[Row]:
    """Return every (condition, label, configuration) as a row, in the order of the experiment.

    One configuration a label is `chosen` under each condition, by `choice.choose`. In an experiment with phases that
    row is over its final runs, on fresh seeds, and all others are over the runs that were for choosing.
    """
    # Without phases the runs for choosing are the runs that are reported.
    if not selection.phased(results.meta):
        return list(tried)
    final = {(row.condition, row.label): row for row in _final_rows(results, tried, clock)}
    # Labels that were not tuned have final runs only: no row of `tried` stands for them.
    known = {(row.condition, row.label) for row in tried}
    rows = [final[row.condition, row.label] if row.chosen else row for row in tried]
    return _in_order(results.meta, [*rows, *(row for key, row in final.items() if key not in known)])


def tried_rows(results: Results, clock: Clock) -> list[Row]:
    """Return every configuration as a row over the runs used for choosing; see `all_rows`."""
    records = selection.tuning(results.records)
    if records.empty:
        return []
    frame = selection.candidates(records, results.meta["metric"])
    # Only the counts and the choice are handed on: `_rows` computes all means and their intervals itself.
    rows = _rows(results, records, frame[[*selection.COUNTS, "chosen"]], clock)
    return _in_order(results.meta, _with_edges(rows, results.meta))


def _final_rows(results: Results, tried: Sequence[Row], clock: Clock) -> list[Row]:
    """Return the rows of chosen and of untuned configurations, over the planned final runs, finished or not."""
    records = selection.reported(results.records)
    chosen = {(row.condition, row.label, row.config): row for row in tried if row.chosen}
    untuned = [
        (condition, label, "")
        for condition in conditions(results.meta)
        for label in selection.phased(results.meta)["untuned"]
    ]
    # The index is that of the choice, not of the records: a final run that does not exist yet has a row all the same,
    # and final runs of an earlier choice are left out.
    index = pd.MultiIndex.from_tuples([*chosen, *untuned], names=KEY)
    frame = selection.counts(keyed(records).groupby(KEY, sort=False)).reindex(index, fill_value=0)
    frame["planned"] = len(results.meta["seeds"])
    # Records may lack lines of final runs that were never started, so these are what is left of the planned ones.
    frame["unfinished"] = frame["planned"] - frame["done"] - frame["diverged"] - frame["failed"]
    frame["chosen"] = True
    rows = _rows(results, records, frame, clock)
    return [
        replace(row, phase="final", edges=chosen[key].edges if key in chosen else {})
        for key, row in zip(frame.index, rows, strict=True)
    ]


def _rows(results: Results, records: pd.DataFrame, frame: pd.DataFrame, clock: Clock) -> list[Row]:
    """Return a row per line of a frame of counts, from the finished runs among the records."""
    meta = results.meta
    # From here on the seconds of runs on other hardware are NaN, so no mean and no ratio mixes machines.
    records = _with_speed(timed(keyed(records), clock))
    columns = interval_columns(meta["metric"]["key"])
    frame = frame.join(selection.moments(records, frame.index, [*columns.values(), *MEANS]))
    swept = {key for keys in meta["sweeps"].values() for key in keys}
    # All runs of a configuration have the same settings. They are read from all records, tuning included, since a
    # choice may not have any final run yet.
    settings = keyed(results.records).groupby(KEY, sort=False)[sorted({"epochs", *swept, *varied(meta)})].first()
    frame = frame.join(settings.add_prefix("set_"))
    comparisons = _comparisons(records, frame, meta)
    limits = bounds.of_rows(meta["metric"])
    frame["not_finite"] = not_finite.named(records, frame.index)
    for field, column in columns.items():
        # A t interval of accuracies near 100% would otherwise end above 100%.
        intervals = [
            interval.within(*limits[field]) if field in limits else interval for interval in _intervals(frame, column)
        ]
        frame[field] = pd.Series(intervals, index=frame.index, dtype=object)
    frame["degenerate"] = degenerate.described(records, frame, meta["metric"])
    phase = "tune" if selection.phased(meta) else ""
    return [
        _row(key, meta, {**values, "phase": phase}, comparisons[key])
        for key, values in zip(frame.index, frame.to_dict("records"), strict=True)
    ]


def _in_order(meta: Meta, rows: Sequence[Row]) -> list[Row]:
    places = {name: place for place, name in enumerate(conditions(meta))}
    labels = {label: place for place, label in enumerate(meta["labels"])}
    # `sorted` is stable: the configurations of a label keep the order of the records.
    return sorted(rows, key=lambda row: (places[row.condition], labels[row.label]))


def interval_columns(key: str) -> dict[str, str]:
    """Return fields of Row that hold intervals -> columns of records; `key` is the metric's, e.g. "acc"."""
    return {
        "test_metric": f"test_{key}",
        "val_metric": f"val_{key}",
        "train_metric": f"train_clean_{key}",
        "noisy_metric": f"train_noisy_{key}",
        "selected_metric": f"selected_test_{key}",
        "gap_metric": f"gap_{key}",
        "test_loss": "test_loss",
        "val_loss": "val_loss",
        "train_loss": "train_clean_loss",
        "gap_loss": "gap_loss",
        "train_seconds": "train_seconds",
    }


def _with_speed(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records with "tokens_per_second", NaN if no tokens were counted."""
    tokens = records["tokens"].astype(float) if "tokens" in records else pd.Series(np.nan, records.index)
    # Without text the count is 0 or missing: NaN, since a speed of 0 would read as a result.
    return records.assign(tokens_per_second=tokens.where(tokens > 0) / records["train_seconds"].astype(float))


def _comparisons(records: pd.DataFrame, frame: pd.DataFrame, meta: Meta) -> dict[Any, Comparison]:
    """Return each configuration against the baseline's choice of its condition, over the seeds that both finished."""
    chosen = frame.index[frame["chosen"]]
    baselines = chosen[chosen.get_level_values("optimizer") == meta["baseline"]]
    columns = [f"test_{meta['metric']['key']}", "train_seconds", "passes"]
    # A diverged run may have numbers too; it takes part in no comparison.
    values = records[columns].astype(float).where(records["status"] == "done")
    is_baseline = pd.MultiIndex.from_frame(records[KEY]).isin(baselines)
    partners = pd.MultiIndex.from_frame(records[["condition", "seed"]])
    # Line by line the baseline's numbers of the same condition and seed; NaN if it has no such finished run.
    reference = values[is_baseline].set_axis(partners[is_baseline]).reindex(partners)
    ours, theirs = values.to_numpy(), reference.to_numpy()
    compared: dict[Any, Comparison] = {}
    limits = bounds.of_difference(meta["metric"])
    # The baseline's choice is not compared with itself; the baseline's other configurations are compared with it.
    alone = set(baselines)
    places = records.groupby(KEY, sort=False).indices
    for key in frame.index:
        rows = places.get(key, [])
        a, b = ours[rows], theirs[rows]
        test = None if key in alone else paired_test(a[:, 0], b[:, 0], bounds=limits)
        compared[key] = (test, _ratio_of_means(a[:, 1], b[:, 1]), _ratio_of_means(a[:, 2], b[:, 2]))
    return compared


def _ratio_of_means(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Return the mean of ours over the mean of theirs, over the seeds that both have; NaN if there are none."""
    # Both means are over the same seeds: one slow seed that a side lacks must not tilt the ratio.
    both = ~np.isnan(ours + theirs)
    return float(ours[both].mean() / theirs[both].mean()) if both.any() else np.nan


def _intervals(frame: pd.DataFrame, column: str) -> list[Interval]:
    """Return the t interval of one column for every configuration, in the order of the frame."""
    n, mean, sd = (frame[f"{column}:{moment}"].to_numpy() for moment in ("count", "mean", "std"))
    # Equal values can have a deviation of 1e-17: it counts as 0, and then there is no interval.
    half = half_width(n, without_rounding(sd, mean))
    bounds = zip(n.astype(int), mean.tolist(), (mean - half).tolist(), (mean + half).tolist(), strict=True)
    return [Interval(int(count), *rest) for count, *rest in bounds]


def _row(key: tuple[str, str, str], meta: Meta, values: Mapping[Any, Any], compared: Comparison) -> Row:
    """Return the row of one configuration from its line of the frame."""
    condition, label, config = key
    # Fields that the frame has under their own name: counts, words and intervals. All others are named below.
    ready = {field.name: values[field.name] for field in fields(Row) if field.name in values}
    return Row(
        condition=condition,
        varied={column: values[f"set_{column}"] for column in varied(meta)},
        label=label,
        config=config,
        swept={name: values[f"set_{name}"] for name in meta["sweeps"].get(label, [])},
        # Filled in by `_with_edges`, which needs all configurations of the label.
        edges={},
        epochs=values["set_epochs"],
        difference=compared[0],
        seconds_ratio=compared[1],
        passes_ratio=compared[2],
        **{field: values[f"{field}:mean"] for field in MEANS},
        **ready,
    )


def _with_edges(rows: list[Row], meta: Meta) -> list[Row]:
    """Return the rows; each chosen row names those of its values that lie at an end of the tried range."""
    tune = selection.phased(meta).get("tune", {})
    spaces, limits = tune.get("spaces", {}), tune.get("limits", {})
    tried: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        tried.setdefault((row.condition, row.label), []).append(row.swept)
    return [
        replace(
            row,
            edges=selection.edges(
                row.swept, tried[row.condition, row.label], spaces.get(row.label), limits.get(row.label)
            ),
        )
        # Without a finished run the choice was made by no score, and its place says nothing about the search.
        if row.chosen and row.done
        else row
        for row in rows
    ]
