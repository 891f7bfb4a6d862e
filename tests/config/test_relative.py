"""Training settings that follow the experiment's own, and what is said of those that do not."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.config import file as experiment
from bench.core.errors import BadValue
from bench.core.experiment import Experiment
from bench.core.spec import TrainSettings

Load = Callable[..., Experiment]
EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))


@pytest.fixture
def load(write_experiment: Callable[..., Path], tiny: Callable[..., dict[str, Any]]) -> Load:
    """load({...}, overrides...): the tiny experiment with an entry sgd-2x, changed and resolved."""

    def make(changes: Mapping[str, Any], *overrides: str) -> Experiment:
        twice = {"use": "sgd", "lr": 0.1, "train": {"epochs": "2x", "eval_every": "2x", "warmup_epochs": "2x"}}
        return experiment.load(write_experiment(tiny({"optimizers.sgd-2x": twice, **changes})), overrides)

    return make


def training(resolved: Experiment, label: str) -> TrainSettings:
    return next(run.spec.train for run in resolved.runs if run.label == label)


def run_ids(resolved: Experiment) -> list[str]:
    return [run.spec.run_id for run in resolved.runs]


# ---- multiples -----------------------------------------------------------------------------------------------


def test_multiples_follow_what_the_experiment_says_and_what_an_override_makes_of_it(load: Load) -> None:
    common = {"train.epochs": 6, "train.eval_every": 3, "train.warmup_epochs": 1}
    twice = training(load(common), "sgd-2x")
    assert (twice.epochs, twice.eval_every, twice.warmup_epochs) == (12, 6, 2)
    assert training(load(common, "train.epochs=4"), "sgd-2x").epochs == 8
    assert training(load(common, "optimizers.sgd-2x.train.epochs=3x"), "sgd-2x").epochs == 18
    assert training(load({"train.epochs": 6}), "sgd-2x").eval_every == 2, "of the default"


def test_a_multiple_is_the_run_that_its_number_is(load: Load) -> None:
    numbers = {"epochs": 12, "eval_every": 6, "warmup_epochs": 2}
    common = {"train.epochs": 6, "train.eval_every": 3, "train.warmup_epochs": 1}
    assert run_ids(load(common)) == run_ids(load({**common, "optimizers.sgd-2x.train": numbers}))


def test_shares_of_what_they_divide_and_swept_multiples(load: Load) -> None:
    assert training(load({"train.epochs": 6, "optimizers.sgd-2x.train": {"epochs": "1.5x"}}), "sgd-2x").epochs == 9
    swept = {"use": "sgd", "lr": 0.1, "sweep": {"train": {"epochs": ["1x", "0.5 x", 5]}}}
    resolved = load({"train.epochs": 6, "optimizers.sgd-2x": swept})
    runs = [run for run in resolved.runs if run.label == "sgd-2x" and run.spec.seed == 0]
    assert [(run.config_text, run.spec.train.epochs) for run in runs] == [
        ("epochs=6", 6),
        ("epochs=3", 3),
        ("epochs=5", 5),
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"train.epochs": 5, "optimizers.sgd-2x.train": {"epochs": "1.5x"}},
            'optimizers.sgd-2x.train.epochs: "1.5x" of train.epochs = 5 is 7.5, not a whole number',
        ),
        (
            {"optimizers.sgd-2x.train": {"batch_size": "2x"}},
            'optimizers.sgd-2x.train.batch_size: "2x": only epochs, warmup_epochs, eval_every may be multiples; give a '
            "value",
        ),
        (
            {"optimizers.sgd-2x.train": {"eval_every": "0x"}},
            "optimizers.sgd-2x.train.eval_every: must be greater than or equal to 1, got 0",
        ),
        (
            {"optimizers.sgd-2x.train": {"epochs": "twice"}},
            "optimizers.sgd-2x.train.epochs: must be a valid integer, got 'twice'",
        ),
        (
            {"optimizers.sgd-2x": {"use": "sgd", "lr": 0.1, "sweep": {"train": {"epochs": ["2x", 4]}}}},
            "optimizers.sgd-2x.sweep.train.epochs: the same value twice: [4, 4]",
        ),
    ],
)
def test_what_cannot_be_a_multiple_is_one_problem(load: Load, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadValue) as caught:
        load(changes)
    assert caught.value.problems == [problem]


def test_without_common_epochs_both_places_are_named(load: Load) -> None:
    with pytest.raises(BadValue) as caught:
        load({"train": {"batch_size": 256}})
    assert "train.epochs: required, but missing" in caught.value.problems
    multiple = '"2x" is a multiple of train.epochs, which is not a whole number; set it in [train]'
    assert f"optimizers.sgd-2x.train.epochs: {multiple}" in caught.value.problems


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_no_experiment_of_ours_fixes_what_should_follow(path: Path) -> None:
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    fixed = {
        f"{label}.{key}": value
        for label, entry in document["optimizers"].items()
        for key, value in entry.get("train", {}).items()
        if key in ("epochs", "warmup_epochs", "eval_every") and not isinstance(value, str)
    }
    assert not fixed


# ---- what an override does not reach -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "override", "said"),
    [
        ({}, "train.epochs=3", []),
        (
            {"optimizers.sgd-2x.train": {"epochs": 40}},
            "train.epochs=3",
            [
                "--set train.epochs does not reach sgd-2x (40), with train.epochs of its own; "
                'a multiple ("2x") would follow it.'
            ],
        ),
        (
            {
                "optimizers.sgd-2x.train": {"batch_size": 64},
                "optimizers.sgd.sweep": {"train": {"batch_size": [32, 64]}},
            },
            "train={epochs = 3, batch_size = 128}",
            ["--set train does not reach sgd ([32, 64]), sgd-2x (64), with train.batch_size of their own."],
        ),
        ({"optimizers.sgd-2x.train": {"epochs": 40}}, "optimizers.sgd.train.epochs=3", []),
        ({"vary": {"task": {"name": ["digits"]}}}, "task.augment=none", []),
        (
            {"vary": {"model": {"name": ["mlp"]}}},
            "model=resnet8",
            ["--set model reaches no run: vary.model has ['mlp'] in its place."],
        ),
    ],
)
def test_entries_that_an_override_does_not_reach_are_named(
    load: Load, changes: dict[str, Any], override: str, said: list[str]
) -> None:
    assert list(load(changes, override).unreached) == said


def test_an_entry_that_is_set_too_was_not_forgotten(load: Load) -> None:
    resolved = load({}, "train.epochs=3", "optimizers.sgd-2x.train.epochs=4")
    assert (training(resolved, "sgd-2x").epochs, resolved.unreached) == (4, ())


def test_a_table_that_is_set_holds_what_is_set(load: Load) -> None:
    for table in ("optimizers.sgd-2x.train={epochs=4}", "optimizers.sgd-2x={use='sgd', lr=0.1, train={epochs=4}}"):
        assert load({}, "train.epochs=3", table).unreached == ()


def test_a_launch_says_which_entries_an_override_did_not_reach(
    bench: Callable[..., Any], write_experiment: Callable[..., Path], tiny: Callable[..., dict[str, Any]]
) -> None:
    path = write_experiment(tiny({"optimizers.sgd.train": {"epochs": 1}, "seeds": 1}))
    assert "does not reach" not in bench("run", path, "--dry-run", "--set", "train.batch_size=128").err
    said = bench("run", path, "--dry-run", "--set", "train.epochs=3").err
    assert "--set train.epochs does not reach sgd (1), with train.epochs of its own" in said
