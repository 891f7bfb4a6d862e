"""That the figures are drawn, complete, the same twice, and honest about what is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D

from bench.analysis import plots
from bench.analysis.plots.looks import label_styles
from bench.analysis.plots.style import RC, panel_width, value_axis, wide
from bench.analysis.study import Study
from bench.core.errors import BenchError
from bench.store import records
from bench.store.records import Results

Make = Callable[..., Results]
ROOT = Path(__file__).parents[3]
NOISE = {"label_noise": [0.2, 0.4, 0.6, 0.8]}
FEW = {"sgd": {"test": 0.92}, "adam": {"test": 0.91}, "sam": {"test": 0.937, "sweep": ("rho", (0.1, 0.2))}}
LABELS = ["sgd", "sgd-2x", "adam", "sam", "asam"]
pytestmark = pytest.mark.filterwarnings("error")


def figures(results: Results, *only: str) -> dict[str, Figure]:
    """Those named, with all their pages; without names, every figure."""
    return {name: drawing.figure for name, drawing in plots.draw(Study(results), only=only or None).items()}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def xs(line: Line2D) -> np.ndarray[Any, Any]:
    return np.asarray(line.get_xdata())


def ys(line: Line2D) -> np.ndarray[Any, Any]:
    return np.asarray(line.get_ydata())


def grid(figure: Figure, columns: int) -> list[list[Axes]]:
    return [figure.axes[start : start + columns] for start in range(0, len(figure.axes), columns)]


def test_every_figure_is_written_as_png_and_pdf_alike_whatever_the_users_style(
    make_results: Make, tmp_path: Path
) -> None:
    results = make_results({"sgd": {}, "sam": {"sweep": ("rho", (0.1, 0.2))}})
    paths = plots.build(Study(results), tmp_path)
    names = ["cost", "curves", "gap", "paired", "sweep"]
    forms = ("csv", "pdf", "png")
    assert sorted(path.name for path in paths) == [f"{name}.{form}" for name in names for form in forms]
    first = {path: path.read_bytes() for path in paths}
    assert all(path.parent == tmp_path / "figures" for path in paths)
    assert first[tmp_path / "figures" / "cost.png"].startswith(b"\x89PNG")
    assert b"CreationDate" not in first[tmp_path / "figures" / "cost.pdf"]
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9}):  # as a user's matplotlibrc might
        assert first == {path: path.read_bytes() for path in plots.build(Study(results), tmp_path)}
        assert matplotlib.rcParams["font.size"] == 20


def test_nothing_finished_is_an_error(make_results: Make, tmp_path: Path) -> None:
    results = make_results(change=lambda records: records.assign(status="missing"))
    with pytest.raises(BenchError, match="digits_noise: no finished run"):
        plots.build(Study(results), tmp_path)
    assert not list(tmp_path.iterdir())


def test_passes_have_their_own_panels_only_where_they_differ(make_results: Make) -> None:
    both = figures(make_results(), "curves")["curves"]
    assert [ax.get_xlabel() for ax in both.axes] == ["epoch"] * 2 + ["forward-backward passes"] * 2
    alike = figures(make_results({"sgd": {}, "adam": {}}), "curves", "sweep")
    assert [ax.get_xlabel() for ax in alike["curves"].axes] == ["epoch"] * 2
    assert "sweep" not in alike


def test_curves_are_means_over_finished_runs_of_the_chosen_configuration(make_results: Make) -> None:
    results = make_results(status={("sgd", "", 0): "diverged"})
    figure = figures(results, "curves")["curves"]
    axes = figure.axes[0]
    curves, records = results.curves, results.records
    runs = records.loc[(records["optimizer"] == "sgd") & (records["status"] == "done"), "run_id"]
    expected = 100 * curves[curves["run_id"].isin(runs)].groupby("epoch")["test_acc"].mean()
    assert axes.lines[0].get_ydata() == pytest.approx(expected.to_numpy())
    assert len(axes.lines) == len(LABELS)
    assert legend(figure)[0] == "sgd, 4 of 5 seeds"


def test_runs_evaluated_once_have_no_course_to_draw(make_results: Make) -> None:
    results = make_results()
    last = results.curves.groupby("run_id").tail(1)
    every = figures(results).keys()
    assert {"curves", "gap"} <= every
    assert figures(dataclasses.replace(results, curves=last)).keys() == every - {"curves", "gap"}


def test_a_label_looks_the_same_in_every_figure(make_results: Make) -> None:
    styles = label_styles(LABELS)
    assert len({(style["color"], style["marker"], style["linestyle"]) for style in styles.values()}) == len(LABELS)
    found = figures(make_results(), "curves", "gap")
    for name in ("curves", "gap"):
        drawn = [to_hex(line.get_color()).upper() for line in found[name].axes[0].lines]
        assert drawn == [styles[label]["color"] for label in LABELS]


def test_many_labels_stay_distinct() -> None:
    styles = label_styles([f"o{i}" for i in range(40)])
    assert len({(style["color"], style["marker"], style["linestyle"]) for style in styles.values()}) == 40


def test_one_seed_and_missing_labels_are_drawn_as_far_as_they_go(make_results: Make, tmp_path: Path) -> None:
    lost = {("adam", "", 0): "failed", ("sam", "rho=0.5", 0): "diverged"}
    assert len(plots.build(Study(make_results(seeds=(0,), status=lost)), tmp_path)) == 5 * 3


def test_the_cost_figure_names_every_optimizer_in_its_legend(make_results: Make) -> None:
    named = legend(figures(make_results(), "cost")["cost"])
    assert [name.partition(" ")[0] for name in named] == [*LABELS, "Pareto"]


def test_sweep_has_ticks_at_the_values_and_a_row_for_each_key(make_results: Make) -> None:
    sweep = {
        "adam": {"sweep": ("lr", (1e-4, 1e-3, 1e-2))},
        "sgd": {},
        "sam": {"sweep": ("rho", (0.1, 0.2))},
    }
    axes = figures(make_results(sweep), "sweep")["sweep"].axes
    assert [ax.get_xlabel() for ax in axes] == ["lr", "lr", "rho", "rho"]
    assert [ax.get_xscale() for ax in axes] == ["log", "log", "linear", "linear"]
    assert list(axes[0].get_xticks()) == [1e-4, 1e-3, 1e-2]


def test_a_run_under_two_labels_is_drawn_where_it_was_chosen(make_results: Make) -> None:
    """Of equal specs only one runs; the label that did not choose it must not draw it."""
    sweep = {"sgd": {}, "a": {"sweep": ("lr", (0.1, 0.2))}, "b": {"sweep": ("lr", (0.1, 0.2))}}

    def change(records: pd.DataFrame) -> pd.DataFrame:
        best = {"a": "lr=0.1", "b": "lr=0.2"}
        chosen = records["config"] == records["optimizer"].map(best)
        return records.assign(
            val_acc=chosen.astype(float), run_id=records["run_id"].str.replace("^b-lr=0.1", "a-lr=0.1", regex=True)
        )

    results = make_results(sweep, change=change)
    results.curves["run_id"] = results.curves["run_id"].str.replace("^b-lr=0.1", "a-lr=0.1", regex=True)
    of_b = results.curves[(results.curves["optimizer"] == "b") & (results.curves["config"] == "lr=0.2")]
    line = figures(results, "curves")["curves"].axes[0].lines[2]
    assert ys(line) == pytest.approx(100 * of_b.groupby("epoch")["test_acc"].mean().to_numpy())


def test_epochs_have_whole_ticks(make_results: Make) -> None:
    with matplotlib.rc_context(RC):
        figure = figures(make_results(vary={"label_noise": [0.2, 0.4]}), "curves")["curves"]
        figure.draw_without_rendering()
        for ax in figure.axes:
            assert [tick % 1 for tick in ax.get_xticks()] == [0] * len(ax.get_xticks())


@pytest.mark.parametrize("length", [4, 30])
def test_legends_stay_within_the_figure(make_results: Make, length: int) -> None:
    labels: dict[str, Any] = {"sgd": {}, **{f"{name}{'x' * length}": {} for name in "abcdef"}}
    figure = figures(make_results(labels, seeds=(0, 1)), "curves")["curves"]
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


@pytest.mark.skipif(matplotlib.__version_info__[:2] != (3, 11), reason="other versions draw otherwise")
def test_the_committed_figures_are_those_of_the_committed_records(tmp_path: Path) -> None:
    folder = ROOT / "results" / "digits_noise"
    for path in plots.build(Study(records.read(folder)), tmp_path):
        if path.suffix == ".png":
            drawn, committed = imread(path), imread(folder / "figures" / path.name)
            assert drawn.shape == committed.shape, path.name
            assert np.mean(np.abs(drawn - committed) > 0.1) < 1e-3, path.name


# ---- several conditions --------------------------------------------------------------------------------------


def test_training_figures_have_a_row_of_panels_for_each_condition(make_results: Make) -> None:
    results = make_results(FEW, vary=NOISE)
    found = figures(results, "curves", "gap")
    best = {(row.condition, row.label): row for row in Study(results).rows if row.chosen}
    for name, columns in (("curves", 3), ("gap", 2)):
        assert [line[0].get_ylabel() for line in grid(found[name], columns)] == results.meta["conditions"]
        assert all(len(ax.lines) == 3 for ax in found[name].axes)
        assert legend(found[name])[:2] == ["sgd", "adam"]
    for condition, (ax, *_) in zip(results.meta["conditions"], grid(found["curves"], 3), strict=True):
        for label, line in zip(FEW, ax.lines, strict=True):
            assert ys(line)[-1] == pytest.approx(100 * best[condition, label].test_metric.mean)


def test_the_gap_is_in_nats_where_every_loss_is(make_glue: Make) -> None:
    for tasks, title in (
        (("glue/mrpc", "glue/rte"), "test − train loss (nats)"),
        (("glue/stsb",), "test − train loss"),
    ):
        assert figures(make_glue(tasks), "gap")["gap"].axes[0].get_title() == title


def test_curves_against_passes_only_where_they_differ(make_results: Make) -> None:
    alike = make_results({"sgd": {}, "adam": {}}, vary=NOISE)
    assert len(figures(alike, "curves")["curves"].axes) == 4 * 2
    assert [ax.get_xlabel() for ax in figures(make_results(FEW, vary=NOISE), "curves")["curves"].axes][-3:] == [
        "epoch",
        "forward-backward passes",
        "epoch",
    ]


@pytest.mark.parametrize("vary", [NOISE, {"train_size": [500, 1000, 50000]}])
def test_every_curve_ends_within_its_panel(make_results: Make, vary: dict[str, list[Any]]) -> None:
    results = make_results(FEW, vary=vary, status={("label_noise=0.2", "sam", "rho=0.1", 0): "failed"})
    sizes = results.curves["condition"].str.extract(r"train_size=(\d+)")[0].astype(float).fillna(500)
    results.curves["passes"] *= sizes / 500
    found = figures(results, "curves", "gap")
    for name in ("curves", "gap"):
        lines = grid(found[name], 3 if name == "curves" else 2)
        for ax in (ax for line in lines for ax in line):
            end = max(xs(line)[-1] for line in ax.lines)
            assert 0.4 * ax.get_xlim()[1] < end < ax.get_xlim()[1]
        assert len({line[0].get_xlim() for line in lines}) == 1
    labelled = [line[1].xaxis.get_tick_params()["labelbottom"] for line in grid(found["curves"], 3)]
    assert labelled == ([True] * 3 if "train_size" in vary else [False] * 3 + [True])


def test_many_conditions_go_on_another_page(make_results: Make) -> None:
    vary = {"label_noise": [number / 10 for number in range(8)]}
    found = figures(make_results({"sgd": {}, "sam": {"sweep": ("rho", (0.1, 0.2))}}, seeds=(0, 1), vary=vary))
    assert [name for name in found if name.startswith("curves")] == ["curves", "curves-2"]
    shown = [ax.get_ylabel() for name in ("sweep", "sweep-2") for ax in found[name].axes[::2]]
    assert shown == [f"label_noise={noise}" for noise in vary["label_noise"]]
    assert len(found["cost"].axes) == 8
    assert len(found["conditions"].axes) == 2


def test_sweeps_have_a_figure_for_each_hyperparameter(make_results: Make) -> None:
    labels = {"sgd": {"sweep": ("lr", (0.1, 0.2))}, "sam": {"sweep": ("rho", (0.1, 0.2, 0.4))}}
    results = make_results(labels, vary=NOISE)
    found = figures(results, "sweep")
    for name, key, count in (("sweep", "lr", 2), ("sweep-2", "rho", 3)):
        axes = found[name].axes
        assert [ax.get_xlabel() for ax in axes] == [""] * 6 + [key] * 2
        assert len(axes[0].get_xticks()) == count
    rows = [row for row in Study(results).rows if row.condition == "label_noise=0.4" and row.label == "sam"]
    line = next(line for line in found["sweep-2"].axes[2].lines if len(xs(line)) == 3)
    assert ys(line) == pytest.approx([100 * row.test_metric.mean for row in rows])


def markers(ax: Axes, colour: str) -> list[Line2D]:
    return [line for line in ax.lines if to_hex(line.get_color()) == colour.lower() and line.get_marker() != "None"]


def test_cost_has_a_panel_for_each_condition(make_results: Make) -> None:
    results = make_results(FEW, vary=NOISE)
    figure = figures(results, "cost")["cost"]
    assert [ax.get_title() for ax in figure.axes] == results.meta["conditions"]
    colour = label_styles(list(FEW))["adam"]["color"]
    rows = [row for row in Study(results).rows if row.label == "adam"]
    for ax, row in zip(figure.axes, rows, strict=True):
        (point,) = markers(ax, colour)
        assert (xs(point)[0], ys(point)[0]) == pytest.approx((row.train_seconds.mean, 100 * row.test_metric.mean))


@pytest.mark.parametrize(("other", "name"), [("rho=0.1", "sam (rho=0.1)"), ("rho=0.2", "sam")])
def test_legends_name_a_configuration_if_it_is_chosen_everywhere(make_results: Make, other: str, name: str) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        best = frame["condition"].map({"label_noise=0.2": "rho=0.1", "label_noise=0.4": other})
        return frame.assign(val_acc=(frame["config"] == best).astype(float))

    figure = figures(make_results(FEW, vary={"label_noise": [0.2, 0.4]}, change=change), "curves")["curves"]
    assert legend(figure) == ["sgd", "adam", name]


def test_conditions_are_drawn_against_the_varied_number(make_results: Make) -> None:
    results = make_results(FEW, vary=NOISE)
    figure = figures(results, "conditions")["conditions"]
    test, difference = figure.axes
    assert [test.get_xlabel(), test.get_xscale(), list(test.get_xticks())] == [
        "label noise",
        "linear",
        [0.2, 0.4, 0.6, 0.8],
    ]
    assert [test.get_ylabel(), difference.get_ylabel()] == ["test accuracy (%)", "difference to sgd (points)"]
    styles = label_styles(list(FEW))
    rows = [row for row in Study(results).rows if row.chosen and row.label == "sam"]
    points = markers(test, styles["sam"]["color"])
    assert [xs(point)[0] for point in points] == [0.2, 0.4, 0.6, 0.8]
    assert [ys(point)[0] for point in points] == pytest.approx([100 * row.test_metric.mean for row in rows])
    paired = [row.difference.difference for row in rows if row.difference]
    points = markers(difference, styles["sam"]["color"])
    assert [ys(point)[0] for point in points] == pytest.approx([100 * interval.mean for interval in paired])
    bars = [tuple(ys(line)) for line in difference.lines if len(ys(line)) == 2]
    assert (100 * paired[0].low, 100 * paired[0].high) in [pytest.approx(bar) for bar in bars]
    assert not markers(difference, styles["sgd"]["color"])


def test_one_condition_has_no_figure_of_conditions(make_results: Make) -> None:
    assert "conditions" not in figures(make_results(FEW), "conditions")
    lost = {
        (f"label_noise={noise}", label, config, seed): "missing"
        for noise in (0.4, 0.6, 0.8)
        for label, config in (("sgd", ""), ("adam", ""), ("sam", "rho=0.1"), ("sam", "rho=0.2"))
        for seed in range(5)
    }
    found = figures(make_results(FEW, status=lost, vary=NOISE), "conditions", "curves")
    assert "conditions" not in found
    assert found["curves"].axes[0].get_ylabel() == "label_noise=0.2"


def test_sizes_of_the_training_set_have_a_log_axis(make_results: Make) -> None:
    ax = figures(make_results(FEW, vary={"train_size": [500, 1000, 2000]}), "conditions")["conditions"].axes[0]
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["500", "1000", "2000"]


def test_one_varied_key_is_the_axis_and_others_have_rows_of_panels(make_results: Make) -> None:
    vary = {"task": ["cifar10", "cifar100", "svhn"], "task.augment": ["basic", "cutout"]}
    axes = figures(make_results(FEW, vary=vary), "conditions")["conditions"].axes
    assert [ax.get_ylabel() for ax in axes[::2]] == ["task=cifar10", "task=cifar100", "task=svhn"]
    assert axes[-1].get_xlabel() == "augment"
    assert [text.get_text() for text in axes[-1].get_xticklabels()] == ["basic", "cutout"]
    numbers = figures(make_results(FEW, vary={**vary, "label_noise": [0.4, 0.2]}), "conditions")["conditions"].axes
    assert numbers[-1].get_xlabel() == "label noise"
    assert list(xs(numbers[-1].lines[0])) == [0.2, 0.4]
    assert numbers[0].get_ylabel() == "task=cifar10,\naugment=basic"


def test_missing_runs_open_a_marker_and_break_a_line(make_results: Make) -> None:
    lost = {("label_noise=0.4", "adam", "", seed): "failed" for seed in range(5)}
    figure = figures(
        make_results(FEW, status={**lost, ("label_noise=0.8", "adam", "", 1): "diverged"}, vary=NOISE), "conditions"
    )["conditions"]
    colour = label_styles(list(FEW))["adam"]["color"]
    for ax in figure.axes:
        assert [xs(point)[0] for point in markers(ax, colour)] == [0.2, 0.6, 0.8]
        assert [point.get_markerfacecolor() == "white" for point in markers(ax, colour)] == [False, False, True]
        line = next(line for line in ax.lines if len(xs(line)) == 4 and to_hex(line.get_color()) == colour.lower())
        assert list(np.isnan(ys(line))) == [False, True, False, False]
    assert legend(figure)[1] == "adam, 14 of 20 runs"
    assert legend(figure)[-1] == "some runs missing"


def test_a_difference_over_fewer_pairs_is_open_too(make_results: Make) -> None:
    lost = {("label_noise=0.4", "sgd", "", 0): "failed"}
    test, difference = figures(make_results(FEW, status=lost, vary=NOISE), "conditions")["conditions"].axes
    colour = label_styles(list(FEW))["adam"]["color"]
    assert [point.get_markerfacecolor() == "white" for point in markers(test, colour)] == [False] * 4
    assert [point.get_markerfacecolor() == "white" for point in markers(difference, colour)] == [False, True] + [
        False
    ] * 2


def test_without_a_baseline_the_gap_is_drawn(make_results: Make) -> None:
    lost = {("sgd", "", seed): "failed" for seed in range(5)}
    axes = figures(make_results(FEW, status=lost, vary=NOISE), "conditions")["conditions"].axes
    assert axes[1].get_ylabel() == "train − test accuracy (points)"


@pytest.mark.parametrize("values", [[0.0, 0.05, 0.1, 0.2, 0.4, 0.8], [0.1, 0.79, 0.8], [500, 600, 50000], [0.5]])
def test_labels_of_values_do_not_overlap(values: list[float]) -> None:
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(panel_width(2), 2))
        ax = figure.add_axes((0, 0.2, 1, 0.7))
        value_axis(ax, values, panel_width(2), log=wide(values))
        ax.plot(values, values)  # for the usual margins
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in ax.get_xticklabels() if text.get_text()]
    assert len(boxes) >= min(2, len(values))
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_figures_of_conditions_are_the_same_twice_and_say_what_is_unverified(
    make_results: Make, tmp_path: Path
) -> None:
    results = make_results(FEW, vary={"task.augment": ["basic", "cutout"]}, change=unverified)
    first = {path: path.read_bytes() for path in plots.build(Study(results), tmp_path)}
    assert first == {path: path.read_bytes() for path in plots.build(Study(results), tmp_path)}
    for one in (results, make_results(FEW, change=unverified)):
        for figure in figures(one).values():
            assert "the checksums of the data files are not their publisher's" in " ".join(
                figure.get_suptitle().split()
            )
    assert all(not figure.get_suptitle() for figure in figures(make_results(FEW)).values())


def unverified(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(data_verified=False)
