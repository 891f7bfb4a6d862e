"""The first line of the report: yes, no or not shown, by how much and at what price, never more than was shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis.headline import at_equal_passes, dates, forest, headline
from bench.analysis.study import Study
from bench.store.records import Results

Make = Callable[..., Results]


def shifted(**by: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Test accuracy of each label is that of sgd and so much more, with a little of its own for each seed."""

    def change(records: pd.DataFrame) -> pd.DataFrame:
        noise = 0.001 * np.array([0.3, -0.5, 0.1, 0.4, -0.3])[records["seed"]]
        noise *= records["optimizer"].map({"sgd": 0, "sam": 1}).fillna(2)
        own = records["optimizer"].map(by).fillna(0.0)
        test = 0.9 + 0.01 * records["seed"] + own + noise
        return records.assign(test_acc=test)

    return change


TWO: dict[str, Any] = {"sgd": {}, "sam": {}}


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (0.0295, "SAM: yes, +2.95 points for 2.0 times the passes"),
        (-0.012, "SAM: no, -1.20 points for 2.0 times the passes"),
        (0.0001, "SAM: not shown, +0.01 points for 2.0 times the passes"),
    ],
)
def test_the_answer_is_one_line(make_results: Make, by: float, said: str) -> None:
    assert headline(Study(make_results(TWO, change=shifted(sam=by)))) == said


def test_one_seed_shows_nothing(make_results: Make) -> None:
    line = headline(Study(make_results(TWO, seeds=(0,), change=shifted(sam=0.03))))
    assert line.startswith("SAM: no verdict, +3.03 (n=1) points")


def test_without_numbers_there_is_no_answer(make_results: Make) -> None:
    assert (
        headline(Study(make_results(TWO, change=lambda records: records.assign(status="missing")))) == "No answer yet"
    )
    lost = {("sam", "", seed): "failed" for seed in range(5)}
    assert headline(Study(make_results(TWO, status=lost))) == "SAM: no answer yet"
    assert headline(Study(make_results({"sgd": {}}))) == "sgd: compared with nothing"
    assert forest(Study(make_results({"sgd": {}}))) is None


def test_it_is_about_sam_and_not_about_what_did_best(make_results: Make) -> None:
    labels: dict[str, Any] = {"sgd": {}, "adam": {}, "asam": {}, "sam": {}}
    change = shifted(adam=0.05, asam=0.04, sam=0.02)
    assert headline(Study(make_results(labels, change=change))).startswith("SAM: yes, +2.00 points")
    del labels["sam"]
    assert headline(Study(make_results(labels, change=change))).startswith("asam: yes, +4.00 points")
    del labels["asam"]
    assert headline(Study(make_results(labels, change=change))) == "adam: yes, +5.00 points for the same passes"


def test_at_equal_passes_it_may_be_another_answer(make_results: Make) -> None:
    labels = {"sgd": {}, "sgd-2x": {"epochs": 12}, "sam": {}}
    line = at_equal_passes(Study(make_results(labels, change=shifted(sam=0.02, **{"sgd-2x": 0.03}))))
    assert line == "At equal passes, against sgd-2x: no, -1.00 points"
    assert at_equal_passes(Study(make_results(TWO))) == ""


def test_of_several_tasks_and_conditions_it_counts(make_results: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        better = shifted(sam=0.03)(records)["test_acc"]
        worse = shifted(sam=-0.02)(records)["test_acc"]
        same = shifted(sam=0.0)(records)["test_acc"]
        of_a, of_b = (records["condition"] == f"task={task}" for task in "ab")
        test = np.select([of_a, of_b], [better, worse], same)
        return records.assign(test_acc=test)

    tasks = make_results(TWO, vary={"task": ["a", "b", "c"]}, change=change)
    assert headline(Study(tasks)) == "SAM: yes in 1, no in 1 of 3 tasks, -2.00 to +3.00 points for 2.0 times the passes"
    same = make_results(TWO, vary={"label_noise": [0.2, 0.4]}, change=shifted(sam=0.0001))
    assert headline(Study(same)).startswith("SAM: not shown in any of 2 conditions, ")


def test_a_lower_score_may_be_the_better_one(make_results: Make) -> None:
    metric = {"key": "acc", "name": "perplexity", "unit": "", "scale": 1.0, "higher_is_better": False}
    results = make_results(TWO, metric={**metric, "definition": "exp of the loss"}, change=shifted(sam=-0.02))
    assert headline(Study(results)) == "SAM: yes, -0.0200 in perplexity for 2.0 times the passes"
    found = forest(Study(results))
    assert found is not None
    assert found.better == "left"
    (branch,) = found.blocks[""]
    assert (branch.said, branch.mean < found.zero) == ("better", True)


def test_the_forest_has_every_comparison_with_the_baseline_on_one_scale(make_results: Make) -> None:
    labels: dict[str, Any] = {"sgd": {}, "adam": {}, "sam": {"sweep": ("rho", (0.1, 0.2))}}
    found = forest(Study(make_results(labels, vary={"label_noise": [0.2, 0.4]})))
    assert found is not None
    assert list(found.blocks) == ["label_noise=0.2", "label_noise=0.4"]
    for branches in found.blocks.values():
        assert [one.label for one in branches] == ["adam", "sam"]
        for one in branches:
            assert 0 < one.low < one.mean < one.high < 100
            assert (one.mean > found.zero) == one.difference.startswith("+")


@pytest.mark.parametrize(
    ("moments", "said"),
    [
        (["2026-03-01T23:59:59+00:00", None], "2026-03-01"),
        (["2026-03-02T00:00:00+00:00", "2026-02-27T12:00:00+00:00"], "2026-02-27 to 2026-03-02"),
        ([None, None], ""),
    ],
)
def test_dates_are_those_of_the_records(moments: list[str | None], said: str) -> None:
    assert dates(pd.DataFrame({"finished_at": moments})) == said
    assert dates(pd.DataFrame({"run_id": ["a"]})) == ""
