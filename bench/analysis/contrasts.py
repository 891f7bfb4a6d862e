"""Two optimizers compared seed by seed: SAM and its relatives against what they wrap, and at which equal budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.analysis import bounds
from bench.analysis.stats import FEWEST, LEVEL, PairedTest, holm, paired_test, smallest_detectable
from bench.analysis.summary import Row
from bench.store import selection
from bench.store.conditions import KEY, keyed

if TYPE_CHECKING:
    from bench.store.records import Results

Budget = Literal["epochs", "passes", "epochs and passes", "neither"]
Verdict = Literal["better", "worse", "unclear", "untested"]
EQUAL = 0.01  # relative: budgets that differ by less are equal, since the last batch of an epoch may be smaller


@dataclass(frozen=True)
class Contrast:
    """The chosen configurations of two labels under one condition.

    Attributes:
        ours, theirs: the rows of the two labels.
        a, b: the test metric of the seeds that both finished, in one order, as stored (fractions).
        test: the paired test of a - b.
        p: the t test's p, corrected by Holm's method over all contrasts with the same competitor's label.
        among: how many contrasts p is corrected for.
        equal: which budget the two have in common.
        higher_is_better: of the metric.
    """

    ours: Row
    theirs: Row
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    test: PairedTest
    p: float
    among: int
    equal: Budget
    higher_is_better: bool

    @property
    def condition(self) -> str:
        return self.ours.condition

    @property
    def differences(self) -> NDArray[np.float64]:
        """Return ours minus theirs, seed by seed."""
        return self.a - self.b

    @property
    def degenerate(self) -> list[str]:
        """Return the labels of the degenerate sides (see `degenerate.py`)."""
        return [row.label for row in (self.ours, self.theirs) if row.degenerate]

    @property
    def covers_zero(self) -> bool:
        """Return whether the interval of the difference leaves open which side is better."""
        # Written with `not`, so that an unknown interval, whose bounds are NaN, counts as covering 0.
        return not (self.test.difference.low > 0 or self.test.difference.high < 0)

    @property
    def verdict(self) -> Verdict:
        """Return what the numbers support: a side is better only if the corrected p is below 0.05.

        "untested" below `FEWEST` pairs, whose spread says too little, and without a p: of differences that are all the
        same t says nothing.
        """
        if self.test.difference.n < FEWEST or np.isnan(self.p):
            return "untested"
        # The interval is not corrected: Holm's p can be above 0.05 although the interval leaves out 0.
        if self.p > 1 - LEVEL or self.covers_zero:
            return "unclear"
        return "better" if (self.test.difference.mean > 0) == self.higher_is_better else "worse"

    @property
    def detectable(self) -> float:
        """Return the smallest true difference that this comparison would find 4 times in 5; NaN if it is undefined."""
        return smallest_detectable(self.differences)


def contrasts(results: Results, chosen: Sequence[Row]) -> list[Contrast]:
    """Return every comparison of the results table, the table `statistics` and the answer, competitor by competitor.

    The competitors are the baseline, with which all other labels are compared, and the optimizers that wrap none, with
    which SAM and its relatives are: an optimizer that some of them wrap meets only those. Those of one competitor are
    in the order of the experiment, by condition.
    """
    values = _test_metric(results)
    compared: list[Contrast] = []
    for competitor in competitors(results):
        met = _met(results, competitor)
        ours = [row for row in chosen if row.label in met]
        # Holm's correction counts one competitor's comparisons under all conditions: each competitor is a new question.
        compared += _corrected([_contrast(results, values, row, _partner(chosen, competitor, row)) for row in ours])
    return compared


def pairs(compared: Sequence[Contrast]) -> dict[tuple[str, str], None]:
    """Return the labels that are compared, each pair once."""
    return dict.fromkeys((one.ours.label, one.theirs.label) for one in compared)


def composition(results: Results) -> dict[str, tuple[str, str]]:
    """Return the name of each label's method or optimizer, and of what it wraps: ("sam", "sgd") or ("sgd", "")."""
    records = results.records
    first = records.drop_duplicates("optimizer").set_index("optimizer").reindex(columns=["method", "base"])
    first = first.astype(object).fillna("")  # a column that is missing everywhere is one of numbers
    return {
        label: (str(first.at[label, "method"]), str(first.at[label, "base"]))
        for label in results.meta["labels"]
        if label in first.index
    }


def wrappers(results: Results) -> list[str]:
    """Return the labels that wrap another optimizer, as SAM does, in the experiment's order, without the baseline."""
    records = results.records
    # "base" names the wrapped optimizer; where no label wraps one, the column may be missing.
    wrapping = set(records.loc[records["base"].notna(), "optimizer"]) if "base" in records else set()
    return [label for label in results.meta["labels"] if label in wrapping and label != results.meta["baseline"]]


def competitors(results: Results) -> list[str]:
    """Return the baseline and, if any label wraps an optimizer, every other label that does not."""
    baseline, wrapping = results.meta["baseline"], wrappers(results)
    others = [label for label in results.meta["labels"] if label not in {baseline, *wrapping}]
    # The baseline comes first: `answer` takes the first contrast of a label for the one against the baseline.
    return [baseline, *(others if wrapping else [])]


def _met(results: Results, competitor: str) -> list[str]:
    """Return the labels that are compared with a competitor."""
    if competitor == results.meta["baseline"]:
        return [label for label in results.meta["labels"] if label != competitor]
    made, wrapping = composition(results), wrappers(results)
    own = [label for label in wrapping if made[label][1] == made[competitor][0]]
    # Nobody asks if SAM over Lion beats Muon where SAM over Muon is there, too. An optimizer that none wraps meets all.
    return own or wrapping


def finished(results: Results) -> pd.DataFrame:
    """Return the records of the finished runs that have test numbers, with text in all of `KEY`."""
    records = keyed(selection.reported(results.records))
    return records[records["status"] == "done"]


def equal_budget(ours: Row, theirs: Row) -> Budget:
    """Return which budget two rows have in common; passes are unknown before a run has finished."""
    # NaN passes, of rows without a finished run, are equal to nothing.
    epochs, passes = _alike(ours.epochs, theirs.epochs), _alike(ours.passes, theirs.passes)
    if epochs and passes:
        return "epochs and passes"
    return "epochs" if epochs else "passes" if passes else "neither"


def _alike(a: float, b: float) -> bool:
    # Relative to the larger budget, so that the order of the two does not matter.
    return bool(abs(a - b) <= EQUAL * max(abs(a), abs(b)))


def _partner(chosen: Sequence[Row], label: str, row: Row) -> Row:
    # There is always one: every label has a chosen row under every condition.
    return next(other for other in chosen if other.label == label and other.condition == row.condition)


def _test_metric(results: Results) -> dict[tuple[str, str, str], pd.Series]:
    """Return the test metric of every configuration's finished runs, by seed."""
    column = f"test_{results.meta['metric']['key']}"
    runs = finished(results).set_index("seed")
    places: Any = runs.groupby(KEY, sort=False).indices
    # `place` holds positions. Seeds, which are the index here, repeat from one configuration to the next.
    return {key: runs[column].astype(float).iloc[place] for key, place in places.items()}


def _contrast(results: Results, values: dict[tuple[str, str, str], pd.Series], ours: Row, theirs: Row) -> Contrast:
    # Stands for a configuration without a finished run: the inner join below is then empty.
    none = pd.Series(dtype=float)
    sides = [values.get((row.condition, row.label, row.config), none) for row in (ours, theirs)]
    both = pd.concat(sides, axis=1, join="inner").dropna().to_numpy(dtype=float)
    return Contrast(
        ours,
        theirs,
        both[:, 0],
        both[:, 1],
        paired_test(both[:, 0], both[:, 1], bounds=bounds.of_difference(results.meta["metric"])),
        # p and the number of comparisons are not known yet: `_corrected` needs all contrasts of the competitor.
        np.nan,
        0,
        equal_budget(ours, theirs),
        bool(results.meta["metric"]["higher_is_better"]),
    )


def _corrected(compared: Sequence[Contrast]) -> Iterator[Contrast]:
    raw = [contrast.test.p_t for contrast in compared]
    # A contrast without a p (too few pairs, no spread) could not have been a false finding, so it is not counted.
    tested = int(np.sum(~np.isnan(raw)))
    for contrast, p in zip(compared, holm(raw), strict=True):
        yield replace(contrast, p=float(p), among=tested)
