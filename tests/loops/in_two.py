"""What `test_zero.py` has two real processes do: SAM over ZeroRedundancyOptimizer, whose state is in pieces.

`python -m tests.loops.in_two FOLDER`; see `tests.distributed.ranks`.
"""

from __future__ import annotations

import copy
import faulthandler
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from bench.core.process_group import ProcessGroup
from bench.distributed.process import joined
from bench.optim.ae_sam import AESAM
from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.friendly_sam import FriendlySAM
from bench.optim.gsam import GSAM
from bench.optim.looksam import LookSAM
from bench.optim.momentum_sam import MomentumSAM
from bench.optim.random_direction import RandomDirection
from bench.optim.sam import SAM
from bench.optim.sampa import SAMPa
from bench.optim.wsam import WSAM

METHODS: dict[str, Callable[..., OptimizerWrapper]] = {
    "sam": SAM,
    "asam": partial(SAM, adaptive=True),
    "gsam": GSAM,
    "looksam": partial(LookSAM, k=2, alpha=0.5),
    "friendly-sam": FriendlySAM,
    "sampa": partial(SAMPa, lmbda=0.0),  # else it also follows the gradient at y, whatever rho
    "ae-sam": partial(AESAM, lambda_1=0.0, lambda_2=0.0),
    "wsam": partial(WSAM, gamma=0.5),
    "random-direction": RandomDirection,
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)).double()


class Training:
    """A net whose gradients are averaged, and an optimizer over it.

    Args:
        method: None: the bare base.
        pieces: whether each process keeps the base's state of its own parameters alone.
    """

    def __init__(
        self, group: ProcessGroup, method: Callable[..., OptimizerWrapper] | None, pieces: bool = True
    ) -> None:
        self.rank, self.model = group.rank, net()
        self.ddp = DistributedDataParallel(self.model)
        parameters = self.model.parameters()
        base: Optimizer = AdamW(parameters, lr=0.01)
        if pieces:
            base = ZeroRedundancyOptimizer(self.model.parameters(), AdamW, lr=0.01)
        self.optimizer: Any = base if method is None else method(base, model=self.model)

    def steps(self, which: range) -> Training:
        for number in which:
            random = torch.Generator().manual_seed(number)
            x = torch.randn(2, 8, 5, generator=random, dtype=torch.float64)[self.rank]

            def closure(x: Tensor = x) -> Tensor:
                self.optimizer.zero_grad()
                loss: Tensor = self.ddp(x).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            self.optimizer.step(closure)
        return self

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def resumed(self, group: ProcessGroup, method: Callable[..., OptimizerWrapper]) -> Training:
        """A new training that goes on where this one is."""
        saved: dict[str, Any] = {}
        for rank in range(group.size):
            self.optimizer.consolidate_state_dict(to=rank)
            if rank == group.rank:  # the next one's turn takes it away
                saved = copy.deepcopy(self.optimizer.state_dict())
        after = Training(group, method)
        after.model.load_state_dict(self.model.state_dict())
        after.optimizer.load_state_dict(saved)
        return after


def cases(group: ProcessGroup) -> dict[str, Any]:
    found: dict[str, Any] = {"bare": Training(group, None).steps(range(6)).weights}
    for name, method in METHODS.items():
        straight = Training(group, partial(method, rho=0.1)).steps(range(3))
        resumed = straight.resumed(group, partial(method, rho=0.3))
        found[f"{name}, resumed"] = resumed.steps(range(3, 6)).weights
        found[f"{name}, straight"] = straight.steps(range(3, 6)).weights
        found[f"{name}, whole"] = Training(group, partial(method, rho=0.1), pieces=False).steps(range(6)).weights
        if name != "looksam":  # what it reuses has a length of its own
            found[f"{name}, vanishing"] = Training(group, partial(method, rho=1e-9)).steps(range(6)).weights
    try:
        Training(group, MomentumSAM).steps(range(2))
    except ValueError as error:
        found["momentum-sam"] = str(error)
    return found


def main(folder: Path) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as group:
        found = cases(group)
    torch.save(found, folder / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
