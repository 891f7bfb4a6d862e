"""Bases, nets and the closure that watches, shared by the tests of the optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings

BASES: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov-foreach": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd-fused": partial(SGD, lr=0.1, momentum=0.9, fused=True),
    "adam": partial(Adam, lr=0.01),
    "adam-fused": partial(Adam, lr=0.01, weight_decay=0.01, fused=True),
    "adamw-foreach": partial(AdamW, lr=0.01, foreach=True),
    "adamw-fused": partial(AdamW, lr=0.01, fused=True),
}
over_all_bases = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
over_both = pytest.mark.parametrize("adaptive", [False, True], ids=["sam", "asam"])

Loss = Callable[[], Tensor]


def problem(dtype: torch.dtype = torch.float32, dropout: float = 0.0, seed: int = 0) -> tuple[nn.Module, Loss]:
    """A small net and its loss on one batch."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)).to(dtype)
    x, y = torch.randn(16, 6, dtype=dtype), torch.randn(16, 3, dtype=dtype)
    return model, lambda: nn.functional.mse_loss(model(x), y)


class Watch:
    """A closure that remembers weights, gradients and loss of each call.

    Args:
        mischief: called with the number of the call (1, 2, ...) after its backward.
        zero_grad: False for a closure whose author forgot it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        loss: Loss,
        mischief: Callable[[int], None] = lambda call: None,
        zero_grad: bool = True,
    ) -> None:
        self.optimizer, self.loss, self.mischief, self.zero_grad = optimizer, loss, mischief, zero_grad
        self.weights: list[list[Tensor]] = []
        self.gradients: list[list[Tensor]] = []
        self.losses: list[Tensor] = []
        self.work = 0.0  # passes over the batch

    def __call__(self) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.weights.append(snapshot(parameters))
        if self.zero_grad:
            self.optimizer.zero_grad()
        if getattr(self.optimizer, "loss_only", False):  # XSAM's search
            with torch.no_grad():
                self.losses.append(self.loss())
            self.work += 1 / 3
            return self.losses[-1]
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
        self.losses.append(loss.detach().clone())
        self.work += 1
        self.mischief(len(self.weights))
        return loss

    @property
    def calls(self) -> int:
        return len(self.weights)

    @property
    def e(self) -> list[Tensor]:
        """Where the second call found the weights, from where the first did."""
        return [there - here for here, there in zip(self.weights[0], self.weights[1], strict=True)]


class WatchLosses(Watch):
    """The same for methods that take the losses of single examples and run backward themselves.

    Args:
        losses: of the examples whose numbers are told, or of all.
    """

    def __init__(self, optimizer: Optimizer, losses: Callable[..., Tensor], number: int) -> None:
        super().__init__(optimizer, losses)
        self.number = number

    def __call__(self, *examples: Tensor) -> Tensor:
        self.weights.append(snapshot(p for group in self.optimizer.param_groups for p in group["params"]))
        losses: Tensor = self.loss(*examples)
        self.losses.append(losses.detach().mean())
        self.work += len(losses) / self.number * (1 if torch.is_grad_enabled() else 1 / 3)
        return losses


def spec(optimizer: ComponentSpec, base: ComponentSpec | None = None, clip_norm: float | None = None) -> RunSpec:
    """What `build_optimizer` reads of a run."""
    return RunSpec(
        task=ComponentSpec(name="digits"),
        model=ComponentSpec(name="mlp"),
        optimizer=OptimizerSpec(name=optimizer.name, params=optimizer.params, base=base),
        data=DataSettings(),
        train=TrainSettings(epochs=1, clip_norm=clip_norm),
        seed=0,
    )


def snapshot(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def state_of(optimizer: Optimizer) -> list[Tensor]:
    """The base's memory: momenta, moments, counters."""
    per_parameter = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    return [state[key] for state in per_parameter for key in sorted(state) if isinstance(state[key], Tensor)]


def same_bits(left: Iterable[Tensor], right: Iterable[Tensor]) -> bool:
    """Equal down to the sign of a zero and the payload of a NaN."""
    left, right = list(left), list(right)
    return len(left) == len(right) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bytes(a), _bytes(b))
        for a, b in zip(left, right, strict=True)
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)
