"""Averages of weights over the steps of training: what EMA and SWA have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from bench.optim.memory import Remembering
from bench.optim.method import kept_buffers, rewinder


class Averaging(Remembering):
    """A base optimizer, and beside it an average of the weights it goes through, which is what gets evaluated.

    Training is the base's, bit for bit. After each step a <- a + weight * (w - a), beginning with a = w. A skipped step
    leaves w where it was, and counts as one that stayed there. The average is in the state_dict as "average".
    Memory: one copy of the parameters.
    """

    remembers = "average"

    @abstractmethod
    def weight(self) -> float | None:
        """Of the newest weights in the average; None: averaging has not begun."""

    def after_update(self, skip: Tensor) -> None:
        weight = self.weight()
        super().after_update(skip)
        if weight is None:
            return
        trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        known = [p for p in trained if p in self.memory]
        if known:
            torch._foreach_lerp_(self.remembered(known), known, weight)
        self.memory |= {p: p.detach().clone() for p in trained if p not in self.memory}

    @contextmanager
    def averaged(self, inputs: Iterable[Tensor]) -> Iterator[None]:
        """The model with averaged weights, to be evaluated; on leaving, weights, buffers and random numbers are back.

        Args:
            inputs: batches for which the model is to be used: batch norm's statistics are taken over these, with
                the averaged weights, since those that training left belong to other weights (Izmailov et al. 2018,
                section 3.2). Models without batch norm do not ask for them.
        """
        averages = list(self.memory.items())
        if not averages:
            yield
            return
        weights = [p for p, _ in averages]
        spare = [p.detach().clone() for p in weights]
        rewind = rewinder(weights[0].device)
        with torch.no_grad(), kept_buffers(self.model):
            try:
                torch._foreach_copy_(weights, [average for _, average in averages])
                if self.model is not None:
                    update_bn(inputs, self.model)
                rewind()  # dropout has drawn
                yield
            finally:
                torch._foreach_copy_(weights, spare)
                torch.clear_autocast_cache()
