"""What every loop of this folder is given, and what it has to come to: the bare base, or SAM written by hand.

A loop is people's own way of training: with the bare base as its authors show it, and with one of our methods as
docs/sam-in-your-own-code.md shows it. Each file of this folder has one or two, as a `Loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bench.optim.base.wrapper import OptimizerWrapper

Batch = tuple[Tensor, Tensor]
FEATURES, CLASSES, EXAMPLES, STEPS = 6, 3, 8, 4


class Net(nn.Module):
    """A hidden layer with batch norm and dropout, so that buffers and random numbers count."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 12, bias=False)
        self.norm = nn.BatchNorm1d(12)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.dropout(torch.tanh(self.norm(self.first(x)))))
        return logits


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@dataclass(frozen=True)
class Setting:
    """What is trained by what, over which batches.

    Attributes:
        base: makes the bare base of a list of parameters.
        method: makes one of ours of a base, given `model`; None: the bare base trains.
        accumulate: micro-batches a step, where the loop accumulates.
        dropout: of the net.
        dtype: of weights and inputs.
        folder: for what a loop writes.
    """

    base: Callable[[list[nn.Parameter]], Optimizer]
    method: Callable[..., OptimizerWrapper] | None = None
    accumulate: int = 1
    dropout: float = 0.3
    dtype: torch.dtype = torch.float64
    folder: Path = field(default_factory=Path)

    def net(self) -> nn.Module:
        torch.manual_seed(0)
        return Net(self.dropout).to(self.dtype)

    def batches(self) -> list[Batch]:
        """As many (micro-)batches as all steps need."""
        random = torch.Generator().manual_seed(1)
        number = STEPS * self.accumulate
        inputs = torch.randn(number, EXAMPLES, FEATURES, generator=random, dtype=torch.float64).to(self.dtype)
        return list(zip(inputs, torch.randint(CLASSES, (number, EXAMPLES), generator=random), strict=True))

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Over the parameters of a model that are trained."""
        base = self.base([p for p in model.parameters() if p.requires_grad])
        if callable(train := getattr(base, "train", None)):
            train()
        return base if self.method is None else self.method(base, model=model)


@dataclass(frozen=True)
class Loop:
    """One way of training, and what SAM by hand has to know of it.

    Attributes:
        train: trains a new model, and returns it.
        model: makes that model.
        loss: of one (micro-)batch.
        clip: largest norm of a step's gradient.
        scheduled: whether lr halves after every step.
        accumulate: micro-batches a step.
        dtype: of weights and inputs.
    """

    train: Callable[[Setting], nn.Module]
    model: Callable[[Setting], nn.Module] = Setting.net
    loss: Callable[[nn.Module, Batch], Tensor] = loss_of
    clip: float | None = None
    scheduled: bool = False
    accumulate: int = 1
    dtype: torch.dtype = torch.float64


def halving(optimizer: Optimizer) -> LambdaLR:
    """A schedule, for the loops that have one: a step of its own after each of the optimizer's."""
    return LambdaLR(optimizer, lambda step: 0.5**step)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def weights_and_buffers(model: nn.Module) -> dict[str, Tensor]:
    return weights(model) | {name: b.detach() for name, b in model.named_buffers() if b.is_floating_point()}


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest difference of any two numbers."""
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left if left[name].numel())


def by_hand(loop: Loop, setting: Setting, rho: float) -> nn.Module:
    """Train a model as the loop does, by SAM as its formula says, with plain tensors."""
    model = loop.model(setting)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    base = setting.base(parameters)
    scheduler = halving(base)
    for number, batch in enumerate(setting.batches()):
        before = [p.detach().clone() for p in parameters]
        buffers = copied_buffers(model)
        g = torch.autograd.grad(loop.loss(model, batch), parameters, allow_unused=True)
        length = torch.stack([one.norm() for one in g if one is not None]).norm()
        with torch.no_grad():
            for p, one in zip(parameters, g, strict=True):
                if one is not None:
                    p.add_(rho * one / length)
        with second_pass_from(buffers, model):
            g = torch.autograd.grad(loop.loss(model, batch) / setting.accumulate, parameters, allow_unused=True)
        with torch.no_grad():
            for p, w, one in zip(parameters, before, g, strict=True):
                p.copy_(w)
                if one is not None:
                    p.grad = one if p.grad is None else p.grad + one
        if (number + 1) % setting.accumulate == 0:
            if loop.clip is not None:
                clip_grad_norm_(parameters, loop.clip)
            base.step()
            base.zero_grad()
            if loop.scheduled:
                scheduler.step()
    return model


def copied_buffers(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def set_buffers(model: nn.Module, numbers: list[Tensor]) -> None:
    with torch.no_grad():
        for buffer, copy in zip(model.buffers(), numbers, strict=True):
            buffer.data = copy.clone()  # it may have got its size in the first pass


@contextmanager
def second_pass_from(before: list[Tensor], model: nn.Module) -> Iterator[None]:
    """A pass that finds buffers (ranges that quantise depend on them) as the first one did, and leaves them so."""
    after = copied_buffers(model)
    set_buffers(model, before)
    yield
    set_buffers(model, after)
