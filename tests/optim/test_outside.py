"""Parameters in no group of SAM, which get gradients in its closure: they are those of one plain pass, at w."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.sam import SAM

from .helpers import same_bits, snapshot
from .test_contract import CORE_METHODS, Recipe

AT_W = [
    r
    for r in CORE_METHODS
    if r.base and r.base.name == "sgd" and r.entry.name not in ("momentum-sam", "random-direction", "sampa")
]
X = torch.arange(24.0).reshape(8, 3) / 12


class Net(nn.Module):
    """A layer that a method trains, and one that is another optimizer's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.outside = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.outside(self.inside(x).tanh())
        return result


Zero = Callable[[Net, Optimizer], None]
ZEROES: dict[str, Zero] = {
    "what is inside": lambda net, optimizer: optimizer.zero_grad(),
    "all": lambda net, optimizer: net.zero_grad(),
    "all in place": lambda net, optimizer: net.zero_grad(set_to_none=False),
}


def loss_of(net: Net, x: Tensor = X, optimizer: Any = None) -> Tensor:
    outputs = net(x)
    if getattr(optimizer, "takes_logits", False):
        outputs = optimizer.logits(outputs)
    return outputs.square().mean()  # type: ignore[no-any-return]


def closure_of(
    net: Net, optimizer: Optimizer, x: Tensor = X, zero: Zero = ZEROES["what is inside"]
) -> Callable[..., Any]:
    if getattr(optimizer, "takes_losses", False):
        return lambda examples=slice(None): net(x[examples]).square().mean(1)

    def closure() -> Tensor:
        zero(net, optimizer)
        loss = loss_of(net, x, optimizer)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return closure


def plain(net: Net) -> list[Tensor]:
    """Return the gradients outside of a plain pass at the weights as they are."""
    return snapshot(torch.autograd.grad(loss_of(net), list(net.outside.parameters())))


def left(net: Net) -> list[Tensor]:
    return [p.grad for p in net.outside.parameters() if p.grad is not None]


def build(recipe: Recipe, net: Net) -> OptimizerWrapper:
    net.outside.requires_grad_(False)  # an experiment's optimizer has all that is trained
    optimizer = recipe.build(net)
    net.outside.requires_grad_(True)
    assert isinstance(optimizer, OptimizerWrapper)
    return optimizer


def close(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("zero", ZEROES.values(), ids=ZEROES)
@pytest.mark.parametrize("recipe", AT_W, ids=str)
def test_gradients_outside_are_those_of_a_plain_pass(recipe: Recipe, zero: Zero) -> None:
    net = Net()
    optimizer, other = build(recipe, net), SGD(net.outside.parameters(), lr=0.1)
    for _ in range(3):
        expected = plain(net)
        optimizer.step(closure_of(net, optimizer, zero=zero))
        close(left(net), expected)
        other.step()
        other.zero_grad()


@pytest.mark.parametrize("recipe", AT_W, ids=str)
def test_over_several_closures_they_are_their_mean(recipe: Recipe) -> None:
    net = Net()
    optimizer = build(recipe, net)
    for zero in ZEROES.values():
        expected = plain(net)
        optimizer.step([closure_of(net, optimizer, part, zero) for part in torch.split(X, 2)])
        close(left(net), expected)
        net.outside.zero_grad()


@pytest.mark.parametrize("recipe", AT_W, ids=str)
def test_backward_adds_them_up_over_micro_batches(recipe: Recipe) -> None:
    net = Net()
    optimizer = build(recipe, net)
    expected = [4 * gradient for gradient in plain(net)]
    optimizer.zero_grad()
    for part in torch.split(X, 2):
        optimizer.backward(closure_of(net, optimizer, part, lambda net, optimizer: None))
    close(left(net), expected)


def test_what_an_earlier_loss_has_left_outside_stays() -> None:
    net = Net()
    optimizer = SAM(SGD(net.inside.parameters(), lr=0.1), rho=0.5, model=net)
    expected = [2 * gradient for gradient in plain(net)]
    loss_of(net).backward()  # type: ignore[no-untyped-call]
    optimizer.step(closure_of(net, optimizer))
    close(left(net), expected)


def test_over_several_closures_what_was_left_outside_is_an_error() -> None:
    """It would be divided by their number."""
    net = Net()
    optimizer = SAM(SGD(net.inside.parameters(), lr=0.1), rho=0.5, model=net)
    loss_of(net).backward()  # type: ignore[no-untyped-call]
    before = snapshot(net.parameters())
    with pytest.raises(RuntimeError, match="gradients of parameters outside its param_groups before the step, too"):
        optimizer.step([closure_of(net, optimizer, part) for part in torch.split(X, 4)])
    assert same_bits(net.parameters(), before)


@pytest.mark.parametrize("kind", [nn.Parameter, lambda t: t.requires_grad_()], ids=["parameter", "tensor"])
@pytest.mark.parametrize("with_model", [True, False])
def test_a_losss_own_weights_are_found_in_its_graph(kind: Callable[[Tensor], Tensor], with_model: bool) -> None:
    net, scale = Net(), kind(torch.ones(2))
    optimizer = SAM(SGD(net.inside.parameters(), lr=0.1), rho=0.5, model=net if with_model else None)

    def loss() -> Tensor:
        value: Tensor = (net(X) * scale).square().mean()
        return value

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    for _ in range(2):
        expected = snapshot(torch.autograd.grad(loss(), [*net.outside.parameters(), scale]))
        optimizer.step(closure)
        assert scale.grad is not None
        close([*left(net), scale.grad], expected)
        net.outside.zero_grad()
        scale.grad = None


def test_two_optimizers_on_one_loss_at_vanishing_rho_are_two_plain_ones() -> None:
    nets = []
    for wrap in (lambda base, net: SAM(base, rho=1e-7, model=net), lambda base, net: base):
        nets.append(net := Net())
        weights = [p for p in net.parameters() if p.ndim == 2]
        first: Any = wrap(torch.optim.Muon(weights, lr=0.02), net)
        second = AdamW([p for p in net.parameters() if p.ndim < 2], lr=0.01)
        for _ in range(4):
            first.step(closure_of(net, first))
            second.step()
            second.zero_grad()
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)  # Muon's bf16


def test_one_that_joins_a_group_later_is_inside_from_then_on() -> None:
    net = Net()
    optimizer = SAM(SGD(net.inside.parameters(), lr=0.1), rho=0.5, model=net)
    optimizer.step(closure_of(net, optimizer))
    net.outside.zero_grad()
    optimizer.add_param_group({"params": list(net.outside.parameters())})
    before = snapshot(net.outside.parameters())
    optimizer.step(closure_of(net, optimizer))
    assert not same_bits(net.outside.parameters(), before)


def test_an_optimizer_that_knows_what_is_outside_is_copied_and_pickled() -> None:
    net = Net()
    optimizer = SAM(SGD(net.inside.parameters(), lr=0.1), rho=0.5)
    optimizer.step(closure_of(net, optimizer))
    net.zero_grad()
    for twin, again in (copy.deepcopy((net, optimizer)), pickle.loads(pickle.dumps((net, optimizer)))):
        expected = plain(twin)
        again.step(closure_of(twin, again))
        close(left(twin), expected)
