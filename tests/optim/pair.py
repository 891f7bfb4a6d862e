"""SAMPa over a pair of processes, which make one pass each, beside SAMPa in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from bench.core.process_group import ProcessGroup
from bench.optim.sampa import SAMPa

STEPS = 6
BASES: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: AdamW(p, lr=0.01),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 3)
    return nn.Sequential(*layers).double()


def closure_of(model: nn.Module, optimizer: Any, calls: list[int], scale: float = 1.0) -> Callable[[], Tensor]:
    x, y = torch.randn(16, 1, 8, 8, dtype=torch.float64), torch.randint(3, (16,))

    def closure() -> Tensor:
        calls[0] += 1
        optimizer.zero_grad()
        loss = scale * F.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return closure


def trained(base: str, pair: Any, spoilt: int | None = None) -> tuple[nn.Module, SAMPa, int]:
    """Return the model after some steps, its optimizer, and the passes that this process has made.

    Args:
        spoilt: a step whose loss is not finite at w + e, for whoever makes that pass.
    """
    model, calls = net(), [0]
    optimizer = SAMPa(BASES[base](model.parameters()), rho=0.3, model=model, clip_norm=1.0, pair=pair)
    for step in range(STEPS):
        torch.manual_seed(step)
        closure = closure_of(model, optimizer, calls)

        def maybe(closure: Callable[[], Tensor] = closure, step: int = step) -> Tensor:
            second = dist.get_rank(pair) == 1 if pair is not None else not optimizer.first_pass
            loss = closure()
            if step == spoilt and second:
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad.fill_(torch.inf)
            return loss

        optimizer.step(maybe)
    return model, optimizer, calls[0]


def cases(group: ProcessGroup) -> Iterator[tuple[str, Any]]:
    """Each base by its name: weights, statistics, memory and passes of this process, and of one that makes both."""
    for base in BASES:
        for spoilt in (None, 2):
            found = {}
            for name, pair in (("pair", dist.group.WORLD), ("alone", None)):
                model, optimizer, calls = trained(base, pair, spoilt)
                tensors = [*model.state_dict().values(), *optimizer.remembered([*model.parameters()])]
                found[name] = {"tensors": tensors, "calls": calls, "skipped": optimizer.skipped_steps}
            yield f"pair over {base}" + (", spoilt" if spoilt else ""), found
