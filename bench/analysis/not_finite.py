"""Finished runs with a loss or score that is not finite, which `records.finite` has taken out of the numbers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.store.conditions import KEY


def named(records: pd.DataFrame, index: pd.Index) -> pd.Series:
    """Return for every configuration of an index by `KEY` the runs with such a number, as "seed 3 (test_loss inf)"."""
    told: dict[Any, tuple[str, ...]] = {}
    columns = [*KEY, "seed", "not_finite"]
    # Diverged runs are counted as such and are in no mean. `reindex` adds the column where older records lack it.
    odd = records[records["status"] == "done"].reindex(columns=columns).dropna(subset="not_finite")
    for *key, seed, numbers in odd.itertuples(index=False):
        told[tuple(key)] = (*told.get(tuple(key), ()), f"seed {seed} ({numbers})")
    return pd.Series([told.get(key, ()) for key in index], index=index, dtype=object)
