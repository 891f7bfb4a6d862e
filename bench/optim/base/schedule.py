"""Learning-rate schedules, by step."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from bench.core.spec import Schedule


def lr_factor(step: int, total: int, warmup: int, shape: Schedule) -> float:
    """Factor on lr at `step` (0-based) of `total`: linear from 1/warmup to 1, then constant, or down to 0 at the end.

    Down along half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts) or a line (Devlin et al.
    2019, arXiv:1810.04805).
    """
    if step < warmup:
        # step + 1, so that lr is not 0 in the very first step.
        return (step + 1) / warmup
    if shape == "constant":
        return 1.0
    # min: a user's loop may take more steps than `total`. max: a training may be all warm-up, which leaves 0 steps.
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1 - progress if shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def scheduler(optimizer: torch.optim.Optimizer, total: int, warmup: int, shape: Schedule) -> LambdaLR:
    """Return the schedule as torch's LambdaLR, whose `step` is called once after every optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, total, warmup, shape))
