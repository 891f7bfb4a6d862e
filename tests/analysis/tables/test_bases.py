"""Each method against the optimizer that it wraps, where several optimizers are wrapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis import plots, tables
from bench.analysis.answer import answer
from bench.analysis.pairings import pairings
from bench.analysis.render import render
from bench.analysis.stats import holm
from bench.analysis.study import Study
from bench.analysis.tables import bases
from bench.store.records import Results

Make = Callable[..., Results]
BASE_OF = {"sam": "sgd", "sam-adam": "adam", "sam-lion": "lion"}
LABELS: dict[str, dict[str, Any]] = {
    "sgd": {"test": 0.90},
    "sgd-2x": {"test": 0.91, "epochs": 12},
    "adam": {"test": 0.88},
    "lion": {"test": 0.87},
    "sam": {"test": 0.93},
    "sam-adam": {"test": 0.89},
    "sam-lion": {"test": 0.86},
}


def wrapped(records: pd.DataFrame) -> pd.DataFrame:
    """The records with the bases of BASE_OF, whose methods take two passes."""
    ours = records["optimizer"].map(BASE_OF)
    records = records.assign(base=ours, method=np.where(ours.notna(), "sam", records["method"]))
    records.loc[records["optimizer"].isin(["sam-adam", "sam-lion"]), "passes"] *= 2
    return records


@pytest.fixture
def study(make_results: Make) -> Study:
    return Study(make_results(LABELS, change=wrapped))


def test_a_method_meets_the_baseline_and_its_own_base(study: Study) -> None:
    found = {(one.ours.label, one.theirs.label) for one in study.contrasts if one.ours.label in BASE_OF}
    assert found == {
        *((label, "sgd") for label in BASE_OF),
        ("sam", "sgd-2x"),
        ("sam-adam", "adam"),
        ("sam-lion", "lion"),
    }


def test_an_optimizer_that_none_wraps_meets_all(make_results: Make) -> None:
    found = Study(make_results({**LABELS, "muon": {}}, change=wrapped)).contrasts
    assert [one.ours.label for one in found if one.theirs.label == "muon"] == list(BASE_OF)


def test_a_line_has_both_budgets_and_the_scores_of_both_sides(study: Study) -> None:
    lines = bases.table(study).numbers.set_index("optimizer")
    assert list(lines.index) == list(BASE_OF)
    assert list(lines["base"]) == list(BASE_OF.values())
    records = study.results.records.pivot(index="seed", columns="optimizer", values="test_acc") * 100
    for label, base in BASE_OF.items():
        assert lines.loc[label, "ours_test_metric_mean [%]"] == pytest.approx(records[label].mean())
        assert lines.loc[label, "base_test_metric_mean [%]"] == pytest.approx(records[base].mean())
        expected = (records[label] - records[base]).mean()
        assert lines.loc[label, "difference_epochs_mean [%]"] == pytest.approx(expected)
    twice = (records["sam"] - records["sgd-2x"]).mean()
    assert lines.loc["sam", "difference_passes_mean [%]"] == pytest.approx(twice)
    assert lines["difference_passes_mean [%]"].isna().tolist() == [False, True, True]
    assert lines["passes_ratio"].tolist() == [2, 2, 2]


def test_p_is_corrected_over_the_lines_of_the_table(study: Study) -> None:
    raw = [one.epochs.test.p_t for one in pairings(study)]
    assert bases.table(study).numbers["p_holm"].tolist() == pytest.approx(holm(raw))


def test_there_is_a_table_only_where_several_optimizers_are_wrapped(study: Study, make_results: Make) -> None:
    assert "bases" in [table.name for table in tables.build(study)]
    assert "bases" in plots.draw(study, only=["bases"])
    one = Study(make_results())
    assert "bases" not in [table.name for table in tables.build(one)]
    assert not plots.draw(one, only=["bases"])


def test_there_is_no_table_before_a_method_and_its_base_have_finished(make_results: Make) -> None:
    lost = {(label, "", seed): "failed" for label in BASE_OF for seed in range(5)}
    study = Study(make_results(LABELS, status=lost, change=wrapped))
    assert "bases" not in [table.name for table in tables.build(study)]
    assert not plots.draw(study, only=["bases"])


def test_a_side_that_was_searched_less_is_named(make_results: Make) -> None:
    lr, rho = ("lr", (0.05, 0.1)), ("rho", (0.05, 0.1, 0.2))
    labels = {
        "sgd": {"sweep": lr},  # two trials against three: less
        "adam": {"sweep": lr},
        "lion": {},  # nothing against nothing: equal
        "sam": {"sweep": rho},
        "sam-adam": {},  # not searched although its base was
        "sam-lion": {},
    }
    notes = " ".join(bases.table(Study(make_results(labels, change=wrapped))).footnotes)
    assert "sgd was searched less than sam (2 configurations of lr against 3 configurations of rho)" in notes
    assert "sam-adam was searched less than adam (not searched against 2 configurations of lr)" in notes
    assert "lion" not in notes


def test_with_conditions_each_has_its_block_and_its_panel(make_results: Make) -> None:
    study = Study(make_results(LABELS, vary={"label_noise": [0.0, 0.2]}, change=wrapped))
    table = bases.table(study)
    assert table.numbers["label_noise"].tolist() == [0.0] * 3 + [0.2] * 3
    assert "sam-lion" in render(table, "tex")
    drawing = plots.draw(study, only=["bases"])["bases"]
    assert len(drawing.figure.axes) == 2
    # Three methods at equal epochs and one at equal passes, under each of two conditions.
    assert len(drawing.data) == 8


def test_the_figure_shows_the_numbers_of_the_table(study: Study) -> None:
    drawing = plots.draw(study, only=["bases"])["bases"]
    (axes,) = drawing.figure.axes
    drawn = [
        float(x) for line in axes.lines if line.get_marker() in ("o", "s") for x in np.atleast_1d(line.get_xdata())
    ]
    assert sorted(drawn) == pytest.approx(sorted(drawing.data["difference_mean [%]"]))
    lines = bases.table(study).numbers
    expected = [*lines["difference_epochs_mean [%]"], *lines["difference_passes_mean [%]"].dropna()]
    assert sorted(drawing.data["difference_mean [%]"]) == pytest.approx(sorted(expected))


def test_words_name_each_beside_its_own_base(make_results: Make) -> None:
    more = {**LABELS, "nadamw": {"test": 0.85}, "sam-nadamw": {"test": 0.86}, "asam": {"test": 0.92}}

    def change(records: pd.DataFrame) -> pd.DataFrame:
        own = {**BASE_OF, "sam-nadamw": "nadamw", "asam": "sgd"}
        return records.assign(base=records["optimizer"].map(own))

    said = answer(Study(make_results(more, change=change)))
    (pairs,) = [text for text in said if text.startswith("One against one")]
    for ours, theirs in (("sam-adam", "adam"), ("sam-lion", "lion"), ("sam-nadamw", "nadamw")):
        assert f"{ours} against {theirs} (" in pairs
    assert any(text.startswith("Against sgd-2x") and "asam (" in text for text in said)
