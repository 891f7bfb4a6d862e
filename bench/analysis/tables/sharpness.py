"""The table of `bench measure`: sharpness and calibration, beside the scores of the runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis import numbers
from bench.analysis.format import plain
from bench.analysis.render.table import EMPTY, Table
from bench.analysis.sharpness import CAVEAT, MEASURES, RISE_AT, measured
from bench.analysis.stats import Interval, mean_interval
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.analysis.tables.column import Column, build, hidden
from bench.core.errors import counted

# By measure: its name in the note, what its work is counted in, and the column with the count.
COSTS = {
    "hessian": ("Hessian", "products of Hessian and vector", "hessian_products"),
    "m_sharpness": ("m-sharpness", "ascents", "m_sharpness_batches"),
    "directions": ("directions", "evaluations", "directions_evaluations"),
}


@dataclass(frozen=True)
class Measured:
    """A chosen configuration with the interval of every measure over its measured runs."""

    row: Row
    of: Mapping[str, Interval]


def tables(study: Study) -> list[Table]:
    """Return the table "sharpness" of the chosen configurations, or none if no run of theirs was measured."""
    frame = measured(study.results)
    lines = [
        Measured(row, {name: _interval(name, runs[name]) for name in MEASURES})
        for row in study.chosen
        # In a comprehension the condition comes first, so `runs` is known in the line above.
        if len(runs := _runs(frame, row))
    ]
    if not lines:
        return []
    table = build(
        study,
        "sharpness",
        "sharpness and calibration",
        # A regression has no calibration: then these columns are in the CSV alone, and empty.
        _columns(study, classes=any(one.of["ece"].n for one in lines)),
        lines,
        caption=[*_definitions(frame, lines), CAVEAT],
        notes=_notes(frame),
        row=lambda one: one.row,
        condition_in_numbers=False,
    )
    return [table]


def _columns(study: Study, *, classes: bool) -> list[Column[Measured]]:
    captions = study.captions

    def measure(head: str, name: str, scale: float = 1.0) -> Column[Measured]:
        # Scaled in the text only: the CSV has shares as they are stored.
        return Column(
            head, lambda one: _mean(one.of[name].scaled(scale)), lambda one: numbers.bounds(name, one.of[name])
        )

    calibration = [measure("ECE (%)", "ece", 100), measure("NLL (nats)", "nll")]
    return [
        Column(
            "optimizer",
            lambda one: one.row.name,
            lambda one: {"optimizer": one.row.label, "config": one.row.config, "n": one.of["loss"].n},
        ),
        Column(f"test {captions.metric}{captions.brackets}", lambda one: captions.mean(one.row.test_metric)),
        measure("largest eigenvalue", "eigenvalue_1"),
        measure("m-sharpness", "m_sharpness"),
        measure("rise along a direction", "rise"),
        *(calibration if classes else [hidden(column.numbers) for column in calibration]),
        Column("n", _count, lambda one: numbers.bounds("loss", one.of["loss"])),
    ]


def _runs(frame: pd.DataFrame, row: Row) -> pd.DataFrame:
    here = (frame["condition"] == row.condition) & (frame["optimizer"] == row.label) & (frame["config"] == row.config)
    return frame[here]


def _interval(name: str, values: pd.Series) -> Interval:
    """Return the interval of the mean; that of the calibration error, a share, is cut at 0 and 1."""
    interval = mean_interval(values)
    return interval.within(0.0, 1.0) if name == "ece" else interval


def _mean(interval: Interval) -> str:
    """Return the mean ± half-width with three significant digits of the mean."""
    if interval.n == 0:
        return EMPTY
    # The logarithm gives the place of the first digit, and two more are shown; 0 has no logarithm.
    digits = 2 if interval.mean == 0 else max(0, 2 - int(np.floor(np.log10(abs(interval.mean)))))
    return plain(interval, f".{digits}f") + " (n=1)" * (interval.n == 1)


def _count(one: Measured) -> str:
    n, planned = one.of["loss"].n, one.row.planned
    return str(n) if n == planned else f"{n}/{planned}"


def _definitions(frame: pd.DataFrame, lines: list[Measured]) -> list[str]:
    # The settings are the same on all lines: `bench measure` drops lines that were measured with others.
    one: Any = frame.iloc[0]
    sentences = [
        f"Of the final weights, in eval mode, on the first {one['measured_examples']:,.0f} training examples, "
        f"un-augmented, with the labels trained on, without weight decay, in {one['precision']}. "
        "Mean over seeds ± half-width of the 95% Student-t interval; n: measured runs.",
        "Largest eigenvalue: of the Hessian of the mean loss over all trained parameters (Lanczos).",
        f"m-sharpness: mean over batches of {one['m']:g} of L(w + rho g/||g||) - L(w), rho = {one['rho']:g}, with g "
        "the gradient of that batch's loss.",
        f"Rise: mean of L(w + a d) - L(w) over a = -{RISE_AT:g} and {RISE_AT:g}, with d a random direction, the same "
        "for all optimizers of a seed, filter-normalised (Li et al. 2018, arXiv:1712.09913).",
    ]
    if any(line.of["ece"].n for line in lines):
        sentences.append(
            f"ECE: expected calibration error on the test set, {one['ece_bins']:.0f} bins of equal width (Guo et al. "
            "2017, arXiv:1706.04599); NLL: mean -log p of the label there."
        )
    return sentences


def _notes(frame: pd.DataFrame) -> list[str]:
    notes = []
    # Allowed by `bench measure --other-weights`.
    if other := int((frame["weights_sha256"] != frame["recorded_sha256"]).sum()):
        notes.append(
            f"{other} of {counted(len(frame), 'run')} were measured with weights that are not the recorded ones."
        )
    costs = [
        f"{title} {frame[f'{name}_seconds'].mean():.3g} s ({frame[count].mean():.3g} {unit})"
        for name, (title, unit, count) in COSTS.items()
    ]
    machines = ", ".join(sorted({str(device) for device in frame["device"]}))
    notes.append(f"Cost, mean of a run: {', '.join(costs)}, calibration {frame['calibration_seconds'].mean():.3g} s.")
    notes.append(f"Measured on {machines}; a product of Hessian and vector costs about two passes over the examples.")
    return notes
