"""Sharpness and calibration, against answers that are known: worked out by hand, or by another way of computing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.splits import Split
from bench.evidence.measures.ascent import m_sharpness
from bench.evidence.measures.calibration import expected_calibration_error, negative_log_likelihood
from bench.evidence.measures.directions import direction, filter_normalised, line, plane, ticks
from bench.evidence.measures.hessian import largest_eigenvalues
from bench.evidence.measures.surface import Surface
from bench.tasks.base import Task

DOUBLE = torch.float64


class Points(Task):
    """Examples for a test; the loss is 1/2 (output - target)^2, or cross-entropy with several outputs."""

    input_shape = (2,)

    def __init__(self, num_outputs: int = 1) -> None:
        self.num_outputs = num_outputs

    def load(self) -> tuple[Split, Split]:
        raise AssertionError

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.num_outputs > 1:
            return F.cross_entropy(outputs, targets, reduction="none")
        return 0.5 * (outputs.squeeze(1) - targets).square()


def surface(model: nn.Module, inputs: Any, targets: Any, num_outputs: int = 1) -> Surface:
    split = Split(torch.as_tensor(inputs, dtype=DOUBLE), torch.as_tensor(targets))
    return Surface(model, Points(num_outputs), split, DOUBLE)


def linear(weights: list[list[float]]) -> nn.Linear:
    model = nn.Linear(len(weights[0]), len(weights), bias=False, dtype=DOUBLE)
    model.weight.data = torch.tensor(weights, dtype=DOUBLE)
    return model


# ---- Hessian -------------------------------------------------------------------------------------------------


def test_the_hessian_of_least_squares_is_that_of_its_inputs() -> None:
    """L = 1/2 mean (w x - y)^2 has the Hessian X^T X / N: here diag(1, 4, 9, 16, 25) / 5, whatever w and y are."""
    inputs = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=DOUBLE))
    found = largest_eigenvalues(surface(linear([[0.3, -1, 2, 0, 1]]), inputs, torch.randn(5, dtype=DOUBLE)), 3, seed=0)
    assert found.values == pytest.approx([25 / 5, 16 / 5, 9 / 5], rel=1e-3)
    assert found.products > 0


def test_the_hessian_of_logistic_regression_is_that_of_the_textbook() -> None:
    """Softmax regression: mean over x of (diag(p) - p p^T) kron x x^T."""
    torch.manual_seed(0)
    inputs, targets, model = (
        torch.randn(300, 2, dtype=DOUBLE),
        torch.randint(3, (300,)),
        linear([[1, -2], [0, 1], [2, 0]]),
    )
    p = model(inputs).softmax(1).detach()
    hessian = torch.zeros(6, 6, dtype=DOUBLE)
    for x, q in zip(inputs, p, strict=True):
        hessian += torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(x, x)) / 300
    expected = torch.linalg.eigvalsh(hessian).flip(0)[:3].tolist()
    found = largest_eigenvalues(surface(model, inputs, targets, 3), 3, seed=1)  # 300 examples are several batches
    assert found.values == pytest.approx(expected, rel=1e-3)


def test_negative_curvature_is_not_taken_for_large() -> None:
    """L = 1/2 mean (w2 w1 x - y)^2 at w = 0 with y = 3, x = 1 has the Hessian ((0, -3), (-3, 0)): +3 and -3."""
    model = nn.Sequential(linear([[0.0]]), linear([[0.0]]))
    found = largest_eigenvalues(surface(model, [[1.0]], torch.tensor([3.0], dtype=DOUBLE)), 1, seed=0)
    assert found.values == pytest.approx([3.0])


def test_attention_is_differentiated_twice() -> None:
    torch.manual_seed(0)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            outputs: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).mean(1))
            return outputs

    one = surface(Attention(), torch.randn(8, 5, 4, dtype=DOUBLE), torch.randn(8, dtype=DOUBLE))
    (largest,) = largest_eigenvalues(one, 1, seed=0).values
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        names = [name for name, _ in one.model.named_parameters()]

        def loss(*tensors: Tensor) -> Tensor:
            (part,) = one.parts(8)
            out = torch.func.functional_call(one.model, dict(zip(names, tensors, strict=True)), part[0])
            return one.task.losses(out, part[1]).mean()

        blocks = torch.autograd.functional.hessian(loss, tuple(p.detach() for p in one.parameters))  # type: ignore[no-untyped-call]
    rows = [
        torch.cat([b.reshape(p.numel(), -1) for b in row], 1) for row, p in zip(blocks, one.parameters, strict=True)
    ]
    assert largest == pytest.approx(torch.linalg.eigvalsh(torch.cat(rows)).max().item(), rel=1e-3)


# ---- m-sharpness ---------------------------------------------------------------------------------------------


def test_the_rise_of_a_quadratic_along_its_gradient_by_hand() -> None:
    """L = 1/2 (w x)^2 with x = (2, 0), w = (1, 5): L = 2, g = (4, 0), and at w + 0.5 (1, 0) L = 1/2 (3)^2 = 4.5."""
    found: Any = m_sharpness(surface(linear([[1.0, 5.0]]), [[2.0, 0.0]], torch.zeros(1, dtype=DOUBLE)), rho=0.5, m=1)
    value, batches = found
    assert (value, batches) == (pytest.approx(2.5), 1)


def test_every_batch_of_m_has_an_ascent_of_its_own_and_the_rest_is_left_out() -> None:
    inputs, targets = [[2.0, 0.0], [0.0, 2.0], [9.0, 9.0]], torch.zeros(3, dtype=DOUBLE)
    one = surface(linear([[1.0, 1.0]]), inputs, targets)
    assert m_sharpness(one, rho=0.5, m=1)[1] == 3
    # Together: L = (2 + 2) / 2, g = (2, 2), w + 0.5 / sqrt(2) on each: 1/2 (2 (1 + 0.35355))^2 = 3.66421.
    found: Any = m_sharpness(one, rho=0.5, m=2)
    value, batches = found
    assert (value, batches) == (pytest.approx(2 * (1 + 0.5 / math.sqrt(2)) ** 2 - 2), 1)
    assert m_sharpness(one, rho=0.5, m=100)[1] == 1, "fewer examples than m are one batch"


def test_weights_come_back_bit_for_bit_and_buffers_stay() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
    one = surface(model, np.random.RandomState(0).randn(50, 2), torch.randn(50, dtype=DOUBLE))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    m_sharpness(one, rho=0.3, m=10)
    largest_eigenvalues(one, 1, seed=0)
    line(one, direction(one.parameters, 0, 1), 5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert one.loss() == one.loss(), "eval mode: no dropout"


def test_a_flat_place_has_no_sharpness() -> None:
    assert m_sharpness(surface(linear([[0.0, 0.0]]), [[1.0, 1.0]], torch.zeros(1, dtype=DOUBLE)), 0.5, 1)[0] == 0


# ---- directions ----------------------------------------------------------------------------------------------


def test_every_filter_of_a_direction_has_the_norm_of_the_filter() -> None:
    random = torch.Generator().manual_seed(0)
    weights, raw = (torch.randn(6, 3, 5, 5, generator=random, dtype=DOUBLE) for _ in range(2))
    weights[2] = 0
    found = filter_normalised(raw, weights)
    norms = found.flatten(1).norm(dim=1)
    assert torch.allclose(norms, weights.flatten(1).norm(dim=1))
    cosines = F.cosine_similarity(found[0].flatten(), raw[0].flatten(), dim=0)
    assert cosines.item() == pytest.approx(1.0)
    assert not filter_normalised(torch.randn(5), torch.randn(5)).any(), "biases and scales stay where they are"


def test_directions_are_of_the_seed_and_the_same_for_all_models_of_one_shape() -> None:
    one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    same = [direction(list(model.parameters()), 7, 1)[0] for model in (one, other)]
    for a, b in zip(*same, strict=True):
        assert F.cosine_similarity(a, b, dim=0).item() == pytest.approx(1.0, abs=1e-6)
    for seed, number in ((7, 2), (8, 1)):
        assert not torch.allclose(same[0], direction(list(one.parameters()), seed, number)[0])


def test_losses_along_a_line_and_over_a_plane_by_hand() -> None:
    """L = 1/2 w^2 at w = 2 along d = (+-2): L(w + a d) = 2 (1 +- a)^2."""
    one = surface(linear([[2.0]]), [[1.0]], torch.zeros(1, dtype=DOUBLE))
    along = [torch.tensor([[2.0]], dtype=DOUBLE)]
    on_line: Any = line(one, along, 5)
    assert on_line == [(a, pytest.approx(2 * (1 + a) ** 2)) for a in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    found: Any = plane(one, along, [-d for d in along], 3)
    assert found == [(a, b, pytest.approx(2 * (1 + a - b) ** 2)) for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)]
    assert one.evaluations == 5 + 9
    assert 0.0 in ticks(41)


def curve(model: nn.Module) -> list[float]:
    inputs = np.random.RandomState(1).randn(40, 3, 6, 6)
    one = surface(model, inputs, torch.arange(40) % 4, 4)
    return [loss for _, loss in line(one, direction(one.parameters, 3, 1), 9)]


def test_the_loss_along_a_direction_does_not_hang_on_the_scale_of_layers() -> None:
    """With ReLU, a layer times c and the next one by 1/c are the same function; so is a filter under batch norm."""

    def net(batch_norm: bool) -> Any:
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(5, eps=0) if batch_norm else nn.Identity()
        return nn.Sequential(
            nn.Conv2d(3, 5, 3, bias=False), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
        )

    plain, scaled = net(False), net(False)
    with torch.no_grad():
        scaled[0].weight.mul_(10)
        scaled[5].weight.div_(10)
    assert curve(scaled) == pytest.approx(curve(plain), rel=1e-5)

    plain, scaled = net(True), net(True)
    factors = torch.tensor([0.1, 1, 3, 10, 0.5]).view(5, 1, 1, 1)
    with torch.no_grad():
        scaled[0].weight.mul_(factors)
        scaled[1].running_mean.mul_(factors.flatten())
        scaled[1].running_var.mul_(factors.flatten() ** 2)
    assert curve(scaled) == pytest.approx(curve(plain), rel=1e-5)
    assert len(set(curve(plain))) == 9


# ---- calibration ---------------------------------------------------------------------------------------------


def logits_of(confidence: list[float]) -> Tensor:
    """Two classes, the first one predicted with these probabilities."""
    p = torch.tensor(confidence, dtype=DOUBLE)
    return torch.stack([p, 1 - p], 1).log()


def test_calibration_error_by_hand() -> None:
    """Five bins of 0.2. In (0.6, 0.8]: 0.7 right, 0.7 wrong, 0.8 right: |2/3 - 2.2/3| = 0.2/3. In (0.8, 1]: 0.9 wrong:
    0.9. Over four examples: (3 * 0.2/3 + 0.9) / 4 = 0.275."""
    logits = logits_of([0.7, 0.7, 0.8 - 1e-9, 0.9])
    targets = torch.tensor([0, 1, 0, 1])
    assert expected_calibration_error(logits, targets, bins=5) == pytest.approx(0.275)


def test_a_calibrated_classifier_has_no_error_and_one_that_is_sure_and_wrong_has_one() -> None:
    assert expected_calibration_error(logits_of([0.75] * 4), torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-12)
    sure = torch.tensor([[100.0, -100.0]])
    assert expected_calibration_error(sure, torch.tensor([1])) == pytest.approx(1.0)
    assert expected_calibration_error(sure, torch.tensor([0])) == pytest.approx(0.0)


def test_negative_log_likelihood_by_hand() -> None:
    found = negative_log_likelihood(logits_of([0.5, 0.75]), torch.tensor([0, 1]))
    assert found == pytest.approx((math.log(2) + math.log(4)) / 2)
