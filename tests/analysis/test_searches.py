"""Unequal searches are told in words and footnotes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from bench.analysis import tables
from bench.analysis.answer import answer
from bench.analysis.searches import searches
from bench.analysis.study import Study
from bench.store.records import Results
from bench.store.selection import phased

Make = Callable[..., Results]
LR = ("lr", (0.1, 0.2, 0.4))


def told(results: Results) -> list[str]:
    """What is said of the searches; the same in words and under the tables."""
    words = [said for said in answer(Study(results)) if said.startswith("Unequal searches")]
    notes = {
        found.name: [note for note in found.footnotes if "Unequal" in note] for found in tables.build(Study(results))
    }
    assert notes["results"] == notes["statistics"] == words
    return words


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"sgd": {"sweep": LR}, "sam": {"sweep": LR}}, None),
        ({"sgd": {"sweep": LR}, "sam": {"sweep": ("lr", (0.4, 0.2, 0.1))}}, None),
        ({"sgd": {}, "sam": {}}, None),
        ({"sgd": {}, "sam": {"sweep": LR}}, "sgd: not searched; sam: 3 configurations: lr 0.1, 0.2, 0.4"),
        (
            {"sgd": {"sweep": LR}, "sam": {"sweep": ("rho", (0.1, 0.2, 0.4))}},
            "sgd: 3 configurations: lr 0.1, 0.2, 0.4; sam: 3 configurations: rho 0.1, 0.2, 0.4",
        ),
        (
            {"sgd": {"sweep": LR}, "sam": {"sweep": ("lr", (0.1, 0.2))}},
            "sgd: 3 configurations: lr 0.1, 0.2, 0.4; sam: 2 configurations: lr 0.1, 0.2",
        ),
    ],
)
def test_keys_values_and_their_number_are_compared(
    make_results: Make, labels: dict[str, Any], said: str | None
) -> None:
    sentence = f"Unequal searches ({said}): a wider or longer search is more likely to find a good setting."
    assert told(make_results(labels)) == ([sentence] if said else [])


def test_only_what_is_compared_and_searched_otherwise_is_named(make_results: Make) -> None:
    labels = {"sgd": {"sweep": LR}, "adam": {"sweep": LR}, "sam": {"sweep": LR}, "asam": {"sweep": ("lr", (0.1, 9.0))}}
    (said,) = told(make_results(labels))
    assert "(sgd, adam: 3 configurations: lr 0.1, 0.2, 0.4; asam: 2 configurations: lr 0.1, 9): a wider" in said


def test_of_many_searches_only_what_was_searched_and_how_often_is_told(make_results: Make) -> None:
    labels = {
        "sgd": {"sweep": LR},
        "adam": {"sweep": ("lr", (1.0, 2.0, 4.0))},
        "sam": {"sweep": ("rho", (0.1, 0.2))},
        "asam": {"sweep": ("rho", (1.0, 2.0))},
        "plain": {},
    }
    (said,) = told(make_results(labels))
    assert (
        "(sgd, adam: 3 configurations of lr; sam, asam: 2 configurations of rho; plain: not searched; the values are "
        "in experiment.json): a wider" in said
    )


def test_ranges_and_trials_of_a_phase_of_tuning_are_compared(make_phased: Make) -> None:
    labels = {"sgd": {"sweep": LR}, "sam": {"sweep": LR}, "plain": {}}
    wide, narrow = {"low": 0.001, "high": 1.0, "log": True}, {"low": 0.01, "high": 1.0, "log": True}
    results = make_phased(
        {"sgd": "lr=0.1", "sam": "lr=0.1", "plain": ""}, labels, spaces={"sgd": {"lr": wide}, "sam": {"lr": narrow}}
    )
    assert {label: str(search) for label, search in searches(results).items()} == {
        "sgd": "3 configurations: lr from 0.001 to 1 on a log scale",
        "sam": "3 configurations: lr from 0.01 to 1 on a log scale",
        "plain": "not searched",
    }
    assert len(told(results)) == 1

    def best(records: pd.DataFrame) -> pd.DataFrame:
        return records.assign(val_acc=records["val_acc"].where(records["config"] != "lr=0.1", 0.99))

    alike = make_phased({"sgd": "lr=0.1", "sam": "lr=0.1"}, {"sgd": labels["sgd"], "sam": labels["sam"]}, change=best)
    assert told(alike) == []
    phased(alike.meta)["tune"]["trials"]["sam"] = 30
    assert "sam: 30 configurations" in told(alike)[0]
