"""Memory of a step, by the allocator's own account: what docs/sam-in-your-own-code.md says of it, "Memory"."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from bench.optim.base.watched import SAMPLE
from bench.optim.sam import SAM

from .helpers import over_both

MakeBase = Callable[..., Optimizer]
WIDTH = 256
LAYER = 4 * WIDTH**2
"""Bytes of one layer; its numbers are as many as a tensor has at most that is always copied."""


def layers(number: int, width: int = WIDTH) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(number)])


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    x = torch.randn(2, WIDTH)
    return lambda: model(x).square().mean()


def alive_in_a_step(optimizer: Optimizer, loss: Callable[[], Tensor], steps_before: int = 2) -> list[int]:
    """Bytes alive above what lives before a step, after each change; gradients are gone at both ends."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    for _ in range(steps_before):  # the base's state is made in the first step
        optimizer.step(closure)  # type: ignore[arg-type]
    optimizer.zero_grad()
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        optimizer.step(closure)  # type: ignore[arg-type]
        optimizer.zero_grad()
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    return list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def peak_bytes(optimizer: Optimizer, loss: Callable[[], Tensor], steps_before: int = 2) -> int:
    return max(alive_in_a_step(optimizer, loss, steps_before))


@over_both
@pytest.mark.parametrize("base", [lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True), lambda p: Adam(p, fused=True)])
def test_it_peaks_at_most_one_copy_of_the_parameters_above_the_base(base: MakeBase, adaptive: bool) -> None:
    model = layers(4)
    loss = loss_of(model)
    plain = peak_bytes(base(model.parameters()), loss)
    assert plain >= 4 * LAYER  # the gradients: the account is not empty
    assert peak_bytes(SAM(base(model.parameters()), rho=0.1, adaptive=adaptive), loss) <= plain + 1.05 * 4 * LAYER


class Beside(nn.Module):
    """Layers that are trained, and something beside them.

    Args:
        table: layers' worth of numbers in a buffer.
        frozen: layers that are in no group, each too large to be always copied.
        moves: whether forward moves the table.
        norms: whether there is batch norm.
    """

    def __init__(self, table: int = 0, frozen: int = 0, moves: bool = False, norms: bool = False) -> None:
        super().__init__()
        self.trained = layers(4)
        self.table = nn.Buffer(torch.zeros(table * WIDTH**2 + 1)) if table else None
        self.frozen = nn.ParameterList(torch.zeros(WIDTH**2 + 1) for _ in range(frozen)).requires_grad_(False)
        self.moves = moves
        self.norm = nn.BatchNorm1d(WIDTH, affine=False) if norms else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.moves and self.table is not None:
            self.table.add_(1)
        result: Tensor = self.norm(self.trained(x))
        return result


def layers_above_the_base(make: Callable[[], Beside], steps_before: int) -> float:
    peaks = []
    for wrap in (lambda base, model: base, lambda base, model: SAM(base, rho=0.1, model=model)):
        model = make()
        optimizer = wrap(SGD(model.trained.parameters(), lr=0.1, fused=True), model)
        peaks.append(peak_bytes(optimizer, loss_of(model), steps_before))
    return (peaks[1] - peaks[0]) / LAYER


BESIDE: dict[str, Callable[[], Beside]] = {
    "a large table": lambda: Beside(table=64),
    "large frozen layers": lambda: Beside(frozen=64),
    "frozen layers that have room": lambda: Beside(frozen=2),
    "batch norm": lambda: Beside(norms=True),
}


@pytest.mark.parametrize("steps_before", [0, 1, 2])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_forward_leaves_alone_costs_nothing(kind: str, steps_before: int) -> None:
    """One copy of four layers all the same, in the first step as in later ones but for samples of what is frozen."""
    samples = 64 * SAMPLE / WIDTH**2 if kind == "large frozen layers" and steps_before == 0 else 0.0
    assert layers_above_the_base(BESIDE[kind], steps_before) <= 1.05 * 4 + samples


def test_what_forward_moves_takes_two_copies() -> None:
    assert 2 * 16 <= layers_above_the_base(lambda: Beside(table=16, moves=True), 2) <= 4 + 2 * 16 + 0.2


def test_all_of_it_is_freed_after_the_step() -> None:
    model = Beside(table=16, moves=True)
    optimizer = SAM(SGD(model.trained.parameters(), lr=0.1, fused=True), rho=0.1, model=model)
    assert abs(alive_in_a_step(optimizer, loss_of(model))[-1]) < LAYER / 10


# ---- split over processes ----------------------------------------------------------------------------------------

COPIES = {
    **dict.fromkeys(("sam", "asam", "functional-sam", "le-sam", "ae-sam", "esam"), (1, 0)),
    **dict.fromkeys(("momentum-sam", "random-direction"), (1, 0)),
    **dict.fromkeys(("gsam", "wsam", "xsam"), (2, 0)),
    **dict.fromkeys(("looksam", "friendly-sam"), (4, 1)),
    "sampa": (3, 1),
    **dict.fromkeys(("ema", "swa"), (1, 1)),
}
"""Copies of a process's shard above the base, over FSDP2: at the peak, and between steps."""


@pytest.mark.slow
@pytest.mark.parametrize("name", COPIES)
def test_over_fsdp2_it_is_counted_in_shards(in_two: list[dict[str, Any]], name: str) -> None:
    most, kept = COPIES[name]
    for found in in_two:
        assert most - 1 < found[f"memory, {name}"]["peak"] < most + 0.25
        assert found[f"memory, {name}"]["kept"] == pytest.approx(kept, abs=0.05)


def test_the_page_has_these_numbers() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sam-in-your-own-code.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| (\d) \| (\d) \|$", page, re.MULTILINE)
    said = {name: (int(most), int(kept)) for names, most, kept in rows for name in names.split(", ")}
    assert said == COPIES
