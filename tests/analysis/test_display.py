"""[display]: other names, another order and other colours, everywhere at once, and no other number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from bench.analysis import plots, render, tables
from bench.analysis.plots.looks import label_styles, styles_of
from bench.analysis.study import Study
from bench.store.records import Results

Make = Callable[..., Results]
LABELS: dict[str, Any] = {"sgd": {}, "sgd-2x": {"epochs": 12}, "sam": {"sweep": ("rho", (0.1, 0.2))}}
DISPLAY = {"names": {"sam": "SAM (ours)", "sgd": "SGD"}, "order": ["sam"], "colours": {"sam": "#CC0000"}}


def numbers(results: Results) -> dict[str, pd.DataFrame]:
    return {one.name: one.numbers for one in tables.build(Study(results))}


def test_every_table_has_the_names_in_their_order_and_the_same_numbers(make_results: Make) -> None:
    plain, shown = (numbers(make_results(LABELS, **meta)) for meta in ({}, {"display": DISPLAY}))
    assert list(shown["results"]["optimizer"]) == ["SAM (ours)", "SGD", "sgd-2x"]
    names = {name: label for label, name in DISPLAY["names"].items()}  # type: ignore[attr-defined]
    for name, frame in shown.items():
        if "optimizer" not in frame:
            continue
        keys = [key for key in ("optimizer", "config") if key in frame]
        back = frame.assign(optimizer=frame["optimizer"].replace(names))
        expected = plain[name].set_index(keys).sort_index()
        again = back.set_index(keys).sort_index()
        columns = [column for column in expected if pd.api.types.is_float_dtype(expected[column])]
        pd.testing.assert_frame_equal(expected[columns], again[columns])


def test_no_label_is_left_in_texts_where_it_has_a_name(make_results: Make) -> None:
    for one in tables.build(Study(make_results(LABELS, display=DISPLAY))):
        text = render.render(one, "md")
        words = text.replace("(", " ").replace(",", " ").split()
        assert not {"sam", "sgd"} & {*words} or one.name == "hyperparameters", one.name


def test_tuning_and_final_runs_follow(make_phased: Make) -> None:
    labels = {"sgd": {"sweep": ("lr", (0.1, 0.3))}, "sam": {"sweep": ("rho", (0.05, 0.1))}, "plain": {}}
    chosen = {"sgd": "lr=0.1", "sam": "rho=0.1", "plain": ""}
    study = Study(make_phased(chosen, labels, display=DISPLAY | {"names": {"plain": "Plain", "sam": "SAM"}}))
    built = {one.name: one for one in tables.build(study)}
    assert [row[0] for row in built["tuning"].rows] == ["SAM", "sgd", "Plain"]
    assert "Not tuned, at its fixed setting: Plain." in " ".join(built["tuning"].footnotes)


def test_a_look_goes_with_the_label_and_the_colour_may_be_ones_own(make_results: Make) -> None:
    study = Study(make_results(LABELS, display=DISPLAY))
    known, styles = label_styles(["sam", "sgd", "sgd-2x"]), styles_of(study.meta)
    assert styles["SGD"] == known["sgd"]
    assert styles["SAM (ours)"] == known["sam"] | {"color": "#CC0000"}
    (drawing,) = plots.draw(study, only=["paired"]).values()
    assert "SAM (ours)" in str(drawing.data)


def test_without_a_table_display_nothing_changes(make_results: Make) -> None:
    results = make_results(LABELS, display={"names": {}, "order": [], "colours": {}})
    assert Study(results).results is results
