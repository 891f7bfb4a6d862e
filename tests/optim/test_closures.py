"""Closures as people write them: what they return, how they zero, what they forget, whose random numbers they use."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.ema import EMA
from bench.optim.esam import ESAM
from bench.optim.friendly_sam import FriendlySAM
from bench.optim.gsam import GSAM
from bench.optim.looksam import LookSAM
from bench.optim.sam import SAM

from .helpers import Watch, flat, problem, same_bits, snapshot

METHODS: list[Any] = [OptimizerWrapper, SAM, GSAM, LookSAM, FriendlySAM, EMA]
every_method = pytest.mark.parametrize("method", METHODS)

# ---- what it returns ---------------------------------------------------------------------------------------------

RETURNED: dict[str, Callable[[Tensor], Any]] = {
    "float": lambda loss: loss.item(),
    "tuple": lambda loss: (loss, {"accuracy": 0.5}),
    "None": lambda loss: None,
    "dict": lambda loss: {"loss": loss.item()},
}


@every_method
@pytest.mark.parametrize("convert", RETURNED.values(), ids=RETURNED)
def test_whatever_a_closure_returns_is_returned_as_torch_does(convert: Callable[[Tensor], Any], method: Any) -> None:
    model, loss = problem()
    twin, twin_loss = problem()
    one, other = (method(AdamW(net.parameters(), lr=0.01)) for net in (model, twin))
    given: list[Any] = []

    def closure() -> Any:
        one.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        given.append(convert(value))
        return given[-1]

    for _ in range(3):
        given.clear()
        assert one.step(closure) is given[0]
        other.step(Watch(other, twin_loss))
    assert same_bits(model.parameters(), twin.parameters())
    one.zero_grad()
    given.clear()
    returned = one.backward(closure)
    one.step()
    assert returned is given[0]


def test_the_loss_of_several_closures_is_the_mean_of_numbers_and_no_other_thing() -> None:
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1))

    def returning(value: Any) -> Callable[[], Any]:
        def closure() -> Any:
            optimizer.zero_grad()
            loss().backward()  # type: ignore[no-untyped-call]
            return value

        return closure

    assert optimizer.step([returning(1.0), returning(torch.tensor(4.0))]).item() == 2.5
    assert optimizer.step([returning(None), returning(None)]) is None
    before = snapshot(model.parameters())
    for wrong, said in ((("loss", 1), "tuple"), (None, "NoneType"), (torch.ones(2), r"a tensor of shape \(2,\)")):
        with pytest.raises(TypeError, match=f"SAM.step: closures over parts .* one number; got {said}"):
            optimizer.step([returning(1.0), returning(wrong)])
    assert same_bits(model.parameters(), before)


@pytest.mark.parametrize("returned", [None, 1.5, (torch.ones(3), 1)])
def test_esam_tells_what_it_wants_whatever_it_gets(returned: Any) -> None:
    optimizer = ESAM(SGD([nn.Parameter(torch.ones(2))], lr=0.1))
    with pytest.raises(TypeError, match=f"losses of single examples.*got a result of type {type(returned).__name__}"):
        optimizer.step(lambda: returned)


# ---- what it forgets ---------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("way", ["step", "backward", "parts"])
def test_a_closure_that_forgets_backward_is_told(way: str, method: Any) -> None:
    model, loss = problem()
    optimizer = method(SGD(model.parameters(), lr=0.1))

    def closure() -> Tensor:
        optimizer.zero_grad()
        return loss()

    ways: dict[str, Callable[[], Any]] = {
        "step": lambda: optimizer.step(closure),
        "backward": lambda: optimizer.backward(closure),
        "parts": lambda: optimizer.step([closure, closure]),
    }
    with pytest.raises(RuntimeError, match=rf"closure of {method.__name__}\.step .* has to call loss\.backward\(\)"):
        ways[way]()
    optimizer.step(Watch(optimizer, loss))
    with pytest.raises(RuntimeError, match="has to call"):
        ways[way]()


@every_method
@pytest.mark.parametrize("returned", ["None", "another loss", "no loss"])
def test_a_closure_with_no_gradient_for_these_parameters_changes_nothing(returned: str, method: Any) -> None:
    """A batch that is left out, a branch that was not taken: as with torch's own."""
    model, _ = problem()
    optimizer = method(SGD(model.parameters(), lr=0.1, momentum=0.9))
    other = nn.Parameter(torch.ones(1))
    before = snapshot(model.parameters())

    def closure() -> Tensor | None:
        optimizer.zero_grad()
        loss = (other**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return {"None": None, "another loss": loss, "no loss": torch.zeros(1)}[returned]

    for _ in range(3):
        optimizer.step(closure)
    assert same_bits(model.parameters(), before)
    assert optimizer.skipped_steps == 0


# ---- how it zeroes -----------------------------------------------------------------------------------------------


def each(parameters: Any, change: Callable[[Tensor], Any]) -> None:
    for p in parameters:
        if p.grad is not None:
            change(p.grad)


ZEROING: dict[str, Callable[[Any, nn.Module], None]] = {
    "model": lambda optimizer, model: model.zero_grad(),
    "model, in place": lambda optimizer, model: model.zero_grad(set_to_none=False),
    "base, in place": lambda optimizer, model: optimizer.base.zero_grad(set_to_none=False),
    "copy_": lambda optimizer, model: each(model.parameters(), lambda g: g.copy_(torch.zeros_like(g))),
    "add_": lambda optimizer, model: each(model.parameters(), lambda g: g.add_(g, alpha=-1)),
    "past autograd": lambda optimizer, model: each(model.parameters(), lambda g: g.data.zero_()),
}


@every_method
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("zero", ZEROING.values(), ids=ZEROING)
def test_however_a_closure_zeroes_it_is_seen(zero: Callable[[Any, nn.Module], None], parts: int, method: Any) -> None:
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer, other = (method(SGD(net.parameters(), lr=0.1)) for net in (model, twin))

    def closure() -> Tensor:
        zero(optimizer, model)
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    for _ in range(3):
        optimizer.step([closure] * parts)
        other.step([Watch(other, twin_loss) for _ in range(parts)])
    assert same_bits(model.parameters(), twin.parameters())


@every_method
@pytest.mark.parametrize("times", [0, 1, 2])
def test_one_that_adds_to_what_is_there_is_refused_however_often(times: int, method: Any) -> None:
    model, loss = problem()
    optimizer = method(SGD(model.parameters(), lr=0.1))
    optimizer.step(Watch(optimizer, loss))

    def closure() -> None:
        for _ in range(times):
            loss().backward()  # type: ignore[no-untyped-call]

    with pytest.raises(RuntimeError, match="has added to existing gradients"):
        optimizer.step(closure)
    optimizer.step(Watch(optimizer, loss))


@every_method
def test_one_that_goes_backward_nowhere_and_says_so_leaves_the_gradients_to_the_base(method: Any) -> None:
    """As with a bare base: it steps by those that are there, and nobody evaluates the closure again."""
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer, plain = method(SGD(model.parameters(), lr=0.1)), SGD(twin.parameters(), lr=0.1)
    calls = []
    for net, found in ((model, loss), (twin, twin_loss)):
        found().backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in net.parameters())

    def closure() -> torch.Tensor:
        calls.append(1)
        return torch.zeros(())

    optimizer.step(closure)
    plain.step()
    assert len(calls) == 1
    assert same_bits(model.parameters(), twin.parameters())


def test_a_gradient_that_is_written_and_not_computed_is_taken() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = SAM(SGD([w], lr=0.5), rho=0.1)
    w.grad = torch.zeros(2)

    def closure() -> float:
        if w.grad is None:
            w.grad = torch.empty(2)
        w.grad.copy_(torch.tensor([1.0, -1.0]))
        return 1.0

    assert [optimizer.step(closure) for _ in range(2)] == [1.0, 1.0]
    assert w.tolist() == [0.0, 2.0]


def test_watching_leaves_no_hook_behind() -> None:
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1))
    for _ in range(3):
        optimizer.step(Watch(optimizer, loss))
    with pytest.raises(KeyError):
        optimizer.step(lambda: dict[str, Tensor]()["no loss"])
    optimizer.step(Watch(optimizer, loss))
    assert not any(p._backward_hooks for p in model.parameters())


# ---- whose random numbers ----------------------------------------------------------------------------------------

DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(1)),
    "numpy": lambda: float(np.random.rand()),
    "python": random.random,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_second_pass_draws_what_the_first_did_and_the_next_step_something_else(draw: Callable[[], float]) -> None:
    """As transformers' encoders drop layers: by numpy's and Python's random numbers, too."""
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.1)
    drawn: list[float] = []
    watch = Watch(optimizer, loss, lambda call: drawn.append(draw()))
    optimizer.step(watch)
    optimizer.step(watch)
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_measuring_an_average_leaves_random_numbers_where_they_were(draw: Callable[[], float]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = EMA(SGD(model.parameters(), lr=0.1), model=model)
    x = torch.randn(4, 2)
    optimizer.step(Watch(optimizer, lambda: model(x).square().mean()))
    hook = model.register_forward_hook(lambda *_: draw() and None)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    expected = draw()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with optimizer.averaged([x]):
        pass
    hook.remove()
    assert draw() == expected


def test_with_numpys_and_pythons_dropout_and_a_vanishing_rho_it_is_the_base() -> None:
    def after(vanishing: bool) -> Tensor:
        model, loss = problem(torch.float64)
        np.random.seed(1)
        random.seed(1)
        base = SGD(model.parameters(), lr=0.1)
        optimizer = SAM(base, rho=1e-12) if vanishing else OptimizerWrapper(base)
        for _ in range(3):
            optimizer.step(Watch(optimizer, lambda: loss() * np.random.rand() * random.choice([0.5, 2.0])))
        return flat(model.parameters())

    torch.testing.assert_close(after(True), after(False), rtol=1e-9, atol=1e-12)
