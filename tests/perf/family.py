"""What a step of every method and of every base costs beside its passes. Part of `make perf`.

Every method steps the same model on the same batch over the same base (fused SGD with momentum), in turn, and beside it
pytorch_optimizer's class of the same method, where there is one. A step's own work is its time without its passes: on a
CPU the processor's time of one thread, which does not run while other programs do. Steps that skip a pass (LookSAM,
AE-SAM) are in the mean. Bases are timed alone and under SAM.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor, nn

from bench.core.registry import load_builtins, optimizers
from tests.perf.sam_step import CASES, CUDA, Passes, Step, Times

ROUNDS = 12  # steps of each that count: two periods of LookSAM with k = 5, and some
WARM = 5
TARGET = 1.1  # own work, as a multiple of pytorch_optimizer's
SGD: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9}
Makers = Mapping[str, Callable[[], Step]]


def compare() -> None:
    """Print the own work of each method's step, beside that of pytorch_optimizer's, then of each base's."""
    load_builtins()
    case = CASES["resnet18"]
    torch.manual_seed(0)
    model, loss = case.build(case.batch[CUDA])
    passes = Passes(model, loss)
    print(f"{case.title}, batch {case.batch[CUDA]}: a step's own work, without its passes (target: x {TARGET})")
    for name, (ours, theirs) in methods(model, passes).items():
        times = timed(passes, {"ours": ours} | ({"theirs": theirs} if theirs else {}))
        line = f"  {name:<20} {1e3 * statistics.median(own(times['ours'])):>8.2f} ms"
        if theirs:
            ratios = sorted(a / b for a, b in zip(own(times["ours"]), own(times["theirs"]), strict=True))
            middle = statistics.median(ratios)
            quartiles = statistics.quantiles(ratios, n=4)
            line += f"   x {middle:.3f} [{quartiles[0]:.3f}, {quartiles[2]:.3f}] of pytorch_optimizer's"
            line += "" if middle <= TARGET else "   MISSED"
        print(line, flush=True)
    print(f"{case.title}, batch {case.batch[CUDA]}: own work of a step of the base alone, and under SAM")
    for name, makers in bases(model, passes).items():
        times = timed(passes, makers)
        alone, under = (statistics.median(own(times[which])) for which in ("alone", "under SAM"))
        print(f"  {name:<20} {1e3 * alone:>8.2f} ms {1e3 * under:>8.2f} ms   SAM adds {1e3 * (under - alone):.2f} ms")
    print(flush=True)


def timed(passes: Passes, makers: Makers) -> dict[str, list[Times]]:
    """The times of each, in turn."""
    steps = {name: make() for name, make in makers.items()}
    found: dict[str, list[Times]] = {name: [] for name in steps}
    for number in range(WARM + ROUNDS):
        for name, step in steps.items():
            times = passes.timed(step)
            if number >= WARM:
                found[name].append(times)
    return found


def own(times: list[Times]) -> list[float]:
    return [max(whole - passes, 1e-9) for whole, passes in times]


def methods(model: nn.Module, closure: Passes) -> dict[str, tuple[Callable[[], Step], Callable[[], Step] | None]]:
    """Every registered method, with what makes ours and, if there is one, pytorch_optimizer's."""

    def sgd() -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)

    def ours(name: str) -> Callable[[], Step]:
        def make() -> Step:
            optimizer: Any = optimizers[name].factory(
                torch.optim.SGD(model.parameters(), fused=True, **SGD), model=model
            )
            optimizer.total_steps, optimizer.checked_steps = 10**6, 0
            return lambda: optimizer.step(closure)

        return make

    found = {}
    for entry in optimizers:
        # ESAM's closure returns the loss of each example, which the problems of these measurements do not have.
        if entry.wraps_base and entry.plugin is None and entry.name not in ("esam", "functional-sam"):
            theirs = others(model, closure).get(entry.name)
            found[entry.name] = (ours(entry.name), theirs)
    return found


def others(model: nn.Module, closure: Passes) -> dict[str, Callable[[], Step]]:
    """By our name, what makes pytorch_optimizer's class of the same method."""
    peer: Any = pytorch_optimizer
    fused = {**SGD, "fused": True}

    def first_outside(kind: Any, **settings: Any) -> Callable[[], Step]:
        def make() -> Step:
            optimizer = kind(model.parameters(), torch.optim.SGD, **settings, **fused)
            return lambda: (closure(), optimizer.step(closure))

        return make

    def gsam() -> Step:
        base = torch.optim.SGD(model.parameters(), **fused)
        constant = peer.ProportionScheduler(
            torch.optim.lr_scheduler.ConstantLR(base, factor=1.0),
            max_lr=1.0,
            min_lr=0.0,
            max_value=0.05,
            min_value=0.05,
        )
        optimizer = peer.GSAM(model.parameters(), base, model, constant, alpha=0.1)

        @torch.enable_grad()
        def both() -> tuple[None, Tensor]:
            return None, closure()

        return lambda: optimizer.step(both)

    def wsam() -> Step:
        optimizer = peer.WSAM(model, model.parameters(), torch.optim.SGD, rho=0.05, gamma=0.9, **fused)
        return lambda: optimizer.step(closure)

    return {
        "sam": first_outside(peer.SAM, rho=0.05),
        "asam": first_outside(peer.SAM, rho=0.5, adaptive=True),
        "friendly-sam": first_outside(peer.FriendlySAM, rho=0.05, sigma=1.0, lmbda=0.9),
        "gsam": gsam,
        "wsam": wsam,
    }


def bases(model: nn.Module, closure: Passes) -> dict[str, dict[str, Callable[[], Step]]]:
    """Every registered base, alone and under SAM, at a rate that moves nothing."""
    settings: dict[str, dict[str, Any]] = {"sgd": SGD}

    def alone(name: str) -> Step:
        optimizer: Any = optimizers[name].factory(model.parameters(), **settings.get(name, {"lr": 1e-6}))
        if hasattr(optimizer, "train"):
            optimizer.train()
        return lambda: (closure(), optimizer.step())

    def under(name: str) -> Step:
        base = optimizers[name].factory(model.parameters(), **settings.get(name, {"lr": 1e-6}))
        optimizer: Any = optimizers["sam"].factory(base, model=model)
        optimizer.checked_steps = 0
        optimizer.train()
        return lambda: optimizer.step(closure)

    return {
        entry.name: {"alone": partial(alone, entry.name), "under SAM": partial(under, entry.name)}
        for entry in optimizers
        if not entry.wraps_base and entry.plugin is None
    }
