"""Both passes of a step must be over one batch: what is told, what may differ, and what looking at it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from bench.optim.sam import SAM


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(x))
        y: Tensor = self.last(h if mask is None else h * mask)
        return y


def optimizer_of(model: nn.Module) -> SAM:
    """One whose next step looks at its inputs."""
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, model=model)
    optimizer.step(closure_over(optimizer, lambda: model(X).square().mean()))
    return optimizer


def closure_over(optimizer: SAM, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    return closure


def drawing(batches: list[Any]) -> Callable[[], Any]:
    waiting = iter(batches)
    return lambda: next(waiting)


X = torch.arange(12.0).view(3, 4)
DIFFERENT: dict[str, list[tuple[Any, ...]]] = {
    "other numbers in argument 0": [(X,), (X + 1,)],
    r"argument 0 of shape \(2, 4\)": [(X,), (X[:2],)],
    "other numbers in argument 1": [(X, torch.ones(6)), (X, torch.zeros(6))],
    "tensors .* instead of": [(X,), (X, torch.ones(6))],
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_closure_that_draws_another_batch_in_the_second_pass_is_told_what(what: str) -> None:
    model = Net()
    optimizer, draw = optimizer_of(model), drawing(DIFFERENT[what])
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=rf"uses a different batch than the first: Net is called with {what}"):
        optimizer.step(closure_over(optimizer, lambda: model(*draw()).square().mean()))
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_backward_tells_too_and_a_part_of_the_model_is_looked_at_where_it_is_called() -> None:
    model = Net()
    optimizer, draw = optimizer_of(model), drawing([X, 2 * X])

    def closure() -> Tensor:
        loss: Tensor = model.last(torch.tanh(model.first(draw()))).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with pytest.raises(RuntimeError, match="Linear is called with other numbers in argument 0"):
        optimizer.backward(closure)


def test_it_may_be_meant() -> None:
    model = Net()
    optimizer, draw = optimizer_of(model), drawing([(X,), (X + 1,)])
    optimizer.checked_steps = 0
    optimizer.step(closure_over(optimizer, lambda: model(*draw()).square().mean()))


def test_the_same_numbers_in_other_tensors_are_the_same_batch_nan_included() -> None:
    model = Net()
    optimizer = optimizer_of(model)
    with_nan = torch.where(torch.arange(6.0) == 2, torch.nan, 1.0)
    optimizer.step(
        closure_over(optimizer, lambda: model(X.clone(), mask=with_nan.clone()).nan_to_num().square().mean())
    )


def test_what_is_computed_from_the_weights_may_differ() -> None:
    """Adversarial examples, and a model that is called again with what it has returned."""
    model = Net()
    optimizer = optimizer_of(model)
    seen: list[Tensor] = []

    def loss() -> Tensor:
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).square().mean(), x)
        harder = X + 0.1 * slope
        seen.append(harder)
        return model(harder).square().mean()  # type: ignore[no-any-return]

    for _ in range(2):
        optimizer.step(closure_over(optimizer, loss))
    assert not torch.equal(seen[0], seen[1])


def test_random_changes_of_the_batch_are_the_same_in_both_passes() -> None:
    model = Net()
    optimizer = optimizer_of(model)
    optimizer.step(closure_over(optimizer, lambda: model(X + torch.randn_like(X)).square().mean()))


def test_the_steps_after_the_first_look_and_without_a_model_none() -> None:
    model = Net()
    looks: list[int] = []
    for given in (model, None):
        optimizer = SAM(SGD(model.parameters(), lr=0.1), model=given)
        for _ in range(6):
            hooks: list[int] = []

            def loss(hooks: list[int] = hooks) -> Tensor:
                hooks.append(sum(len(module._forward_pre_hooks) for module in model.modules()))
                return model(X).square().mean()  # type: ignore[no-any-return]

            optimizer.step(closure_over(optimizer, loss))
            looks.append(sum(hooks))
    assert looks == [0, 6, 6, 6, 0, 0] + [0] * 6


@pytest.mark.parametrize("how", ["model", "in place", "loss"])
def test_nothing_is_compiled_once_more_for_it(how: str) -> None:
    torch._dynamo.reset()
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    model: Any = Net()
    called: Any = model
    loss: Any = lambda net, x: net(x).square().mean()  # noqa: E731
    if how == "model":
        called = torch.compile(model, backend=backend)
    elif how == "in place":
        model.compile(backend=backend)
    else:
        loss = torch.compile(loss, backend=backend, fullgraph=True)
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, model=model)
    for _ in range(6):
        optimizer.step(closure_over(optimizer, lambda: loss(called, X)))
    assert len(compiled) == 1
