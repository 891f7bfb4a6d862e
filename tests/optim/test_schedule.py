"""Learning-rate schedules at points that can be told in advance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from bench.core.spec import Schedule
from bench.optim.base.schedule import Scheduler, lr_factor


def test_warm_up_is_linear_and_its_first_step_is_not_0() -> None:
    assert [lr_factor(step, 100, 4, "cosine") for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (20, 0.75), (30, 0.5), (40, 0.25), (60, 0.0)])
def test_the_cosine_at_known_points(step: int, factor: float) -> None:
    assert lr_factor(step, 60, 0, "cosine") == pytest.approx(factor, abs=1e-12)


def test_the_cosine_begins_where_the_warm_up_ends() -> None:
    assert lr_factor(10, 70, 10, "cosine") == 1.0
    assert lr_factor(40, 70, 10, "cosine") == pytest.approx(0.5)
    assert lr_factor(70, 70, 10, "cosine") == pytest.approx(0.0, abs=1e-12)


def test_the_last_step_of_training_is_near_0_and_none_is_below() -> None:
    factors = [lr_factor(step, 1000, 100, "cosine") for step in range(1100)]
    assert 0 < factors[999] < 1e-5
    assert min(factors) >= 0
    assert max(factors[1000:]) == pytest.approx(0.0, abs=1e-12)  # a step too many does not climb again
    assert factors[100:] == sorted(factors[100:], reverse=True)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.5), (99, 1 / 90), (100, 0.0), (120, 0.0)]
)
def test_the_line_at_known_points(step: int, factor: float) -> None:
    assert lr_factor(step, 100, 10, "linear") == pytest.approx(factor, abs=1e-12)


def test_constant_stays_at_1_after_its_warm_up() -> None:
    assert [lr_factor(step, 10, 2, "constant") for step in (0, 1, 2, 9, 50)] == [0.5, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("warmup", [10, 20])
def test_training_that_is_all_warm_up_is_finite(warmup: int) -> None:
    assert all(math.isfinite(lr_factor(step, 10, warmup, "cosine")) for step in range(21))


def groups(lr: Any = 0.1) -> SGD:
    first, second = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    both: list[dict[str, Any]] = [{"params": [first]}, {"params": [second], "lr": 3.0}]
    return SGD(both, lr=lr)


def lambda_lr(optimizer: SGD, total: int, warmup: int, shape: Schedule) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: lr_factor(step, total, warmup, shape))


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_the_scheduler_gives_the_bits_of_lambda_lr_for_each_group(shape: Schedule) -> None:
    optimizer, theirs = groups(), groups()
    schedule, reference = Scheduler(optimizer, 23, 5, shape), lambda_lr(theirs, 23, 5, shape)
    for step in range(25):
        assert optimizer.param_groups[1]["lr"] == 3.0 * lr_factor(step, 23, 5, shape)
        assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in theirs.param_groups]
        optimizer.step()
        theirs.step()
        schedule.step()
        reference.step()
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.1, 3.0], "rho_schedule = lr reads that"


def test_a_checkpoint_of_lambda_lr_is_gone_on_from() -> None:
    old = groups()
    reference = lambda_lr(old, 20, 4, "cosine")
    for _ in range(7):
        old.step()
        reference.step()
    new = groups(lr=7.0)
    schedule = Scheduler(new, 20, 4, "cosine")
    new.load_state_dict(old.state_dict())
    schedule.load_state_dict(reference.state_dict())
    assert set(schedule.state_dict()) < set(reference.state_dict()), "no key that an old checkpoint lacks"
    for _ in range(8):
        assert [group["lr"] for group in new.param_groups] == [group["lr"] for group in old.param_groups]
        old.step()
        for one in (reference, schedule):
            one.step()


def test_an_lr_that_is_a_tensor_stays_that_tensor() -> None:
    optimizer = groups(lr=torch.tensor(0.1))
    held = optimizer.param_groups[0]["lr"]
    schedule = Scheduler(optimizer, 10, 5, "constant")
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == pytest.approx(0.02)
    schedule.step()
    assert held.item() == pytest.approx(0.04)
