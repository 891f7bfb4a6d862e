"""The table of settings: searched ones in columns, fixed ones in a footnote, common ones in the caption."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.analysis import tables
from bench.analysis.render.table import Table
from bench.analysis.study import Study
from bench.store import records

RESULTS = Path(__file__).parents[3] / "results"


@pytest.fixture(scope="module", name="found")
def _found() -> Table:
    built = tables.build(Study(records.read(RESULTS / "mnist1d_noise")))
    return next(one for one in built if one.name == "hyperparameters")


def test_what_was_searched_is_what_the_table_of_tuning_has_as_chosen(found: Table) -> None:
    chosen = {(line["label_noise"], line["optimizer"]): line for line in found.numbers.to_dict("records")}
    built = tables.build(Study(records.read(RESULTS / "mnist1d_noise")))
    tuned = next(one for one in built if one.name == "tuning").numbers
    for line in tuned.to_dict("records"):
        settings = chosen[line["label_noise"], line["optimizer"]]
        swept = dict(part.split("=") for part in line["config"].split(", "))
        assert {key: f"{settings[key]:g}" for key in swept} == swept
    assert found.columns == ["label noise", "optimizer", "method", "lr", "weight decay", "rho"]


def test_everything_else_is_said_once(found: Table) -> None:
    caption, notes = " ".join(found.caption), " ".join(found.footnotes)
    assert "The same for all: batch_size=100, schedule=cosine," in caption
    assert "momentum=0.9, nesterov=False (sgd, sgd-2x, sam)" in notes
    assert "beta1=0.9, beta2=0.999, eps=1e-08 (adamw)" in notes
    assert "epochs=100 (sgd-2x)" in notes
    assert "Searched: lr from 0.003 to 1 on a log scale (sgd, sgd-2x, sam)" in notes
    assert [row[2] for row in found.rows[:4]] == ["sgd", "sgd", "adamw", "sam over sgd"]


def test_a_value_that_was_not_searched_stands_in_brackets() -> None:
    built = tables.build(Study(records.read(RESULTS / "digits_noise")))
    found = next(one for one in built if one.name == "hyperparameters")
    sam = next(row for row in found.rows if row[0] == "sam")
    assert sam[found.columns.index("lr")].startswith("(")
    assert not sam[found.columns.index("rho")].startswith("(")
