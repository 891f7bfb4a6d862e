"""A control for SAM: the mean of the weights over the end of training (Izmailov et al. 2018, arXiv:1803.05407)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.distributed import ProcessGroup

from bench.core.registry import register_optimizer
from bench.optim.base.averaging import Averaging


# Renamed, because in experiment files the method's settings stand beside those of its base.
@register_optimizer("swa", wraps_base=True, rename={"begin": "swa_from"})
class SWA(Averaging):
    """Control: the base, evaluated at the mean of its weights from swa_from of training on (Izmailov et al. 2018).

    The mean is that of the weights after every step from `begin` on, which experiment files call swa_from. Before each
    evaluation batch norm's statistics are taken anew over the training set, with the averaged weights.

    Args:
        base: a constructed torch optimizer.
        begin: share of training after which averaging begins; until then the weights themselves are evaluated.
        total_steps: steps of the whole training; `bench run` knows it.
        model: the module being trained: its batch norms are given statistics of the averaged weights.
        clip_norm, norm_group: as of `bench.optim.base.wrapper.OptimizerWrapper`.

    Raises:
        ValueError: begin is no share; or, at the first step, total_steps is not known.

    Traps: the paper averages once per epoch and holds lr constant or cycles it while it does; the mean over every step
    differs little, but with a schedule that goes to 0 the weights hardly move at the end, and so does the mean.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        begin: Annotated[float, Field(ge=0, lt=1)] = 0.75,
        total_steps: int | None = None,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        norm_group: ProcessGroup | None = None,
    ) -> None:
        if not 0 <= begin < 1:
            raise ValueError(f"SWA: begin must be in [0, 1), got {begin}")
        super().__init__(base, model=model, clip_norm=clip_norm, norm_group=norm_group, steps_done=0)
        self.begin = begin
        self.total_steps = total_steps

    @property
    def has_begun(self) -> bool:
        # A checkpoint made for torch.distributed.checkpoint has weights in the place of an average before there is one.
        begun = self.total_steps is None or self.steps_done > int(self.begin * self.total_steps)
        return begun and super().has_begun

    def weight(self) -> float | None:
        if self.total_steps is None:
            raise ValueError("SWA: begin is a share of training: give the length of training, total_steps=...")
        # In the first step of averaging the weight is 1: a placeholder from a checkpoint leaves no trace.
        since = self.steps_done - int(self.begin * self.total_steps)
        return 1 / (since + 1) if since >= 0 else None
