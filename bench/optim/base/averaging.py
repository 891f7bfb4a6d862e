"""Weights for evaluation beside those for training: averages over the steps (EMA, SWA), and what a base keeps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bench.optim.base.forward_state import kept_buffers
from bench.optim.base.sharded import reshard
from bench.optim.base.side_effects import clear_caches, rewinder
from bench.optim.base.state import StatefulWrapper
from bench.optim.base.tensors import as_real
from bench.optim.base.wrapper import OptimizerWrapper


class Averaging(StatefulWrapper):
    """A base optimizer that also keeps an average of its weights; the average is evaluated.

    Training is the base's, bit for bit. After each step a <- a + weight * (w - a), beginning with a = w. A skipped step
    leaves w where it was, and counts as one that stayed there. The average is in the state_dict as "averaged_weights".
    Memory: one copy of the parameters.
    """

    remembers = "averaged_weights"

    @abstractmethod
    def weight(self) -> float | None:
        """Return the weight of the newest weights in the average; None before averaging has begun."""

    def after_update(self, skip: Tensor) -> None:
        weight = self.weight()  # before the step is counted: it is that of the steps done until now
        super().after_update(skip)
        if weight is None:
            return
        trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        # A parameter that is met for the first time begins with a = w, which is what the last line stores.
        known = [p for p in trained if p in self.memory]
        if known:
            torch._foreach_lerp_(self.remembered(known), [as_real(p) for p in known], weight)
        self.memory |= {p: as_real(p).detach().clone() for p in trained if p not in self.memory}

    def nothing_of(self, parameter: Tensor) -> Tensor:
        return as_real(parameter).detach().clone()

    @property
    def has_begun(self) -> bool:
        """Return whether there is an average."""
        return bool(self.memory)

    @contextmanager
    def averaged(self, inputs: Iterable[Tensor]) -> Iterator[None]:
        """Give the model its averaged weights for evaluation, and restore weights, buffers and random state on exit.

        Args:
            inputs: batches that the model will be evaluated on. Batch norm's statistics are recomputed over these
                batches with the averaged weights, since the statistics left by training belong to other weights
                (Izmailov et al. 2018, section 3.2). The batches are not read for models without batch norm.
        """

        def put_in() -> None:
            torch._foreach_copy_([as_real(p) for p in self.memory], list(self.memory.values()))

        with _other_weights(list(self.memory) if self.has_begun else [], self.model, inputs, put_in):
            yield


@contextmanager
def evaluation_weights(
    optimizer: torch.optim.Optimizer, model: nn.Module | None, inputs: Iterable[Tensor]
) -> Iterator[None]:
    """Put in the weights that an optimizer wants evaluated; on exit, restore everything to the bit.

    For `Averaging` they are the average. For an optimizer with `train()` and `eval()` (schedule-free: Defazio et al.
    2024, arXiv:2405.15682) they are those that its `eval()` puts in. For others they are the weights as they are.

    Args:
        inputs: see `Averaging.averaged`.
    """
    if isinstance(optimizer, Averaging):
        with optimizer.averaged(inputs):
            yield
    elif keeps_evaluation_weights(optimizer):
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        # The way back is rounded (along a line to other weights and back): the bits are put back after it, too.
        with _other_weights(weights, model, inputs, optimizer.eval, optimizer.train):  # type: ignore[attr-defined]
            yield
    else:
        yield


def keeps_evaluation_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer, or the base of a method, has other weights for evaluation than for training."""
    if isinstance(optimizer, OptimizerWrapper):
        return optimizer.keeps_evaluation_weights
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


def to_training(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer that keeps other weights for evaluation put in those for training; others do nothing."""
    if keeps_evaluation_weights(optimizer):
        optimizer.train()  # type: ignore[attr-defined]


@contextmanager
def _other_weights(
    weights: list[Tensor],
    model: nn.Module | None,
    inputs: Iterable[Tensor],
    put_in: Callable[[], None],
    put_out: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Use other weights, with batch-norm statistics of their own, then restore weights, buffers and random state.

    Args:
        put_in: changes the weights.
        put_out: called before the weights are restored, for an optimizer that keeps account of them.
    """
    if not weights:
        yield
        return
    weights = [as_real(p) for p in weights]
    spare = [p.detach().clone() for p in weights]  # a way back by arithmetic would round
    rewind = rewinder(weights)
    # update_bn resets the running statistics: `kept_buffers` brings back those of training.
    with torch.no_grad(), kept_buffers(model):
        try:
            put_in()
            reshard(model)
            clear_caches()
            if model is not None:
                update_bn(inputs, model)
            rewind()  # dropout has drawn
            yield
        finally:
            # The optimizer's own way back comes first, for its bookkeeping; the copies then restore the exact bits.
            put_out()
            torch._foreach_copy_(weights, spare)
            reshard(model)
            clear_caches()
