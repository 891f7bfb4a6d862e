"""Gradients accumulated by earlier micro-batches of a step, set aside while the next one is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from bench.optim.base.sharded import has_others
from bench.optim.base.weight_swap import holds_its_memory_alone


class Earlier:
    """Accumulated gradients that are set aside while another micro-batch computes its own.

    They come back when that one is over, or already when the backward pass begins whose gradients are to be followed
    (`while_adding`): whoever averages gradients over processes in that pass, as DistributedDataParallel does, then
    averages the sum. Under its `no_sync` the earlier ones are each process's own until then.

    Args:
        parameters: all that have a gradient or may get one; their gradients are taken away from them.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._waiting: list[tuple[Tensor, Tensor]] = []
        for parameter in parameters:
            if parameter.grad is not None:
                self._waiting.append((parameter, _kept(parameter.grad)))
                parameter.grad = None

    def put_back(self, *_: Tensor) -> None:
        """Add the set-aside gradients to the present ones; a second call does nothing."""
        # Emptied first: the hook and the caller may both come here, and nothing must be added twice.
        waiting, self._waiting = self._waiting, []
        for parameter, gradient in waiting:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    @contextmanager
    def while_adding(self) -> Iterator[None]:
        """Add the earlier gradients when the backward pass in this context begins, after the closure's zero_grad."""
        if not self._waiting or not has_others():
            yield
            return
        # Called for the first gradient of all, before any is added up and before any is sent.
        hook = register_multi_grad_hook(self._parameters, self.put_back, mode="any")
        try:
            yield
        finally:
            hook.remove()


def _kept(gradient: Tensor) -> Tensor:
    # The next backward pass would overwrite one that is a view of DistributedDataParallel's buckets or, on a GPU, an
    # output of a CUDA graph, which nothing tells. Each is freed before the next one is copied.
    is_plain = type(gradient) is Tensor and gradient.layout == torch.strided
    may_be_shared = is_plain and (gradient.is_cuda or not holds_its_memory_alone(gradient))
    return gradient.clone() if may_be_shared else gradient
