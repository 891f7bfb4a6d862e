"""Loss-Equated SAM against its formula: the radius from a budget of loss, its ceiling, its annealing.

On the quadratic of `test_family`: at w = (3, 2) the gradient is (3, 4), of norm 5, and (w1, 2 w2) elsewhere.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD

from bench.core.registry import load_builtins, optimizers
from bench.optim.le_sam import LESAM
from bench.optim.sam import SAM

from .helpers import Watch, flat, problem, same_bits
from .test_family import Descent, exact
from .test_sparse import words

constant = partial(LESAM, anneal_from=None)
SLOPE = torch.tensor([3.0, 4.0], dtype=torch.float64)


def test_golden_le_sam() -> None:
    """sigma = 10, rho = 4, lr 0.1.

    1: rho_1 = min(10/5, 4) = 2; e = 2 (3, 4)/5 = (1.2, 1.6); w + e = (4.2, 3.6); g' = (4.2, 7.2);
       w <- (3 - 0.42, 2 - 0.72) = (2.58, 1.28)
    2: g = (2.58, 2.56), ||g||^2 = 13.21; rho_2 = 10/sqrt(13.21) < 4; e = 10 g/13.21
    """
    descent = Descent(lambda base: constant(base, rho=4.0, sigma=10.0), lr=0.1)
    assert descent.step() == exact([2.58, 1.28])
    assert descent.looked_at() == [exact([3, 2]), exact([4.2, 3.6])]
    assert descent.returned == pytest.approx(8.5), "the loss at w"
    descent.step()
    assert descent.looked_at()[1] == exact([2.58 + 25.8 / 13.21, 1.28 + 25.6 / 13.21])


def test_the_radius_has_a_ceiling() -> None:
    """sigma = 50 would give 10: min(10, 5) = 5 leads to (6, 6), as SAM's rho 5 does."""
    descent = Descent(lambda base: constant(base, rho=5.0, sigma=50.0), lr=0.1)
    assert descent.step() == exact([3 - 0.6, 2 - 1.2])
    assert descent.looked_at()[1] == exact([6, 6])


def test_the_loss_rises_by_sigma_to_first_order_whatever_the_gradient() -> None:
    model, loss = problem(torch.float64)
    optimizer = constant(SGD(model.parameters(), lr=0.3), rho=1e6, sigma=0.02)
    norms = []
    for _ in range(5):
        optimizer.step(watch := Watch(optimizer, loss))
        g = flat(watch.gradients[0])
        norms.append(g.norm().item())
        assert (g @ flat(watch.e)).item() == pytest.approx(0.02, rel=1e-9)
    assert max(norms) > 1.2 * min(norms), "the gradients differ"


def test_sigma_0_is_the_base_bit_for_bit_and_costs_one_pass() -> None:
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer, plain = LESAM(SGD(model.parameters(), lr=0.1), sigma=0.0), SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.step(watch := Watch(optimizer, loss))
        plain.step(Watch(plain, twin_loss))
        assert watch.calls == 1
    assert same_bits(model.parameters(), twin.parameters())
    load_builtins()
    entry = optimizers["le-sam"]
    assert [entry.passes(entry.schema(sigma=sigma).model_dump()) for sigma in (0.0, 0.05)] == [1, 2]


def test_a_large_sigma_is_sam_with_the_largest_radius() -> None:
    model, loss = problem(torch.float64)
    twin, twin_loss = problem(torch.float64)
    optimizer = constant(SGD(model.parameters(), lr=0.1), rho=0.5, sigma=1e9)
    sam = SAM(SGD(twin.parameters(), lr=0.1), rho=0.5)
    for _ in range(3):
        optimizer.step(Watch(optimizer, loss))
        sam.step(Watch(sam, twin_loss))
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), rtol=1e-12, atol=0)


def radii(steps: int, **settings: Any) -> list[float]:
    """How far the weights of a linear loss, whose gradient has norm 5, were moved; 0 where there was one pass."""
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = LESAM(SGD([w], lr=0.1), rho=100.0, sigma=10.0, **settings)
    found = []
    for _ in range(steps):
        optimizer.step(watch := Watch(optimizer, lambda: (SLOPE * w).sum()))
        found.append(flat(watch.e).norm().item() if watch.calls == 2 else 0.0)
    return found


def test_sigma_is_annealed_along_half_a_cosine_over_the_end_of_training() -> None:
    """10/5 = 2 until step 4 of 8, then 2 (1 + cos(pi k/4))/2; after the end it is 0, and a step has one pass."""
    last = [1 + math.cos(math.pi * k / 4) for k in range(4)]
    assert radii(10, anneal_from=0.5, total_steps=8) == exact([2, 2, 2, 2, *last, 0, 0])
    assert radii(3, anneal_from=None) == exact([2, 2, 2])


def test_annealing_needs_the_length_of_training() -> None:
    with pytest.raises(ValueError, match=r"give the length of training, total_steps=\.\.\., or anneal_from=None"):
        radii(1)


def test_a_groups_rho_is_its_own_ceiling_under_one_norm() -> None:
    """Two groups of one weight each, g = (3, 4): sigma/||g|| = 2, so ceilings 1 and 100 leave 1 and 2."""
    w = [nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": [w[0]], "rho": 1.0}, {"params": [w[1]], "rho": 100.0}]
    optimizer = constant(SGD(groups, lr=0.1), sigma=10.0)
    optimizer.step(watch := Watch(optimizer, lambda: (SLOPE * torch.cat([*w])).sum()))
    assert flat(watch.e).tolist() == exact([1 * 3 / 5, 2 * 4 / 5])


@pytest.mark.parametrize("scaler", [False, True], ids=["scaled by hand", "GradScaler"])
def test_a_scaled_loss_leads_to_the_same_weights_where_the_scale_is_told(scaler: bool) -> None:
    scale = 2.0**12
    model, loss = problem(torch.float64)
    twin, twin_loss = problem(torch.float64)
    told, plain = (constant(SGD(m.parameters(), lr=0.1), rho=0.5, sigma=0.05) for m in (model, twin))
    scales = GradScaler("cpu", init_scale=scale)

    def closure() -> Tensor:
        scaled: Tensor = scales.scale(loss()) if scaler else loss() * scale
        scaled.backward()  # type: ignore[no-untyped-call]
        return scaled

    for _ in range(3):
        told.loss_scale = scales.get_scale() if scaler else scale
        told.zero_grad()
        told.backward(closure)
        if scaler:
            scales.step(told)
            scales.update()
        else:
            for p in model.parameters():
                assert p.grad is not None
                p.grad.div_(scale)
            told.step()
        plain.step(Watch(plain, twin_loss))
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), rtol=1e-10, atol=1e-12)


def test_sparse_gradients_lead_where_dense_ones_do() -> None:
    weights = {}
    for sparse in (True, False):
        model, loss = words(sparse=sparse)
        optimizer = constant(SGD(model.parameters(), lr=0.1), rho=2.0, sigma=0.1)
        for _ in range(3):
            optimizer.step(Watch(optimizer, loss))
        weights[sparse] = flat(model.parameters())
    torch.testing.assert_close(weights[True], weights[False])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigma": -0.1}, "LESAM: sigma must be >= 0, got -0.1"),
        ({"rho": -1.0}, "LESAM: rho must be >= 0"),
        ({"anneal_from": 1.0}, r"anneal_from must be a share of training in \[0, 1\), or None, got 1.0"),
        ({"anneal_from": "epoch 3"}, "anneal_from must be a share of training .* got 'epoch 3'"),
    ],
)
def test_impossible_settings_are_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LESAM(SGD([nn.Parameter(torch.ones(1))], lr=0.1), **settings)


def test_an_experiment_may_name_the_epoch_at_which_annealing_begins() -> None:
    load_builtins()
    schema = optimizers["le-sam"].schema
    assert schema.model_validate({"anneal_from": "epoch 15"}, context={"epochs": 20}).anneal_from == 0.75  # type: ignore[attr-defined]
