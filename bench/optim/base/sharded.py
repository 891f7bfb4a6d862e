"""Parameters of which each process holds a part: DTensors, as FSDP2 and tensor parallelism make them.

Whatever a method computes, it computes on the parts that are here, which are plain tensors: moving a weight, keeping a
memory of it, adding up gradients are the same for each number by itself. Only sums need the other processes
(`bench.optim.base.reductions`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)
"""Types of tensors that cannot be DTensors: asked first, since most are of them."""


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor."""
    if type(tensor) in PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")  # half a second to import; where there is one, it has been
    return module is not None and isinstance(tensor, module.DTensor)


def has_others() -> bool:
    """Return whether torch is set up for several processes, without which there are no DTensors."""
    return dist.is_available() and dist.is_initialized()


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Return whether any of the tensors is a DTensor; without other processes no tensor is checked."""
    return has_others() and any(map(is_sharded, tensors))


def part_here(tensor: Any) -> Tensor:
    """Return the part of a DTensor that this process holds, in the same memory."""
    with torch.no_grad():  # with gradients it would be another tensor
        part: Tensor = tensor.to_local()
    if hasattr(part, "wait"):  # still on its way from other processes
        part = part.wait()
    return part


def aligned_gradient(parameter: Any) -> Tensor:
    """Return the part here of a parameter's gradient, spread over the processes as the parameter itself is.

    Tensor parallelism leaves gradients that processes have yet to sum, or a whole one for a parameter that is sharded.
    """
    gradient = parameter.grad
    if gradient.placements != parameter.placements:
        # Put back into `.grad`: the base must follow the same, aligned gradient.
        parameter.grad = gradient = gradient.redistribute(placements=parameter.placements)
    return part_here(gradient)


def with_part(parameter: Any, part: Tensor) -> Tensor:
    """Return `part` as part of a DTensor sharded like the parameter; for a plain parameter, `part` itself.

    Args:
        part: real numbers: of a complex parameter its parts, along one dimension more.
    """
    if not is_sharded(parameter):
        return part
    shape, stride = tuple(parameter.shape), tuple(parameter.stride())
    if parameter.is_complex():
        # Real and imaginary part become a last axis of two numbers, so that every other stride doubles.
        shape, stride = (*shape, 2), (*(2 * step for step in stride), 1)
    whole: Tensor = sys.modules["torch.distributed.tensor"].DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, shape=torch.Size(shape), stride=stride
    )
    return whole


def part_of(tensor: Tensor, parameter: Any) -> Tensor:
    """Return this process's part of a tensor that belongs to a parameter, for example its gradient.

    Args:
        tensor: spread over the processes as the parameter is, or the whole of it, the same in all of them.
    """
    if is_sharded(tensor):
        return part_here(tensor)
    if not is_sharded(parameter):
        return tensor
    distribute = sys.modules["torch.distributed.tensor"].distribute_tensor
    # Without a source nothing is sent: every process has the whole.
    return part_here(distribute(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None))


def reshard(model: nn.Module | None) -> None:
    """Make the modules that FSDP2 manages forget the whole weights they have gathered, since parts have changed.

    FSDP2 does so by itself after a backward pass, but not after a forward pass alone, nor with
    `set_reshard_after_backward(False)`.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or model is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
