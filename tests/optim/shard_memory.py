"""Memory that a method takes above its base over FSDP2, in each of two processes: in copies of the process's shard."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.core.process_group import ProcessGroup

from .split_models import METHODS, built, closure_of

WIDTH, LAYERS, STEPS = 96, 10, 8
SHARD = LAYERS * WIDTH**2 * 4 // 2
"""Bytes of the parameters that one of two processes holds."""


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of what operations make, now and at most.

    The profiler's account has no end: FSDP2 frees in threads that it does not see.
    """

    def __init__(self, parameters: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.there = weakref.WeakSet(p.to_local().untyped_storage() for p in parameters)
        self.most = 0

    def now(self) -> int:
        return sum(storage.nbytes() for storage in self.there)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [one.untyped_storage() for one in tree_leaves(result) if type(one) is Tensor]
        if any(storage not in self.there for storage in made):
            self.there.update(made)
            self.most = max(self.most, self.now())
        return result


def in_shards(name: str) -> tuple[float, float]:
    """Return the most that is alive in some steps, and what is alive between them; gradients are gone then."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
    line = init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=line)  # so that one layer at a time is whole
    fully_shard(model, mesh=line)
    optimizer: Any = built(model, METHODS[name])
    optimizer.total_steps = STEPS
    # FSDP2 and the methods make what they keep in the first step.
    closure = closure_of(model, optimizer, torch.ones(2, WIDTH), torch.zeros(2, dtype=torch.long))
    with Alive([*model.parameters()]) as alive:
        for _ in range(STEPS):
            optimizer.step(closure)
            optimizer.zero_grad()
    gc.collect()
    return alive.most / SHARD, alive.now() / SHARD


def cases(group: ProcessGroup) -> Iterator[tuple[str, Any]]:
    """Each method by its name: copies above the base at the peak, and between steps."""
    base = in_shards("base")
    for name in METHODS:
        peak, kept = in_shards(name)
        yield f"memory, {name}", {"peak": peak - base[0], "kept": kept - base[1]}
