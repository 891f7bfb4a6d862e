"""The figure of the trials of tuning: validation alone, as long as what was searched, whatever is finished yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from bench.analysis import plots
from bench.errors import BenchError
from bench.records import Results

Make = Callable[..., Results]
LABELS: dict[str, Any] = {
    "sgd": {"sweep": ("lr", (0.01, 0.1, 0.3)), "test": 0.92},
    "sam": {"sweep": ("rho", (0.05, 0.1, 0.2)), "test": 0.94},
    "plain": {"test": 0.9},
}
SPACES = {"sgd": {"lr": {"low": 0.001, "high": 1.0, "log": True}}, "sam": {"rho": [0.05, 0.1, 0.2]}}
CHOSEN = {"sgd": "lr=0.1", "sam": "rho=0.2", "plain": ""}


def lines(drawing: plots.Drawing) -> list[tuple[float, float]]:
    """Where every point lies, panel by panel, and whether it is a ring."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))  # type: ignore[index]
        for ax in drawing.figure.axes
        for line in ax.lines
        if line.get_markerfacecolor() != "none"
    ]


def test_every_trial_is_a_point_of_its_panel_and_none_is_outside(make_phased: Make) -> None:
    drawing = plots.draw(make_phased(CHOSEN, LABELS, spaces=SPACES))["sweep"]
    lr, rho = drawing.figure.axes
    assert (lr.get_xlabel(), rho.get_xlabel()) == ("lr", "rho")
    assert lr.get_xlim()[0] < 0.001 < 1.0 < lr.get_xlim()[1], "as long as what was searched"
    assert lr.get_xscale() == "log"
    points = lines(drawing)
    assert sorted(x for x, _ in points) == sorted([0.01, 0.1, 0.3, 0.05, 0.1, 0.2])
    for ax in (lr, rho):
        low, high = ax.get_ylim()
        assert all(low < y < high for _, y in points), "panels share their axis, and it has room for all"
    frame = drawing.data
    assert len(frame) == 6
    assert not [column for column in map(str, frame) if "test" in column]
    assert "The test set plays no part" in drawing.caption


@pytest.mark.parametrize("width", ["page", "column"])
def test_conditions_have_a_row_each(make_phased: Make, width: str) -> None:
    results = make_phased(CHOSEN, LABELS, vary={"label_noise": (0.2, 0.4)})
    found = [drawing for name, drawing in plots.draw(results, width).items() if name.startswith("sweep")]
    shown = [[ax.get_ylabel() for ax in drawing.figure.axes] for drawing in found]
    assert shown == (
        [["label_noise=0.2", "", "label_noise=0.4", ""]]
        if width == "page"
        else [
            ["label_noise=0.2", "label_noise=0.4"],
            ["label_noise=0.2", "label_noise=0.4"],
        ]
    )


def test_before_anything_is_chosen_it_is_the_only_figure(make_phased: Make) -> None:
    def only_tuning(records: pd.DataFrame) -> pd.DataFrame:
        return records[records["phase"] == "tune"]

    assert list(plots.draw(make_phased({}, LABELS, change=only_tuning))) == ["sweep"]

    def nothing(records: pd.DataFrame) -> pd.DataFrame:
        return records.assign(status="missing")

    with pytest.raises(BenchError, match="no finished run to draw"):
        plots.draw(make_phased(CHOSEN, LABELS, change=nothing))
