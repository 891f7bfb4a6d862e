"""Norms, scalar products and decisions over a whole model, of which this process may hold only a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.optim.base.sharded import any_sharded, has_others, is_sharded
from bench.optim.base.tensors import dot, global_norm


class Reductions:
    """Sums over tensors of parameters that may be sharded over several processes.

    DTensors (FSDP2, tensor parallelism) are summed over the dimensions of their mesh along which they are sharded, so
    what is replicated counts once. Plain parameters count where they are. For models that are split otherwise (pipeline
    stages, FSDP1) the processes among which a model is split are named: then everything is summed over these, too.
    Where there is neither, nothing is exchanged.

    Args:
        parameters: gives all parameters of the optimizer.
        group: the processes that share one model; all of them take every step, with the same settings.
    """

    def __init__(self, parameters: Callable[[], list[nn.Parameter]], group: dist.ProcessGroup | None) -> None:
        self._parameters = parameters
        self.group = group

    def norm(self, parameters: Sequence[Tensor], tensors: list[Tensor]) -> Tensor:
        """Return the 2-norm of all tensors together, a scalar on their device: see `tensors.global_norm`.

        Args:
            parameters: those that the tensors belong to, in the same order.
            tensors: the parts that are here.
        """
        if self._is_here(parameters):
            return global_norm(tensors)
        # Squares in fp64: in fp32 that of a norm above 1.8e19 would be infinite.
        squares = self._total(parameters, lambda here: global_norm([tensors[n] for n in here]).double().square())
        return squares.sqrt().to(_precision(parameters))

    def dot(self, parameters: Sequence[Tensor], left: list[Tensor], right: list[Tensor]) -> Tensor:
        """Return the scalar product over all tensors together; see `norm` for the arguments."""
        if self._is_here(parameters):
            return dot(left, right)
        total = self._total(parameters, lambda here: dot([left[n] for n in here], [right[n] for n in here]).double())
        return total.to(_precision(parameters))

    def anywhere(self, flag: Tensor) -> Tensor:
        """Return the largest flag, 0.0 or 1.0, of all processes that hold a part of the model."""
        if self.group is None and not has_others():  # before parameters are listed
            return flag
        if self._is_here(self._parameters()):
            return flag
        sharded = [along for parameter in self._parameters() for along in _sharded_along(parameter)]
        largest = flag.to(self._device())
        # A dictionary, not a set: all processes must call the collectives in the same order.
        for mesh, dim in dict.fromkeys(sharded):
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=mesh.get_group(dim))
        if self.group is not None:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return largest

    def _is_here(self, parameters: Sequence[Tensor]) -> bool:
        return self.group is None and not any_sharded(parameters)

    def _total(self, parameters: Sequence[Tensor], summed: Callable[[list[int]], Tensor]) -> Tensor:
        """Return a sum over all processes; `summed` gives the sum over this process's parameters at some positions."""
        # Parameters that are sharded alike share one exchange. Of plain ones the key is (): they need none.
        alike: dict[tuple[Any, ...], list[int]] = {}
        for n, parameter in enumerate(parameters):
            alike.setdefault(_sharded_along(parameter), []).append(n)
        total = torch.zeros((), dtype=torch.float64, device=self._device())
        for along, here in alike.items():
            part = summed(here)
            for mesh, dim in along:
                dist.all_reduce(part, group=mesh.get_group(dim))
            total = total + part
        # The processes of `group` hold different parameters: their totals are added.
        if self.group is not None:
            dist.all_reduce(total, group=self.group)
        return total

    def _device(self) -> torch.device:
        return next(parameter.device for parameter in self._parameters())


def _sharded_along(parameter: Any) -> tuple[tuple[Any, int], ...]:
    """Return the dimensions of device meshes along which a parameter is sharded."""
    if not is_sharded(parameter):
        return ()
    mesh = parameter.device_mesh
    return tuple((mesh, dim) for dim, placement in enumerate(parameter.placements) if not placement.is_replicate())


def _precision(parameters: Sequence[Tensor]) -> torch.dtype:
    # As `global_norm` has it: fp32, unless a parameter is fp64.
    return torch.float64 if any(parameter.dtype == torch.float64 for parameter in parameters) else torch.float32
