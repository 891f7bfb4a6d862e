"""A closure's own generators and hidden state, found by a second pass as by the first; caches, which are emptied."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim import SGD

from bench.optim.base.perturbation import PerturbedOptimizer
from bench.optim.esam import ESAM
from bench.optim.sam import SAM

from .helpers import Watch, flat, problem, same_bits
from .test_contract import CORE_METHODS, Recipe, net, watching

TWO_PASSES = [r for r in CORE_METHODS if r.entry.name in ("sam", "asam", "esam", "friendly-sam", "gsam", "wsam")]

# Each makes a generator, and a function that draws three numbers from it.
GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor]]] = {
    "torch.Generator": (lambda: torch.Generator().manual_seed(1), lambda g: torch.randn(3, generator=g)),
    "numpy.random.Generator": (lambda: np.random.default_rng(1), lambda g: torch.tensor(g.standard_normal(3))),
    "numpy's Philox": (lambda: np.random.Generator(np.random.Philox(1)), lambda g: torch.tensor(g.standard_normal(3))),
    "numpy.random.RandomState": (lambda: np.random.RandomState(1), lambda g: torch.tensor(g.standard_normal(3))),
    "random.Random": (lambda: random.Random(1), lambda g: torch.tensor([g.gauss(0, 1) for _ in range(3)])),
}
every_generator = pytest.mark.parametrize(("make", "draw"), GENERATORS.values(), ids=GENERATORS)


@every_generator
def test_a_generator_of_the_closures_own_is_rewound_if_it_is_named(
    make: Callable[[], Any], draw: Callable[[Any], Tensor]
) -> None:
    model, loss = problem()
    generator, seen = make(), list[Tensor]()

    def noisy() -> Tensor:
        seen.append(draw(generator))
        return loss()

    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5)
    optimizer.step(Watch(optimizer, noisy))
    assert not torch.equal(seen[0], seen[1]), "it is not known yet"
    optimizer.generators.append(generator)
    seen.clear()
    for _ in range(2):
        optimizer.step(Watch(optimizer, noisy))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[1], seen[2])


@every_generator
def test_it_goes_on_as_after_a_plain_step(make: Callable[[], Any], draw: Callable[[Any], Tensor]) -> None:
    model, loss = problem()
    generator, plain = make(), make()
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5)
    optimizer.generators = [generator]
    for _ in range(2):
        optimizer.step(Watch(optimizer, lambda: loss() + 0 * draw(generator).sum()))
        draw(plain)
    assert torch.equal(draw(generator), draw(plain))


@pytest.mark.parametrize("recipe", TWO_PASSES, ids=str)
def test_every_method_rewinds_it(recipe: Recipe) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.generator = net(), torch.Generator().manual_seed(1)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.randn(1, generator=self.generator))
            result: Tensor = self.net(x)
            return result

    seen: list[Tensor] = []
    model = Noisy()
    optimizer = recipe.build(model)
    assert isinstance(optimizer, PerturbedOptimizer)
    optimizer.generators = [model.generator]
    optimizer.step(watching(optimizer, model, torch.randn(12, 5), torch.randn(12, 3)))
    assert len(seen) == (3 if isinstance(optimizer, ESAM) else 2)
    assert len(set(map(float, seen))) == 1


def test_what_is_no_generator_is_refused() -> None:
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1))
    optimizer.generators = [np.random]  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"optimizer\.generators are torch\.Generator, .*; got module"):
        optimizer.step(Watch(optimizer, loss))


def test_an_optimizer_with_generators_is_copied_and_pickled() -> None:
    model, _ = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1))
    optimizer.generators = [torch.Generator(), np.random.default_rng(1), random.Random(1)]
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert len(twin.generators) == 3


# ---- a state of the model's own ----------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A net that keeps its hidden state from batch to batch: in a buffer, or in a plain attribute."""

    def __init__(self, as_buffer: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(3, 4)
        self.hidden = nn.Buffer(torch.zeros(1, 4)) if as_buffer else torch.zeros(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.cell(x, self.hidden)
        self.hidden = hidden.detach()
        return hidden


def trained_recurrently(as_buffer: bool, wrap: Callable[[Any, nn.Module], Any]) -> Recurrent:
    net = Recurrent(as_buffer)
    optimizer = wrap(SGD(net.parameters(), lr=0.1), net)
    for x in torch.linspace(-1, 1, 12).reshape(4, 1, 3):
        optimizer.step(Watch(optimizer, partial(lambda x: net(x).square().mean(), x)))
    return net


def test_a_hidden_state_moves_once_as_a_buffer_and_twice_as_an_attribute() -> None:
    plain = trained_recurrently(True, lambda base, net: base)
    vanishing = [trained_recurrently(kind, lambda base, net: SAM(base, rho=1e-7, model=net)) for kind in (True, False)]
    torch.testing.assert_close(vanishing[0].hidden, plain.hidden, rtol=0, atol=1e-6)
    assert (vanishing[1].hidden - plain.hidden).abs().max() > 1e-2


# ---- caches around both passes -----------------------------------------------------------------------------------


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized() -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    layer = parametrize.register_parametrization(nn.Linear(4, 3), "weight", Doubled())
    model = nn.Sequential(layer, nn.Tanh(), parametrizations.orthogonal(nn.Linear(3, 3)))
    x = torch.randn(5, 4)
    return model, lambda: model(x).square().mean()


@pytest.mark.parametrize("recipe", TWO_PASSES, ids=str)
def test_a_cache_of_parametrizations_around_both_passes_changes_nothing(recipe: Recipe) -> None:
    ends = []
    for cached in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(parametrize.register_parametrization(nn.Linear(5, 3), "weight", Doubled()), nn.Tanh())
        optimizer = recipe.build(model)
        for number in range(3):
            x = torch.randn(12, 5, generator=torch.Generator().manual_seed(number))
            watch = watching(optimizer, model, x, torch.zeros(12, 3))
            if cached:
                with parametrize.cached():
                    optimizer.step(watch)  # type: ignore[arg-type]
            else:
                optimizer.step(watch)  # type: ignore[arg-type]
        ends.append([*model.parameters(), flat([torch.stack(watch.losses)])])
    assert same_bits(*ends)


def test_within_the_cache_a_model_is_at_its_weights_again_after_the_step() -> None:
    model, loss = parametrized()
    optimizer = SAM(SGD(model.parameters(), lr=0.0), rho=0.5)
    with torch.no_grad():
        before = loss()
    with parametrize.cached():
        optimizer.step(watch := Watch(optimizer, loss))
        assert torch.equal(loss(), before)
    assert watch.losses[1] > watch.losses[0]
