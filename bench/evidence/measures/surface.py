"""The loss of one model on fixed examples, as a function of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bench.data import batching
from bench.data.splits import Split
from bench.tasks.base import Task
from bench.training.evaluate import BATCH

Part = tuple[Tensor, Tensor]
"""Some examples: inputs as the model sees them, and targets."""


class Surface:
    """A model's mean loss over examples with their training labels, including replaced labels.

    Args:
        model: it is set to eval mode; its weights are moved about, and always put back bit for bit.
        split: the examples.
        dtype: what everything is computed in; the model is turned to it.

    Attributes:
        evaluations: how often the mean loss over all examples was computed.
    """

    def __init__(self, model: nn.Module, task: Task, split: Split, dtype: torch.dtype = torch.float32) -> None:
        # eval mode: without dropout, and with batch norm's running statistics.
        self.model, self.task, self.split, self.dtype = model.to(dtype).eval(), task, split, dtype
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.evaluations = 0

    def parts(self, size: int) -> Iterator[Part]:
        """Yield the examples in their order, `size` per part; the last part may be smaller."""
        for batch in batching.in_order(self.split, size):
            inputs, targets = batch.of(self.split)
            inputs = self.task.model_inputs(inputs)
            yield _to(inputs, self.dtype), _to(targets, self.dtype)

    def mean_loss(self, part: Part) -> Tensor:
        """Return the mean loss over the examples of a part, with its autograd graph."""
        inputs, targets = part
        return self.task.losses(self.model(inputs), targets).mean()

    @torch.no_grad()
    def loss(self) -> float:
        """Return the mean loss over all examples at the present weights, summed in double precision."""
        self.evaluations += 1
        total = 0.0
        for part in self.parts(BATCH[self.parameters[0].device.type]):
            inputs, targets = part
            # Summed over examples, since the last part may be smaller than the others.
            total += self.task.losses(self.model(inputs), targets).double().sum().item()
        return total / len(self.split)

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """Return the model's outputs (N, num_outputs) on all examples."""
        size = BATCH[self.parameters[0].device.type]
        return torch.cat([self.model(inputs) for inputs, _ in self.parts(size)])

    @contextmanager
    def moved(self, by: Sequence[Tensor]) -> Iterator[None]:
        """Displace the weights by these tensors, one for each of `parameters`, inside this context."""
        weights = [parameter.detach() for parameter in self.parameters]  # the same memory
        # A copy of the weights, because adding and then subtracting would leave errors of rounding.
        before = [tensor.clone() for tensor in weights]
        try:
            torch._foreach_add_(weights, tuple(by))
            yield
        finally:
            torch._foreach_copy_(weights, before)


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
