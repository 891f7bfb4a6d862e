"""The choice of an optimizer's configuration: one rule, on validation numbers alone.

What is run next goes by it (`bench/launch/tuning.py`), and so do all tables.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from bench.core.meta import Meta, MetricMeta
from bench.store.conditions import KEY, conditions, keyed

UNFINISHED = ["running", "partial", "missing"]
COUNTS = ["planned", "done", "diverged", "failed", "unfinished"]
MIN_EDGE_VALUES = 2  # of two swept values both are edges: a search that has no inside
OUTER = 0.1  # share of a range, at either end, that counts as its edge


def phased(meta: Meta) -> Any:
    """Return what experiment.json says about the phases, or {} if there is only one phase."""
    return meta.get("phases") or {}


def tuning(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records of the runs used for choosing: those of the phase "tune", or all if there are no phases."""
    return records[_phase(records) != "final"]


def reported(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the records, or curves, of the runs that results report: all but those of the phase "tune"."""
    return frame[_phase(frame) != "tune"]


def _phase(frame: pd.DataFrame) -> pd.Series:
    return frame["phase"] if "phase" in frame else pd.Series("", frame.index)


def candidates(records: pd.DataFrame, metric: MetricMeta) -> pd.DataFrame:
    """Return every configuration, by `KEY`, with its counts, its validation means and whether it is chosen.

    Args:
        records: of the runs that are for choosing.
    """
    records = keyed(records)
    groups = records.groupby(KEY, sort=False)
    frame = counts(groups)
    frame = frame.join(moments(records, frame.index, [f"val_{metric['key']}", "val_loss"]))
    frame["chosen"] = choose(frame, metric)
    return frame


def choose(frame: pd.DataFrame, metric: MetricMeta) -> pd.Series:
    """Flag one configuration per condition and label: that with the best mean validation metric over the seeds.

    It is chosen among the configurations whose planned runs all finished with a finite metric; only if there are none,
    among those with some such run. Ties go to the lower mean validation loss, then to the first listed. Neither test
    numbers nor those of other conditions play a part.

    Args:
        frame: by `KEY`, with "planned", "val_loss:mean" and, of "val_<metric>", ":count" and ":mean".
    """
    # Rounded, so that equal runs tie although their means were summed in another order.
    value = frame[f"val_{metric['key']}:mean"].round(12)
    # Sorted by these columns in turn: a later one decides only where all before it are equal.
    ranking = pd.DataFrame(
        {
            "incomplete": frame[f"val_{metric['key']}:count"] < frame["planned"],
            "empty": frame[f"val_{metric['key']}:count"] == 0,
            "metric": -value if metric["higher_is_better"] else value,
            "loss": frame["val_loss:mean"].round(12),
            "order": np.arange(len(frame)),
        }
    )
    ranking = ranking.sort_values(list(ranking.columns), na_position="last")
    # After sorting, the first row of a condition and optimizer is its best.
    best = ~ranking.reset_index("config").index.duplicated()
    return frame.index.to_series().isin(ranking.index[best])


def chosen_runs(meta: Meta, records: pd.DataFrame) -> list[str]:
    """Return the ids of the finished runs that tables report, each once: those of chosen and of untuned optimizers.

    They come condition by condition, and within one in the order of the optimizers and of the records.
    """
    tried = tuning(records)
    flags = pd.Series(dtype=bool) if tried.empty else candidates(tried, meta["metric"])["chosen"]
    # An optimizer that is not tuned has one configuration, called "".
    untuned = product(conditions(meta), phased(meta).get("untuned", []), [""])
    chosen = {*flags.index[flags.astype(bool)], *untuned}
    runs = keyed(reported(records))
    runs = runs[(runs["status"] == "done") & pd.MultiIndex.from_frame(runs[KEY]).isin(list(chosen))]
    places = [{name: place for place, name in enumerate(names)} for names in (conditions(meta), meta["labels"])]
    order = sorted(
        runs[["condition", "optimizer", "run_id"]].itertuples(index=False, name=None),
        key=lambda run: (places[0][run[0]], places[1][run[1]]),
    )
    # A run that two optimizers share comes once, at its first place.
    return list(dict.fromkeys(run_id for _, _, run_id in order))


def counts(groups: Any) -> pd.DataFrame:
    """Return, per configuration in order of first appearance, how many runs are planned and how they ended."""
    planned: pd.Series = groups.size().rename("planned")
    status: pd.DataFrame = groups["status"].value_counts().unstack(fill_value=0).reindex(planned.index)
    status = status.reindex(columns=["done", "diverged", "failed", *UNFINISHED], fill_value=0)
    unfinished = status[UNFINISHED].sum(axis=1).rename("unfinished")
    counted: pd.DataFrame = pd.concat([planned, status, unfinished], axis=1)[COUNTS]
    return counted


def moments(records: pd.DataFrame, index: pd.Index, columns: list[str]) -> pd.DataFrame:
    """Return count, mean and sample deviation of each column over finished runs, as columns "<column>:<moment>"."""
    done = records[records["status"] == "done"]
    numbers = done[columns].astype(float)
    statistics: pd.DataFrame = numbers.groupby([done[key] for key in KEY], sort=False).agg(["count", "mean", "std"])
    statistics.columns = statistics.columns.map(":".join)
    # Configurations without a finished run count 0 and have no mean.
    everywhere: pd.DataFrame = statistics.reindex(index).fillna({f"{column}:count": 0 for column in columns})
    return everywhere


# ---- where in its space a choice lies ------------------------------------------------------------------------


def edges(
    swept: Mapping[str, Any],
    others: Sequence[Mapping[str, Any]],
    space: Mapping[str, Any] | None = None,
    limits: Mapping[str, Collection[str]] | None = None,
) -> dict[str, str]:
    """Return the swept numbers that lie at an end of what was tried, as {key: "smallest" or "largest"}.

    The end of a list is its first or last value in order, if the list has at least two values; the end of a range is
    its outer tenth (on a logarithmic scale if the range was searched on one). An end beyond which no value is valid is
    none: a search that goes down to a rho of 0 has left nothing out there.

    Args:
        swept: the chosen values, by key.
        others: every configuration that could have been chosen.
        space: the lists and ranges that these were drawn from (see `Experiment.meta`); without it, the tried values.
        limits: by key, the ends of its space beyond which no value is valid.
    """
    ends = {}
    for key, value in swept.items():
        tried = (space or {}).get(key, [other[key] for other in others])
        if not _number(value):
            continue
        if isinstance(tried, Mapping):
            where = place(value, tried)
            end = "smallest" if where <= OUTER else "largest" if where >= 1 - OUTER else ""
        else:
            end = _end(value, {number for number in tried if _number(number)})
        if end and end not in (limits or {}).get(key, ()):
            ends[key] = end
    return ends


def place(value: float, space: Mapping[str, Any]) -> float:
    """Return where in its range a value lies: 0 at the low end, 1 at the high end."""
    scale = np.log if space.get("log") else float
    low, high = scale(space["low"]), scale(space["high"])
    return float((scale(value) - low) / (high - low))


def _end(value: float, values: Iterable[float]) -> str:
    among = set(values)
    if len(among) < MIN_EDGE_VALUES:
        return ""
    return "smallest" if value == min(among) else "largest" if value == max(among) else ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not pd.isna(value)
