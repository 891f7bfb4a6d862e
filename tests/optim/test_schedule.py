"""Learning-rate schedules at points that can be told in advance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim import SGD

from bench.optim.base.schedule import lr_factor, scheduler


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


def test_the_scheduler_gives_step_t_the_factor_of_t_times_each_groups_own_lr() -> None:
    first, second = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": [second], "lr": 3.0}]
    optimizer = SGD(groups, lr=0.1)
    schedule = scheduler(optimizer, total=6, warmup=2, shape="cosine")
    for step in range(6):
        factor = lr_factor(step, 6, 2, "cosine")
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * factor, 3.0 * factor])
        optimizer.step()
        schedule.step()
