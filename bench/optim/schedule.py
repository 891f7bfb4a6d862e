"""Learning-rate schedules, by step."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.optim.lr_scheduler import LambdaLR


def lr_factor(step: int, total: int, warmup: int, shape: Literal["cosine", "constant"]) -> float:
    """Factor on lr at `step` (0-based) of `total`: linear from 1/warmup to 1, then constant or half a cosine to 0.

    The cosine reaches 0 at the end of training (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts).
    """
    if step < warmup:
        return (step + 1) / warmup
    if shape == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def scheduler(
    optimizer: torch.optim.Optimizer, total: int, warmup: int, shape: Literal["cosine", "constant"]
) -> LambdaLR:
    """The schedule as torch's LambdaLR: call its `step` once after every optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, total, warmup, shape))
