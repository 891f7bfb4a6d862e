"""Random numbers for the weights of a whole model, independent of the number of processes that share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.optim.base.sharded import is_sharded, part_of
from bench.optim.base.tensors import as_real

Draw = Callable[[Tensor], None]
"""Fills a tensor from a generator that has the same state in all processes."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


def drawn(like: Tensor, parameter: Any, draw: Draw) -> Tensor:
    """Return random numbers in the shape of `like`, one per real number of this process's part of a parameter.

    Of a DTensor every process draws the whole, one parameter at a time, and keeps its part.
    """
    if not is_sharded(parameter):
        numbers = torch.empty_like(like)
        draw(numbers)
        return numbers
    # With the parameter's own strides, as `empty_like` has them above: each weight gets the number of an unsharded run.
    whole = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device=like.device)
    draw(as_real(whole))
    return as_real(part_of(whole, parameter))


def pass_over(parameters: Sequence[Tensor], draw: Draw, group: dist.ProcessGroup | None, device: torch.device) -> None:
    """Advance the generator past the numbers that processes before this one in the group draw.

    Args:
        parameters: those of this process that are drawn for, in their order.
        group: the processes that share one model, in the order of its parameters; None: this one alone.
        device: where numbers are drawn.
    """
    if group is None:
        return
    size = dist.get_world_size(group)
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([len(parameters)], device=device), group=group)
    # all_gather takes tensors of one size: as many rows as the process with the most parameters needs.
    ours = torch.zeros(max(map(int, counts)), 2, dtype=torch.long)
    for n, parameter in enumerate(parameters):
        # The dtype too, as a number: how far a draw advances the generator depends on it.
        ours[n] = torch.tensor([parameter.numel(), DTYPES.index(parameter.dtype)])
    everyones = [torch.zeros_like(ours, device=device) for _ in range(size)]
    dist.all_gather(everyones, ours.to(device), group=group)
    for count, theirs in zip(counts[: dist.get_rank(group)], everyones, strict=False):
        for numel, dtype in theirs[: int(count)].tolist():
            draw(as_real(torch.empty(numel, dtype=DTYPES[dtype], device=device)))
