"""The table and the figures of what `bench measure` found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.analysis import plots, render, tables
from bench.analysis.render.table import Table
from bench.analysis.sharpness import CAVEAT, around, measured
from bench.analysis.study import Study
from bench.core.errors import BenchError
from bench.store import records
from bench.store.records import Results

matplotlib.use("agg")
Make = Callable[..., Results]
TICKS = np.linspace(-1, 1, 5)


def with_measures(results: Results) -> Results:
    """Measures of every run: an eigenvalue that tells optimizer and seed, a parabola along the direction."""
    rows, points = [], []
    labels = results.meta["labels"]
    for line in results.records.itertuples():
        record: Any = line
        sharp = 1.0 + labels.index(record.optimizer)
        place = {"run_id": record.run_id, "condition": record.condition, "optimizer": record.optimizer}
        place |= {"config": record.config, "seed": record.seed}
        loss = 0.1 + 0.01 * record.seed
        about = {"recorded_sha256": "ab", "weights_sha256": "ab", "weights": "repeated", "precision": "fp32", "m": 128}
        about |= {"rho": 0.05, "measured_examples": 1000.0, "device": "AMD EPYC", "loss": loss}
        found = {"eigenvalue_1": 10 * sharp + record.seed, "m_sharpness": 0.01 * sharp, "ece": 0.02, "ece_bins": 15.0}
        costs = {
            "hessian_seconds": 2.0,
            "hessian_products": 13.0,
            "m_sharpness_seconds": 0.5,
            "directions_seconds": 1.0,
        }
        costs |= {"m_sharpness_batches": 7.0, "directions_evaluations": 41.0, "calibration_seconds": 0.1, "nll": 0.3}
        rows.append({**place, **about, **found, **costs})
        for alpha in TICKS:
            at = loss + sharp * alpha**2
            points.append({**place, "direction": "line", "alpha": alpha, "beta": 0.0, "loss": at})
            if record.seed == 0:
                for beta in TICKS:
                    plane = {"direction": "plane", "alpha": alpha, "beta": beta, "loss": at + sharp * beta**2}
                    points.append({**place, **plane})
    return replace(results, measures=pd.DataFrame(rows), directions=pd.DataFrame(points))


@pytest.fixture
def results(make_results: Make) -> Results:
    return with_measures(make_results())


def sharpness(results: Results) -> Table:
    (table,) = (table for table in tables.build(Study(results)) if table.name == "sharpness")
    return table


def test_a_row_a_chosen_configuration_with_t_intervals_over_its_seeds(results: Results) -> None:
    table = sharpness(results)
    assert [row[0].split()[0] for row in table.rows] == results.meta["labels"]
    first = table.numbers.iloc[0]
    low, high = stats.t.interval(0.95, 4, 12.0, stats.sem([10, 11, 12, 13, 14]))
    assert (first["eigenvalue_1_mean"], first["n"]) == (12.0, 5)
    assert (first["eigenvalue_1_low"], first["eigenvalue_1_high"]) == pytest.approx((low, high))
    assert first["rise_mean"] == pytest.approx(0.25), "alpha = 0.5 of a parabola of curvature 1"
    assert table.rows[0][2:4] == ["12.0 ± 2.0", "0.0100 (all equal)"]
    assert "13 products" in " ".join(table.footnotes)


def test_the_caveat_and_every_definition_stand_under_it(results: Results) -> None:
    caption = sharpness(results).caption
    assert CAVEAT in caption
    said = " ".join(caption)
    for word in (
        "Hessian",
        "rho = 0.05",
        "batches of 128",
        "filter-normalised",
        "15 bins",
        "eval mode",
        "weight decay",
    ):
        assert word in said


def test_without_measures_there_is_no_table_and_no_figure(make_results: Make) -> None:
    plain = make_results()
    assert "sharpness" not in [table.name for table in tables.build(Study(plain))]
    assert not {"sharpness", "planes"} & plots.draw(Study(plain)).keys()


def test_a_run_that_has_other_weights_since_is_left_out(results: Results) -> None:
    results.records.loc[results.records["optimizer"] == "sgd", "weights_sha256"] = "cd"
    assert "sgd" not in set(measured(results)["optimizer"])
    assert "sgd" not in [row[0] for row in sharpness(results).rows]
    assert "sgd" not in set(around(Study(results), "line")["optimizer"])


def test_weights_that_are_not_the_recorded_ones_are_told(results: Results) -> None:
    assert results.measures is not None
    results.measures.loc[:2, "weights_sha256"] = "ef"
    assert "3 of 55 runs were measured with weights that are not the recorded ones." in sharpness(results).footnotes


def test_a_regression_has_no_calibration(results: Results) -> None:
    assert results.measures is not None
    plain = replace(results, measures=results.measures.drop(columns=["ece", "ece_bins", "nll"]))
    table = sharpness(plain)
    assert not {"ECE (%)", "NLL (nats)"} & set(table.columns)
    assert "calibration error" not in " ".join(table.caption)


def test_incomplete_measures_say_over_how_many(results: Results) -> None:
    assert results.measures is not None
    fewer = results.measures[~((results.measures["optimizer"] == "sgd") & (results.measures["seed"] > 1))]
    assert sharpness(replace(results, measures=fewer)).rows[0][-1] == "2/5"


@pytest.mark.parametrize("form", ["md", "tex", "csv"])
def test_every_format_is_the_same_twice(results: Results, form: str) -> None:
    assert render.render(sharpness(results), form) == render.render(sharpness(results), form)


def test_figures_draw_the_same_levels_and_axes_for_all(results: Results) -> None:
    drawn = plots.draw(Study(results))
    line, plane = drawn["sharpness"], drawn["planes"]
    assert set(line.data["optimizer"]) == set(results.meta["labels"])
    at = line.data[(line.data["optimizer"] == "sgd") & (line.data["alpha"] == 1)].iloc[0]
    assert (at["n"], at["loss_mean"]) == (5, pytest.approx(1.12))
    panels = [ax for ax in plane.figure.axes if ax.get_title()]
    assert len(panels) == 5
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in panels}) == 1
    drawn_levels: list[Any] = [ax.collections[0] for ax in panels]
    levels = {tuple(contours.levels) for contours in drawn_levels}
    assert len(levels) == 1
    assert len(plane.data) == 5 * 25


def test_losses_that_are_all_alike_and_a_loss_that_is_missing_are_drawn(make_results: Make) -> None:
    flat = with_measures(make_results())
    assert flat.directions is not None
    alike = replace(flat, directions=flat.directions.assign(loss=0.5))
    assert "planes" in plots.draw(Study(alike))
    many = with_measures(make_results({"sgd": {}, **{f"x{number}": {} for number in range(7)}}))
    assert many.directions is not None
    lost = many.directions["loss"].where(many.directions["optimizer"] == "none", float("nan"))
    assert plots.draw(Study(replace(many, directions=many.directions.assign(loss=lost)))) is not None


def test_conditions_have_panels_and_planes_of_their_own(make_results: Make) -> None:
    drawn = plots.draw(Study(with_measures(make_results(vary={"label_noise": [0.2, 0.4]}))))
    assert len(drawn["sharpness"].figure.axes) == 2
    assert {"planes", "planes-2"} <= drawn.keys()


def test_what_is_published_is_read_back_and_survives_new_records(results: Results, tmp_path: Path) -> None:
    folder = tmp_path
    assert results.measures is not None
    assert results.directions is not None
    unmeasured = replace(results, measures=None, directions=None)
    records.publish(unmeasured, folder)
    assert records.read(folder).measures is None
    records.publish_measures(results.measures, results.directions, folder)
    records.publish(unmeasured, folder)
    again = records.read(folder)
    assert again.measures is not None
    assert list(again.measures["eigenvalue_1"]) == list(results.measures["eigenvalue_1"])
    path = folder / "measures.csv"
    path.write_text(path.read_text().replace("AMD", "amd"))
    with pytest.raises(BenchError, match=r"measures\.csv is not as it was written.* delete it, and `bench measure"):
        records.read(folder)
