"""The estimate before a launch: what is measured, and how a launch's length follows from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.config import file as experiment
from bench.core.experiment import Experiment, PlannedRun
from bench.launch.estimate import Speed, duration, estimate, kind, makespan, measure_speed, samples
from bench.train import weights_sha256


@pytest.fixture
def load(tiny: Any, write_experiment: Any) -> Callable[..., Experiment]:
    return lambda changes=None: experiment.load(write_experiment(tiny(changes)))


def specs_of(resolved: Experiment) -> dict[str, PlannedRun]:
    return {run.label: run for run in resolved.runs}


def test_a_few_steps_are_measured_and_leave_the_random_numbers_of_runs_alone(load: Callable[..., Experiment]) -> None:
    (spec, *_) = (run.spec for run in load().runs)
    speed = measure_speed(spec, torch.device("cpu"), seconds=0.01)
    assert speed.setup > 0
    assert speed.a_pass > 0
    assert speed.an_evaluation > 0
    assert weights_sha256(torch.nn.Linear(1, 1))  # torch still works: no mode was left on


def test_runs_of_the_same_work_are_measured_once_by_the_one_of_fewest_passes(load: Callable[..., Experiment]) -> None:
    resolved = load({"optimizers.longer": {"use": "sgd", "lr": 0.1, "train": {"epochs": 9}}})
    (spec,) = samples(resolved.runs).values()
    assert spec.optimizer.name == "sgd"


@pytest.mark.parametrize(
    "change",
    [
        {"optimizers.sam.m": 64},
        {"optimizers.sam.train": {"batch_size": 32}},
        {"optimizers.sam.train": {"precision": "bf16"}},
    ],
)
def test_runs_of_other_work_are_measured_apart(load: Callable[..., Experiment], change: dict[str, Any]) -> None:
    resolved = load(change)
    assert len(samples(resolved.runs)) == 2
    by_label = specs_of(resolved)
    assert kind(by_label["sgd"].spec) != kind(by_label["sam"].spec)


def test_a_run_costs_its_set_up_its_passes_and_its_evaluations(load: Callable[..., Experiment]) -> None:
    (run, *_) = load({"train.epochs": 5, "train.eval_every": 2}).runs
    assert Speed(setup=100.0, a_pass=2.0, an_evaluation=10.0).run(run.spec, 30) == 100 + 30 * 2 + 3 * 10


@pytest.mark.parametrize(
    ("seconds", "workers", "total"),
    [([5.0], 2, 5.0), ([3.0, 3.0, 3.0], 2, 6.0), ([4.0, 2.0, 2.0], 2, 4.0), ([1.0, 2.0], 1, 3.0)],
)
def test_a_launch_lasts_until_its_last_worker_is_done(seconds: list[float], workers: int, total: float) -> None:
    assert makespan(seconds, workers) == total


def test_the_estimate_in_words(load: Callable[..., Experiment]) -> None:
    resolved = load()
    passes = {run.spec.run_id: 1000 for run in resolved.runs}
    speeds = {name: Speed(0.0, 1.0, 0.0) for name in samples(resolved.runs)}
    seconds, words = estimate(resolved.runs, passes, speeds, workers=2)
    assert seconds == 3000
    assert words == (
        "Estimated time on this machine: 50 min 00 s "
        "(2 at a time; measured: 1e+03 ms per pass of mlp on digits, batches of 256)"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3725, "1 h 02 min"),
        (86_400 + 7_200, "1 day 2 h"),
        (700_000, "8 days 2 h"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
