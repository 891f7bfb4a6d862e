"""What the suite asks of every optimizer that is registered: each method around each plain one, and each plain one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.core.registry import Entry, load_builtins, optimizers
from bench.core.spec import ComponentSpec
from bench.optim.ae_sam import AESAM
from bench.optim.base.averaging import Averaging, to_training
from bench.optim.base.perturbation import PerturbedOptimizer
from bench.optim.base.schedule import Scheduler
from bench.optim.base.state import StatefulWrapper
from bench.optim.base.wrapper import OptimizerWrapper
from bench.training.step import build_optimizer

from .helpers import Watch, WatchLosses, flat, same_bits, snapshot, spec, state_of

LR = 0.05  # sensible for all of them on the small problems here

load_builtins()
ENTRIES = [entry for entry in optimizers if entry.plugin is None]
PLAIN = [entry for entry in ENTRIES if not entry.wraps_base]


def settings(entry: Entry) -> dict[str, Any]:
    """The defaults plus lr, as an experiment file resolves them."""
    lr = {"lr": LR} if "lr" in entry.schema.model_fields else {}
    return entry.schema(**lr).model_dump()


@dataclass(frozen=True)
class Recipe:
    """An optimizer, with the one it is built around where it is built around one."""

    entry: Entry
    base: Entry | None = None

    def __str__(self) -> str:
        return f"{self.entry.name}-{self.base.name}" if self.base else self.entry.name

    def build(self, model: nn.Module) -> Optimizer:
        base = ComponentSpec(name=self.base.name, params=settings(self.base)) if self.base else None
        optimizer = build_optimizer(spec(ComponentSpec(name=self.entry.name, params=settings(self.entry)), base), model)
        to_training(optimizer)
        if isinstance(optimizer, OptimizerWrapper):
            optimizer.total_steps = 8  # of a training that the tests see the most of
        return optimizer


BASES = [entry for entry in PLAIN if entry.name != "adam"]  # adamw is its kin


def fitting(entry: Entry) -> list[Entry]:
    return [base for base in BASES if base.name not in entry.unfit]


RECIPES = [Recipe(entry, base) for entry in ENTRIES for base in (fitting(entry) if entry.wraps_base else [None])]
METHODS = [recipe for recipe in RECIPES if recipe.base]
CORE_METHODS = [recipe for recipe in METHODS if recipe.base and recipe.base.name in ("sgd", "adamw")]
"""Each method around torch's own: for tests of what a method does by itself, whatever its base."""
SPOILED = [(r, call) for r in METHODS for call in (1, 2) if call == 1 or r.entry.passes(settings(r.entry)) > 1]
"""Each method, and each pass of it of which the gradient can be spoiled."""
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=str)
every_method = pytest.mark.parametrize("recipe", METHODS, ids=str)
every_core_method = pytest.mark.parametrize("recipe", CORE_METHODS, ids=str)
every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])


def net(seed: int = 0) -> nn.Module:
    """Batch norm and dropout on the way, so that buffers and random numbers count."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def batches(number: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(12, 5, generator=generator), torch.randn(12, 3, generator=generator)) for _ in range(number)]


def loss_of(model: nn.Module, x: Tensor, y: Tensor, optimizer: Any = None) -> Tensor:
    outputs = model(x)
    if getattr(optimizer, "takes_logits", False):
        outputs = optimizer.logits(outputs)
    return nn.functional.mse_loss(outputs, y)


def watching(optimizer: Optimizer, model: nn.Module, x: Tensor, y: Tensor) -> Watch:
    """The closure that the optimizer takes."""
    if not getattr(optimizer, "takes_losses", False):
        return Watch(optimizer, partial(loss_of, model, x, y, optimizer))

    def losses(examples: Tensor | slice = slice(None)) -> Tensor:
        return nn.functional.mse_loss(model(x[examples]), y[examples], reduction="none").mean(1)

    return WatchLosses(optimizer, losses, len(x))


def step(optimizer: Optimizer, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Any, Watch]:
    watch = watching(optimizer, model, x, y)
    return optimizer.step(watch), watch  # type: ignore[arg-type]


@every_recipe
def test_it_is_a_torch_optimizer_over_all_trainable_parameters(recipe: Recipe) -> None:
    model = net()
    model[1].weight.requires_grad_(False)  # type: ignore[index]
    optimizer = recipe.build(model)
    assert isinstance(optimizer, Optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}
    assert {group["lr"] for group in optimizer.param_groups} == {LR}


@every_recipe
def test_it_evaluates_the_closure_as_often_as_its_registration_says(recipe: Recipe) -> None:
    # A whole number of periods: XSAM's search, or a method that spares every 2nd .. 6th pass.
    model, steps = net(), settings(recipe.entry).get("search_every", 60)
    optimizer = recipe.build(model)
    if isinstance(optimizer, OptimizerWrapper):
        optimizer.total_steps = steps
    x, y = batches(1)[0]
    work = sum(step(optimizer, model, x, y)[1].work for _ in range(steps))
    said = steps * recipe.entry.passes(settings(recipe.entry))
    if isinstance(optimizer, AESAM):  # which decides as it goes; an upper bound is said
        assert steps < work < said == 2 * steps
    else:
        assert work == pytest.approx(said)


@every_recipe
def test_it_returns_the_loss_at_the_weights_before_the_update(recipe: Recipe) -> None:
    """Or, where it says that it does not, the one at the point that its first pass has seen."""
    model = net()
    optimizer = recipe.build(model)
    for number, (x, y) in enumerate(batches(3)):
        torch.manual_seed(number)
        before = loss_of(model, x, y).detach()
        torch.manual_seed(number)
        returned, watch = step(optimizer, model, x, y)
        assert isinstance(returned, Tensor)
        if getattr(optimizer, "loss_is_at_w", True):
            torch.testing.assert_close(returned.detach(), before, rtol=1e-6, atol=0)
        else:
            assert torch.equal(returned.detach(), watch.losses[0])
            assert watch.calls == recipe.entry.passes(settings(recipe.entry))


@every_method
def test_weights_come_back_bit_for_bit_where_lr_is_0(recipe: Recipe) -> None:
    model = net()
    optimizer = recipe.build(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before, places = snapshot(model.parameters()), [p.data_ptr() for p in model.parameters()]
    moved = False
    for x, y in batches(6):
        _, watch = step(optimizer, model, x, y)
        moved |= any(not same_bits(weights, before) for weights in watch.weights)
    assert same_bits(model.parameters(), before)
    assert places == [p.data_ptr() for p in model.parameters()]
    assert moved == isinstance(optimizer, PerturbedOptimizer), "and they were away in between"


@every_method
def test_buffers_move_once_a_step(recipe: Recipe) -> None:
    """num_batches_tracked, too; and as a plain step from the same weights moves them, if that is where it looks."""
    model, twin = net(), net()
    optimizer = recipe.build(model)
    plain = Recipe(recipe.base).build(twin)  # type: ignore[arg-type]
    for number, (x, y) in enumerate(batches(4)):
        twin.load_state_dict(model.state_dict())
        torch.manual_seed(number)
        step(optimizer, model, x, y)
        torch.manual_seed(number)
        step(plain, twin, x, y)
        if getattr(optimizer, "loss_is_at_w", True):
            assert same_bits(model.buffers(), twin.buffers())
        assert model[1].num_batches_tracked == number + 1  # type: ignore[index]


@pytest.mark.parametrize(("recipe", "call"), SPOILED, ids=str)
def test_a_gradient_that_is_not_finite_changes_nothing(recipe: Recipe, call: int) -> None:
    """Neither weights nor what base and method remember; and the next steps are as if it had not been."""
    model = net()
    model[3].p = 0.0  # type: ignore[index]
    optimizer = recipe.build(model)
    assert isinstance(optimizer, OptimizerWrapper)
    if isinstance(optimizer, AESAM):
        optimizer.lambda_1 = optimizer.lambda_2 = -1e6  # every step has a second pass
    x, y = batches(1)[0]
    for _ in range(5):  # LookSAM is at the beginning of its period
        step(optimizer, model, x, y)
    weights, state = snapshot(model.parameters()), snapshot(state_of(optimizer))
    memory = snapshot(optimizer.memory.values()) if isinstance(optimizer, StatefulWrapper) else []
    passes = []

    def spoil(gradient: Tensor) -> Tensor:
        passes.append(1)
        return gradient * float("inf") if len(passes) == call else gradient

    hook = model[4].weight.register_hook(spoil)  # type: ignore[index]
    step(optimizer, model, x, y)
    hook.remove()
    assert len(passes) >= call
    assert optimizer.skipped_steps == 1
    assert same_bits(model.parameters(), weights)
    assert same_bits(state_of(optimizer), state)
    if isinstance(optimizer, StatefulWrapper) and not isinstance(optimizer, Averaging):
        assert same_bits(optimizer.memory.values(), memory)
    for _ in range(6):
        step(optimizer, model, x, y)
    assert flat(model.parameters()).isfinite().all()
    assert optimizer.skipped_steps == 1


@every_method
def test_a_gradient_of_zero_is_harmless(recipe: Recipe) -> None:
    model = net()
    optimizer = recipe.build(model)
    assert isinstance(optimizer, OptimizerWrapper)
    x, y = batches(1)[0]
    for _ in range(7):
        watch = watching(optimizer, model, x, y)
        some = watch.loss
        watch.loss = lambda *examples, some=some: some(*examples) * 0
        optimizer.step(watch)
    assert flat(model.parameters()).isfinite().all()
    assert optimizer.skipped_steps == 0


@every_method
def test_several_parts_are_each_treated_by_themselves(recipe: Recipe) -> None:
    """Two parts that are alike are as one; two halves are not the whole, since each has statistics of its own."""
    x, y = batches(1)[0]

    def after(*parts: tuple[Tensor, Tensor], steps: int = 6) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
        optimizer = recipe.build(model)
        assert isinstance(optimizer, OptimizerWrapper)
        for _ in range(steps):
            optimizer.step([watching(optimizer, model, a.double(), b.double()) for a, b in parts])
        return flat(model.parameters())

    whole = (x, y)
    if recipe.entry.name in ("esam", "random-direction"):  # parts draw for themselves
        assert not torch.equal(after(whole, whole), after(whole))
    else:
        torch.testing.assert_close(after(whole, whole), after(whole), rtol=1e-9, atol=1e-11)
    assert not torch.allclose(after((x[:6], y[:6]), (x[6:], y[6:])), after(whole), rtol=1e-9, atol=1e-11)


@every_recipe
def test_every_parameter_moves(recipe: Recipe) -> None:
    model = net()
    before, optimizer = snapshot(model.parameters()), recipe.build(model)
    for _ in range(2):  # the first step of SOAP finds its basis, and moves nothing
        step(optimizer, model, *batches(1)[0])
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@every_recipe
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(recipe: Recipe) -> None:
    def trained(seed: int) -> list[Tensor]:
        model = net()
        optimizer = recipe.build(model)
        torch.manual_seed(seed)
        for x, y in batches(4):
            step(optimizer, model, x, y)
        return [*model.parameters(), *model.buffers()]

    assert same_bits(trained(1), trained(1))
    assert not same_bits(trained(1), trained(2))


@every_recipe
def test_the_loss_of_a_convex_problem_falls(recipe: Recipe) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(5, 4), torch.randn(40, 5)  # a matrix of 4 rows: the smallest that Muon takes
    y = x @ (0.4 * torch.randn(5, 4)) + 0.2
    optimizer = recipe.build(model)
    before = loss_of(model, x, y)
    for _ in range(160):
        step(optimizer, model, x, y)
    assert loss_of(model, x, y) < 0.05 * before


@every_recipe
def test_a_run_resumed_from_a_file_ends_with_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    """5 steps == 3 + save + load into new objects + 2, with a schedule that has not come to its end."""
    data = batches(5)

    def objects(seed: int) -> tuple[nn.Module, Optimizer, Scheduler]:
        model = net(seed)
        optimizer = recipe.build(model)
        return model, optimizer, Scheduler(optimizer, total=8, warmup=2, shape="cosine")

    def run(parts: Any, some: list[tuple[Tensor, Tensor]]) -> None:
        model, optimizer, schedule = parts
        for x, y in some:
            step(optimizer, model, x, y)
            schedule.step()

    straight = objects(seed=0)
    torch.manual_seed(3)
    run(straight, data)

    stopped = objects(seed=0)
    torch.manual_seed(3)
    run(stopped, data[:3])
    state = {"parts": [part.state_dict() for part in stopped], "random": torch.get_rng_state()}
    torch.save(state, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed = objects(seed=99)
    for i in range(3):
        resumed[i].load_state_dict(saved["parts"][i])
    torch.set_rng_state(saved["random"])
    run(resumed, data[3:])

    assert not torch.equal(flat(resumed[0].parameters()), flat(stopped[0].parameters()))
    assert same_bits(resumed[0].state_dict().values(), straight[0].state_dict().values())
    assert same_bits(state_of(resumed[1]), state_of(straight[1]))
    assert resumed[1].param_groups[0]["lr"] == straight[1].param_groups[0]["lr"] != LR


@every_entry
def test_a_hyperparameter_it_does_not_have_is_refused(entry: Entry) -> None:
    with pytest.raises(ValidationError, match="warp_factor"):
        entry.schema(**settings(entry), warp_factor=9.0)


@every_entry
def test_its_docstring_says_in_one_line_what_it_is_and_cites_a_source(entry: Entry) -> None:
    assert re.fullmatch(r"[A-Z].{20,}[.:)]", entry.description)
    assert re.search(r"\b(19|20)\d\d\b", entry.factory.__doc__ or "")
