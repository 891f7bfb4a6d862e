"""A control for SAM: an exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed import ProcessGroup

from bench.core.registry import register_optimizer
from bench.optim.base.averaging import Averaging
from bench.optim.base.types import Momentum


# Renamed, because in experiment files the method's settings stand beside those of its base.
@register_optimizer("ema", wraps_base=True, rename={"decay": "ema_decay"})
class EMA(Averaging):
    """Control: the base, evaluated at an exponential moving average of its weights (Polyak & Juditsky 1992).

        a_t = decay * a_{t-1} + (1 - decay) * w_t,  a_1 = w_1

    Args:
        base: a constructed torch optimizer.
        decay: 1 / (1 - decay) is about how many steps it averages over.
        model: the module being trained: its batch norms are given statistics of the averaged weights.
        clip_norm, norm_group: as of `bench.optim.base.wrapper.OptimizerWrapper`.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        decay: Momentum = 0.999,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        norm_group: ProcessGroup | None = None,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be in [0, 1), got {decay}")
        super().__init__(base, model=model, clip_norm=clip_norm, norm_group=norm_group)
        self.decay = decay

    def weight(self) -> float:
        # a + (1 - decay) * (w - a) is decay * a + (1 - decay) * w.
        return 1 - self.decay
