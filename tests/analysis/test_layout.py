"""That figures grow with what they hold: panels keep their size and nothing is cut off, however long names are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from bench.analysis import plots
from bench.analysis.plots.context import PALE
from bench.analysis.plots.style import RC, WIDTHS, fold, text_width
from bench.analysis.study import Study
from bench.store.records import Results

Make = Callable[..., Results]
LONG: dict[str, Any] = {f"{number}{'optimizer-of-mine-' * 3}"[:40]: {} for number in range(8)}
MANY: dict[str, Any] = {f"{number:02}{'x' * 23}": {} for number in range(20)}
SETS: dict[str, dict[str, Any]] = {
    "few": {"labels": {"sgd": {}, "adam": {}, "sam": {"sweep": ("rho", (0.1, 0.2))}}},
    "long": {"labels": LONG, "baseline": next(iter(LONG))},
    "many": {"labels": MANY, "baseline": next(iter(MANY))},
    "conditions": {
        "labels": dict(list(LONG.items())[:5]),
        "baseline": next(iter(LONG)),
        "vary": {"task": ["a-task-with-a-name-of-some-length", "another-task-with-a-long-name"]},
    },
    "capitals": {
        "labels": {"sgd": {}, "adam": {}, **{f"{n}_OPTIMIZER_WITH_MOMENTUM_AND_WARM_UP"[:40]: {} for n in "ABC"}}
    },
    "wide letters": {"labels": {"sgd": {}, **{f"{'WM' * 19}{n}": {} for n in range(3)}}},
    "many, conditions": {"labels": LONG, "baseline": next(iter(LONG)), "vary": {"label_noise": [0.2, 0.4]}},
}
LOWEST, NARROWEST = 0.55, 0.9  # inches of a panel


def inches(ax: Axes) -> tuple[float, float]:
    figure = ax.get_figure(root=True)
    assert figure is not None
    box = ax.get_position(original=True)
    return box.width * figure.get_figwidth(), box.height * figure.get_figheight()


def texts(figure: Figure) -> Iterator[Text]:
    """All that is written into panels, titles and legends; ticks are in the tight box of a figure."""
    for ax in figure.axes:
        yield from (*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label)
    for legend in figure.legends:
        yield from legend.get_texts()


@pytest.mark.parametrize(
    ("name", "width"),
    [
        *((name, "page") for name in SETS),
        ("few", "column"),
        ("long", "column"),
        ("conditions", "column"),
        ("capitals", "column"),
        ("wide letters", "column"),
    ],
)
def test_panels_keep_their_size_and_nothing_is_cut_off(make_results: Make, name: str, width: str) -> None:
    drawings = plots.draw(Study(make_results(seeds=(0, 1), **SETS[name])), WIDTHS[width])
    assert drawings
    with matplotlib.rc_context(RC):
        for what, drawing in drawings.items():
            figure = drawing.figure
            figure.draw_without_rendering()
            for ax in figure.axes:
                assert inches(ax) >= (NARROWEST, 0), (what, inches(ax))
                assert inches(ax)[1] >= LOWEST, (what, inches(ax))
            whole = figure.get_tightbbox()
            size = figure.get_size_inches()
            assert min(whole.x0, whole.y0) > -0.02, (what, whole)
            assert whole.x1 < size[0] + 0.02, (what, whole, size)
            assert whole.y1 < size[1] + 0.02, (what, whole, size)
            for text in texts(figure):
                if text.get_text():
                    box = text.get_window_extent()
                    assert box.x0 >= -2, (what, text.get_text())
                    assert box.x1 <= figure.bbox.width + 2, (what, text.get_text())


def test_names_are_folded_to_the_room_they_have() -> None:
    for text in ("train accuracy, true labels (%)", "x" * 60, "a b"):
        lines = fold(text, 1.0).split("\n")
        assert max(text_width(line, 8) for line in lines) <= 1.05
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def of_colour(ax: Axes, colour: str) -> list[Line2D]:
    return [line for line in ax.lines if line.get_color() == colour]


def test_more_than_six_optimizers_have_a_panel_each(make_results: Make) -> None:
    labels: dict[str, Any] = {"sgd": {}, **{f"mine-{number}": {} for number in range(6)}}
    drawings = plots.draw(Study(make_results(labels, seeds=(0, 1))), only=["curves", "gap", "cost"])
    for name in ("curves", "gap", "cost"):
        figure = drawings[name].figure
        assert [ax.get_title() for ax in figure.axes] == list(labels)[1:], name
        assert "A panel for each optimizer, with sgd in all of them" in drawings[name].caption
        for ax in figure.axes:
            assert of_colour(ax, "#000000"), "the baseline is in every panel"
            (others,) = of_colour(ax, PALE["color"])
            assert np.isnan(np.asarray(others.get_ydata(), float)).sum() == 5, "all others are pale"
    few = plots.draw(Study(make_results(dict(list(labels.items())[:6]), seeds=(0, 1))), only=["curves"])[
        "curves"
    ].figure
    assert len(few.axes) == 2
    assert all(len(ax.lines) == 6 for ax in few.axes)


def test_many_sweeps_have_a_panel_each(make_results: Make) -> None:
    sweep = {"sweep": ("lr", (0.1, 0.2, 0.3))}
    labels: dict[str, Any] = {"sgd": {}, **{f"mine-{number}": sweep for number in range(7)}}
    figure, caption, data = plots.draw(Study(make_results(labels, seeds=(0, 1))), only=["sweep"])["sweep"]
    assert [ax.get_title() for ax in figure.axes] == list(labels)[1:]
    assert {ax.get_xlabel() for ax in figure.axes} == {"lr"}
    assert "A panel for each optimizer" in caption
    assert set(data["optimizer"]) == set(labels) - {"sgd"}


# ---- what is moved or left out is said ------------------------------------------------------------------------


def test_points_that_are_moved_sideways_are_said_to_be(make_results: Make) -> None:
    drawings = plots.draw(Study(make_results({"sgd": {}, "adam": {}, "sam": {}})), only=["cost"])
    assert drawings["cost"].caption.endswith("Points of equal cost are drawn side by side.")
    seconds, passes = drawings["cost"].figure.axes
    assert seconds.get_xlabel() == "training time (s)"
    assert passes.get_xlabel() == "forward-backward passes (equal ones side by side)"
    apart = plots.draw(Study(make_results({"sgd": {}, "sam": {}})), only=["cost"])["cost"]
    assert "side by side" not in apart.caption + apart.figure.axes[1].get_xlabel()
    several = plots.draw(
        Study(make_results({"sgd": {}, "adam": {}}, vary={"label_noise": [0.2, 0.4]})), only=["cost", "conditions"]
    )
    assert "side by side" not in several["cost"].caption
    assert "side by side" in several["cost-2"].caption
    assert "Optimizers are drawn side by side at each label noise." in several["conditions"].caption


def failed(share: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The largest rho ends at a share of what the others reach."""

    def change(records: pd.DataFrame) -> pd.DataFrame:
        worse = np.where(records["rho"] == 0.8, share, 1.0)
        columns = [column for column in map(str, records) if column in ("val_acc", "test_acc")]
        return records.assign(**{column: records[column] * worse for column in columns})

    return change


SWEPT: dict[str, Any] = {"sgd": {}, "sam": {"sweep": ("rho", (0.05, 0.1, 0.2, 0.4, 0.8))}}


def test_a_failed_region_does_not_squeeze_a_sweep(make_results: Make) -> None:
    ax = plots.draw(Study(make_results(SWEPT, change=failed(0.2))), only=["sweep"])["sweep"].figure.axes[0]
    low, high = ax.get_ylim()
    assert low > 80, "the panel shows the four that work"
    assert high < 105
    (arrow,) = (line for line in ax.lines if line.get_marker() == "v" and line.get_ydata() == [low])
    assert np.asarray(arrow.get_xdata()) == [0.8]
    (said,) = ax.texts
    assert 15 < float(said.get_text()) < 20, "the value beyond the edge is written at the arrow"


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_failed_region_does_not_squeeze_the_panel_of_the_gap(make_results: Make, higher_is_better: bool) -> None:
    """Its gap is the odd one, too: of a perplexity it is thousands, of an accuracy it has the other sign."""
    metric = {"key": "acc", "name": "perplexity", "unit": "", "scale": 1.0, "definition": "exp of the loss"}

    def change(records: pd.DataFrame) -> pd.DataFrame:
        is_bad, little = records["rho"] == 0.8, 0.1 * records["seed"]
        test = np.where(is_bad, 20.0 if higher_is_better else 1e5, 50 + little)
        gap = np.where(is_bad, -60.0 if higher_is_better else 1e4, 5 + little)
        return records.assign(test_acc=test, val_acc=test, gap_acc=gap)

    changed = {"change": change, "metric": {**metric, "higher_is_better": higher_is_better}}
    ax = plots.draw(Study(make_results(SWEPT, **changed)), only=["sweep"])["sweep"].figure.axes[1]
    low, high = ax.get_ylim()
    assert 3 < low < high < 7
    (said,) = ax.texts
    assert said.get_text() == ("-60" if higher_is_better else "1e+04")


def test_what_is_only_somewhat_worse_stays_in_the_panel(make_results: Make) -> None:
    ax = plots.draw(Study(make_results(SWEPT, change=failed(0.98))), only=["sweep"])["sweep"].figure.axes[0]
    assert ax.get_ylim()[0] < 93
    assert not ax.texts


def test_the_choice_is_in_the_panel_even_if_it_failed(make_results: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        records = failed(0.2)(records)
        return records.assign(val_acc=np.where(records["rho"] == 0.8, 0.99, records["val_acc"]))

    ax = plots.draw(Study(make_results(SWEPT, change=change)), only=["sweep"])["sweep"].figure.axes[0]
    assert ax.get_ylim()[0] < 20
