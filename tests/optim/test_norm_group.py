"""A named group of processes that share one model, here a group of one process; `test_split_models.py` has two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, AdamW

from bench.optim.base.state import StatefulWrapper
from bench.optim.friendly_sam import FriendlySAM
from bench.optim.looksam import LookSAM
from bench.optim.sam import SAM

from .helpers import Watch, problem, same_bits


@pytest.fixture(scope="module")
def alone() -> Iterator[Any]:
    """The group of this process alone."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


REMEMBERING: list[tuple[type[StatefulWrapper], dict[str, int]]] = [
    (FriendlySAM, {"perturb_every": 2}),
    (LookSAM, {"k": 2}),
]


@pytest.mark.parametrize(("method", "options"), REMEMBERING, ids=lambda given: getattr(given, "__name__", ""))
def test_what_is_remembered_is_as_without_a_group(alone: Any, method: Any, options: dict[str, int]) -> None:
    """A step that perturbs nothing has nothing to remember, and other processes may have."""
    ends = []
    for group in (None, alone):
        model, loss = problem()
        optimizer = method(SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.2, norm_group=group, **options)
        for _ in range(5):
            optimizer.step(Watch(optimizer, loss))
        ends.append([*model.parameters(), *optimizer.memory.values()])
    assert same_bits(*ends)
    assert len(ends[0]) == 8


def test_a_stage_without_any_gradient_takes_part(alone: Any) -> None:
    model, loss = problem()
    optimizer = SAM(SGD(nn.Linear(2, 1).parameters(), lr=0.1), rho=0.2, norm_group=alone)

    def closure() -> torch.Tensor:
        model.zero_grad()
        found = loss()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(closure)
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize(("method", "options"), REMEMBERING, ids=lambda given: getattr(given, "__name__", ""))
@pytest.mark.parametrize("flat", [False, True], ids=["by parameter", "flattened"])
def test_a_distributed_checkpoint_has_what_is_remembered(method: Any, options: dict[str, int], flat: bool) -> None:
    """Flattened, a state is looked up where it is to be loaded: in the optimizer's own `state`."""
    form = StateDictOptions(flatten_optimizer_state_dict=flat)
    ends = []
    for resumed in (False, True):
        model, loss = problem()
        optimizer = method(AdamW(model.parameters(), lr=0.01), rho=0.2, **options)
        for _ in range(3):
            optimizer.step(Watch(optimizer, loss))
        if resumed:
            optimizer.zero_grad()  # torch makes no state where there are gradients
            saved = get_optimizer_state_dict(model, optimizer, options=form)
            optimizer = method(AdamW(model.parameters(), lr=0.01), rho=0.2, **options)
            set_optimizer_state_dict(model, optimizer, saved, options=form)
        for _ in range(3):
            optimizer.step(Watch(optimizer, loss))
        ends.append([*model.parameters(), *optimizer.memory.values()])
    assert same_bits(*ends)
    assert len(ends[0]) == 8
