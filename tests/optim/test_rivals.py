"""Optimizers of other packages: each computes its formula, and bad settings are told before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.config import file as experiments
from bench.core.errors import BadValue, BenchError
from bench.core.registry import load_builtins, optimizers
from bench.optim.base.averaging import evaluation_weights, to_training

load_builtins()
G1, G2 = torch.tensor([[0.3, -0.2], [0.1, 0.4]]), torch.tensor([[-0.1, 0.5], [0.2, -0.3]])


def matrix() -> nn.Parameter:
    return nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float32))


def after(name: str, gradients: list[Tensor], start: nn.Parameter | None = None, **settings: float) -> Tensor:
    """Return the weights after one step per gradient."""
    w = matrix() if start is None else start
    optimizer = optimizers[name].build([w], **optimizers[name].schema(**settings).model_dump())
    to_training(optimizer)
    for gradient in gradients:
        w.grad = gradient.clone().reshape(w.shape)
        optimizer.step()
    return w.detach()


def test_lion_moves_every_weight_by_lr_along_a_sign() -> None:
    w, m = matrix().detach(), torch.zeros(2, 2)
    for g in (G1, G2):
        w = w - 0.1 * 0.5 * w - 0.1 * torch.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g
    torch.testing.assert_close(after("lion", [G1, G2], lr=0.1, weight_decay=0.5), w)


def test_nadamw_looks_one_step_of_momentum_ahead() -> None:
    w, m, v = matrix().detach(), torch.zeros(2, 2), torch.zeros(2, 2)
    for t, g in ((1, G1), (2, G2)):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        n = (0.9 * m + 0.1 * g) / (1 - 0.9**t)
        w = w - 0.1 * 0.5 * w - 0.1 * n / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(after("nadamw", [G1, G2], lr=0.1, weight_decay=0.5), w, rtol=1e-5, atol=1e-6)


def test_muon_makes_the_momentum_orthogonal() -> None:
    torch.manual_seed(0)
    start, g = torch.randn(4, 6), torch.randn(4, 6)
    moved = start - after("muon", [g], nn.Parameter(start.clone()), lr=0.1)
    left, _, right = torch.linalg.svd(g, full_matrices=False)
    # Five iterations of Newton and Schulz leave singular values about 1; the factor of a 4 x 6 matrix is 0.2 sqrt(6).
    values = torch.linalg.svdvals(moved) / (0.1 * 0.2 * 6**0.5)
    assert ((values > 0.6) & (values < 1.3)).all()
    cosine = (moved * (left @ right)).sum() / (moved.norm() * (left @ right).norm())
    assert cosine > 0.97


@pytest.mark.parametrize("shape", [(5,), (3, 8), (6, 1, 3, 3)], ids=["bias", "head of 3", "grey convolution"])
def test_what_is_no_matrix_for_muon_is_adamws_with_an_lr_of_its_own(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    other, matrix_ = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.randn(4, 6))
    g = torch.randn(shape)
    optimizer = optimizers["muon"].build([matrix_, other], lr=0.1, nesterov=False, adamw_lr_ratio=0.5)
    matrix_.grad, other.grad = torch.randn(4, 6), g.clone()
    optimizer.step()
    torch.testing.assert_close(other.detach(), 1 - 0.05 * g.sign(), rtol=1e-5, atol=1e-5)  # Adam's first step


def test_muon_without_a_matrix_says_what_to_take() -> None:
    with pytest.raises(BenchError, match="muon: no weight of this model is a matrix; take adamw"):
        optimizers["muon"].build([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 9))], lr=0.1)


def test_schedule_free_sgd_is_evaluated_at_the_average_of_its_iterates() -> None:
    """Two steps by hand: z moves by lr * g, x is the mean of z after each step, the gradient is at y."""
    w = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = optimizers["schedule-free-sgd"].build([w], lr=0.1, momentum=0.9)
    to_training(optimizer)
    z, x = w.detach().clone(), w.detach().clone()
    for t, g in ((1, torch.tensor([0.3, -0.2])), (2, torch.tensor([-0.1, 0.5]))):
        w.grad = g.clone()
        optimizer.step()
        z = z - 0.1 * g
        x = x + (z - x) / t
        torch.testing.assert_close(w.detach(), 0.1 * z + 0.9 * x)
    model = nn.Module()
    model.w = w
    with evaluation_weights(optimizer, model, []):
        torch.testing.assert_close(w.detach(), x)
    torch.testing.assert_close(w.detach(), 0.1 * z + 0.9 * x)


def test_soap_is_adam_turned_into_the_eigenbasis_of_its_gradients() -> None:
    """On gradients that are all a multiple of one rank-one matrix the turned gradient has one number: steps of lr."""
    direction = torch.outer(torch.tensor([0.6, 0.8]), torch.tensor([1.0, 0.0]))
    moved = matrix().detach() - after("soap", [direction] * 2, lr=0.1, weight_decay=0.0)
    torch.testing.assert_close(moved, 0.1 * direction, rtol=1e-3, atol=1e-4)


def test_soap_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(BenchError, match=r'pip install "sam-bench\[rivals\]"'):
        optimizers["soap"].build([matrix()], lr=0.1)


HEAD = """
title = "t"
task = "digits"
model = "mlp"
baseline = "x"
seeds = 1
[train]
epochs = 1
"""


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            '[optimizers.x]\nuse = "schedule-free-sgd"\nlr = 1.0\n',
            "optimizers.x.train.schedule: must be 'constant' for schedule-free-sgd",
        ),
        (
            '[optimizers.x]\nuse = "sam"\nbase = "schedule-free-adamw"\ntrain.schedule = "linear"\n',
            "optimizers.x.train.schedule: must be 'constant' for schedule-free-adamw",
        ),
        (
            '[optimizers.x]\nuse = "momentum-sam"\nbase = "schedule-free-sgd"\nlr = 1.0\ntrain.schedule = "constant"\n',
            "optimizers.x.base: momentum-sam cannot wrap schedule-free-sgd, which keeps an average of its weights",
        ),
    ],
    ids=["schedule", "schedule of a base", "momentum"],
)
def test_what_does_not_go_together_is_told_before_anything_runs(table: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + table)
    with pytest.raises(BadValue) as caught:
        experiments.load(path)
    assert said in str(caught.value)


def test_schedule_free_with_a_constant_schedule_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + '[optimizers.x]\nuse = "schedule-free-sgd"\nlr = 1.0\ntrain.schedule = "constant"\n')
    assert experiments.load(path).labels == ("x",) or list(experiments.load(path).labels) == ["x"]
