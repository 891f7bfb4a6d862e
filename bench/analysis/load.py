"""Warnings on times that contradict the number of passes, with the recorded CPU share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis.summary import Row

if TYPE_CHECKING:
    from bench.analysis.study import Study
    from bench.store.records import Results

MOST = 1 / 3
"""Largest relative difference between the ratio of times and the ratio of passes without a warning."""

WHY = "the machine was busy with other work, or their passes cost differently"


def contradict(seconds: float, passes: float) -> bool:
    """Return whether a ratio of training seconds differs by more than a third from that of the passes."""
    return bool(abs(seconds / passes - 1) > MOST)  # False where either is not a number


def notes(study: Study) -> Iterator[str]:
    """Yield a sentence for each chosen row whose times to the baseline contradict its passes.

    If runs mix versions, commits or precisions, there is none: another note says that times are not comparable.
    """
    if study.source.mixed:
        return
    baseline = study.meta["baseline"]
    for row in study.chosen:
        if not contradict(row.seconds_ratio, row.passes_ratio):
            continue
        where = f"{row.condition}: " if row.condition else ""
        # The baseline's choice under the same condition: its load may explain the ratio as well as the row's own.
        competitor = next(
            (one for one in study.chosen if one.label == baseline and one.condition == row.condition), None
        )
        shares = [(one.label, cpu_share(study.results, one)) for one in (row, competitor) if one is not None]
        load = ", ".join(f"{label} {share:.2f}" for label, share in shares if np.isfinite(share))
        told = f" (own CPU time per second of training: {load})" if load else ""
        yield (
            f"{where}{row.name} took {row.passes_ratio:.2f} times the passes of {baseline} and {row.seconds_ratio:.2f} "
            f"times the seconds, which differ by more than a third{told}: {WHY}."
        )


def cpu_share(results: Results, row: Row) -> float:
    """Return a row's own CPU time per second of training, the mean over its finished runs; NaN if unrecorded.

    On a CPU that is otherwise idle it is about the number of threads, on a busy one less.
    """
    records = results.records
    if "train_cpu_seconds" not in records:
        return float("nan")
    here = (records["optimizer"] == row.label) & (records["status"] == "done")
    # A column that an experiment does not have restricts nothing: all its runs are of one condition or phase.
    for column, value in {"condition": row.condition, "config": row.config, "phase": row.phase}.items():
        if column in records:
            here &= (records[column] == value) | (records[column].isna() & (not value))  # "" is read back as NaN
    done = records[here]
    return float((done["train_cpu_seconds"] / done["train_seconds"]).mean())
