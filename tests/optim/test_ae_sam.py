"""AE-SAM against numbers worked out by hand, its limits, and what its mean and variance go through.

On the quadratic of `test_family.py`: L(w) = (w1^2 + 2 w2^2) / 2 from w = (3, 2), with gradient (w1, 2 w2).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from bench.optim.ae_sam import AESAM
from bench.optim.sam import SAM

from .helpers import Watch, flat, over_all_bases, problem, same_bits
from .test_family import Descent, exact
from .test_sam_side_effects import Operations

NEVER, ALWAYS = 1e6, -1e6
"""Thresholds that no squared norm reaches, and that each does."""


def kept(optimizer: AESAM) -> list[float]:
    """Mean and variance, as they are in each group."""
    (found,) = {tuple(float(group[name]) for name in AESAM.keeps) for group in optimizer.param_groups}
    return list(found)


def fixed(base: torch.optim.Optimizer, threshold: float, **settings: Any) -> AESAM:
    return AESAM(base, lambda_1=threshold, lambda_2=threshold, **settings)


def test_golden_ae_sam() -> None:
    """delta = 0.5, lambda_2 = 0.5, lambda_1 = -3.5 over 4 steps, so that c = 0.5, -0.5, -1.5; lr 1/6, rho 5.

    1: s = 25; mu = 12.5, var = 0.5 * 12.5^2 = 78.125; 25 >= 12.5 + 0.5 * 8.84: SAM, as g' = (6, 12); w <- (2, 0)
    2: s = 4; mu = 6.25 + 2 = 8.25, var = 39.0625 + 0.5 * 4.25^2 = 48.09375; 4 < 8.25 - 0.5 * 6.93: the base;
       w <- (2 - 2/6, 0) = (5/3, 0)
    3: s = 25/9; mu = 4.125 + 25/18, var = 24.046875 + 0.5 (25/9 - mu)^2 = 27.79; s >= mu - 1.5 * 5.27 < 0: SAM;
       e = (5, 0), g' = (20/3, 0); w <- (5/3 - 20/18, 0) = (5/9, 0)
    """
    descent = Descent(
        lambda base: AESAM(base, rho=5.0, delta=0.5, lambda_1=-3.5, lambda_2=0.5, total_steps=4), lr=1 / 6
    )
    optimizer = descent.optimizer
    assert isinstance(optimizer, AESAM)
    assert descent.step() == exact([2, 0])
    assert descent.looked_at() == [exact([3, 2]), exact([6, 6])]
    assert kept(optimizer) == exact([12.5, 78.125])
    assert descent.step() == exact([5 / 3, 0])
    assert descent.looked_at() == [exact([2, 0])], "one pass"
    assert kept(optimizer) == exact([8.25, 48.09375])
    assert descent.step() == exact([5 / 9, 0])
    assert descent.looked_at() == [exact([5 / 3, 0]), exact([20 / 3, 0])]
    mean = 4.125 + 25 / 18
    assert kept(optimizer) == exact([mean, 24.046875 + 0.5 * (25 / 9 - mean) ** 2])


def test_the_threshold_goes_from_lambda_2_to_lambda_1_and_stays_there() -> None:
    optimizer = AESAM(SGD([nn.Parameter(torch.ones(1))], lr=0.1), lambda_1=-1.0, lambda_2=2.0, total_steps=10)
    found = []
    for step in (0, 5, 10, 15):
        optimizer.param_groups[0]["steps_done"] = step
        found.append(optimizer.threshold())
    assert found == exact([2.0, 0.5, -1.0, -1.0])


@over_all_bases
@pytest.mark.parametrize(("threshold", "passes"), [(ALWAYS, 2), (NEVER, 1)])
def test_it_lies_between_its_base_and_sam(base: Any, threshold: float, passes: int) -> None:
    """Bit for bit; thresholds that stay need no `total_steps`."""
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer = fixed(base(model.parameters()), threshold, rho=0.5)
    other = SAM(base(twin.parameters()), rho=0.5 if passes == 2 else 0.0)
    for _ in range(3):
        optimizer.step(watch := Watch(optimizer, loss))
        other.step(Watch(other, twin_loss))
        assert watch.calls == passes
    assert same_bits(model.parameters(), twin.parameters())


def test_about_half_of_all_steps_are_sams_where_norms_come_from_one_distribution() -> None:
    """Few of them in the first quarter, most in the last one."""
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    optimizer = AESAM(SGD([w], lr=0.0), total_steps=800)
    calls = []
    for _ in range(800):
        slope = torch.randn(50, generator=generator, dtype=torch.float64)
        optimizer.step(watch := Watch(optimizer, lambda slope=slope: (w * slope).sum()))
        calls.append(watch.calls)
    extra = torch.tensor(calls, dtype=torch.float64) - 1
    assert 0.4 < extra.mean() < 0.6
    assert extra[:200].mean() < 0.35 < 0.65 < extra[-200:].mean()


def test_a_skipped_step_leaves_mean_and_variance() -> None:
    for call, threshold in ((1, NEVER), (1, ALWAYS), (2, ALWAYS)):
        model, loss = problem()
        optimizer = fixed(AdamW(model.parameters(), lr=0.01, fused=True), threshold)
        for _ in range(2):
            optimizer.step(Watch(optimizer, loss))
        before = kept(optimizer)
        watch = Watch(optimizer, loss)
        watch.loss = lambda watch=watch, call=call, loss=loss: loss() * (torch.inf if watch.calls == call else 1.0)
        optimizer.step(watch)
        assert optimizer.skipped_steps == 1
        assert kept(optimizer) == before
        optimizer.step(Watch(optimizer, loss))
        assert kept(optimizer) != before


def test_what_is_saved_are_numbers_as_in_a_new_optimizer() -> None:
    """A distributed checkpoint is loaded into what is there; to the bit, though they lie on the device in between."""
    model, loss = problem()
    optimizer = fixed(SGD(model.parameters(), lr=0.1), 0.0)
    saved = [optimizer.state_dict()["param_groups"][0] for _ in range(2) if optimizer.step(Watch(optimizer, loss)) > 0]
    assert [[type(group[name]) for name in AESAM.keeps] for group in saved] == [[float, float]] * 2
    assert [saved[-1][name] for name in AESAM.keeps] == kept(optimizer)
    assert saved[0] != saved[1]


def test_parts_are_decided_on_by_themselves_and_all_count() -> None:
    """c = 0.5, delta = 0.5. A first step of (3, 4) alone leaves mu = 12.5 and var = 78.125. Then two parts at once:

    (3, 4): s = 25, its mu = 18.75 and var = 39.0625 + 0.5 * 6.25^2 = 58.6; 25 >= 18.75 + 0.5 * 7.65: SAM
    (0, 1): s = 1, its mu = 6.75; 1 is below: the base
    Afterwards mu = 6.25 + 0.5 * 13 = 12.75 and var = 39.0625 + 0.5 * (12.25^2 + 11.75^2) / 2, of both.
    """
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = fixed(SGD([w], lr=0.0), 0.5, rho=5.0, delta=0.5)
    slopes = [torch.tensor(slope, dtype=torch.float64) for slope in ([3.0, 4.0], [0.0, 1.0])]
    first, second = (Watch(optimizer, lambda slope=slope: (w * slope).sum()) for slope in slopes)
    optimizer.step(Watch(optimizer, first.loss))
    optimizer.step([first, second])
    assert (first.calls, second.calls) == (2, 1)
    assert kept(optimizer) == exact([12.75, 39.0625 + 0.25 * (12.25**2 + 11.75**2)])


def test_a_scale_of_the_loss_changes_no_decision() -> None:
    ends, calls = [], []
    for scale in (1.0, 2.0**16):
        model, loss = problem(torch.float64)
        optimizer = AESAM(SGD(model.parameters(), lr=0.3), rho=0.5, total_steps=12)
        seen = 0
        for _ in range(12):
            optimizer.zero_grad()

            def closure(scale: float = scale, loss: Any = loss) -> Tensor:
                nonlocal seen
                seen += 1
                scaled: Tensor = loss() * scale
                scaled.backward()  # type: ignore[no-untyped-call]
                return scaled

            optimizer.backward(closure)
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad /= scale
            optimizer.step()
        ends.append(flat(model.parameters()))
        calls.append(seen)
    assert calls[0] == calls[1] not in (12, 24)
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


def test_rows_of_tables_are_perturbed_as_sam_does() -> None:
    ends = []
    for make in (SAM, lambda base, rho: fixed(base, ALWAYS, rho=rho)):
        torch.manual_seed(0)
        table = nn.Embedding(6, 3, sparse=True)
        optimizer = make(SGD(table.parameters(), lr=0.1), rho=0.5)
        for _ in range(2):
            optimizer.step(Watch(optimizer, lambda table=table: table(torch.tensor([1, 4])).square().sum()))
        ends.append(flat(table.parameters()))
    assert torch.equal(*ends)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_waits_for_the_device_once_to_decide(fused: bool) -> None:
    """And, as every method, once more over a base that is not fused."""
    for threshold in (NEVER, ALWAYS):
        model, loss = problem()
        plain = Operations().of_a_step(AdamW(model.parameters(), lr=0.01, fused=fused), loss)
        optimizer = fixed(AdamW(model.parameters(), lr=0.01, fused=fused), threshold, model=model, clip_norm=1.0)
        counts = Operations().of_a_step(optimizer, loss)
        assert counts["_local_scalar_dense"] == plain["_local_scalar_dense"] + (1 if fused else 2)


@pytest.mark.parametrize(
    "settings", [{"delta": 1.0}, {"delta": -0.1}, {"lambda_1": float("inf")}, {"lambda_2": float("nan")}]
)
def test_impossible_settings_are_told(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"AESAM: delta must be in \[0, 1\), lambda_1 and lambda_2 finite, got"):
        AESAM(SGD([nn.Parameter(torch.ones(1))], lr=0.1), **settings)  # type: ignore[arg-type]


def test_a_threshold_that_moves_needs_the_length_of_training() -> None:
    model, loss = problem()
    optimizer = AESAM(SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"AE-SAM's threshold go by shares of training: .*total_steps"):
        optimizer.step(Watch(optimizer, loss))
