"""What a SAM step must do on the nets that people train: in fp32 and bf16, on a CPU and a GPU, under torch.compile.

The rules one by one and in their corners: the other files here. docs/sam-contract.md lists which rule is tested where.
"""

from __future__ import annotations

import ast
import copy
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from bench.optim.base.schedule import Scheduler
from bench.optim.sam import SAM

from .helpers import Watch, flat, over_all_bases, over_both, problem, same_bits, snapshot, state_of
from .nets import EXAMPLES, NETS, Setting, any_net, device, setting

__all__ = ["any_net", "device", "setting"]  # fixtures
MakeBase = Callable[..., Optimizer]


@over_all_bases
def test_weights_come_back_to_the_bit(setting: Setting, base: MakeBase) -> None:
    model, loss = setting.build()
    optimizer = SAM(base(model.parameters(), lr=0.0), rho=0.5, model=model)
    before, places = snapshot(model.parameters()), [p.data_ptr() for p in model.parameters()]
    for _ in range(2):
        optimizer.step(watch := Watch(optimizer, loss))
        assert sum(bool(e.any()) for e in watch.e) > len(watch.e) / 2
    assert same_bits(model.parameters(), before)
    assert [p.data_ptr() for p in model.parameters()] == places


@over_both
def test_buffers_move_as_in_a_plain_step(setting: Setting, adaptive: bool) -> None:
    model, loss = setting.build()
    twin, twin_loss = setting.build()
    before = snapshot(model.buffers())
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, adaptive=adaptive, model=model)
    plain = SGD(twin.parameters(), lr=0.1)
    for one, its_loss in ((optimizer, loss), (plain, twin_loss)):
        torch.manual_seed(1)
        one.step(Watch(one, its_loss))
    assert same_bits(model.buffers(), twin.buffers())
    assert same_bits(model.buffers(), before) is (setting.net != "convolutions")


@over_all_bases
def test_with_dropout_and_a_vanishing_rho_it_is_the_base_to_the_bit(setting: Setting, base: MakeBase) -> None:
    """Both passes see one mask: of dropout, of attention and of whole branches."""
    model, loss = setting.build(dropout=0.5)
    twin, twin_loss = setting.build(dropout=0.5)
    optimizer, plain = SAM(base(model.parameters()), rho=1e-30, model=model), base(twin.parameters())
    for one, its_loss, calls in ((optimizer, loss, 2), (plain, twin_loss, 1)):
        torch.manual_seed(1)
        for _ in range(2):
            one.step(watch := Watch(one, its_loss))  # type: ignore[arg-type]
            assert watch.calls == calls
    assert same_bits(model.parameters(), twin.parameters())


@over_both
def test_e_is_one_vector_of_norm_rho_along_the_gradient(any_net: Setting, adaptive: bool) -> None:
    model, loss = any_net.build()
    first, *rest = model.parameters()
    optimizer = SAM(SGD([{"params": [first]}, {"params": rest}], lr=0.1), rho=0.5, adaptive=adaptive, model=model)
    optimizer.step(watch := Watch(optimizer, loss))
    g, e = flat(watch.gradients[0]), flat(watch.e)
    t = flat(watch.weights[0]).abs() + 0.01 if adaptive else torch.ones_like(g)
    torch.testing.assert_close(e, 0.5 * t**2 * g / (t * g).norm(), rtol=1e-3, atol=1e-6)


def test_the_loss_at_w_is_returned_and_the_second_one_is_higher(setting: Setting) -> None:
    model, loss = setting.build()
    torch.manual_seed(1)
    at_w = loss().detach()
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, model=model)
    torch.manual_seed(1)
    returned = optimizer.step(watch := Watch(optimizer, loss))
    assert torch.equal(returned, at_w if setting.net != "convolutions" else watch.losses[0])
    assert watch.losses[1] > watch.losses[0]


def test_a_gradient_of_zero_is_harmless(setting: Setting) -> None:
    model, loss = setting.build()
    before = snapshot(model.parameters())
    optimizer = SAM(SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5, model=model)
    optimizer.step(Watch(optimizer, lambda: loss() * 0))
    assert same_bits(model.parameters(), before)
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("call", [1, 2])
def test_a_gradient_that_is_not_finite_skips_the_update(setting: Setting, call: int) -> None:
    model, loss = setting.build()
    optimizer = SAM(AdamW(model.parameters(), lr=0.01, fused=True), rho=0.5, model=model, clip_norm=1.0)
    optimizer.step(Watch(optimizer, loss))
    weights, state = snapshot(model.parameters()), snapshot(state_of(optimizer))
    last = list(model.parameters())[-1]

    def spoil(now: int) -> None:
        if now == call and last.grad is not None:
            last.grad[0] = math.inf

    assert optimizer.step(Watch(optimizer, loss, spoil)).isfinite()
    assert same_bits(model.parameters(), weights)
    assert same_bits(state_of(optimizer), state)
    assert optimizer.skipped_steps == 1
    optimizer.step(Watch(optimizer, loss))
    assert not same_bits(model.parameters(), weights)
    assert flat([*model.parameters(), *(b.float() for b in model.buffers())]).isfinite().all()


@over_both
def test_clipping_acts_on_the_final_gradient_alone(any_net: Setting, adaptive: bool) -> None:
    seen = []
    for clip_norm in (None, 1e-3):
        model, loss = any_net.build()
        optimizer = SAM(SGD(model.parameters(), lr=1.0), rho=0.5, adaptive=adaptive, model=model, clip_norm=clip_norm)
        torch.manual_seed(1)
        optimizer.step(watch := Watch(optimizer, loss))
        seen.append((watch, flat(watch.weights[0]) - flat(model.parameters())))
    (free, _), (clipped, update) = seen
    assert same_bits(free.e, clipped.e)
    assert update.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_a_run_goes_on_from_its_checkpoint_to_the_bit(setting: Setting) -> None:
    def objects(seed: int) -> tuple[Any, ...]:
        model, loss = setting.build(seed=seed)
        optimizer = SAM(AdamW(model.parameters(), lr=0.01, fused=True), rho=0.1, model=model)
        return model, optimizer, Scheduler(optimizer, total=5, warmup=1, shape="cosine"), loss

    def run(parts: tuple[Any, ...], steps: int) -> None:
        for _ in range(steps):
            parts[1].step(Watch(parts[1], parts[3]))
            parts[2].step()

    straight, resumed = objects(0), objects(9)
    torch.manual_seed(3)
    run(straight, 2)
    state = copy.deepcopy([part.state_dict() for part in straight[:3]])
    random = torch.get_rng_state(), torch.cuda.get_rng_state() if setting.device == "cuda" else None
    run(straight, 2)
    for part, saved in zip(resumed, state, strict=False):
        part.load_state_dict(saved)
    torch.set_rng_state(random[0])
    if random[1] is not None:
        torch.cuda.set_rng_state(random[1])
    run(resumed, 2)
    assert same_bits(straight[0].state_dict().values(), resumed[0].state_dict().values())
    assert same_bits(state_of(straight[1]), state_of(resumed[1]))


@over_both
@pytest.mark.parametrize("net", [name for name in NETS if name != "convolutions"])
def test_micro_batches_inside_of_the_closure_are_the_batch(net: str, device: str, adaptive: bool) -> None:
    """Where examples do not meet in batch norm: 3 micro-batches of 2 are one batch of 6."""
    without_norm = Setting(net, device, torch.float32, autocast=False)
    (model, loss), (twin, twin_loss) = without_norm.build(dropout=0.0), without_norm.build(dropout=0.0)
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, adaptive=adaptive, model=model)
    whole = SAM(SGD(twin.parameters(), lr=0.1), rho=0.5, adaptive=adaptive, model=twin)

    def accumulated() -> Tensor:
        optimizer.zero_grad()
        losses = [loss(slice(start, start + 2)) / 3 for start in range(0, EXAMPLES, 2)]
        for part in losses:
            part.backward()  # type: ignore[no-untyped-call]
        return torch.stack(losses).sum()

    for _ in range(2):
        torch.testing.assert_close(optimizer.step(accumulated), whole.step(Watch(whole, twin_loss)))
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), rtol=1e-3, atol=1e-4)


def test_a_frozen_half_stays_where_it_is(any_net: Setting) -> None:
    model, loss = any_net.build()
    frozen = [p for n, p in enumerate(model.parameters()) if n % 2]
    for p in frozen:
        p.requires_grad_(False)
    before = snapshot(frozen)
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, model=model)
    optimizer.step(watch := Watch(optimizer, loss))
    assert flat(watch.e).norm().item() == pytest.approx(0.5, rel=1e-3)
    assert not any(e.any() for n, e in enumerate(watch.e) if n % 2)
    assert same_bits(frozen, before)


# ---- torch.compile -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_model_keeps_every_rule(backend: str) -> None:
    """Moved weights are seen though nothing is compiled anew; weights, statistics and masks are as they must be."""
    (model, loss), (twin, twin_loss) = normalized(), normalized()
    compiled = partial(torch.compile, backend=backend)
    loss, twin_loss = partial(loss, compiled(model)), partial(twin_loss, compiled(twin))

    optimizer = SAM(SGD(model.parameters(), lr=0.0), rho=0.5, model=model)
    before = snapshot(model.parameters())
    torch._dynamo.utils.counters.clear()
    returned = optimizer.step(watch := Watch(optimizer, loss))
    optimizer.step(Watch(optimizer, loss))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert watch.losses[1] > watch.losses[0]
    assert torch.equal(returned, watch.losses[0])
    assert same_bits(model.parameters(), before)
    assert int(model[1].num_batches_tracked) == 2  # type: ignore[index]

    model.load_state_dict(twin.state_dict())
    vanishing, plain = SAM(SGD(model.parameters(), lr=0.1), rho=1e-30, model=model), SGD(twin.parameters(), lr=0.1)
    for one, its_loss in ((vanishing, loss), (plain, twin_loss)):
        torch.manual_seed(1)
        for _ in range(2):
            one.step(Watch(one, its_loss))
    assert same_bits(model.state_dict().values(), twin.state_dict().values())


def normalized() -> tuple[nn.Module, Callable[..., Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    x, y = torch.randn(16, 6), torch.randn(16, 3)
    return model, lambda network: nn.functional.mse_loss(network(x), y)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo looks
def test_a_compiled_step_is_the_step() -> None:
    (model, loss), (twin, twin_loss) = problem(), problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5)
    plain = SAM(SGD(twin.parameters(), lr=0.1, momentum=0.9), rho=0.5)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for _ in range(2):
        step(Watch(optimizer, loss))
        plain.step(Watch(plain, twin_loss))
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()))


# ---- the table of rules ------------------------------------------------------------------------------------------


def test_the_table_of_the_contract_names_tests_that_exist() -> None:
    text = (Path(__file__).parents[2] / "docs/sam-contract.md").read_text()
    named = re.findall(r"`([\w./]+\.py)::(test_\w+)`", text)
    assert len(named) >= 25
    for file, name in named:
        functions = ast.parse((Path(__file__).parent / file).read_text()).body
        assert name in {node.name for node in functions if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
