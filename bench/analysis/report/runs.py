"""Every run of an experiment in a form that is small in a page: columns once, texts once, curves as small integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.captions import relabelled
from bench.analysis.plots.looks import BLACK, styles_of
from bench.analysis.study import Study
from bench.store.columns import CIRCUMSTANCES, COSTS, RUN, metric_columns
from bench.store.conditions import KEY, keyed

POINTS = 24  # of a curve that are kept; the figures have all of them
LEVELS = 1000  # heights of a curve, more than a page has pixels for


def data(study: Study) -> dict[str, Any]:
    """Return the data that the page's script works on.

    Keys:
        name, metric, labels (with the colour of each in the figures; "" for black, which is the colour of the text).
        train: what to call the metric of training.
        count: of runs, in the order of the records.
        groups: hyperparameters, measured, cost and circumstances, each a list of columns.
        columns: by name; {"all": value} where all runs have the same, {"texts": [...], "of": [index, ...]} for text,
            {"values": [...]} for numbers. Numbers have six significant digits; null where there is none.
        chosen: a column in the same form: "chosen" for runs of a configuration chosen among several, else "".
        curves: see `_curves`.
    """
    meta, results = study.meta, study.results
    records = keyed(results.records)
    key = meta["metric"]["key"]
    styles = styles_of(meta)
    colours = {label: styles[label]["color"] for label in meta["labels"]}
    return {
        "name": meta["name"],
        "metric": {**meta["metric"], "test": f"test_{key}", "val": f"val_{key}", "gap": f"gap_{key}"},
        "train": "train (true labels)" if relabelled(meta) else "train",
        "labels": {label: "" if colour == BLACK else colour for label, colour in colours.items()},
        "count": len(records),
        "groups": _groups(records, key),
        "columns": {str(name): _column(records[name]) for name in records if name != "experiment"},
        "chosen": _column(_chosen(study, records)),
        "curves": _curves(records, results.curves, key),
    }


def _groups(records: pd.DataFrame, key: str) -> dict[str, list[str]]:
    """Return the columns by group; those between identity and metrics are hyperparameters, as `collect` orders them."""
    names = [str(name) for name in records if name not in RUN]
    costs, circumstances = ([name for name in names if name in known] for known in (COSTS, CIRCUMSTANCES))
    others = [name for name in names if name not in (*costs, *circumstances)]
    # The first metric that is known divides them: settings stand before the metrics in records.csv.
    first = min((others.index(name) for name in metric_columns(key) if name in others), default=len(others))
    return {
        "hyperparameters": others[:first],
        "measured": others[first:],
        "cost": costs,
        "circumstances": circumstances,
    }


def _chosen(study: Study, records: pd.DataFrame) -> pd.Series:
    swept = {label for label, keys in study.meta["sweeps"].items() if keys}
    # A label without a sweep had no choice to make, so none of its runs is marked.
    chosen = {(row.condition, row.label, row.config) for row in study.chosen if row.label in swept}
    marks = ["chosen" if key in chosen else "" for key in records[KEY].itertuples(index=False, name=None)]
    return pd.Series(marks, index=records.index, dtype=object)


def _column(column: pd.Series) -> dict[str, Any]:
    values = [_plain(value) for value in column]
    # Most columns are the same for all runs, or repeat a few texts: each value is stored once.
    if len(set(values)) == 1:
        return {"all": values[0]}
    if any(isinstance(value, str) for value in values):
        texts = list(dict.fromkeys(values))
        places = {text: place for place, text in enumerate(texts)}
        return {"texts": texts, "of": [places[value] for value in values]}
    return {"values": values}


def _plain(value: Any) -> str | float | int | None:
    """Return a value of the records in JSON's types, numbers at six significant digits."""
    if isinstance(value, str):
        return value
    # Before numbers: a bool is an int in Python.
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if pd.isna(value):
        return None
    number = float(f"{value:.6g}") if isinstance(value, float | np.floating) else int(value)
    if math.isinf(number):
        # JSON has no infinity.
        return "∞" if number > 0 else "-∞"
    # 3.0 is written as 3; a very large float stays one, since its digits as an int would be no more exact.
    return int(number) if float(number).is_integer() and abs(number) < 1e15 else number


# ---- curves --------------------------------------------------------------------------------------------------


def _curves(records: pd.DataFrame, curves: pd.DataFrame, key: str) -> dict[str, Any]:
    """Return the metric of every run over its epochs, in at most `POINTS` points.

    Returns:
        series: those available of train (its true labels), val and test.
        low, high: of all values, in the metric's own unit; levels: `LEVELS`.
        epochs: the distinct lists of epochs; `of` gives the index of a run's list, null for a run without a curve.
        drawn: per series a list of points per run: the height between low and high, 0 to `LEVELS`; null where nothing
            was measured.
    """
    # A run that stands under two labels has its curve twice.
    curves = curves.drop_duplicates(["run_id", "epoch"]).sort_values("epoch", kind="stable")
    columns = {"train": f"train_clean_{key}", "val": f"val_{key}", "test": f"test_{key}"}
    numbers = {name: curves[column].to_numpy(float) for name, column in columns.items() if column in curves}
    numbers = {name: values for name, values in numbers.items() if np.isfinite(values).any()}
    if not numbers:
        return {
            "series": [],
            "low": 0,
            "high": 1,
            "levels": LEVELS,
            "epochs": [],
            "of": [None] * len(records),
            "drawn": [],
        }
    measured = np.concatenate([values[np.isfinite(values)] for values in numbers.values()])
    # One scale for all runs, so that their small curves can be compared by eye.
    low, high = float(measured.min()), float(measured.max())
    heights = {name: _heights(values, low, high) for name, values in numbers.items()}
    epochs = curves["epoch"].to_numpy(int)
    rows_of: Mapping[Any, Any] = curves.groupby("run_id", sort=False).indices
    grids: dict[tuple[int, ...], int] = {}
    of: list[int | None] = []
    drawn: dict[str, list[list[int | None]]] = {name: [] for name in numbers}
    for run_id in records["run_id"]:
        rows = _thinned(rows_of[run_id]) if run_id in rows_of else []
        # Runs with the same evaluated epochs share one list and refer to it by its index.
        of.append(grids.setdefault(tuple(epochs[rows].tolist()), len(grids)) if len(rows) else None)
        for name, points in heights.items():
            drawn[name].append([points[row] for row in rows])
    return {
        "series": list(numbers),
        "low": float(f"{low:.6g}"),
        "high": float(f"{high:.6g}"),
        "levels": LEVELS,
        "epochs": [list(grid) for grid in grids],
        "of": of,
        "drawn": list(drawn.values()),
    }


def _thinned(rows: Any) -> Any:
    """Return at most `POINTS` of the rows, as evenly spaced as possible, including the first and the last."""
    return rows if len(rows) <= POINTS else rows[np.linspace(0, len(rows) - 1, POINTS).round().astype(int)]


def _heights(values: np.ndarray[Any, Any], low: float, high: float) -> list[int | None]:
    # If all values are equal, any width but 0 will do.
    shares = (values - low) / ((high - low) or 1.0)
    return [round(share * LEVELS) if math.isfinite(share) else None for share in shares.tolist()]
