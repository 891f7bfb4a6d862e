"""In people's loops, too: whatever a closure returns, however it zeroes, and bases that are refused or taken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from lightning.fabric import Fabric
from skorch import NeuralNet
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer

from bench.optim.sam import SAM

from . import hugging_face, lightning_loops, skorch_loop
from .harness import Loop, Setting, distance, loss_of, weights, weights_and_buffers
from .hugging_face import TRAINER
from .lightning_loops import fit
from .peoples_loops import PEOPLES_LOOPS

pytestmark = [
    pytest.mark.filterwarnings("default:::(?!bench).*"),  # what other libraries deprecate is theirs
    pytest.mark.usefixtures("one_thread", "accelerate_forgets"),
]

every_loop = pytest.mark.parametrize("loop", PEOPLES_LOOPS.values(), ids=PEOPLES_LOOPS)


def of(loop: Loop, folder: Path, base: Callable[..., Optimizer]) -> Setting:
    return Setting(base, accumulate=loop.accumulate, dtype=loop.dtype, folder=folder)


# ---- bases -------------------------------------------------------------------------------------------------------


@every_loop
def test_lbfgs_is_refused_before_any_step(loop: Loop, tmp_path: Path) -> None:
    setting = replace(of(loop, tmp_path, LBFGS), method=partial(SAM, rho=0.1))
    with pytest.raises(ValueError, match="SAM cannot wrap LBFGS, whose step needs a closure of its own"):
        loop.train(setting)


@every_loop
def test_a_base_takes_an_unfused_checkpoint_and_goes_on(loop: Loop, tmp_path: Path) -> None:
    """A fused base into which an unfused one's state is loaded: as if it had been unfused from the start."""

    def loaded(fused: bool) -> Callable[..., Optimizer]:
        def base(parameters: list[nn.Parameter]) -> Optimizer:
            before = AdamW(parameters, lr=0.01, fused=False)
            for p in parameters:
                p.grad = torch.full_like(p, 0.01)
            before.step()
            before.zero_grad()
            after = AdamW(parameters, lr=0.01, fused=fused)
            after.load_state_dict(copy.deepcopy(before.state_dict()))
            return after

        return base

    ends = [
        weights_and_buffers(loop.train(replace(of(loop, tmp_path, loaded(fused)), method=partial(SAM, rho=0.1))))
        for fused in (True, False)
    ]
    assert distance(*ends) < 1e-10


class Complex(nn.Module):
    """A net whose first layer's weights are complex."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5, dtype=torch.complex128)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.tanh(self.first(x.to(self.first.weight.dtype)).abs()))
        return logits


class ComplexSetting(Setting):
    def net(self) -> nn.Module:
        torch.manual_seed(0)
        made = Complex(self.dropout)
        made.last.to(self.dtype)
        return made


@every_loop
def test_complex_parameters_are_moved_and_come_back_as_with_the_base(loop: Loop, tmp_path: Path) -> None:
    def trained(method: Any) -> dict[str, Tensor]:
        base = partial(SGD, lr=0.1, momentum=0.9)
        return weights(loop.train(ComplexSetting(base, method, loop.accumulate, folder=tmp_path)))

    bare = trained(None)
    assert distance(bare, trained(partial(SAM, rho=1e-9))) < 1e-8
    assert distance(bare, trained(partial(SAM, rho=0.3))) > 1e-4


# ---- closures ----------------------------------------------------------------------------------------------------

RETURNED: dict[str, Callable[[Tensor], Any]] = {
    "float": float,
    "tuple": lambda loss: (loss.detach(), {"examples": 8}),
    "None": lambda loss: None,
}
every_returned = pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)


@every_returned
@pytest.mark.parametrize("kind", ["plain", "accelerate", "Fabric", "timm"])
def test_whatever_a_closure_returns_comes_back_and_the_step_is_the_same(
    kind: str, returned: Callable[[Tensor], Any], tmp_path: Path
) -> None:
    def trained(shape: Callable[[Tensor], Any]) -> tuple[nn.Module, list[Any]]:
        setting = Setting(partial(SGD, lr=0.1, momentum=0.9), partial(SAM, rho=0.1), dropout=0.0, folder=tmp_path)
        net = setting.net()
        ours: Any = setting.optimizer(net)
        model: Any = net
        optimizer: Any = ours
        backward: Any = torch.Tensor.backward
        if kind == "accelerate":
            accelerator = Accelerator(cpu=True)
            model, optimizer = accelerator.prepare(net, ours)
            backward = accelerator.backward
        elif kind == "Fabric":
            fabric = Fabric(accelerator="cpu", devices=1)
            model, optimizer = fabric.setup(net, ours)
            backward = fabric.backward
        results = []
        for batch in setting.batches():

            def closure(batch: tuple[Tensor, Tensor] = batch) -> Any:
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                backward(loss)
                return shape(loss)

            if kind == "timm":
                results.append(ours.backward(closure))
                ours.step()
            else:
                results.append(ours.step(closure) if kind == "accelerate" else optimizer.step(closure))
        return net, results

    plain, losses = trained(lambda loss: loss)
    shaped, results = trained(returned)
    assert distance(weights_and_buffers(plain), weights_and_buffers(shaped)) == 0.0
    assert [type(one) for one in results] == [type(returned(losses[0].detach()))] * len(losses)
    if returned is float:
        assert results == pytest.approx([loss.item() for loss in losses])


def test_the_trainers_step_may_return_something_else(tmp_path: Path) -> None:
    """A subclass that returns a float; the Trainer itself adds it to a tensor."""
    setting = of(TRAINER, tmp_path, partial(SGD, lr=0.1))
    setting = replace(setting, method=partial(SAM, rho=0.1))
    optimizer: Any = setting.optimizer(model := setting.net())
    batch = setting.batches()[0]

    def closure() -> tuple[float, str]:
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item(), "kept"

    loss, word = optimizer.backward(closure)
    assert isinstance(loss, float)
    assert word == "kept"


class InPlace(lightning_loops.Automatic):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)


def in_lightning(setting: Setting) -> nn.Module:
    module = InPlace(setting)
    fit(module, setting)
    return module.net


def in_skorch(setting: Setting) -> nn.Module:
    class Net(NeuralNet):  # type: ignore[misc]
        def _zero_grad_optimizer(self, set_to_none: Any = None) -> None:
            super()._zero_grad_optimizer(set_to_none=False)

    return skorch_loop.train(setting, Net)


def in_accelerate(setting: Setting) -> nn.Module:
    accelerator = Accelerator(cpu=True)
    net = setting.net()
    plain = setting.optimizer(net)
    model, optimizer = accelerator.prepare(net, plain)
    for batch in setting.batches():

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad(set_to_none=False)
            loss = loss_of(model, batch)
            accelerator.backward(loss)
            return loss

        if setting.method is None:
            closure()
            optimizer.step()
        else:
            optimizer.step(closure)
    return net


def in_the_trainer(setting: Setting) -> nn.Module:
    """Its model zeroes in place before every forward pass, as some callbacks do at a step's beginning."""
    model = setting.net()

    def zero(net: nn.Module, _: Any) -> None:
        for p in net.parameters():
            if p.grad is not None:
                p.grad.zero_()

    model.register_forward_pre_hook(zero)
    hugging_face.train_module(setting, model)
    return model


@pytest.mark.parametrize("train", [in_lightning, in_skorch, in_accelerate, in_the_trainer])
def test_gradients_may_be_zeroed_in_place(train: Callable[[Setting], nn.Module], tmp_path: Path) -> None:
    setting = Setting(partial(SGD, lr=0.1, momentum=0.9), folder=tmp_path)
    bare = weights_and_buffers(train(setting))
    ours, far = (weights_and_buffers(train(replace(setting, method=partial(SAM, rho=rho)))) for rho in (1e-9, 0.3))
    assert distance(bare, ours) < 1e-8
    assert distance(bare, far) > 1e-5
