"""Functional-SAM against its formula: J(w + e)^T dL/dz(w), with J and dL/dz worked out apart from the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.optim import SGD

from bench.core.registry import load_builtins, models, optimizers, tasks
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.data.datasets import user_files_sha256
from bench.optim.functional_sam import FunctionalSAM
from bench.optim.sam import SAM
from bench.training.step import set_up

from .helpers import Watch, flat, same_bits
from .test_family import exact
from .test_sparse import words

RHO, LR = 0.5, 0.1


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batch(number: int = 0, examples: int = 12) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(number)
    x = torch.randn(examples, 6, generator=random, dtype=torch.float64)
    return x, torch.randint(3, (examples,), generator=random)


def by_hand(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy, rho: float = RHO
) -> Tensor:
    """The gradient that the base must follow, from plain tensors; the model is left as it is."""
    parameters = list(model.parameters())
    z = model(x)
    derivative = torch.autograd.grad(loss(z, y), z, retain_graph=True)[0]
    g = torch.autograd.grad(z, parameters, derivative)
    norm = flat(g).norm()
    with torch.no_grad():
        before = [p.clone() for p in parameters]
        for p, part in zip(parameters, g, strict=True):
            p.add_(rho * part / norm)
    moved = torch.autograd.grad(model(x), parameters, derivative)
    with torch.no_grad():
        for p, own in zip(parameters, before, strict=True):
            p.copy_(own)
    return flat(moved)


def followed(model: nn.Module, before: Tensor) -> Tensor:
    """The gradient that SGD has followed."""
    return (before - flat(model.parameters())) / LR


def test_golden_functional_sam() -> None:
    """z = w1 w2, J = (w2, w1), L = (z - 2)^2 / 2, dL/dz = z - 2; rho = sqrt(13), lr 0.1.

    1: w = (3, 2), z = 6, dL/dz = 4, g = (8, 12), along (2, 3), whose length is sqrt(13): w + e = (5, 5), J = (5, 5)
       there; 4 J = (20, 20), where SAM has 23 J; w <- (1, 0)
    2: z = 0, dL/dz = -2, g = (0, -2); w + e = (1, -r), r = sqrt(13); -2 J = (2 r, -2); w <- (1 - 0.2 r, 0.2)
    """
    w, r = nn.Parameter(torch.tensor([3.0, 2.0], dtype=torch.float64)), 13**0.5
    optimizer = FunctionalSAM(SGD([w], lr=0.1), rho=r)

    def loss() -> Tensor:
        z: Tensor = optimizer.logits(w[0] * w[1])
        return (z - 2) ** 2 / 2

    assert optimizer.step(watch := Watch(optimizer, loss)).item() == pytest.approx(8.0)
    assert watch.weights[1][0].tolist() == exact([5, 5])
    assert w.tolist() == exact([1, 0])
    optimizer.step(watch := Watch(optimizer, loss))
    assert watch.weights[1][0].tolist() == exact([1, -r])
    assert w.tolist() == exact([1 - 0.2 * r, 0.2])


def test_where_the_network_is_linear_it_is_the_base() -> None:
    x, y = batch()

    def end(name: str) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(6, 3).double()
        base: Any = SGD(model.parameters(), lr=LR)
        optimizer = {"base": base, "functional": FunctionalSAM(base, rho=RHO), "sam": SAM(base, rho=RHO)}[name]
        seen = optimizer.logits if name == "functional" else nn.Identity()
        for _ in range(3):
            optimizer.step(Watch(optimizer, lambda: F.cross_entropy(seen(model(x)), y)))
        return flat(model.parameters())

    ends = {name: end(name) for name in ("base", "functional", "sam")}
    torch.testing.assert_close(ends["functional"], ends["base"], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(ends["sam"], ends["base"], rtol=1e-3)


def test_where_the_loss_is_linear_in_the_logits_it_is_sam() -> None:
    model, twin, (x, _) = net(), net(), batch()
    ours, sam = FunctionalSAM(SGD(model.parameters(), lr=LR), rho=RHO), SAM(SGD(twin.parameters(), lr=LR), rho=RHO)
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for _ in range(3):
        ours.step(Watch(ours, lambda: (ours.logits(model(x)) * slope).sum()))
        sam.step(Watch(sam, lambda: (twin(x) * slope).sum()))
    assert same_bits(model.parameters(), twin.parameters())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": F.cross_entropy,
    "smoothed labels": partial(F.cross_entropy, label_smoothing=0.1),
    "regression": lambda z, y: (z[:, 0] - y).square().mean(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_it_follows_the_jacobian_at_the_moved_weights_and_the_derivative_at_w(loss: Any) -> None:
    model = net()
    optimizer = FunctionalSAM(SGD(model.parameters(), lr=LR), rho=RHO, model=model)
    for number in range(3):
        x, y = batch(number)
        expected, before = by_hand(model, x, y, loss), flat(model.parameters())
        optimizer.step(Watch(optimizer, partial(lambda x, y: loss(optimizer.logits(model(x)), y), x, y)))
        torch.testing.assert_close(followed(model, before), expected, rtol=1e-9, atol=1e-12)


def test_logits_may_be_told_after_the_loss_is_computed() -> None:
    """As of a model that returns both."""
    model, (x, y) = net(), batch()
    optimizer = FunctionalSAM(SGD(model.parameters(), lr=LR), rho=RHO)
    expected, before = by_hand(model, x, y), flat(model.parameters())

    def loss() -> Tensor:
        z = model(x)
        value = F.cross_entropy(z, y)
        optimizer.logits(z)
        return value

    optimizer.step(Watch(optimizer, loss))
    torch.testing.assert_close(followed(model, before), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", ["parts", "backward", "inside"])
def test_parts_and_micro_batches_have_each_their_own_derivative(way: str) -> None:
    """Parts and micro-batches also perturb each for itself; micro-batches inside of one closure share one."""
    model = net()
    optimizer = FunctionalSAM(SGD(model.parameters(), lr=LR), rho=RHO)
    pieces = [batch(number, 5) for number in range(3)]
    before = flat(model.parameters())
    whole = torch.cat([x for x, _ in pieces]), torch.cat([y for _, y in pieces])
    expected = by_hand(model, *whole) if way == "inside" else torch.stack([by_hand(model, *p) for p in pieces]).mean(0)

    def part(x: Tensor, y: Tensor, share: float) -> Tensor:
        loss = F.cross_entropy(optimizer.logits(model(x)), y) * share
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    if way == "backward":
        for piece in pieces:
            optimizer.backward(partial(part, *piece, 1 / 3))
        optimizer.step()
    elif way == "parts":

        def alone(piece: tuple[Tensor, Tensor]) -> Tensor:
            optimizer.zero_grad()
            return part(*piece, 1.0)

        optimizer.step([partial(alone, piece) for piece in pieces])
    else:

        def all_of_them() -> Tensor:
            optimizer.zero_grad()
            return torch.stack([part(*piece, 1 / 3).detach() for piece in pieces]).sum()

        optimizer.step(all_of_them)
    torch.testing.assert_close(followed(model, before), expected, rtol=1e-9, atol=1e-12)


def test_several_outputs_are_told_one_by_one_in_one_or_several_backward_passes() -> None:
    model, (x, y) = net(), batch()
    split = FunctionalSAM(SGD(model.parameters(), lr=LR), rho=RHO)
    before, expected = (
        flat(model.parameters()),
        by_hand(model, x, y, lambda z, y: F.cross_entropy(z, y) + z[:, 1].exp().mean()),
    )

    def closure() -> Tensor:
        split.zero_grad()
        z = split.logits(model(x))
        first, second = F.cross_entropy(z, y), z[:, 1].exp().mean()
        first.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        second.backward()  # type: ignore[no-untyped-call]
        return (first + second).detach()

    split.step(closure)
    torch.testing.assert_close(followed(model, before), expected, rtol=1e-9, atol=1e-12)


def test_what_the_loss_adds_past_the_logits_has_sams_gradient() -> None:
    """(z - 2)^2 / 2 + (w1^2 + w2^2) / 2 at w = (3, 2): g = (8, 12) + (3, 2) = (11, 14)."""
    w = nn.Parameter(torch.tensor([3.0, 2.0], dtype=torch.float64))
    length = 317**0.5  # of (11, 14)
    optimizer = FunctionalSAM(SGD([w], lr=0.1), rho=length)

    def loss() -> Tensor:
        z: Tensor = optimizer.logits(w[0] * w[1])
        return (z - 2) ** 2 / 2 + w.square().sum() / 2

    optimizer.step(watch := Watch(optimizer, loss))
    assert watch.weights[1][0].tolist() == exact([14, 16])
    # 4 (16, 14) of the logits, and (14, 16) of the penalty.
    assert w.tolist() == exact([3 - 0.1 * (64 + 14), 2 - 0.1 * (56 + 16)])


def test_a_scaler_changes_nothing() -> None:
    model, (x, y) = net(), batch()
    optimizer, scaler = FunctionalSAM(SGD(model.parameters(), lr=LR), rho=RHO), GradScaler("cpu", init_scale=2.0**14)
    expected, before = by_hand(model, x, y), flat(model.parameters())

    def closure() -> Tensor:
        scaled: Tensor = scaler.scale(F.cross_entropy(optimizer.logits(model(x)), y))
        scaled.backward()  # type: ignore[no-untyped-call]
        return scaled

    optimizer.backward(closure)
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(followed(model, before), expected, rtol=1e-9, atol=1e-12)


def test_in_steps_that_do_not_perturb_and_outside_of_steps_logits_does_nothing() -> None:
    model, twin, (x, y) = net(), net(), batch()
    optimizer = FunctionalSAM(SGD(model.parameters(), lr=LR), rho=RHO, perturb_from=0.5, total_steps=4)
    plain = SGD(twin.parameters(), lr=LR)
    for _ in range(2):
        optimizer.step(watch := Watch(optimizer, lambda: F.cross_entropy(optimizer.logits(model(x)), y)))
        plain.step(Watch(plain, lambda: F.cross_entropy(twin(x), y)))
        assert watch.calls == 1
    assert same_bits(model.parameters(), twin.parameters())
    z = model(x)
    assert optimizer.logits(z) is z
    assert not z._backward_hooks


def test_sparse_gradients_lead_where_dense_ones_do() -> None:
    weights = {}
    for sparse in (True, False):
        model, _ = words(sparse=sparse)
        optimizer = FunctionalSAM(SGD(model.parameters(), lr=LR), rho=RHO)

        def loss(model: Any = model, optimizer: Any = optimizer) -> Tensor:
            z: Tensor = model[2](model[0](torch.tensor([[1, 1, 3], [3, 5, 7]])).mean(1))
            return F.cross_entropy(optimizer.logits(z), torch.tensor([0, 2]))

        for _ in range(3):
            optimizer.step(Watch(optimizer, loss))
        weights[sparse] = flat(model.parameters())
    torch.testing.assert_close(weights[True], weights[False])


# ---- closures that it cannot use -----------------------------------------------------------------------------------


def never(optimizer: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def another_tensor(optimizer: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = model(x)
    optimizer.logits(z.softmax(1))
    return F.cross_entropy(z, y)


def in_the_first_pass(optimizer: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = model(x)
    return F.cross_entropy(optimizer.logits(z) if optimizer.first_pass else z, y)


def twice_in_the_second(optimizer: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = optimizer.logits(model(x))
    return F.cross_entropy(z if optimizer.first_pass else optimizer.logits(z), y)


def another_batch(optimizer: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    few = slice(None) if optimizer.first_pass else slice(4)
    return F.cross_entropy(optimizer.logits(model(x[few])), y[few])


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (never, r"call optimizer\.logits\(outputs\) .* this closure never calls it"),
        (another_tensor, "this closure computes its loss from other tensors"),
        (in_the_first_pass, "the second evaluation of the closure calls logits less often than the first"),
        (twice_in_the_second, "called 1 times in the first evaluation of the closure, and more often in the second"),
        (another_batch, r"shape \(4, 3\) in the second evaluation of the closure, and of shape \(12, 3\) in the first"),
    ],
)
def test_a_closure_that_hides_its_logits_is_told_what_to_do(loss: Any, said: str) -> None:
    model, (x, y) = net(), batch()
    before, optimizer = flat(model.parameters()), FunctionalSAM(SGD(model.parameters(), lr=LR), rho=RHO)
    with pytest.raises(RuntimeError, match=said):
        optimizer.step(Watch(optimizer, partial(loss, optimizer, model, x, y)))
    assert torch.equal(flat(model.parameters()), before), "and the weights are back"


# ---- in our own loop -----------------------------------------------------------------------------------------------


def test_the_loop_of_a_run_tells_the_logits_of_classes_and_of_numbers(tmp_path: Path) -> None:
    load_builtins()
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 3, generator=random).tolist()
    file = tmp_path / "table.csv"
    file.write_text("a,b,c\n" + "\n".join(",".join(f"{v:.4f}" for v in row) for row in rows))
    regression = {"path": str(file), "target": "c", "regression": True}
    for task in (ComponentSpec(name="digits"), ComponentSpec(name="csv", params=regression)):
        sgd = optimizers["sgd"].schema.model_validate({"lr": LR, "momentum": 0.0}).model_dump()
        spec = RunSpec(
            task=task,
            model=ComponentSpec(name="mlp", params=models["mlp"].schema().model_dump() | {"dropout": 0.0}),
            optimizer=OptimizerSpec(
                name="functional-sam",
                params=optimizers["functional-sam"].schema(rho=RHO).model_dump(),
                base=ComponentSpec(name="sgd", params=sgd),
            ),
            data=DataSettings(),
            train=TrainSettings(epochs=1, batch_size=16),
            seed=0,
            files_sha256=user_files_sha256(tasks[task.name].factory, task.params),
        )
        run = set_up(spec, torch.device("cpu"))
        first, *_ = run.batches(0)
        seen: list[Any] = []
        z_of = run.task.losses

        def watched(z: Tensor, y: Tensor, z_of: Any = z_of, seen: list[Any] = seen) -> Tensor:
            seen.append(y)
            losses: Tensor = z_of(z, y)
            return losses

        run.task.losses = watched  # type: ignore[method-assign, assignment]
        inputs: list[Tensor] = []
        run.model.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        before = flat(run.model.parameters())
        run.step(first, np.random.RandomState(0))
        after = flat(run.model.parameters())
        _restore(run.model, before)
        expected = by_hand(run.model, inputs[0], seen[0], partial(mean_of, z_of))
        torch.testing.assert_close((before - after) / LR, expected, rtol=2e-4, atol=2e-5)


def mean_of(losses: Any, z: Tensor, y: Tensor) -> Tensor:
    mean: Tensor = losses(z, y).mean()
    return mean


def _restore(model: nn.Module, weights: Tensor) -> None:
    with torch.no_grad():
        nn.utils.vector_to_parameters(weights, model.parameters())
