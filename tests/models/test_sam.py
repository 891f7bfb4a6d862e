"""SAM around the models that draw random numbers in training: both passes of a step must draw the same ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bench import SAM
from bench.models import pyramidnet, shake_shake
from bench.models.pyramidnet import PyramidNet
from bench.models.shake import uniform_per_image
from bench.models.shake_shake import ShakeShakeNet
from bench.models.wide_resnet import WideResNet

from .helpers import Images, build

TASK = Images(3, 8, 8)


def vit() -> nn.Module:
    return build("vit_tiny", TASK, drop_path=0.3, dropout=0.1)


def shaken_pyramidnet() -> nn.Module:
    return PyramidNet(29, 30, 0.5, 3, 10)


def shake_shake_net() -> nn.Module:
    return ShakeShakeNet(14, 8, 3, 10)


def wide_resnet() -> nn.Module:
    return WideResNet(10, 1, 0.3, 3, 10)


models = pytest.mark.parametrize("make", [vit, shaken_pyramidnet, shake_shake_net, wide_resnet])


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    inputs, targets = TASK.batch(4, seed)
    torch.manual_seed(seed)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = TASK.losses(net(inputs), targets).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]


def train(make: Callable[[], nn.Module], lr: float, rho: float | None) -> dict[str, Tensor]:
    """The state after two steps, of SGD alone where rho is None."""
    torch.manual_seed(0)
    net = make().train()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    if rho is not None:
        optimizer = SAM(optimizer, rho=rho, model=net)
    for seed in (1, 2):
        step(net, optimizer, seed)
    return net.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor], names: Callable[[str], bool] = lambda name: True) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one if names(name))


@models
def test_a_step_of_length_0_gives_every_weight_back_bit_for_bit(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    weights = dict(make().named_parameters())
    after = train(make, lr=0.0, rho=0.1)
    assert all(torch.equal(weights[name], after[name]) for name in weights)


@models
def test_radius_0_is_the_base_optimizer(make: Callable[[], nn.Module]) -> None:
    assert same(train(make, lr=0.1, rho=0.0), train(make, lr=0.1, rho=None))
    assert not same(train(make, lr=0.1, rho=0.1), train(make, lr=0.1, rho=None))


@models
def test_a_vanishing_radius_is_nearly_the_base_optimizer(make: Callable[[], nn.Module]) -> None:
    """With other draws in the second pass the gradients would have little to do with each other."""
    near, base = train(make, lr=0.1, rho=1e-6), train(make, lr=0.1, rho=None)
    for name in base:
        torch.testing.assert_close(near[name], base[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "module"), [(shaken_pyramidnet, pyramidnet), (shake_shake_net, shake_shake)], ids=["pyramid", "shake"]
)
def test_both_passes_of_a_step_draw_the_same_factors(
    make: Callable[[], nn.Module], module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []

    def remember(draws: int, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        result = uniform_per_image(draws, x_BCHW)
        drawn.append(torch.stack(result))
        return result

    monkeypatch.setattr(module, "uniform_per_image", remember)
    net = make().train()
    step(net, SAM(torch.optim.SGD(net.parameters(), lr=0.1), rho=0.05, model=net), seed=0)
    first, second = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    assert len(first) > 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in pairwise(first)), "but each block has its own"
