"""Degenerate configurations, whose runs give the same answer to every example; tables and figures flag them.

A tuned optimizer can win on validation that way if one class is common. `bench/training/evaluate.py` records the
columns that are read here; records from before protocol 2 lack them, and none of their configurations is flagged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.core.meta import MetricMeta
from bench.store.selection import moments

SPLITS = {"test": "test", "val": "validation"}
"""The sets on which degenerate answers are searched for; validation is used if there are no test numbers."""


def described(records: pd.DataFrame, frame: pd.DataFrame, metric: MetricMeta) -> list[str]:
    """Return, per configuration, a sentence on why it is degenerate; "" if it is not, or if that is unknown.

    Example:
        "the same answer to every test example in 5 of 5 runs", "the test accuracy of one constant answer"

    Args:
        records: by `KEY`.
        frame: one line per configuration, by `KEY`.
    """
    key = metric["key"]
    wanted = [f"{split}_{what}" for split in SPLITS for what in ("constant", f"dummy_{key}", key)]
    # Records of older versions lack these columns: NaN has a count of 0, and then nothing is said.
    absent = [column for column in wanted if column not in records]
    lines = moments(records.assign(**dict.fromkeys(absent, np.nan)), frame.index, wanted)
    return [next(_of(line, metric), "") for line in lines.to_dict("records")]


def _of(line: Mapping[Any, Any], metric: MetricMeta) -> Iterator[str]:
    # Half a unit of the last decimal that tables show (see `Captions.digits`), in the unit of the records.
    rounding = 0.5 * 10.0 ** -(2 if metric["scale"] > 1 else 4) / metric["scale"]
    for split, name in SPLITS.items():
        known, runs = (int(line[f"{split}_{what}:count"]) for what in ("constant", metric["key"]))
        if not runs:
            continue
        # A run has 1 there if it gave one answer, else 0: count times mean is the number of such runs.
        constant = round(known * line[f"{split}_constant:mean"]) if known else 0
        if constant:
            yield f"the same answer to every {name} example in {constant} of {runs} runs"
        elif abs(line[f"{split}_{metric['key']}:mean"] - line[f"{split}_dummy_{metric['key']}:mean"]) <= rounding:
            yield f"the {name} {metric['name']} of one constant answer"
        # The first split with any score decides, the test set before validation.
        return
