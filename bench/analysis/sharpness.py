"""What `bench measure` found, beside what the runs reached: sharpness and calibration of the chosen configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.analysis.cells import plain
from bench.analysis.render import EMPTY, Table
from bench.analysis.stats import Interval, mean_interval
from bench.analysis.summary import Row, all_rows
from bench.analysis.words import Words
from bench.core.errors import counted
from bench.store.conditions import KEY, keyed, names, value_text

if TYPE_CHECKING:
    from bench.store.records import Results

RISE_AT = 0.5
"""How far along its direction the rise of the loss is told in one number, as a share of the norm of every filter."""

CAVEAT = (
    "Sharpness describes solutions; it correlates poorly with generalization across models, data and training setups "
    "(Andriushchenko et al. 2023, arXiv:2302.07011): it is no evidence for or against an optimizer by itself."
)
MEASURES = ("eigenvalue_1", "m_sharpness", "rise", "ece", "nll", "loss")
COSTS = {
    "hessian": ("Hessian", "products of Hessian and vector", "hessian_products"),
    "m_sharpness": ("m-sharpness", "ascents", "m_sharpness_batches"),
    "directions": ("directions", "evaluations", "directions_evaluations"),
}


def measured(results: Results) -> pd.DataFrame:
    """Return the rows of measures.csv that are still valid, with "rise"; without rows if there are none.

    A run that was repeated since with other weights, or is no longer planned, is left out. Columns as in measures.csv;
    "rise" is the mean of L(w + alpha d) - L(w) over alpha = -0.5 and 0.5 along the run's direction.
    """
    if results.measures is None or results.directions is None:
        return pd.DataFrame(columns=[*KEY, "run_id", "seed", *MEASURES])
    recorded = results.records.drop_duplicates("run_id").set_index("run_id")["weights_sha256"]
    frame = results.measures[results.measures["run_id"].map(recorded) == results.measures["recorded_sha256"]]
    lines = results.directions[results.directions["direction"] == "line"]
    aside = lines[lines["alpha"].abs().sub(RISE_AT).abs() < 1e-9].groupby("run_id")["loss"].mean()
    frame = frame.assign(rise=frame["run_id"].map(aside) - frame["loss"])
    return keyed(frame.reindex(columns=[*dict.fromkeys([*frame.columns, *MEASURES])]))


def around(results: Results, kind: str) -> pd.DataFrame:
    """Return the points in directions.csv of one kind ("line" or "plane"), of the chosen configurations' measured runs.

    Columns: condition, optimizer, config, seed, run_id, alpha, beta, loss.
    """
    kept = measured(results)
    if results.directions is None or kept.empty:
        return pd.DataFrame(columns=[*KEY, "seed", "run_id", "alpha", "beta", "loss"])
    points = keyed(results.directions)
    points = points[(points["direction"] == kind) & points["run_id"].isin(kept["run_id"])]
    wanted = pd.MultiIndex.from_tuples(
        [(row.condition, row.label, row.config) for row in all_rows(results) if row.chosen], names=KEY
    )
    return points[pd.MultiIndex.from_frame(points[KEY]).isin(wanted)].drop(columns="direction")


def table(words: Words, results: Results, best: list[Row]) -> list[Table]:
    """Return the table "sharpness" of the chosen configurations, or none if no run of theirs was measured."""
    frame = measured(results)
    rows = [row for row in best if len(_of(frame, row))]
    if not rows:
        return []
    found = [{name: _interval(name, _of(frame, row)[name]) for name in MEASURES} for row in rows]
    cells = _cells(words, found)
    columns = [*names(words.varied), *cells, "n"]
    text = [
        [*map(value_text, row.varied.values()), *(cell(row, of) for cell in cells.values()), _count(row, of)]
        for row, of in zip(rows, found, strict=True)
    ]
    title = f"{words.meta['title']}: sharpness and calibration"
    caption = [*_definitions(frame, found), CAVEAT, *words.closing()]
    return [
        Table(
            words.meta["name"],
            "sharpness",
            title,
            caption,
            columns,
            text,
            _notes(frame),
            _numbers(rows, found),
            len(words.varied),
        )
    ]


def _of(frame: pd.DataFrame, row: Row) -> pd.DataFrame:
    here = (frame["condition"] == row.condition) & (frame["optimizer"] == row.label) & (frame["config"] == row.config)
    return frame[here]


def _interval(name: str, values: pd.Series) -> Interval:
    """Return the interval of the mean; that of the calibration error, a share, is cut at 0 and 1."""
    found = mean_interval(values)
    return found.within(0.0, 1.0) if name == "ece" else found


Found = Mapping[str, Interval]


def _cells(words: Words, found: list[dict[str, Interval]]) -> dict[str, Callable[[Row, Found], str]]:
    classes = any(of["ece"].n for of in found)
    return {
        "optimizer": lambda row, of: row.name,
        f"test {words.metric}{words.brackets}": lambda row, of: words.mean(row.test_metric),
        "largest eigenvalue": lambda row, of: _mean(of["eigenvalue_1"]),
        "m-sharpness": lambda row, of: _mean(of["m_sharpness"]),
        "rise along a direction": lambda row, of: _mean(of["rise"]),
        **({"ECE (%)": lambda row, of: _mean(of["ece"].scaled(100))} if classes else {}),
        **({"NLL (nats)": lambda row, of: _mean(of["nll"])} if classes else {}),
    }


def _mean(interval: Interval) -> str:
    """Return the mean ± half-width with three significant digits of the mean."""
    if interval.n == 0:
        return EMPTY
    digits = 2 if interval.mean == 0 else max(0, 2 - int(np.floor(np.log10(abs(interval.mean)))))
    return plain(interval, f".{digits}f") + " (n=1)" * (interval.n == 1)


def _count(row: Row, of: Found) -> str:
    n = of["loss"].n
    return str(n) if n == row.planned else f"{n}/{row.planned}"


def _definitions(frame: pd.DataFrame, found: list[dict[str, Interval]]) -> list[str]:
    one: Any = frame.iloc[0]
    lines = [
        f"Of the final weights, in eval mode, on the first {one['measured_examples']:,.0f} training examples, "
        f"un-augmented, with the labels trained on, without weight decay, in {one['precision']}. "
        "Mean over seeds ± half-width of the 95% Student-t interval; n: measured runs.",
        "Largest eigenvalue: of the Hessian of the mean loss over all trained parameters (Lanczos).",
        f"m-sharpness: mean over batches of {one['m']:g} of L(w + rho g/||g||) - L(w), rho = {one['rho']:g}, with g "
        "the gradient of that batch's loss.",
        f"Rise: mean of L(w + a d) - L(w) over a = -{RISE_AT:g} and {RISE_AT:g}, with d a random direction, the same "
        "for all optimizers of a seed, filter-normalised (Li et al. 2018, arXiv:1712.09913).",
    ]
    if any(of["ece"].n for of in found):
        lines.append(
            f"ECE: expected calibration error on the test set, {one['ece_bins']:.0f} bins of equal width (Guo et al. "
            "2017, arXiv:1706.04599); NLL: mean -log p of the label there."
        )
    return lines


def _notes(frame: pd.DataFrame) -> list[str]:
    notes = []
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


def _numbers(rows: list[Row], found: list[dict[str, Interval]]) -> pd.DataFrame:
    lines = []
    for row, of in zip(rows, found, strict=True):
        line: dict[str, Any] = {**row.varied, "optimizer": row.label, "config": row.config, "n": of["loss"].n}
        for name, interval in of.items():
            line |= {f"{name}_{part}": getattr(interval, part) for part in ("mean", "low", "high")}
        lines.append(line)
    return pd.DataFrame(lines)
