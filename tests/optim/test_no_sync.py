"""Accumulation in which only a step's last micro-batch is averaged: over DistributedDataParallel, accelerate, Trainer.

It is the default of the latter two, and parted the processes in silence: what earlier micro-batches had left was added
after the gradients had been averaged.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from bench.optim.gsam import GSAM
from bench.optim.momentum_sam import MomentumSAM

from . import no_sync

Both = list[dict[str, Any]]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", no_sync.METHODS)
def test_processes_stay_together(in_two: Both, name: str) -> None:
    first, second = (found[f"no_sync, {name}"] for found in in_two)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", no_sync.METHODS)
def test_at_a_vanishing_rho_it_is_the_base(in_two: Both, name: str) -> None:
    found = in_two[0]
    torch.testing.assert_close(found[f"no_sync, {name}, vanishing"], found["no_sync, sgd"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["sam", "asam"])
def test_a_perturbation_is_for_a_processs_micro_batch_and_in_the_last_for_all(in_two: Both, name: str) -> None:
    by_hand = no_sync.alone(adaptive=name == "asam")
    torch.testing.assert_close(in_two[0][f"no_sync, {name}"], by_hand, rtol=0, atol=1e-10)
    assert (by_hand - in_two[0]["no_sync, sgd"]).abs().max() > 1e-3


def test_a_closure_may_zero_gradients_all_the_same(in_two: Both) -> None:
    for found in in_two:
        torch.testing.assert_close(found["no_sync, sam, zeroing"], in_two[0]["no_sync, sam"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("every", [False, True], ids=["no_sync", "averaged in each"])
def test_gradients_may_be_views_of_the_memory_that_is_sent(in_two: Both, every: bool) -> None:
    """The next micro-batch's overwrote the earlier ones, set aside as they were."""
    for found in in_two:
        own, views = (found[f"every {every}, buckets {buckets}"] for buckets in (False, True))
        torch.testing.assert_close(own, views, rtol=0, atol=1e-12)


def test_closures_of_one_step_may_leave_the_average_to_the_last(in_two: Both) -> None:
    """The mean of parts is that of micro-batches."""
    first, second = (found["closures in parts"] for found in in_two)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, in_two[0]["no_sync, sam"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", no_sync.REFUSED)
def test_methods_that_are_not_in_proportion_to_gradients_refuse(in_two: Both, name: str) -> None:
    first, second = in_two
    for found in in_two:
        said = found[f"refused, {name}"]
        assert "needs gradients that are averaged over all processes in every pass" in said
        assert "sync_each_batch" in said
    assert torch.equal(first[f"averaged, {name}"], second[f"averaged, {name}"])


def test_a_method_of_ones_own_that_combines_gradients_needs_averages_without_saying_so() -> None:
    class Own(GSAM):
        pass

    assert GSAM.needs_averages
    assert Own.needs_averages
    assert not MomentumSAM.needs_averages


def test_accelerates_accumulate_with_its_defaults(in_two: Both) -> None:
    first, second = (found["accelerate, sam"] for found in in_two)
    assert first["wrapped"] == "DistributedDataParallel"
    assert torch.equal(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], in_two[0]["accelerate, sgd"]["weights"], rtol=0, atol=1e-7)


def test_a_closure_that_accelerate_has_dropped_is_an_error(in_two: Both) -> None:
    for found in in_two:
        said = found["accelerate, sam"]["said"]
        assert "accelerate evaluates no closure in 3 of 4 micro-batches" in said
        assert "call SAM.backward(closure), which is optimizer.optimizer.backward" in said


def test_another_loop_beside_an_accelerator_that_accumulates_takes_closures(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import GradientState
    from accelerate.utils import GradientAccumulationPlugin

    monkeypatch.setattr(GradientState, "_shared_state", type(GradientState._shared_state)())
    assert GradientState(GradientAccumulationPlugin(num_steps=4)).num_steps == 4
    model, x = nn.Linear(3, 2), torch.ones(4, 3)
    optimizer = MomentumSAM(SGD(model.parameters(), lr=0.1, momentum=0.9))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert optimizer.step(closure) is not None


def test_the_trainer_accumulates_over_processes_with_its_defaults(in_two: Both) -> None:
    first, second = in_two
    assert first["trainer, sam"]["wrapped"] == "DistributedDataParallel"
    assert first["trainer, sam"]["processes"] == 2
    for name in ("trainer, sam", "trainer, vanishing"):
        assert torch.equal(first[name]["weights"], second[name]["weights"])
    plain, vanishing, sam = (first[f"trainer, {name}"]["weights"] for name in ("adamw", "vanishing", "sam"))
    torch.testing.assert_close(vanishing, plain, rtol=0, atol=1e-6)
    assert (sam - plain).abs().max() > 1e-4
