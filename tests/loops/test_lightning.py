"""What Lightning lets users change about a step, with SAM in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from bench.optim.friendly_sam import FriendlySAM
from bench.optim.looksam import LookSAM
from bench.optim.momentum_sam import MomentumSAM
from bench.optim.random_direction import RandomDirection
from bench.optim.sam import SAM

from .harness import Batch, Setting, distance, loss_of, weights, weights_and_buffers
from .lightning_loops import Automatic, Manual, fit

pytestmark = [
    pytest.mark.filterwarnings("default:::(?!bench).*"),  # what other libraries deprecate is theirs
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(lambda p: AdamW(p, lr=0.01), folder=tmp_path)


def ends_alike(kind: Callable[[Setting], Automatic], setting: Setting, method: Any = SAM, **changes: Any) -> None:
    """At a vanishing rho a module ends where it does with the bare base; at a rho that counts, elsewhere."""

    def trained(setting: Setting) -> dict[str, Tensor]:
        module = kind(setting)
        callbacks = [make() for make in changes.get("callbacks", [])]
        fit(module, setting, **(changes | {"callbacks": callbacks}))
        return weights_and_buffers(module.net)

    bare = trained(setting)
    ours = trained(replace(setting, method=partial(method, rho=1e-9)))
    assert distance(bare, ours) < 1e-8
    assert distance(bare, trained(replace(setting, method=partial(method, rho=0.3)))) > 1e-5


# ---- StochasticWeightAveraging -----------------------------------------------------------------------------------


def test_stochastic_weight_averaging_and_its_epoch_for_batch_norm(setting: Setting) -> None:
    ends_alike(Automatic, setting, max_epochs=4, callbacks=[lambda: StochasticWeightAveraging(1e-2, swa_epoch_start=2)])


# ---- optimizer_zero_grad -----------------------------------------------------------------------------------------


def in_place(module: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)


def of_the_module(module: nn.Module, optimizer: Optimizer) -> None:
    module.zero_grad()


def by_hand(module: nn.Module, optimizer: Optimizer) -> None:
    for p in module.parameters():
        if p.grad is not None:
            p.grad.detach_().zero_()


def behind_autograds_back(module: nn.Module, optimizer: Optimizer) -> None:
    for p in module.parameters():
        if p.grad is not None:
            p.grad.data.mul_(0)


def by_new_zeros(module: nn.Module, optimizer: Optimizer) -> None:
    for p in module.parameters():
        p.grad = torch.zeros_like(p)


@pytest.mark.parametrize("zero", [in_place, of_the_module, by_hand, behind_autograds_back, by_new_zeros])
def test_an_optimizer_zero_grad_of_ones_own(setting: Setting, zero: Callable[..., None]) -> None:
    class Zeroing(Automatic):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
            zero(self, optimizer)

    ends_alike(Zeroing, setting, max_epochs=2)


def test_gradients_zeroed_after_each_batch_instead(setting: Setting) -> None:
    class Zeroing(Automatic):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
            pass

        def on_train_batch_end(self, *args: Any) -> None:
            self.zero_grad()

    ends_alike(Zeroing, setting, max_epochs=2)


# ---- a training_step that returns None ---------------------------------------------------------------------------


class Skipping(Automatic):
    """Leaves out every second batch, and counts how often it is asked."""

    asked = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        self.asked += 1
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("method", [SAM, partial(LookSAM, alpha=0.0), FriendlySAM, MomentumSAM, RandomDirection])
def test_a_training_step_that_returns_none_skips_the_batch(setting: Setting, method: Any) -> None:
    ends_alike(Skipping, setting, method, max_epochs=2)


def test_a_skipped_batch_is_not_asked_for_twice_and_changes_nothing(setting: Setting) -> None:
    module = Skipping(replace(setting, method=partial(SAM, rho=0.1)))
    seen: list[dict[str, Tensor]] = []
    module.on_train_batch_end = lambda *args: seen.append({n: w.clone() for n, w in weights(module.net).items()})  # type: ignore[method-assign]
    fit(module, setting)
    assert module.asked == 2 * 2 + 2
    assert distance(seen[0], seen[1]) == 0.0
    assert distance(seen[1], seen[2]) > 1e-4


# ---- what is counted ---------------------------------------------------------------------------------------------


class Counting(Automatic):
    """Has a metric of its batches, updated in every pass or, as the docs say, in the first."""

    careful = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.seen = torchmetrics.SumMetric()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if not self.careful or getattr(self.trainer.optimizers[0], "first_pass", True):
            self.seen.update(len(batch[0]))
        return loss_of(self.net, batch)


class CountingTwice(Counting):
    careful = False


def test_a_metric_counts_once_where_it_asks_for_the_first_pass(setting: Setting) -> None:
    counts = []
    for kind, method in ((Counting, None), (Counting, partial(SAM, rho=0.1)), (CountingTwice, partial(SAM, rho=0.1))):
        module = kind(replace(setting, method=method))
        fit(module, setting)
        counts.append(int(module.seen.compute()))
    assert counts == [32, 32, 64]


# ---- manual optimization -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [False, True], ids=["Lightning's wrapper", "the optimizer inside"])
def test_backward_of_lightnings_wrapper_is_that_of_the_optimizer_inside(setting: Setting, inner: bool) -> None:
    class Inner(Manual):
        def optimizers(self, *args: Any, **kwargs: Any) -> Any:
            wrapped: Any = super().optimizers(*args, **kwargs)
            return wrapped.optimizer if inner else wrapped

    setting = replace(setting, base=lambda p: SGD(p, lr=0.1), accumulate=2)
    ends_alike(Inner, setting)
