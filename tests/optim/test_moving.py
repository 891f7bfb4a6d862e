"""Weights that are in the memory of their e for a pass: the bits are those of moving in place, and nobody notices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from bench.optim.base import weight_swap as moving
from bench.optim.base.weight_swap import WeightSwap, can_stand_in
from bench.optim.sam import SAM

from .helpers import Watch, same_bits, snapshot
from .nets import NETS, PRECISIONS, Setting
from .test_contract import CORE_METHODS, Recipe, batches, net, step

ALWAYS, NEVER = 0, 1 << 40
FACTOR = torch.tensor(0.3)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What `can_stand_in` says, each time that it is asked."""
    given: list[bool] = []

    def asking(e: Tensor, weight: Tensor) -> bool:
        given.append(can_stand_in(e, weight))
        return given[-1]

    monkeypatch.setattr(moving, "can_stand_in", asking)
    return given


@pytest.mark.parametrize("recipe", [r for r in CORE_METHODS if "rho" in r.entry.schema.model_fields], ids=str)
def test_every_method_finds_the_same_bits(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, answers: list[bool]) -> None:
    ends = []
    for large in (NEVER, ALWAYS):
        monkeypatch.setattr(moving, "LARGE", large)
        model = net()
        optimizer = recipe.build(model)
        seen = [step(optimizer, model, x, y)[1].weights for x, y in batches(6)]
        ends.append([*model.state_dict().values(), *(w for weights in seen for each in weights for w in each)])
        assert bool(answers) is (large == ALWAYS)
    assert all(answers)
    assert same_bits(*ends)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETS)
def test_every_net_finds_the_same_bits_with_all_its_weights_elsewhere(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch, answers: list[bool]
) -> None:
    ends = []
    for large in (NEVER, ALWAYS):
        monkeypatch.setattr(moving, "LARGE", large)
        model, loss = Setting(name, "cpu", *PRECISIONS[precision]).build()
        optimizer = SAM(SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5, model=model)
        watches = [Watch(optimizer, loss) for _ in range(3)]
        for watch in watches:
            optimizer.step(watch)
        ends.append([*snapshot(model.state_dict().values()), *(w for watch in watches for w in watch.weights[1])])
    assert len(answers) >= 3 * (len(list(model.parameters())) - 1)
    assert all(answers)
    assert same_bits(*ends)


def moved_by(e: Tensor, weight: Tensor) -> WeightSwap:
    moved = WeightSwap()
    with torch.no_grad():
        moved.add([weight], [e], FACTOR)
    return moved


def put_back(moved: WeightSwap) -> None:
    with torch.no_grad():
        moved.put_back()


def test_the_memory_of_e_is_the_weights_for_a_while_and_its_own_is_not_touched() -> None:
    weight, e = nn.Parameter(torch.randn(300, 300)), torch.randn(300, 300)
    own, there, places = snapshot([weight]), e.mul(FACTOR).add(weight.detach()), [weight.data_ptr(), e.data_ptr()]
    moved = moved_by(e, weight)
    assert weight.data_ptr() == places[1]
    assert same_bits([weight], [there])
    put_back(moved)
    assert weight.data_ptr() == places[0]
    assert same_bits([weight], own)


# ---- who would notice --------------------------------------------------------------------------------------------

SHARERS: dict[str, Callable[[Tensor], Any]] = {
    "its numbers": lambda t: t.detach(),
    "a view": lambda t: t.detach().t(),
    "a part": lambda t: t.detach()[3:5],
    "a numpy array": lambda t: t.detach().numpy(),
    "dlpack": lambda t: torch.utils.dlpack.from_dlpack(t.detach()),
    "a parameter over it": lambda t: nn.Parameter(t.detach()),
    "a graph": lambda t: t.requires_grad_().T @ torch.ones(300, 1, requires_grad=True),
    "its memory as bytes": lambda t: t.detach().view(torch.uint8),
}
every_sharer = pytest.mark.parametrize("share", SHARERS.values(), ids=SHARERS)


@every_sharer
def test_whoever_shares_a_weights_memory_sees_it_move(share: Callable[[Tensor], Any]) -> None:
    weight, e = nn.Parameter(torch.randn(300, 300)), torch.randn(300, 300)
    there, place = e.mul(FACTOR).add(weight.detach()), weight.data_ptr()
    shared = share(weight)
    moved = moved_by(e, weight)
    assert weight.data_ptr() == place
    assert same_bits([weight], [there])
    put_back(moved)
    del shared
    another = torch.randn(300, 300)
    assert can_stand_in(another, weight), "once nobody does"


@every_sharer
def test_nobody_who_shares_the_memory_of_e_finds_a_weight_there(share: Callable[[Tensor], Any]) -> None:
    weight, e = nn.Parameter(torch.randn(300, 300)), torch.randn(300, 300)
    shared = share(e)
    moved_by(e, weight)
    assert weight.data_ptr() != e.data_ptr()
    del shared


UNLIKE: dict[str, Callable[[], Tensor]] = {
    "other strides": lambda: torch.empty_strided((300, 300), (1, 300)).normal_(),
    "other numbers": lambda: torch.randn(300, 300, dtype=torch.float64),
    "part of something": lambda: torch.randn(301, 300)[:300],
    "fewer numbers": lambda: torch.randn(300, 1).expand(300, 300),
}


@pytest.mark.parametrize("unlike", UNLIKE.values(), ids=UNLIKE)
def test_what_is_not_like_the_weight_does_not_stand_in(unlike: Callable[[], Tensor]) -> None:
    # Nothing is made inside of an assert: pytest keeps what it has seen there, so it would have another holder.
    weight = nn.Parameter(torch.randn(300, 300))
    e, like = unlike(), torch.randn(300, 300)
    assert can_stand_in(like, weight)
    assert not can_stand_in(e, weight)


class Special(nn.Parameter):
    """As quantisation and sharding have them."""


WEIGHTS: dict[str, tuple[Callable[[], Tensor], bool]] = {
    "of its own class": (lambda: Special(torch.randn(300, 300)), False),
    "no parameter": (lambda: torch.randn(300, 300), False),
    "part of a larger one, as FSDP has it": (lambda: nn.Parameter(torch.randn(600, 300)[:300]), False),
    "a parameter like any other": (lambda: nn.Parameter(torch.randn(300, 300)), True),
}


@pytest.mark.parametrize(("make", "can"), WEIGHTS.values(), ids=WEIGHTS)
def test_which_weights_are_elsewhere(make: Callable[[], Tensor], can: bool) -> None:
    weight, e = make(), torch.randn(300, 300)
    assert can_stand_in(e, weight) is can


@pytest.mark.parametrize("large", [ALWAYS, NEVER])
def test_a_graph_from_before_cannot_go_backward(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closure that makes no fresh forward pass would mix w with w + e."""
    monkeypatch.setattr(moving, "LARGE", large)
    weight = nn.Parameter(torch.randn(30))
    optimizer = SAM(SGD([weight], lr=0.1), rho=0.5)
    loss = weight.square().sum()  # its graph has the weight itself; of a view of it, it would be a sharer

    def stale() -> Tensor:
        optimizer.zero_grad()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        return loss

    before = snapshot([weight])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        optimizer.step(stale)
    assert same_bits([weight], before)


@pytest.mark.parametrize("large", [ALWAYS, NEVER])
def test_a_copy_made_in_the_second_pass_has_the_moved_weights(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "LARGE", large)
    model, x = nn.Linear(5, 3), torch.randn(4, 5)
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5)
    copies = []

    def closure() -> Tensor:
        copies.append((copy.deepcopy(model.state_dict()), snapshot(model.parameters())))
        optimizer.zero_grad()
        loss: Tensor = model(x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    for state, weights in copies:
        assert same_bits(state.values(), weights)
    assert not same_bits(copies[0][1], copies[1][1])
