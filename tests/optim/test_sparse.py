"""Sparse gradients (embeddings) and shared parameters: what SAM does with them is what it does with dense ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer, SparseAdam

from bench.optim.sam import SAM

from .helpers import Watch, flat, over_both, same_bits, snapshot, state_of

WORDS = torch.tensor([[1, 1, 3], [3, 5, 7]])  # some twice, most of the vocabulary never
UNTOUCHED = torch.tensor([0, 2, 4, 6, 8, 9])


def words(*, sparse: bool, head: bool = True) -> tuple[nn.ModuleList, Callable[[], Tensor]]:
    torch.manual_seed(0)
    tables = [nn.Embedding(10, 4, sparse=sparse), nn.EmbeddingBag(10, 4, sparse=sparse)]
    model = nn.ModuleList([*tables, nn.Linear(4, 3)] if head else tables)

    def loss() -> Tensor:
        inside = model[0](WORDS).mean(1) + model[1](WORDS)
        return (model[2](inside) if head else inside).square().mean()  # type: ignore[no-any-return]

    return model, loss


@over_both
@pytest.mark.parametrize("settings", [{}, {"foreach": True}, {"momentum": 0.9}], ids=str)
def test_sparse_gradients_lead_where_dense_ones_do(settings: dict[str, Any], adaptive: bool) -> None:
    weights = {}
    for sparse in (True, False):
        model, loss = words(sparse=sparse)
        optimizer = SAM(SGD(model.parameters(), lr=0.1, **settings), rho=0.5, adaptive=adaptive, clip_norm=0.2)
        for _ in range(4):
            optimizer.step(watch := Watch(optimizer, loss))
            if not adaptive:
                assert flat(watch.e).norm().item() == pytest.approx(0.5, rel=1e-5)
        weights[sparse] = flat(model.parameters())
    torch.testing.assert_close(weights[True], weights[False])


@over_both
@pytest.mark.parametrize("base", [lambda p: SGD(p, lr=0.1), lambda p: SparseAdam(p, lr=0.1)], ids=["SGD", "SparseAdam"])
def test_only_rows_in_the_batch_move_and_they_come_back(base: Callable[..., Optimizer], adaptive: bool) -> None:
    model, loss = words(sparse=True, head=False)
    optimizer = SAM(base(list(model.parameters())), rho=0.5, adaptive=adaptive)
    before = snapshot(model.parameters())
    optimizer.step(watch := Watch(optimizer, loss))
    for e, p, q in zip(watch.e, model.parameters(), before, strict=True):
        assert set(e.any(1).nonzero().flatten().tolist()) == {1, 3, 5, 7}
        assert same_bits([p[UNTOUCHED]], [q[UNTOUCHED]])
        assert (p != q).any(1).sum() == 4
    places, before = [p.data_ptr() for p in model.parameters()], snapshot(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(Watch(optimizer, loss))
    assert same_bits(model.parameters(), before)
    assert [p.data_ptr() for p in model.parameters()] == places


@over_both
def test_rows_are_put_back_when_the_second_pass_raises_or_reads_others(adaptive: bool) -> None:
    model, _ = words(sparse=True, head=False)
    before = snapshot(model.parameters())
    optimizer = SAM(SGD(model.parameters(), lr=0.0), rho=0.5, adaptive=adaptive)
    batches = [WORDS, WORDS + 2]
    optimizer.step(watch := Watch(optimizer, lambda: model[0](batches[watch.calls - 1]).square().mean()))
    assert watch.e[0].any()
    assert same_bits(model.parameters(), before)

    def fail(call: int) -> None:
        if call == 2:
            raise KeyError("from the closure")

    with pytest.raises(KeyError, match="from the closure"):
        optimizer.step(Watch(optimizer, lambda: model[0](WORDS).square().mean(), fail))
    assert same_bits(model.parameters(), before)


@over_both
@pytest.mark.parametrize("call", [1, 2])
def test_a_sparse_gradient_that_is_not_finite_skips_the_update(call: int, adaptive: bool) -> None:
    model, loss = words(sparse=True, head=False)
    optimizer = SAM(SparseAdam(list(model.parameters())), rho=0.5, adaptive=adaptive)
    optimizer.step(Watch(optimizer, loss))
    weights, state = snapshot(model.parameters()), snapshot(state_of(optimizer))

    def spoil(now: int) -> None:
        gradient = next(model.parameters()).grad
        if now == call and gradient is not None:
            gradient._values()[0, 0] = float("inf")

    optimizer.step(Watch(optimizer, loss, spoil))
    assert optimizer.skipped_steps == 1
    assert same_bits(model.parameters(), weights)
    assert same_bits(state_of(optimizer), state)


def test_parts_of_a_batch_and_micro_batches_have_sparse_gradients_too() -> None:
    weights = []
    for sparse in (True, False):
        model, _ = words(sparse=sparse)
        optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5)

        def part(words: Tensor, model: Any = model, optimizer: SAM = optimizer) -> Watch:
            return Watch(optimizer, lambda: model[2](model[0](words)).square().mean())

        for _ in range(2):
            optimizer.step([part(half) for half in WORDS])
            optimizer.zero_grad()
            for half in WORDS:
                optimizer.backward(part(half))
            optimizer.step()
        weights.append(flat(model.parameters()))
    torch.testing.assert_close(*weights)


def test_memory_of_a_large_table_is_not_copied() -> None:
    table = nn.Embedding(100_000, 8, sparse=True)
    optimizer = SAM(SGD(table.parameters(), lr=0.1), rho=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = table(WORDS).square().mean()
        loss.backward()
        return loss  # type: ignore[no-any-return]

    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        optimizer.step(closure)
    assert profile.kineto_results is not None
    largest = max(e.nbytes() for e in profile.kineto_results.events() if e.name() == "[memory]")
    assert 0 < largest < 4 * 100_000 * 8 / 100


# ---- shared parameters -------------------------------------------------------------------------------------------


@over_both
def test_a_tied_weight_is_one_weight(adaptive: bool) -> None:
    """Embedding and output layer share a matrix: perturbed once, by the sum of its gradients, and counted once."""
    torch.manual_seed(0)
    embedding, output = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    output.weight = embedding.weight
    model = nn.Sequential(embedding, output).double()
    optimizer = SAM(SGD(model.parameters(), lr=0.0), rho=0.5, adaptive=adaptive)
    before = snapshot(model.parameters())
    watch = Watch(optimizer, lambda: nn.functional.cross_entropy(model(WORDS).flatten(0, 1), WORDS.flatten()))
    optimizer.step(watch)
    assert len(watch.e) == 1
    (g,), (w,) = watch.gradients[0], watch.weights[0]
    t = w.abs() + 0.01 if adaptive else torch.ones_like(w)
    torch.testing.assert_close(watch.e[0], 0.5 * t**2 * g / (t * g).norm(), rtol=1e-9, atol=1e-12)
    assert same_bits(model.parameters(), before)


def test_a_copy_of_a_model_with_tied_weights_goes_on_alike() -> None:
    torch.manual_seed(0)
    embedding, output = nn.Embedding(10, 4), nn.Linear(4, 10)
    output.weight = embedding.weight
    model = nn.Sequential(embedding, output)
    optimizer = SAM(SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5, model=model)

    def step(of: SAM) -> None:
        assert of.model is not None
        model = of.model
        of.step(Watch(of, lambda: nn.functional.cross_entropy(model(WORDS).flatten(0, 1), WORDS.flatten())))

    step(optimizer)
    twin = copy.deepcopy(optimizer)
    step(optimizer)
    step(twin)
    assert twin.model is not None
    assert twin.model[0].weight is twin.model[1].weight  # type: ignore[index]
    assert same_bits(model.parameters(), twin.model.parameters())
