"""Results of `bench measure` that are still valid, and the loss around the weights of chosen configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from bench.analysis.study import Study
from bench.store.conditions import KEY, keyed

if TYPE_CHECKING:
    from bench.store.records import Results

RISE_AT = 0.5
"""Distance along the direction at which the rise of the loss is reported, as a share of every filter's norm."""

CAVEAT = (
    "Sharpness describes solutions; it correlates poorly with generalization across models, data and training setups "
    "(Andriushchenko et al. 2023, arXiv:2302.07011): it is no evidence for or against an optimizer by itself."
)
MEASURES = ("eigenvalue_1", "m_sharpness", "rise", "ece", "nll", "loss")


def measured(results: Results) -> pd.DataFrame:
    """Return the rows of measures.csv that are still valid, with "rise"; without rows if there are none.

    A run that was repeated since with other weights, or is no longer planned, is left out. Columns as in measures.csv;
    "rise" is the mean of L(w + alpha d) - L(w) over alpha = -0.5 and 0.5 along the run's direction.
    """
    if results.measures is None or results.directions is None:
        return pd.DataFrame(columns=[*KEY, "run_id", "seed", *MEASURES])
    recorded = results.records.drop_duplicates("run_id").set_index("run_id")["weights_sha256"]
    # Both are the recorded hash: the one from when the run was measured and the one that its records have now.
    frame = results.measures[results.measures["run_id"].map(recorded) == results.measures["recorded_sha256"]]
    lines = results.directions[results.directions["direction"] == "line"]
    # The mean over both sides cancels the slope of the loss, which says nothing about sharpness.
    aside = lines[lines["alpha"].abs().sub(RISE_AT).abs() < 1e-9].groupby("run_id")["loss"].mean()
    frame = frame.assign(rise=frame["run_id"].map(aside) - frame["loss"])
    # A regression has no calibration: the columns are there all the same, as NaN.
    return keyed(frame.reindex(columns=[*dict.fromkeys([*frame.columns, *MEASURES])]))


def around(study: Study, kind: str) -> pd.DataFrame:
    """Return the points in directions.csv of one kind ("line" or "plane"), of the chosen configurations' measured runs.

    Columns: condition, optimizer, config, seed, run_id, alpha, beta, loss.
    """
    results = study.results
    kept = measured(results)
    if results.directions is None or kept.empty:
        return pd.DataFrame(columns=[*KEY, "seed", "run_id", "alpha", "beta", "loss"])
    points = keyed(results.directions)
    points = points[(points["direction"] == kind) & points["run_id"].isin(kept["run_id"])]
    wanted = pd.MultiIndex.from_tuples([(row.condition, row.label, row.config) for row in study.chosen], names=KEY)
    return points[pd.MultiIndex.from_frame(points[KEY]).isin(wanted)].drop(columns="direction")
