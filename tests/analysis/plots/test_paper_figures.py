"""What a paper needs of the figures: two widths, numbers beside them, the Pareto front, seed by seed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis import plots
from bench.analysis.plots.context import Drawing
from bench.analysis.plots.looks import label_styles
from bench.analysis.plots.style import WIDTHS
from bench.analysis.stats import on_front
from bench.analysis.study import Study
from bench.store.records import Results

Make = Callable[..., Results]
FEW = {"sgd": {"test": 0.92}, "adam": {"test": 0.91}, "sam": {"test": 0.937, "sweep": ("rho", (0.1, 0.2))}}
NOISE = {"label_noise": [0.2, 0.4]}
VARIED = {"alone": {}, "conditions": {"vary": NOISE}}


def ys(line: Line2D) -> np.ndarray[Any, Any]:
    return np.asarray(line.get_ydata(), dtype=float)


def xs(line: Line2D) -> np.ndarray[Any, Any]:
    return np.asarray(line.get_xdata(), dtype=float)


def drawn(figure: Figure, along: str) -> np.ndarray[Any, Any]:
    """Every place along an axis, "x" or "y", at which something stands in a figure."""
    return np.concatenate([(xs if along == "x" else ys)(line) for ax in figure.axes for line in ax.lines])


def holds(values: np.ndarray[Any, Any], of: np.ndarray[Any, Any]) -> bool:
    """Whether each of the values is among the others, but for rounding."""
    return bool((np.abs(of[:, None] - values) < 1e-9).any(axis=0).all())


@pytest.fixture(params=VARIED)
def drawings(request: pytest.FixtureRequest, make_results: Make) -> dict[str, Drawing]:
    return plots.draw(Study(make_results(FEW, **VARIED[request.param])))


def test_every_figure_has_its_numbers_beside_it(drawings: dict[str, Drawing]) -> None:
    columns = {
        "curves": "test_acc_mean [%]",
        "gap": "gap_acc_mean [%]",
        "sweep": "val_acc_mean [%]",
        "cost": "test_acc_mean [%]",
        "paired": "difference [%]",
        "conditions": "test_acc_mean [%]",
    }
    for name, drawing in drawings.items():
        values = drawing.data[columns[name.partition("-")[0]]].to_numpy(float)
        assert len(values)
        assert holds(values, drawn(drawing.figure, "x" if name.startswith("paired") else "y")), name
        assert drawing.caption.endswith(".")


def test_the_numbers_of_a_curve_are_those_drawn(drawings: dict[str, Drawing]) -> None:
    figure, _, data = drawings["curves"]
    data = data[data["condition"] == data["condition"].iloc[0]] if "condition" in data else data
    for label, line in zip(FEW, figure.axes[0].lines, strict=True):
        assert ys(line) == pytest.approx(data.loc[data["optimizer"] == label, "test_acc_mean [%]"].to_numpy())
    first = figure.axes[0].collections[0].get_paths()[0].vertices
    of_first = data[data["optimizer"] == "sgd"]
    assert np.asarray(first)[:, 1].min() == pytest.approx(of_first["test_acc_low [%]"].min())
    assert np.asarray(first)[:, 1].max() == pytest.approx(of_first["test_acc_high [%]"].max())


def test_files_of_numbers_are_written_beside_the_figures(make_results: Make, tmp_path: Path) -> None:
    results = make_results(FEW)
    drawings = plots.draw(Study(results))
    paths = plots.build(Study(results), tmp_path)
    assert [path.suffix for path in paths] == [".png", ".pdf", ".csv"] * len(drawings)
    found = pd.read_csv(tmp_path / "figures" / "paired.csv")
    expected = pd.read_csv(io.StringIO(drawings["paired"].data.to_csv(index=False)))
    pd.testing.assert_frame_equal(found, expected)
    assert len(found) == 2 * 5


def test_a_column_is_narrower_in_type_of_the_same_size(make_results: Make, tmp_path: Path) -> None:
    for vary in ({}, NOISE):
        results = make_results(FEW, vary=vary)
        page, column = (plots.draw(Study(results), WIDTHS[width]) for width in ("page", "column"))
        for name, drawing in column.items():
            assert drawing.figure.get_figwidth() == WIDTHS["column"]
            assert (
                drawing.figure.axes[0].xaxis.label.get_fontsize()
                == page["curves"].figure.axes[0].xaxis.label.get_fontsize()
            )
            specs = [ax.get_subplotspec() for ax in drawing.figure.axes]
            across = {spec.colspan.start for spec in specs if spec}
            assert len(across) <= (2 if name.startswith("cost") and vary else 1), name
        shown = [sum(len(one.figure.axes) for one in drawings.values()) for drawings in (page, column)]
        assert shown[0] == shown[1], "no panel is lost"
    paths = plots.build(Study(make_results({"sgd": {}, "sam": {}}, seeds=(0,))), tmp_path, "column")
    assert {path.parent for path in paths} == {tmp_path / "figures" / "column"}


# ---- seed by seed --------------------------------------------------------------------------------------------


def test_a_line_for_each_seed_goes_from_the_baseline_to_the_optimizer(make_results: Make) -> None:
    results = make_results(FEW, status={("adam", "", 3): "diverged"})
    value, difference = plots.draw(Study(results), only=["paired"])["paired"].figure.axes
    assert [text.get_text() for text in value.get_yticklabels()] == ["adam, 4 of 5 seeds", "sam (rho=0.2)"]
    rows = {row.label: row for row in Study(results).rows if row.chosen}
    records = results.records[results.records["status"] == "done"].fillna({"config": ""})

    def of(label: str) -> pd.Series:
        mine = records[(records["optimizer"] == label) & (records["config"] == rows[label].config)]
        return 100 * mine.set_index("seed")["test_acc"]

    colour = label_styles(list(FEW))["adam"]["color"]
    lines = [xs(line) for line in value.lines if line.get_color() == colour and line.get_marker() == "None"]
    pairs = np.column_stack([of("sgd"), of("adam").reindex(range(5))])
    assert np.array(lines) == pytest.approx(pairs[~np.isnan(pairs).any(axis=1)])
    (mean,) = (line for line in difference.lines if line.get_color() == colour and line.get_markersize() > 5)
    assert rows["adam"].difference is not None
    assert xs(mean)[0] == pytest.approx(100 * rows["adam"].difference.difference.mean)


def test_nothing_is_paired_without_a_partner(make_results: Make) -> None:
    assert "paired" not in plots.draw(Study(make_results({"sgd": {}})))
    lost = {("sgd", "", seed): "failed" for seed in range(5)}
    assert "paired" not in plots.draw(Study(make_results(FEW, status=lost)))
    apart = {("sgd", "", seed): "failed" for seed in range(3)} | {("adam", "", seed): "failed" for seed in (3, 4)}
    data = plots.draw(Study(make_results(FEW, status=apart)), only=["paired"])["paired"].data
    assert set(data["optimizer"]) == {"sam"}


# ---- the Pareto front ----------------------------------------------------------------------------------------


def test_what_nothing_beats_at_its_cost_is_on_the_front() -> None:
    costs, values = [1.0, 2.0, 2.0, 3.0, 4.0, np.nan], [0.5, 0.7, 0.6, 0.7, 0.9, 1.0]
    assert list(on_front(costs, values, higher_is_better=True)) == [True, True, False, False, True, False]
    assert list(on_front(costs, values, higher_is_better=False)) == [True, False, False, False, False, False]
    assert list(on_front([1.0, 1.0], [0.5, 0.5], higher_is_better=True)) == [True, True], (
        "equals do not beat each other"
    )


def test_the_front_is_drawn_through_its_points(make_results: Make) -> None:
    figure, _, data = plots.draw(Study(make_results(FEW)), only=["cost"])["cost"]
    for ax, cost in zip(figure.axes, ("train_seconds", "passes"), strict=True):
        (front,) = (line for line in ax.lines if line.get_drawstyle() == "steps-post")
        flagged = data[data[f"on_front_of_{cost}"]]
        assert sorted(ys(front)[:-1]) == pytest.approx(sorted(flagged["test_acc_mean [%]"]))
        assert "sam" in set(flagged["optimizer"])


def test_points_of_equal_cost_stand_beside_each_other(make_results: Make) -> None:
    figure = plots.draw(Study(make_results(FEW)), only=["cost"])["cost"].figure
    figure.draw_without_rendering()
    marks = {line.get_color(): line for line in figure.axes[1].lines if line.get_marker() not in ("None", "")}
    looks = label_styles(list(FEW))
    sgd, adam = (marks[looks[label]["color"]] for label in ("sgd", "adam"))
    assert np.array_equal(sgd.get_xdata(), adam.get_xdata())
    places = [line.get_transform().transform(line.get_xydata())[0, 0] for line in (sgd, adam)]
    assert abs(places[0] - places[1]) > 3


# ---- tuning as a phase of its own, and several hyperparameters at once ---------------------------------------

TUNED = {"sgd": {"sweep": ("lr", (0.01, 0.1))}, "adam": {}, "sam": {"test": 0.937, "sweep": ("rho", (0.1, 0.2))}}
CHOSEN = {"sgd": "lr=0.1", "adam": "", "sam": "rho=0.2"}


def best(records: pd.DataFrame) -> pd.DataFrame:
    """The records with validation in favour of what is in CHOSEN, where there is validation."""
    favoured = records["config"].fillna("") == records["optimizer"].map(CHOSEN)
    return records.assign(val_acc=records["val_acc"].where(records["val_acc"].isna(), 0.8 + 0.1 * favoured))


def test_figures_are_of_final_runs_and_those_of_sweeps_of_tuning(make_phased: Make) -> None:
    results = make_phased(CHOSEN, TUNED, change=best)
    drawings = plots.draw(Study(results))
    assert set(drawings["paired"].data["seed"]) == {2, 3, 4}
    assert set(drawings["curves"].data["n"]) == {3}
    figure, caption, data = drawings["sweep"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["validation accuracy (%)"] * 2
    assert "runs for tuning" in caption
    assert not [column for column in data if str(column).startswith(("test", "gap"))]
    tune = results.records[(results.records["phase"] == "tune") & (results.records["optimizer"] == "sam")]
    expected = 100 * tune.groupby("rho")["val_acc"].mean()
    low, high = figure.axes[1].get_ylim()
    assert low > 100 * tune["val_acc"].min() - 5, "two seeds' intervals do not set the limits"
    assert high < 100 * tune["val_acc"].max() + 5
    (line,) = (line for line in figure.axes[1].lines if len(ys(line)) == 2 and line.get_marker() == "D")
    assert ys(line) == pytest.approx(expected.to_numpy())
    (ring,) = (line for line in figure.axes[1].lines if line.get_markersize() > 8)
    assert list(np.asarray(ring.get_xdata())) == [0.2]
    assert ys(ring) == pytest.approx([expected[0.2]])


def test_an_interval_beyond_what_a_share_can_be_stretches_no_axis(make_results: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        wide = np.array([0.4, 0.99, 0.99])[records["seed"]]  # a mean of 79 %, and 85 points to either side
        return records.assign(test_acc=wide, val_acc=wide)

    labels: dict[str, Any] = {"sgd": {}, "sam": {"sweep": ("rho", (0.1, 0.2, 0.5))}}
    figure = plots.draw(Study(make_results(labels, seeds=(0, 1, 2), change=change)), only=["sweep"])["sweep"].figure
    low, high = figure.axes[0].get_ylim()
    assert -15 < low <= 0
    assert 100 <= high < 115


def test_several_swept_numbers_have_a_panel_each_and_a_point_a_configuration(make_results: Make) -> None:
    decay = {"rho=0.05": 1e-4, "rho=0.1": 1e-3, "rho=0.2": 1e-4, "rho=0.5": 1e-3}

    def change(records: pd.DataFrame) -> pd.DataFrame:
        return records.assign(weight_decay=records["config"].map(decay).fillna(5e-4))

    labels = {"sgd": {}, "sam": {"sweep": ("rho", (0.05, 0.1, 0.2, 0.5))}}
    results = make_results(labels, change=change, sweeps={"sam": ["rho", "weight_decay"]})
    figure, caption, data = plots.draw(Study(results), only=["sweep"])["sweep"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["rho"] * 2 + ["weight_decay"] * 2
    assert "a point a configuration" in caption
    assert list(data["weight_decay"]) == list(decay.values())
    for ax, places in ((figure.axes[0], data["rho"]), (figure.axes[2], data["weight_decay"])):
        points = [line for line in ax.lines if line.get_marker() == "D" and line.get_markersize() < 8]
        assert [np.asarray(line.get_xdata())[0] for line in points] == sorted(places)
        assert sorted(ys(line)[0] for line in points) == pytest.approx(sorted(data["test_acc_mean [%]"]))
