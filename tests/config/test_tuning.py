"""[tune] and [final] of an experiment file: what they resolve to, that the budget is equal, and what is refused."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.config import file as experiment
from bench.core.errors import BadValue
from bench.core.experiment import Experiment
from bench.store import selection

Tiny = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
Load = Callable[..., Experiment]

LR = {"low": 0.001, "high": 1.0, "log": True}
RHO = {"low": 0.01, "high": 0.5, "log": True}
PHASES: dict[str, Any] = {
    "tune": {"seeds": 2, "trials": 4},
    "final": {"seeds": 3},
    "optimizers": {
        "sgd": {"sweep": {"lr": [0.01, 0.03, 0.1, 0.3]}},
        "sam": {"base": "sgd", "sweep": {"lr": [0.03, 0.1], "rho": [0.05, 0.1]}},
    },
}
RANGES: dict[str, Any] = {
    **PHASES,
    "tune": {"seeds": 2, "trials": 4, "search": "sobol"},
    "optimizers": {
        "sgd": {"sweep": {"lr": LR}},
        "sam": {"base": "sgd", "sweep": {"lr": LR, "rho": RHO}},
    },
}


@pytest.fixture
def phased(tiny: Tiny) -> Tiny:
    """phased(changes): the tiny experiment with phases, changed; `...` takes a key out."""

    def make(changes: dict[str, Any] | None = None) -> dict[str, Any]:
        wanted = copy.deepcopy({"seeds": ..., **PHASES, **(changes or {})})
        return tiny({key: value for key, value in wanted.items() if value is not ... or key == "seeds"})

    return make


@pytest.fixture
def load(write_experiment: Write, phased: Tiny) -> Load:
    """load(changes, seeds=None): the tiny experiment with phases, changed and resolved."""

    def make(changes: dict[str, Any] | None = None, seeds: int | None = None) -> Experiment:
        return experiment.load(write_experiment(phased(changes)), seeds=seeds)

    return make


def test_the_runs_of_tuning_are_known_and_the_final_ones_wait_for_a_choice(load: Load) -> None:
    resolved = load()
    assert resolved.seeds == (2, 3, 4), "fresh ones: so many after those of tuning"
    assert {(run.phase, run.spec.phase) for run in resolved.runs} == {("tune", "tune")}
    assert Counter((run.label, run.spec.seed) for run in resolved.runs) == dict.fromkeys(
        [("sgd", 0), ("sgd", 1), ("sam", 0), ("sam", 1)], 4
    )
    waiting = resolved.to_be_chosen()
    assert [(run.label, run.phase, run.spec.seed) for run in waiting] == [
        (label, "final", seed) for label in ("sgd", "sam") for seed in (2, 3, 4)
    ]
    assert waiting[0].name == "final sgd seed 2"


def test_what_is_chosen_gets_final_runs_with_its_settings_and_fresh_seeds(load: Load) -> None:
    resolved = load({"final": {"seeds": [7, 9], "refit": True}})
    both = resolved.with_final({("", "sam"): "lr=0.1, rho=0.05"})
    final = [run for run in both.runs if run.phase == "final"]
    assert [(run.label, run.config_text, run.spec.seed) for run in final] == [
        ("sam", "lr=0.1, rho=0.05", 7),
        ("sam", "lr=0.1, rho=0.05", 9),
    ]
    base = final[0].spec.optimizer.base
    assert base is not None
    assert (final[0].spec.phase, final[0].spec.optimizer.params["rho"], base.params["lr"]) == ("refit", 0.05, 0.1)
    assert {run.label for run in both.to_be_chosen()} == {"sgd"}
    assert both.with_final({}) == resolved, "a choice can be taken back"


def test_without_refit_a_final_run_is_the_run_that_an_experiment_without_phases_has(load: Load) -> None:
    final = [run for run in load().with_final({("", "sgd"): "lr=0.1"}).runs if run.phase == "final"]
    plain = load({"tune": ..., "final": ..., "seeds": [2, 3, 4], "optimizers": {"sgd": {"lr": 0.1}}})
    assert [run.spec.run_id for run in final] == [run.spec.run_id for run in plain.runs]
    tune = [run.spec.run_id for run in load({"tune": {"seeds": [2], "trials": 4}, "final": {"seeds": [3]}}).runs]
    assert not set(tune) & {run.spec.run_id for run in final}, "one that never sees the test set is another run"


def test_every_optimizer_has_as_many_trials_drawn_from_its_ranges(load: Load) -> None:
    resolved = load(RANGES)
    trials = {label: {run.config_text for run in resolved.runs if run.label == label} for label in resolved.labels}
    assert {label: len(found) for label, found in trials.items()} == {"sgd": 4, "sam": 4}
    assert resolved.phases is not None
    assert resolved.phases.spaces == {"sgd": {"lr": LR}, "sam": {"lr": LR, "rho": RHO}}
    assert resolved == load(RANGES)
    for run in resolved.runs:
        assert 0.001 <= run.config["lr"] <= 1.0
        assert 0.01 <= run.config.get("rho", 0.01) <= 0.5


def test_whole_numbers_stay_whole_and_lists_are_drawn_from(load: Load) -> None:
    sweep = {"lr": LR, "momentum": [0, 0.9], "train": {"batch_size": {"low": 16, "high": 64}}}
    resolved = load({**RANGES, "optimizers": {"sgd": {"sweep": sweep}}})
    assert {type(run.spec.train.batch_size) for run in resolved.runs} == {int}
    assert len({run.spec.train.batch_size for run in resolved.runs}) > 1
    assert {run.config["momentum"] for run in resolved.runs} == {0.0, 0.9}
    lr = {"low": 1, "high": 2}
    drawn = load({**RANGES, "optimizers": {"sgd": {"sweep": {"lr": lr}}}})
    assert any(run.config["lr"] % 1 for run in drawn.runs), "1 to 2 of a real number is not 1 or 2"


def test_ends_that_are_the_hyperparameters_own_are_told(load: Load) -> None:
    rho = {"low": 0.0, "high": 0.5}
    sweep = {"lr": LR, "weight_decay": [0, 1e-4], "momentum": [0.8, 0.9], "rho": rho}
    late = {"use": "swa", "base": "sgd", "sweep": {"lr": LR, "swa_from": [0.5, 0.0, 0.9]}}
    resolved = load({**RANGES, "optimizers": {"sam": {"base": "sgd", "sweep": sweep}, "swa": late}, "baseline": "sam"})
    limits = {"sam": {"weight_decay": ["smallest"], "rho": ["smallest"]}, "swa": {"swa_from": ["smallest"]}}
    assert selection.phased(resolved.meta())["tune"]["limits"] == limits


def test_equal_passes_give_sam_half_the_trials(load: Load) -> None:
    tune = {"seeds": 1, "trials": 5, "search": "random", "budget": "passes"}
    twice = {"use": "sgd", "sweep": {"lr": LR}, "train": {"epochs": 4}}
    resolved = load({**RANGES, "tune": tune, "optimizers.sgd-2x": twice})
    assert resolved.phases is not None
    assert resolved.phases.trials == {"sgd": 5, "sam": 2, "sgd-2x": 2}
    more = load({**RANGES, "tune": {**tune, "budget": "trials"}, "optimizers.sgd-2x": twice})
    of = {label: [run.config for run in more.runs if run.label == label] for label in more.labels}
    assert [run.config for run in resolved.runs if run.label == "sam"] == of["sam"][:2]
    assert of["sgd"] == of["sgd-2x"], "the same axes, the same trials"


def test_one_that_is_not_tuned_has_final_runs_from_the_start(load: Load) -> None:
    resolved = load({"optimizers.adam": {"lr": 0.01, "tune": False}})
    final = [run for run in resolved.runs if run.phase == "final"]
    assert [(run.label, run.config_text, run.spec.seed) for run in final] == [("adam", "", n) for n in (2, 3, 4)]
    assert selection.phased(resolved.meta())["untuned"] == ["adam"]
    assert {run.label for run in resolved.to_be_chosen()} == {"sgd", "sam"}


def test_phases_go_with_conditions(load: Load) -> None:
    resolved = load({"vary": {"data": {"label_noise": [0.0, 0.2]}}})
    assert len(resolved.runs) == 2 * 2 * 4 * 2
    chosen = resolved.with_final({("label_noise=0.2", "sgd"): "lr=0.3"})
    final = [run for run in chosen.runs if run.phase == "final"]
    assert {(run.condition_text, run.spec.data.label_noise, run.config["lr"]) for run in final} == {
        ("label_noise=0.2", 0.2, 0.3)
    }
    assert len(chosen.to_be_chosen()) == 3 * 3


def test_seeds_of_the_command_are_so_many_final_ones(load: Load) -> None:
    resolved = load(seeds=1)
    assert (resolved.seeds, resolved.name) == ((2,), "tiny")
    assert {run.spec.seed for run in resolved.tuning} == {0, 1}, "what is chosen does not hang on it"


def test_meta_tells_tables_of_the_phases(load: Load) -> None:
    meta = load({"final": {"seeds": 3, "refit": True}}).meta()
    assert meta["seeds"] == [2, 3, 4]
    assert meta["sweeps"] == {"sgd": ["lr"], "sam": ["lr", "rho"]}
    assert meta["phases"] == {
        "tune": {
            "seeds": [0, 1],
            "search": "grid",
            "budget": "trials",
            "trials": {"sgd": 4, "sam": 4},
            "spaces": {"sgd": {"lr": [0.01, 0.03, 0.1, 0.3]}, "sam": {"lr": [0.03, 0.1], "rho": [0.05, 0.1]}},
        },
        "final": {"seeds": [2, 3, 4], "refit": True},
        "untuned": [],
    }


def test_an_experiment_without_phases_says_nothing_of_them(load: Load) -> None:
    plain = load({"tune": ..., "final": ..., "seeds": 2})
    assert "phases" not in plain.meta()
    assert ({run.phase for run in plain.runs}, plain.to_be_chosen()) == ({""}, [])


# ---- what is refused -----------------------------------------------------------------------------------------

SOBOL = {"seeds": 2, "trials": 4, "search": "sobol"}
UNEQUAL = {"sgd": {"sweep": {"lr": [0.1, 0.2]}}, "sam": {"base": "sgd", "sweep": {"lr": [0.1], "rho": [1, 2, 3, 4]}}}
REFUSED = [
    ({"seeds": 3}, "seeds", ["[tune] and [final] set their own seeds; remove this key"]),
    ({"final": ...}, "final", ["required, but missing"]),
    ({"tune": ...}, "tune", ["required, but missing"]),
    ({"tune": {"seeds": 2}}, "tune.trials", ["required, but missing"]),
    ({"tune": {"trials": 4}}, "tune.seeds", ["required, but missing"]),
    ({"tune": {**SOBOL, "trials": 1}}, "tune.trials", ["greater than or equal to 2"]),
    ({"tune": {**SOBOL, "search": "soboll"}}, "tune.search", ["'grid', 'random' or 'sobol'", "got 'soboll'"]),
    ({"tune": {**SOBOL, "budget": "time"}}, "tune.budget", ["'trials' or 'passes'"]),
    ({"tune": {**SOBOL, "trails": 4}}, "tune.trails", ['did you mean "trials"?']),
    ({"tune": {**SOBOL, "seeds": 0}}, "tune.seeds", ["a number >= 1"]),
    ({"final": {"seeds": 0}}, "final.seeds", ["a number >= 1", "got 0"]),
    ({"final": {"seeds": [1, 5]}}, "final.seeds", ["must be fresh, but tune.seeds has 1 too"]),
    ({"final": {"seeds": 3, "refitt": True}}, "final.refitt", ['did you mean "refit"?']),
    ({"final": {"seeds": 3, "refit": 1}}, "final.refit", ["must be a valid boolean"]),
    ({"optimizers": UNEQUAL}, "tune.trials", ["4 trials", "the grids have sgd 2 (4 allowed), sam 4"]),
    ({"optimizers.adam": {"lr": 0.1}}, "optimizers.adam", ["nothing is swept", "tune = false"]),
    ({"optimizers.sgd.tune": False}, "optimizers.sgd.tune", ["something is swept; keep one of the two"]),
    ({"optimizers.sgd.tune": "no"}, "optimizers.sgd.tune", ["must be true or false, got 'no'"]),
    ({"optimizers": {"sgd": {"lr": 0.1, "tune": False}}}, "tune", ["no optimizer has a sweep to tune"]),
    ({"optimizers.sgd.sweep.lr": LR}, "optimizers.sgd.sweep.lr", ['a range needs tune.search = "random" or "sobol"']),
    (
        {**RANGES, "optimizers.sgd.sweep.lr": {"low": 1, "hihg": 2}},
        "optimizers.sgd.sweep.lr.hihg",
        ['did you mean "high"?'],
    ),
    ({**RANGES, "optimizers.sgd.sweep.lr": {"low": 1}}, "optimizers.sgd.sweep.lr", ["low = NUMBER, high = NUMBER"]),
    (
        {**RANGES, "optimizers.sgd.sweep.lr": {"low": 1, "high": "2"}},
        "optimizers.sgd.sweep.lr",
        ["a range is", "got {'low': 1, 'high': '2'}"],
    ),
    ({**RANGES, "optimizers.sgd.sweep.lr": {"low": 2, "high": 1}}, "optimizers.sgd.sweep.lr", ["low must be below"]),
    (
        {**RANGES, "optimizers.sgd.sweep.lr": {"low": 0, "high": 1, "log": True}},
        "optimizers.sgd.sweep.lr.low",
        ["above 0 on a logarithmic scale"],
    ),
    ({**RANGES, "optimizers.sgd.sweep.lr": [0.1, 0.2]}, "optimizers.sgd.sweep", ["only 2 different", "4 trials"]),
    (
        {"tune": {**SOBOL, "budget": "passes"}, "optimizers.sgd.sweep": {"lr": LR, "train": {"epochs": [1, 2, 3, 4]}}},
        "optimizers.sgd.sweep",
        ["changes the passes per run"],
    ),
    (
        {"tune": {"seeds": 1, "trials": 4, "budget": "passes"}},
        "tune.trials",
        ["with equal gradient passes for every optimizer", "sgd 4, sam 4 (2 allowed)"],
    ),
]


@pytest.mark.parametrize(
    ("changes", "key", "fragments"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_phases_are_told_once_under_their_key(
    write_experiment: Write, phased: Tiny, changes: dict[str, Any], key: str, fragments: list[str]
) -> None:
    path = write_experiment(phased(changes))
    with pytest.raises(BadValue) as caught:
        experiment.load(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{key}: ")
    for fragment in fragments:
        assert fragment in problem


def test_ranges_and_tune_are_for_experiments_with_phases(write_experiment: Write, tiny: Tiny) -> None:
    for changes, key, fragment in (
        ({"optimizers.sam.sweep": {"rho": RHO}}, "optimizers.sam.sweep.rho", "a range needs a table [tune]"),
        ({"optimizers.sgd.tune": False}, "optimizers.sgd.tune", "only in an experiment with a table [tune]"),
    ):
        with pytest.raises(BadValue) as caught:
            experiment.load(write_experiment(tiny(changes)))
        (problem,) = caught.value.problems
        assert problem.startswith(f"{key}: ")
        assert fragment in problem
