"""What few runs, equal ones and bounded metrics must not be made to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bench.analysis import bounds, plots, tables
from bench.analysis.answer import answer
from bench.analysis.format import plain, signed_bounds
from bench.analysis.render.table import Table
from bench.analysis.stats import Interval, mean_interval, paired_test
from bench.analysis.study import Study
from bench.store.records import Results

Make = Callable[..., Results]
TWO: dict[str, Any] = {"sgd": {}, "sam": {}}
NOISE = np.array([0.0, 0.0001, -0.0001, 0.0002, -0.0002])


def scores(**by_label: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        for label, values in by_label.items():
            records.loc[records["optimizer"] == label, "test_acc"] = values
        return records

    return change


def wins(n: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return scores(sgd=0.8, sam=0.9 + NOISE[:n])


def numbers(frame: pd.DataFrame, columns: str) -> Any:
    """The known numbers of all columns whose names match."""
    values = frame.filter(regex=columns).to_numpy(float)
    return values[~np.isnan(values)]


def table(results: Results, name: str = "results") -> Table:
    return next(found for found in tables.build(Study(results)) if found.name == name)


# ---- few pairs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "verdict"), [(2, "untested"), (3, "untested"), (4, "better"), (5, "better")])
def test_fewer_than_four_pairs_have_no_verdict_whatever_p_is(make_results: Make, n: int, verdict: str) -> None:
    results = make_results(TWO, seeds=range(n), change=wins(n))
    (contrast,) = Study(results).contrasts
    assert contrast.p < 0.01
    assert contrast.verdict == verdict
    (said,) = answer(Study(results))
    if n < 4:
        assert said.startswith(f"sam against sgd ({n} pairs are too few for a verdict): test accuracy of sam 90.0")
        assert f"With n={n} pairs nothing is called better or worse, whatever p is" in " ".join(
            table(results).footnotes
        )
    else:
        assert said.startswith("sam is better than sgd: ")
        assert "nothing is called" not in " ".join(table(results).footnotes)


def test_pairs_are_counted_after_what_was_lost(make_results: Make) -> None:
    lost = {("sgd", "", 0): "diverged", ("sam", "", 1): "failed"}
    (contrast,) = Study(make_results(TWO, change=wins(5), status=lost)).contrasts
    assert (contrast.test.difference.n, contrast.verdict) == (3, "untested")


def test_many_optimizers_and_many_conditions_have_no_verdict_from_few_pairs_either(make_results: Make) -> None:
    many: dict[str, Any] = {"sgd": {}, **{f"sam-{n}": {} for n in range(5)}}
    change = scores(sgd=0.8, **{"sam-1": 0.9 + NOISE[:3]})
    (said,) = answer(Study(make_results(many, seeds=range(3), change=change)))
    assert "no verdict: sam-0" in said
    assert "better:" not in said
    vary = {"label_noise": [0.0, 0.2, 0.4, 0.6]}
    (counted,) = answer(Study(make_results(TWO, seeds=range(3), vary=vary, change=lambda records: records)))
    assert "better under none; worse under none; no verdict under all" in counted


# ---- equal values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0.34375] * 3, [0.0, 0.0], [0.1 + 0.2, 0.3]])
def test_equal_values_have_no_interval(values: list[float]) -> None:
    interval = mean_interval(values)
    assert interval.mean == pytest.approx(values[0])
    assert (interval.known, interval.alike) == (False, True)
    assert np.isnan([interval.low, interval.high, interval.half_width]).all()


def test_one_value_and_none_are_not_equal_ones() -> None:
    assert not mean_interval([0.3]).alike
    assert not mean_interval([]).alike
    assert mean_interval([0.3, 0.4]).known


def test_equal_values_are_marked_and_not_shown_as_certain(make_results: Make) -> None:
    results = make_results(TWO, change=scores(sgd=0.375, sam=0.34375))
    found = table(results)
    (sgd, sam) = ([row[1], row[2]] for row in found.rows)
    assert (sgd[0], *sam) == ("37.50 (all equal)", "34.38 (all equal)", "-3.12 (all equal)")
    assert numbers(found.numbers, "^(test_acc|difference)_(low|high)").size == 0
    assert numbers(found.numbers, "^(test_acc|difference)_mean").size == 3
    assert "34.38 (all equal) % against sgd 37.50 (all equal) %, that is -3.12 points (all equal), n = 5" in (
        " ".join(answer(Study(results)))
    )
    shown = [*found.rows, *table(results, "budgets").rows]
    assert "± 0.00" not in " ".join(cell for row in shown for cell in row)


# ---- bounds --------------------------------------------------------------------------------------------------


def test_an_interval_ends_where_its_metric_does() -> None:
    wide = Interval(2, 0.9, 0.4, 1.4)
    assert wide.within(0, 1) == Interval(2, 0.9, 0.4, 1.0)
    assert (wide.cut, wide.within(0, 1).cut) == (False, True)
    assert plain(wide.within(0, 1).scaled(100), ".2f") == "90.00 [40.00, 100.00]"
    assert plain(wide.scaled(100), ".2f") == "90.00 ± 50.00"
    assert signed_bounds(wide.within(-1, 1).scaled(100), ".2f") == "[+40.00, +100.00]"
    assert Interval(2, 1.2, 1.1, 1.3).within(0, 1) == Interval(2, 1.2, 1.1, 1.2), "the mean itself is never left out"
    assert paired_test([1.0, 0.0], [0.0, 0.1], bounds=(-1, 1)).difference.low == -1


def metric(about: dict[str, Any]) -> Any:
    return about


def test_bounds_are_the_metrics_own_and_of_older_records_those_of_accuracy() -> None:
    assert bounds.of_metric(metric({"key": "acc"})) == (0, 1)
    assert bounds.of_metric(metric({"key": "perplexity"})) == (-np.inf, np.inf)
    assert bounds.of_metric(metric({"key": "r2", "lowest": None, "highest": 1.0})) == (-np.inf, 1)
    assert bounds.of_difference(metric({"key": "mcc", "lowest": -1.0, "highest": 1.0})) == (-2, 2)
    assert bounds.of_difference(metric({"key": "r2", "lowest": None, "highest": 1.0})) == (-np.inf, np.inf)


def extreme(make_results: Make) -> Results:
    """Two seeds far apart: t intervals reach from far below 0 to far above 100%."""

    def change(records: pd.DataFrame) -> pd.DataFrame:
        high = records["seed"] == 1
        share = np.where(high, 1.0, 0.5) - np.where(~high & (records["optimizer"] == "sam"), 0.3, 0.0)
        columns = [f"{split}_acc" for split in ("val", "test", "train", "train_clean", "selected_test")]
        return records.assign(**dict.fromkeys(columns, share), gap_acc=np.where(high, 0.5, -0.4))

    labels = {"sgd": {}, "sam": {"sweep": ("rho", (0.1, 0.2, 0.4))}}
    results = make_results(labels, seeds=(0, 1), change=change)
    points = ["train_acc", "train_clean_acc", "val_acc", "test_acc"]
    curves = results.curves.assign(**dict.fromkeys(points, np.where(results.curves["seed"] == 1, 1.0, 0.2)))
    return Results(results.meta, results.records, curves)


def test_no_table_has_an_accuracy_beyond_what_there_can_be(make_results: Make) -> None:
    results = extreme(make_results)
    for row in Study(results).rows:
        for interval in (row.test_metric, row.val_metric, row.train_metric, row.selected_metric):
            assert (interval.low, interval.high) == (0, 1)
        assert (row.gap_metric.low, row.gap_metric.high) == (-1, 1)
        assert row.train_seconds.low >= 0
    for found in tables.build(Study(results)):
        levels = numbers(found.numbers, r"^(test|val)_.*\[%\]")
        differences = numbers(found.numbers, r"^(difference|gap_acc)_.*\[%\]")
        assert ((levels >= 0) & (levels <= 100)).all(), found.name
        assert (abs(differences) <= 100).all(), found.name
    assert table(results).rows[0][1] == "75.00 [0.00, 100.00]"


def axes_of_accuracy(figure: Figure) -> list[tuple[float, float]]:
    return [
        ax.get_ylim()
        for ax in figure.axes
        if "accuracy" in ax.get_ylabel() and "−" not in ax.get_ylabel() and "difference" not in ax.get_ylabel()
    ]


def test_no_figure_has_an_axis_of_accuracy_beyond_0_to_100_percent(make_results: Make) -> None:
    seen = 0
    for name, drawing in plots.draw(Study(extreme(make_results))).items():
        for low, high in axes_of_accuracy(drawing.figure):
            seen += 1
            assert low >= 0, name
            assert high <= 100, name
        levels = numbers(drawing.data, r"^(test|val|train_clean)_acc.*\[%\]")
        assert ((levels >= 0) & (levels <= 100)).all(), name
    assert seen >= 4
