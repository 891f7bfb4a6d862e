"""What a SAM step leaves behind besides new weights: buffers, random numbers, skipped updates, memory, kernels."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import SGD, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from bench.optim.base.forward_state import kept_buffers
from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.sam import SAM

from .helpers import Watch, flat, over_all_bases, over_both, problem, same_bits, snapshot, state_of

MakeBase = Callable[..., Optimizer]


# ---- buffers -----------------------------------------------------------------------------------------------------

NORMS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "BatchNorm1d": (1, lambda: nn.BatchNorm1d(4)),
    "BatchNorm2d": (2, lambda: nn.BatchNorm2d(4)),
    "BatchNorm3d": (3, lambda: nn.BatchNorm3d(4)),
    "SyncBatchNorm": (2, lambda: nn.SyncBatchNorm(4)),  # of one process: over several it takes GPUs only
    "momentum=None": (2, lambda: nn.BatchNorm2d(4, momentum=None)),
    "momentum=0": (2, lambda: nn.BatchNorm2d(4, momentum=0.0)),
    "eval mode": (2, lambda: nn.BatchNorm2d(4).eval()),
    "no running stats": (2, lambda: nn.BatchNorm2d(4, track_running_stats=False)),
    "InstanceNorm1d": (1, lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True)),
    "InstanceNorm2d": (2, lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "GroupNorm": (2, lambda: nn.GroupNorm(2, 4)),
}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def normalized(dimensions: int, norm: Callable[[], nn.Module]) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    torch.manual_seed(0)
    convolution: nn.Module = CONVOLUTIONS[dimensions](2, 4, 3)
    model = nn.Sequential(convolution, norm(), nn.Flatten(), nn.LazyLinear(3))
    x, y = torch.randn(6, 2, *[4] * dimensions), torch.randn(6, 3)
    mode = model[1].training
    model.eval()(x)  # gives the lazy layer its size, moves no statistic
    model.train()
    model[1].train(mode)
    return model, lambda m: nn.functional.mse_loss(m(x), y)


@over_both
@pytest.mark.parametrize(("dimensions", "norm"), NORMS.values(), ids=NORMS)
def test_buffers_move_as_in_a_plain_step(dimensions: int, norm: Callable[[], nn.Module], adaptive: bool) -> None:
    model, loss = normalized(dimensions, norm)
    twin = copy.deepcopy(model)
    plain = SGD(twin.parameters(), lr=0.1)
    plain.step(Watch(plain, lambda: loss(twin)))
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, adaptive=adaptive, model=model)
    optimizer.step(watch := Watch(optimizer, lambda: loss(model)))
    assert watch.calls == 2
    assert same_bits(model.buffers(), twin.buffers())


def test_without_the_model_buffers_move_in_both_passes() -> None:
    model, loss = normalized(*NORMS["BatchNorm2d"])
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5)
    optimizer.step(Watch(optimizer, lambda: loss(model)))
    assert int(model[1].num_batches_tracked) == 2  # type: ignore[index]


def test_a_statistic_that_overflows_in_pass_2_does_not_stay() -> None:
    model, loss = normalized(*NORMS["momentum=0"])
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=1e38, model=model)
    seen: list[Tensor] = []
    optimizer.step(
        Watch(optimizer, lambda: loss(model), lambda call: seen.append(model[1].running_var.clone()))  # type: ignore[index]
    )
    assert not seen[1].isfinite().all()
    assert model[1].running_var.tolist() == [1.0] * 4  # type: ignore[index]


def test_kept_buffers_may_be_nested_and_freeze_nothing_afterwards() -> None:
    model, x = nn.BatchNorm1d(3), torch.randn(5, 3)
    with kept_buffers(model):
        with kept_buffers(model):
            model(x)
        model(x)
        inside = int(model.num_batches_tracked or 0)
    assert (inside, int(model.num_batches_tracked or 0)) == (1, 0)
    model(x)
    assert int(model.num_batches_tracked or 0) == 1
    assert not torch.equal(model.get_buffer("running_mean"), torch.zeros(3))


def test_kept_buffers_brings_back_one_that_was_replaced() -> None:
    model = nn.BatchNorm1d(3)
    before = model.running_mean
    with kept_buffers(model):
        model.running_mean = torch.ones(3)
    assert model.running_mean is before
    assert not model.running_mean.any()


def raise_in(call_to_fail: int) -> Callable[[int], None]:
    def mischief(call: int) -> None:
        if call == call_to_fail:
            raise KeyError("from the closure")

    return mischief


@over_both
@pytest.mark.parametrize("call", [1, 2])
def test_a_closure_that_raises_leaves_weights_and_base_alone_and_buffers_as_after_one_pass(
    call: int, adaptive: bool
) -> None:
    model, loss = normalized(*NORMS["BatchNorm2d"])
    twin = copy.deepcopy(model)
    loss(twin)
    before = snapshot(model.parameters())
    optimizer = SAM(SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5, adaptive=adaptive, model=model)
    with pytest.raises(KeyError, match="from the closure"):
        optimizer.step(Watch(optimizer, lambda: loss(model), raise_in(call)))
    assert same_bits(model.parameters(), before)
    assert same_bits(model.buffers(), twin.buffers())
    assert state_of(optimizer) == []


# ---- random numbers ----------------------------------------------------------------------------------------------


def test_dropout_masks_are_the_same_in_both_passes_and_new_in_the_next_step() -> None:
    model, loss = problem(dropout=0.5)
    masks: list[Tensor] = []
    model[2].register_forward_hook(lambda module, args, output: masks.append(output == 0))  # type: ignore[index]
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5)
    for _ in range(2):
        optimizer.step(Watch(optimizer, loss))
    first, again, second, _ = masks
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@over_both
@over_all_bases
def test_with_dropout_and_a_vanishing_rho_the_step_is_the_bases_bit_for_bit(base: MakeBase, adaptive: bool) -> None:
    model, loss = problem(dropout=0.5)
    twin, twin_loss = problem(dropout=0.5)
    optimizer, plain = SAM(base(model.parameters()), rho=1e-30, adaptive=adaptive), base(twin.parameters())
    torch.manual_seed(1)
    for _ in range(3):
        optimizer.step(watch := Watch(optimizer, loss))
        assert watch.calls == 2
    torch.manual_seed(1)
    for _ in range(3):
        plain.step(Watch(plain, twin_loss))  # type: ignore[arg-type]
    assert same_bits(model.parameters(), twin.parameters())


def test_random_numbers_go_on_as_after_a_plain_step() -> None:
    model, loss = problem(dropout=0.5)
    plain = SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    plain.step(Watch(plain, loss))
    expected = torch.get_rng_state()
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5)
    torch.manual_seed(1)
    optimizer.step(Watch(optimizer, loss))
    assert torch.equal(torch.get_rng_state(), expected)


# ---- gradients that are not finite -------------------------------------------------------------------------------


def spoil(model: nn.Module, value: float, call_to_spoil: int) -> Callable[[int], None]:
    """One element of one gradient, in one call."""
    parameter = next(model.parameters())

    def mischief(call: int) -> None:
        if call == call_to_spoil:
            assert parameter.grad is not None
            parameter.grad[0, 0] = value

    return mischief


@over_both
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("call", [1, 2])
@over_all_bases
def test_a_gradient_that_is_not_finite_skips_the_update(
    base: MakeBase, call: int, value: float, adaptive: bool
) -> None:
    model, loss = problem()
    optimizer = SAM(base(model.parameters()), rho=0.5, adaptive=adaptive, clip_norm=1.0)
    optimizer.step(Watch(optimizer, loss))
    weights, state = snapshot(model.parameters()), snapshot(state_of(optimizer))
    returned = optimizer.step(Watch(optimizer, loss, spoil(model, value, call)))
    assert same_bits(model.parameters(), weights)
    assert same_bits(state_of(optimizer), state)
    assert state
    assert optimizer.skipped_steps == 1
    assert returned.isfinite()
    optimizer.step(Watch(optimizer, loss))
    assert optimizer.skipped_steps == 1
    assert flat(model.parameters()).isfinite().all()
    assert not same_bits(model.parameters(), weights)


@over_both
def test_pass_1_is_judged_by_itself_when_pass_2_does_not_meet_what_it_spoilt(adaptive: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), torch.randn(8, 4)
    before = snapshot(model.parameters())
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, adaptive=adaptive)
    watch = Watch(optimizer, lambda: model[watch.calls - 1](x).square().mean(), spoil(model, float("inf"), 1))
    optimizer.step(watch)
    assert flat(watch.gradients[1]).isfinite().all()
    assert same_bits(model.parameters(), before)
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize(
    "method", [OptimizerWrapper, lambda base: SAM(base, rho=0.0)], ids=["OptimizerWrapper", "rho=0"]
)
def test_one_pass_methods_skip_too(method: Callable[[Optimizer], OptimizerWrapper]) -> None:
    model, loss = problem()
    optimizer = method(SGD(model.parameters(), lr=0.1, momentum=0.9))
    weights = snapshot(model.parameters())
    optimizer.step(Watch(optimizer, loss, spoil(model, float("inf"), 1)))
    assert same_bits(model.parameters(), weights)
    assert (optimizer.skipped_steps, state_of(optimizer)) == (1, [])


# ---- what it costs -----------------------------------------------------------------------------------------------


def test_the_last_steps_gradients_do_not_outlive_the_closures_zeroing() -> None:
    """They would be a second copy in memory: of the first parameter, which often is the table of embeddings."""
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.1)
    old: list[Any] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        assert [ref.expired() for ref in old] == [True] * len(old)
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)
    storages = [p.grad.untyped_storage() for p in model.parameters() if p.grad is not None]
    old = [StorageWeakRef(storage) for storage in storages]  # type: ignore[no-untyped-call]
    del storages
    assert [ref.expired() for ref in old] == [False] * 4
    optimizer.step(closure)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what a step dispatches outside of the closure."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused:
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def of_a_step(self, optimizer: Optimizer, loss: Callable[[], Tensor]) -> Counter[str]:
        watch = Watch(optimizer, loss)

        def closure() -> Tensor:
            self.paused = True
            try:
                return watch()
            finally:
                self.paused = False

        optimizer.step(closure)  # type: ignore[arg-type]  # makes the base's state
        with self:
            optimizer.step(closure)  # type: ignore[arg-type]
        return self.counts


@over_both
@over_all_bases
def test_a_step_waits_for_the_device_no_more_than_its_base_does(base: MakeBase, adaptive: bool) -> None:
    """A fused base is told on the device to skip; of another one, whether the gradient is finite has to be known."""
    model, loss = problem()
    plain = Operations().of_a_step(base(model.parameters()), loss)
    optimizer = SAM(base(model.parameters()), rho=0.1, adaptive=adaptive, model=model, clip_norm=1.0)
    counts = Operations().of_a_step(optimizer, loss)
    fused = all(group.get("fused") for group in optimizer.param_groups)
    assert counts["_local_scalar_dense"] == plain["_local_scalar_dense"] + (0 if fused else 1)


@over_both
def test_the_kernels_of_a_step_do_not_grow_with_the_number_of_tensors(adaptive: bool) -> None:
    def kernels(depth: int) -> Counter[str]:
        model, x = nn.Sequential(*[nn.Linear(3, 3) for _ in range(depth)]), torch.randn(2, 3)
        base = SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        optimizer = SAM(base, rho=0.1, adaptive=adaptive, clip_norm=1.0)
        counts = Operations().of_a_step(optimizer, lambda: model(x).square().mean())
        del counts["empty_like"]  # reserves memory, runs nothing
        return counts

    assert kernels(depth=2) == kernels(depth=20)


@over_both
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_first_step_that_is_skipped_leaves_no_state_that_the_next_one_would_use(
    adaptive: bool, momentum: float
) -> None:
    """A fused SGD that skips its first step on the device keeps momentum that was never written."""

    def make() -> tuple[nn.Module, SAM, Callable[[], Tensor]]:
        model, loss = problem()
        base = SGD(model.parameters(), lr=0.1, momentum=momentum, fused=True)
        return model, SAM(base, rho=0.1, adaptive=adaptive), loss

    model, optimizer, loss = make()
    optimizer.step(Watch(optimizer, loss, spoil(model, float("inf"), 2)))
    assert optimizer.skipped_steps == 1
    twin, plain, twin_loss = make()
    for _ in range(3):
        optimizer.step(Watch(optimizer, loss))
        plain.step(Watch(plain, twin_loss))
    assert same_bits(model.parameters(), twin.parameters())
