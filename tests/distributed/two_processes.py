"""What `test_distributed.py` has two real processes do, all cases in one start: `python two_processes.py FOLDER`.

Each leaves what it found in FOLDER/<rank>.pt: of every case the losses, the weights and whatever else is asked about.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bench.core.process_group import ALONE, ProcessGroup
from bench.core.registry import load_builtins, optimizers, register_model
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.distributed.process import joined
from bench.optim.base import weight_swap as moving
from bench.optim.sam import SAM
from bench.training.step import set_up

CPU = torch.device("cpu")
STEPS = 6
BATCH = 64
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"method": None},
    "sgd, clipped": {"method": None, "clip_norm": 0.05},
    "adamw": {"method": None, "base": "adamw"},
    "sam": {"method": "sam"},
    "sam, m = B / N": {"method": "sam", "m": 32},
    "sam, m = B / 2N": {"method": "sam", "m": 16},
    "sam, m = B": {"method": "sam", "m": 64},
    "sam over adamw, m = B / N, clipped": {"method": "sam", "base": "adamw", "m": 32, "clip_norm": 0.05},
    "sam, clipped": {"method": "sam", "clip_norm": 0.05},
    "asam": {"method": "asam"},
    "asam, m = B / N": {"method": "asam", "m": 32},
    "gsam, m = B / N": {"method": "gsam", "m": 32},
    "functional-sam": {"method": "functional-sam"},
    "functional-sam, m = B / 2N": {"method": "functional-sam", "m": 16},
    "xsam": {"method": "xsam", "search_every": 2},
    "xsam, m = B / 2N": {"method": "xsam", "search_every": 2, "m": 16},
    "le-sam, m = B / 2N": {"method": "le-sam", "m": 16},
    "looksam": {"method": "looksam", "k": 3},
    "looksam, m = B / 2N": {"method": "looksam", "k": 3, "m": 16},
    "friendly-sam": {"method": "friendly-sam"},
    "friendly-sam, m = B / 2N": {"method": "friendly-sam", "m": 16},
    "ae-sam": {"method": "ae-sam"},
    "ae-sam, m = B / 2N": {"method": "ae-sam", "m": 16},
    "sampa": {"method": "sampa"},
    "wsam": {"method": "wsam", "gamma": 0.6},
    "wsam, m = B / 2N, clipped": {"method": "wsam", "gamma": 0.6, "m": 16, "clip_norm": 0.05},
    "esam, m = B / 2N": {"method": "esam", "m": 16},
    "momentum-sam": {"method": "momentum-sam"},
    "random-direction": {"method": "random-direction"},
    "random-direction, m = B / 2N": {"method": "random-direction", "m": 16},
    "sam every 2nd step, m = B / N": {"method": "sam", "perturb_every": 2, "rho_schedule": "cosine", "m": 32},
    "ema": {"method": "ema"},
    "sam on an MLP, m = B / N": {"method": "sam", "m": 32, "model": "double_mlp"},
}
"""Names, and what of a run is said."""


class _InDouble(nn.Module):
    """A net in double precision, so that what is left of two ways to add up is far below any true difference."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.double())
        return out


def register() -> None:
    load_builtins()

    @register_model("double_cnn")
    def double_cnn(task: Any) -> nn.Module:
        """A convolution without batch norm."""
        convolution = [nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()]
        return _InDouble(nn.Sequential(*convolution, nn.Linear(96, task.num_outputs)))

    @register_model("double_mlp")
    def double_mlp(task: Any) -> nn.Module:
        """A hidden layer."""
        return _InDouble(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, task.num_outputs)))


def spec_of(case: dict[str, Any], processes: int) -> RunSpec:
    base_name = case.get("base", "sgd")
    lr = {"sgd": 0.1, "adamw": 0.01}[base_name]
    base = ComponentSpec(name=base_name, params=optimizers[base_name].schema.model_validate({"lr": lr}).model_dump())
    choice = OptimizerSpec(name=base.name, params=base.params)
    if name := case["method"]:
        known = optimizers[name].schema.model_fields
        given = {key: value for key, value in ({"rho": 0.3} | case).items() if key in known}
        params = optimizers[name].schema.model_validate(given).model_dump()
        choice = OptimizerSpec(name=name, params=params, base=base)
    return RunSpec(
        task=ComponentSpec(name="digits", params={"augment": "shift"}),
        model=ComponentSpec(name=case.get("model", "double_cnn")),
        optimizer=choice,
        data=DataSettings(validation=0.25),
        train=TrainSettings(epochs=1, batch_size=BATCH, clip_norm=case.get("clip_norm"), processes=processes),
        seed=0,
    )


def steps(case: dict[str, Any], group: ProcessGroup = ALONE) -> dict[str, Any]:
    """A few steps of a run, as this process sees them."""
    run = set_up(spec_of(case, group.size), CPU, group)
    augment = np.random.RandomState(0)
    run.network.train()
    losses = [run.step(batch, augment) for batch in run.batches(0)[:STEPS]]
    run.agree_on_work()
    return {"losses": torch.stack(losses), "weights": flat(run.model), "passes": run.passes}


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# ---- gradients that are not finite, or not there -------------------------------------------------------------


def spoilt(case: dict[str, Any], group: ProcessGroup) -> dict[str, Any]:
    """One step in which only the second process's first pass is spoilt, and one after it."""
    run = set_up(spec_of(case, group.size), CPU, group)
    before = flat(run.model)
    calls = itertools.count()
    parameter = next(run.model.parameters())
    hook = parameter.register_hook(  # type: ignore[no-untyped-call]
        lambda g: g * math.inf if group.rank == 1 and next(calls) == 0 else g
    )
    first, second, *_ = run.batches(0)
    run.step(first, np.random.RandomState(0))
    hook.remove()
    unmoved = torch.equal(flat(run.model), before)
    run.step(second, np.random.RandomState(0))
    skipped = run.optimizer.skipped_steps  # type: ignore[attr-defined]
    return {"unmoved": unmoved, "skipped": skipped, "weights": flat(run.model)}


def told_apart(group: ProcessGroup) -> dict[str, Any]:
    """A norm on the way that is not finite in the second process alone, while every gradient is."""
    run = set_up(spec_of({"method": "sam", "m": 32}, group.size), CPU, group)
    gradient = run.optimizer.gradient  # type: ignore[attr-defined]

    def without_a_norm(closure: Any) -> Any:
        loss, norm = gradient(closure)
        return loss, norm * math.inf if group.rank == 1 else norm

    run.optimizer.gradient = without_a_norm  # type: ignore[attr-defined]
    before = flat(run.model)
    run.step(run.batches(0)[0], np.random.RandomState(0))
    skipped = run.optimizer.skipped_steps  # type: ignore[attr-defined]
    return {"unmoved": torch.equal(flat(run.model), before), "skipped": skipped}


def partly_missing(group: ProcessGroup) -> dict[str, Any]:
    """One parameter's gradient everywhere, one's in the second process only, one's nowhere; in three dtypes."""
    parameters = [nn.Parameter(torch.zeros(3, dtype=d)) for d in (torch.float32, torch.float64, torch.float32)]
    parameters.append(nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)))
    parameters[0].grad = torch.full((3,), 1.0 + group.rank)
    if group.rank == 1:
        parameters[1].grad = torch.full((3,), 4.0, dtype=torch.float64)
    many = torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last)
    parameters[3].grad = many.clone(memory_format=torch.preserve_format)
    (mean,) = group.mean_gradients(parameters, torch.tensor(float(group.rank)))
    assert parameters[3].grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(parameters[3].grad, many)
    return {"mean": mean, "gradients": [p.grad for p in parameters[:3]]}


# ---- what the ascent of each process follows -----------------------------------------------------------------


def ascents(case: dict[str, Any], group: ProcessGroup) -> dict[str, Any]:
    """How far a step moved the weights on its way, and where it ended."""
    run = set_up(spec_of(case, group.size), CPU, group)
    seen: list[Tensor] = []
    run.model.register_forward_pre_hook(lambda module, inputs: seen.append(flat(run.model)))
    run.network.train()
    run.step(run.batches(0)[0], np.random.RandomState(0))
    return {"e": seen[1] - seen[0], "weights": flat(run.model)}


# ---- a user's own loop with DistributedDataParallel ----------------------------------------------------------


def users_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(STEPS, 32, 5, generator=generator, dtype=torch.float64), torch.arange(32) % 3


def users_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def users_loop(group: ProcessGroup, *, local: bool, spoil: bool = False, buckets: bool = False) -> dict[str, Any]:
    """With `buckets`, gradients are views of the memory that is sent, which the second pass's are written to."""
    model = users_model()
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=buckets)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), rho=0.2, model=model)
    inputs, targets = users_data()
    share = slice(16 * group.rank, 16 * (group.rank + 1))
    for step, x in enumerate(inputs):
        calls = itertools.count()

        def closure(x: Tensor = x, step: int = step, calls: Any = calls) -> Tensor:
            first = next(calls) == 0
            with ddp.no_sync() if local and first else nullcontext():
                optimizer.zero_grad()
                loss = F.cross_entropy(ddp(x[share]), targets[share])
                loss.backward()  # type: ignore[no-untyped-call]
            if spoil and first and step == 2 and group.rank == 1:
                gradient = model[0].weight.grad  # type: ignore[index]
                gradient[0, 0] = math.inf
            return loss

        optimizer.step(closure)
    return {"weights": flat(model), "skipped": optimizer.skipped_steps}


def users_fp16_loop(group: ProcessGroup, *, local: bool) -> dict[str, Any]:
    """Backward and step apart with a GradScaler: two micro-batches a step, or if local one, once spoilt in a process.

    Everything is in double precision all the same: what is tested is who scales, skips and backs off.
    """
    model = users_model()
    ddp = DistributedDataParallel(model)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), rho=0.2, model=model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    inputs, targets = users_data()
    share = slice(16 * group.rank, 16 * (group.rank + 1))
    for step, x in enumerate(inputs):
        optimizer.zero_grad()
        parts = [slice(0, 16)] if local else [slice(0, 8), slice(8, 16)]
        for part in parts:

            def closure(x: Tensor = x, part: slice = part, step: int = step) -> Tensor:
                with ddp.no_sync() if local and optimizer.first_pass else nullcontext():
                    loss = F.cross_entropy(ddp(x[share][part]), targets[share][part]) / (1 if local else 2)
                    if local and optimizer.first_pass and step == 2 and group.rank == 1:
                        loss = loss * math.inf
                    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                return loss

            optimizer.backward(closure)
        scaler.step(optimizer)
        scaler.update()
    return {"weights": flat(model), "scale": scaler.get_scale()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    moving.LARGE = 20  # as in nets that are not tiny
    register()
    found: dict[str, Any] = {}
    with joined(CPU) as group:
        tasks: dict[str, Callable[[], dict[str, Any]]] = {
            "spoilt, together": lambda: spoilt({"method": "sam"}, group),
            "spoilt, apart": lambda: spoilt({"method": "sam", "m": 16}, group),
            "told apart": lambda: told_apart(group),
            "partly missing": lambda: partly_missing(group),
            "ascents, together": lambda: ascents({"method": "sam"}, group),
            "ascents, apart": lambda: ascents({"method": "sam", "m": 32}, group),
            "user": lambda: users_loop(group, local=False),
            "user, local": lambda: users_loop(group, local=True),
            "user, buckets": lambda: users_loop(group, local=False, buckets=True),
            "user, local, buckets": lambda: users_loop(group, local=True, buckets=True),
            "user, spoilt": lambda: users_loop(group, local=True, spoil=True),
            "user, fp16, accumulating": lambda: users_fp16_loop(group, local=False),
            "user, fp16, spoilt": lambda: users_fp16_loop(group, local=True),
        }
        for name, case in CASES.items():
            found[name] = steps(case, group)
        for name, task in tasks.items():
            found[name] = task()
        found["largest"] = group.largest(7 * group.rank)
        found["from_first"] = group.from_first({"rank": group.rank, "nan": math.nan})
        found["gathered"] = group.gathered(group.rank)
    torch.save(found, folder / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
