"""ShakeDrop and Shake-Shake: what they compute, what their draws depend on, and the networks around them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import floor

import pytest
import torch
from torch import Tensor, nn

from bench.models.pyramidnet import PyramidBlock, PyramidNet, ShakeDrop
from bench.models.shake import scaled_apart, uniform_per_image
from bench.models.shake_shake import ShakeShake, ShakeShakeNet, TwoPaths

from .helpers import CIFAR10, CIFAR100, build, count, of_type


def draws(number: int, images: int, seed: int) -> tuple[Tensor, ...]:
    """What a layer draws first after this seed."""
    torch.manual_seed(seed)
    return uniform_per_image(number, torch.empty(images, 1))


# ---- one factor forward, another backward --------------------------------------------------------------------


def test_the_gradient_is_scaled_by_its_own_factor_and_not_by_that_of_the_output() -> None:
    x = torch.tensor([[[[1.0, -2.0]]], [[[3.0, 4.0]]]], requires_grad=True)
    factor, gradient_factor = torch.tensor([10.0, -1.0]), torch.tensor([0.5, 0.25])
    out = scaled_apart(x, factor.view(2, 1, 1, 1), gradient_factor.view(2, 1, 1, 1))
    assert out.flatten().tolist() == [10.0, -20.0, -3.0, -4.0]
    (out * torch.tensor([8.0, 16.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [4.0, 8.0, 2.0, 4.0]


def test_half_precision_stays_half_precision() -> None:
    x = torch.ones(2, 3, 4, 4, dtype=torch.bfloat16)
    assert ShakeDrop(0.5).train()(x).dtype == ShakeShake().train()(x, x).dtype == torch.bfloat16


# ---- ShakeDrop -----------------------------------------------------------------------------------------------


def test_shakedrop_multiplies_the_branch_by_alpha_and_its_gradient_by_beta_where_it_shakes() -> None:
    gate, alpha, beta = draws(3, images=8, seed=3)
    shaken = gate < 0.4
    assert 0 < shaken.sum() < 8, "a seed that shows both"
    x = torch.randn(8, 2, 3, 3, requires_grad=True)
    torch.manual_seed(3)
    out = ShakeDrop(0.4).train()(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(out, x * torch.where(shaken, 2 * alpha - 1, 1.0))
    assert torch.equal(x.grad, torch.where(shaken, beta, 1.0).expand_as(x))


def test_shakedrop_draws_from_the_ranges_of_the_paper_as_often_as_it_is_told() -> None:
    torch.manual_seed(0)
    x = torch.ones(100_000, 1, 1, 1, requires_grad=True)
    out = ShakeDrop(0.3).train()(x)
    out.sum().backward()
    assert x.grad is not None
    shaken = out != 1
    assert shaken.double().mean().item() == pytest.approx(0.3, abs=0.01)
    for values, low, high in ((out[shaken], -1.0, 1.0), (x.grad[shaken], 0.0, 1.0)):
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.01)


def test_shakedrop_in_eval_mode_is_its_own_average() -> None:
    torch.manual_seed(0)
    layer, x = ShakeDrop(0.3), torch.ones(100_000, 1, 1, 1)
    assert torch.equal(layer.eval()(x), 0.7 * x)
    assert layer.train()(x).mean().item() == pytest.approx(0.7, abs=0.01)


def test_no_shakedrop_draws_nothing_and_is_the_identity() -> None:
    x, before = torch.randn(2, 3, 4, 4), torch.get_rng_state()
    assert torch.equal(ShakeDrop(0.0).train()(x), x)
    assert torch.equal(torch.get_rng_state(), before)


# ---- Shake-Shake ---------------------------------------------------------------------------------------------


def test_shake_shake_mixes_by_one_draw_and_its_gradients_by_another() -> None:
    alpha, beta = draws(2, images=4, seed=7)
    one, two = (torch.randn(4, 2, 3, 3, requires_grad=True) for _ in range(2))
    torch.manual_seed(7)
    out = ShakeShake().train()(one, two)
    out.sum().backward()
    assert one.grad is not None
    assert two.grad is not None
    assert torch.equal(out, alpha * one + (1 - alpha) * two)
    assert torch.equal(one.grad, beta.expand_as(one))
    assert torch.equal(two.grad, (1 - beta).expand_as(two))
    assert len(set(alpha.flatten().tolist() + beta.flatten().tolist())) == 8, "each image has its own"


def test_shake_shake_in_eval_mode_is_the_mean_of_the_branches() -> None:
    torch.manual_seed(0)
    one, two = torch.randn(2, 4, 2, 3, 3)
    assert torch.equal(ShakeShake().eval()(one, two), (one + two) / 2)
    many = ShakeShake().train()(torch.ones(100_000, 1, 1, 1), torch.zeros(100_000, 1, 1, 1))
    assert many.mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_second_path_of_the_shortcut_sees_the_image_moved_right_and_down() -> None:
    paths = TwoPaths(1, 2, stride=2).eval()
    for convolution in of_type(paths, nn.Conv2d):
        nn.init.ones_(convolution.weight)
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    with torch.no_grad():
        out = paths(x) * (1 + paths.bn.eps) ** 0.5
    expected = [[[1.0, 3.0], [9.0, 11.0]], [[0.0, 0.0], [0.0, 6.0]]]
    torch.testing.assert_close(out[0], torch.tensor(expected))


@pytest.mark.parametrize(("layer", "branches"), [(ShakeDrop(0.5), 1), (ShakeShake(), 2)], ids=["drop", "shake"])
def test_a_layer_compiles_whole_so_that_nothing_looks_at_a_drawn_value(layer: nn.Module, branches: int) -> None:
    layer.train()
    results = []
    for net in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        inputs = [torch.randn(6, 2, 3, 3, requires_grad=True) for _ in range(branches)]
        out = net(*inputs)
        out.sum().backward()
        results.append([out, *(x.grad for x in inputs)])
    torch.testing.assert_close(results[1], results[0])


# ---- the draws of a whole net --------------------------------------------------------------------------------


def small_pyramidnet() -> nn.Module:
    return PyramidNet(29, 30, 0.5, 3, 10)


def small_shake_shake() -> nn.Module:
    return ShakeShakeNet(14, 8, 3, 10)


small_nets = pytest.mark.parametrize("make", [small_pyramidnet, small_shake_shake])


def outputs_and_gradients(net: nn.Module, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    net.zero_grad()
    outputs = net(CIFAR10.batch(4)[0])
    outputs.square().sum().backward()
    return [outputs.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


@small_nets
def test_the_same_random_state_gives_the_same_outputs_and_gradients(make: Callable[[], nn.Module]) -> None:
    net = make().train()
    one, again, other = (outputs_and_gradients(net, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@small_nets
def test_eval_mode_draws_nothing(make: Callable[[], nn.Module]) -> None:
    net, (images, _) = make().eval(), CIFAR10.batch(4)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(net(images), net(images))
    assert torch.equal(torch.get_rng_state(), before)


# ---- PyramidNet ----------------------------------------------------------------------------------------------


def pyramid(to_integer: Callable[[Fraction], int], classes: int) -> int:
    """Parameters of PyramidNet-272 with alpha 200, by hand."""
    total, before = 9 * 3 * 16 + 2 * 16, 16
    for block in range(1, 91):
        width = to_integer(16 + Fraction(200 * block, 90))
        total += 2 * before + before * width + 2 * width + 9 * width**2 + 2 * width + 4 * width**2 + 2 * 4 * width
        before = 4 * width
    return total + 2 * before + before * classes + classes


def test_pyramidnet272_has_26_2_million_parameters_and_would_have_the_26_0_of_the_paper_if_it_did_not_round() -> None:
    """Han et al. write that channels are cut off, and their code rounds them, as that of the SAM paper does."""
    assert count("pyramidnet272", CIFAR10) == pyramid(round, 10) == 26_210_842
    assert round(pyramid(floor, 10) / 1e6, 1) == 26.0
    assert count("pyramidnet272", CIFAR100) == pyramid(round, 100)
    assert count("pyramidnet272", CIFAR10, shakedrop=0.0) == count("pyramidnet272", CIFAR10)


def test_pyramidnet272_has_271_convolutions_and_864_features() -> None:
    with torch.device("meta"):
        net = build("pyramidnet272", CIFAR10)
    assert len(of_type(net, nn.Conv2d)) == 271
    assert [layer.in_features for layer in of_type(net, nn.Linear)] == [864]
    assert [block.stride for block in of_type(net, PyramidBlock)] == [1] * 30 + [2] + [1] * 29 + [2] + [1] * 29


def test_the_chance_to_be_shaken_grows_linearly_with_depth_and_can_be_none() -> None:
    with torch.device("meta"):
        shaken, plain = build("pyramidnet272", CIFAR10), build("pyramidnet272", CIFAR10, shakedrop=0.0)
    chances = [layer.chance for layer in of_type(shaken, ShakeDrop)]
    assert chances == pytest.approx([0.5 * block / 90 for block in range(1, 91)])
    assert {layer.chance for layer in of_type(plain, ShakeDrop)} == {0.0}


def test_the_shortcut_of_a_pyramid_block_takes_means_and_adds_empty_channels() -> None:
    block = PyramidBlock(2, 1, stride=2, shake=0.0)
    nn.init.zeros_(of_type(block, nn.BatchNorm2d)[-1].weight)
    x = torch.randn(3, 2, 5, 5)
    out = block(x)
    assert out.shape == (3, 4, 3, 3), "an odd size is rounded up, as the convolution does"
    torch.testing.assert_close(out[:, :2, :2, :2], x[:, :, :4, :4].unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)))
    torch.testing.assert_close(out[:, :2, 2, 2], x[:, :, 4, 4])
    assert not out[:, 2:].any()


# ---- Shake-Shake 26 2x96d ------------------------------------------------------------------------------------


def test_shake_shake_has_the_26_2_million_parameters_of_the_paper() -> None:
    def by_hand(classes: int) -> int:
        total, before = 9 * 3 * 16 + 2 * 16, 16
        for width in (96, 192, 384):
            total += 2 * (9 * before * width + 9 * width**2 + 2 * 2 * width) + before * width + 2 * width
            total += 3 * 2 * (2 * 9 * width**2 + 2 * 2 * width)
            before = width
        return total + before * classes + classes

    assert count("shakeshake26_2x96d", CIFAR10) == by_hand(10) == 26_192_922
    assert round(count("shakeshake26_2x96d", CIFAR10) / 1e6, 1) == 26.2
    assert count("shakeshake26_2x96d", CIFAR100) == by_hand(100)
