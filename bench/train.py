"""THE training loop: one run, from its spec to its result. Read it top to bottom.

The same code runs for every task, model and optimizer; `optimizer.step(closure)` is all it knows of a method. A run
that is stopped anywhere goes on from its last checkpoint and ends with the same bits as one that never was.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import checkpoint
from bench.environment import PeakMemory, describe
from bench.errors import BenchError
from bench.evaluate import evaluate
from bench.optim.method import Method
from bench.optim.schedule import scheduler
from bench.registry import load_builtins, load_plugin, models, optimizers, tasks
from bench.seeding import derive, numpy_stream, torch_stream
from bench.spec import PROTOCOL, RunSpec
from bench.store import RunFolder
from bench.tasks.base import Task, prepare

Report = Callable[[int, int, dict[str, float]], None]
"""Told after every epoch: epochs done, epochs in all, the newest measurements."""


class Stopped(Exception):
    """The run was asked to stop; it has a checkpoint and goes on from there."""


@dataclass
class Clocks:
    """What a run costs, summed over interruptions. Seconds are taken with the device synchronised."""

    setup_seconds: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    passes: int = 0
    """Forward-backward passes over a batch."""
    examples: int = 0
    """Training examples that took part in a step."""
    skipped_steps: int = 0
    """Steps left out because a gradient was not finite."""
    peak_memory_mb: float = 0.0
    resumes: int = 0


def train(
    spec: RunSpec,
    folder: RunFolder,
    device: torch.device,
    report: Report = lambda done, epochs, measured: None,
    checkpoint_seconds: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Do one run, or what is left of it.

    Args:
        folder: where the run lives; claimed by the caller.
        device: where data and model live.
        report: called after every epoch.
        checkpoint_seconds: least time between two checkpoints; they are written between epochs.
        stop: asked after every epoch; True makes a checkpoint and ends the work.

    Returns:
        The content of result.json, which is written last.

    Raises:
        BenchError: data, model or checkpoint do not fit; nothing is recorded as a result.
        StorageError: the disk refuses.
        Stopped: `stop` said so.
    """
    # ---- set-up: data, model and optimizer, each from its own random stream ----------------------------------
    started = time.perf_counter()
    memory = PeakMemory(device)
    task = load_task(spec)
    data = prepare(task, spec.data, spec.seed)
    folder.write_start(
        spec.model_dump_json(indent=1) + "\n", {**describe(device), "data_fingerprint": data.fingerprint}
    )
    data = data.to(device)
    train_data = data.train
    batch_size = min(spec.train.batch_size, len(train_data))
    steps = steps_per_epoch(len(train_data), spec.train.batch_size)
    epochs = spec.train.epochs

    torch.manual_seed(derive(spec.seed, "init"))
    model: nn.Module = models[spec.model.name].factory(task, **spec.model.params).to(device)
    optimizer = build_optimizer(spec, model)
    schedule = scheduler(optimizer, epochs * steps, spec.train.warmup_epochs * steps, spec.train.schedule)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=spec.train.precision == "bf16")
    torch.manual_seed(derive(spec.seed, "dropout"))

    # ---- resume ----------------------------------------------------------------------------------------------
    clocks, curve, first_epoch = Clocks(), [], 0
    if folder.checkpoint.exists():
        state = checkpoint.load(folder.checkpoint, spec.run_id, device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        checkpoint.set_random_state(state["random"], device)
        clocks, curve, first_epoch = Clocks(**state["clocks"]), state["curve"], state["epochs_done"]
        clocks.resumes += 1
    folder.write_curve(curve)
    skipped_before = clocks.skipped_steps
    clocks.setup_seconds += time.perf_counter() - started
    last_checkpoint = time.monotonic()

    # ---- epochs ----------------------------------------------------------------------------------------------
    for epoch in range(first_epoch, epochs):
        lr = optimizer.param_groups[0]["lr"]
        loss_sum = torch.zeros((), device=device)
        model.train()

        with timed(clocks, "train_seconds", device):
            order = torch.from_numpy(numpy_stream(spec.seed, "order", epoch).permutation(len(train_data))).to(device)
            augment = torch_stream(spec.seed, "augment", device, epoch)
            for step in range(steps):
                batch = order[step * batch_size : (step + 1) * batch_size]
                inputs = task.model_inputs(train_data.inputs[batch], augment)
                targets = train_data.targets[batch]

                def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
                    optimizer.zero_grad()
                    with autocast:
                        outputs = model(inputs)
                    loss = task.losses(outputs.float(), targets).mean()
                    loss.backward()  # type: ignore[no-untyped-call]
                    clocks.passes += 1
                    return loss

                loss: Tensor = optimizer.step(closure)  # type: ignore[arg-type, assignment]  # typed for floats
                loss_sum += loss.detach()
                schedule.step()
        clocks.examples += steps * batch_size
        clocks.skipped_steps = skipped_before + getattr(optimizer, "skipped_steps", 0)
        clocks.peak_memory_mb = max(clocks.peak_memory_mb, memory.megabytes())

        # ---- a loss that is not a number ends the run, and is told -------------------------------------------
        batch_loss = loss_sum.item() / steps
        if not math.isfinite(batch_loss):
            return _finish(spec, folder, clocks, curve, {"status": "diverged", "epochs_done": epoch + 1})

        # ---- measure, in eval mode on un-augmented data ------------------------------------------------------
        measured: dict[str, float] = {}
        if (epoch + 1) % spec.train.eval_every == 0 or epoch + 1 == epochs:
            with timed(clocks, "eval_seconds", device):
                measured = evaluate(model, task, data, autocast)
            if not math.isfinite(measured["train_loss"]):
                return _finish(spec, folder, clocks, curve, {"status": "diverged", "epochs_done": epoch + 1})
            point = {"epoch": epoch + 1, "passes": clocks.passes, "train_seconds": clocks.train_seconds, "lr": lr}
            curve.append({**point, "batch_loss": batch_loss, **measured})
            folder.append_curve(curve[-1])
        report(epoch + 1, epochs, measured)

        # ---- checkpoint --------------------------------------------------------------------------------------
        stopping = epoch + 1 < epochs and stop()
        if stopping or (epoch + 1 < epochs and time.monotonic() - last_checkpoint >= checkpoint_seconds):
            state = {
                "run_id": spec.run_id,
                "epochs_done": epoch + 1,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "random": checkpoint.random_state(device),
                "clocks": asdict(clocks),
                "curve": curve,
            }
            checkpoint.save(folder.checkpoint, state)
            last_checkpoint = time.monotonic()
        if stopping:
            raise Stopped

    # ---- the result ------------------------------------------------------------------------------------------
    done = {"status": "done", "epochs_done": epochs, "weights_sha256": weights_sha256(model)}
    return _finish(spec, folder, clocks, curve, done, metrics=_final_metrics(task, curve))


# ---- the parts -----------------------------------------------------------------------------------------------


def load_task(spec: RunSpec) -> Task:
    """The task, with the registries filled and the plug-ins that the spec uses loaded and found unchanged.

    Raises:
        BenchError: a plug-in is missing or not the file that the run was planned with.
    """
    load_builtins()
    for planned in spec.plugins:
        if load_plugin(Path(planned.path)).sha256 != planned.sha256:
            raise BenchError(f"plug-in {planned.path} has changed since this run was planned; plan it again")
    task: Task = tasks[spec.task.name].factory(**spec.task.params)
    return task


def build_optimizer(spec: RunSpec, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a spec over the model's parameters, a method around its base where it has one."""
    choice, parameters = spec.optimizer, [p for p in model.parameters() if p.requires_grad]
    factory = optimizers[choice.name].factory
    optimizer: torch.optim.Optimizer
    if choice.base is None:
        optimizer = factory(parameters, **choice.params)
    else:
        base = optimizers[choice.base.name].factory(parameters, **choice.base.params)
        optimizer = factory(base, model, **choice.params)
    if spec.train.clip_norm is not None:
        optimizer = optimizer if isinstance(optimizer, Method) else Method(optimizer)
        optimizer.clip_norm = spec.train.clip_norm
    return optimizer


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Full batches in an epoch; a set smaller than a batch is one batch."""
    return max(1, examples // batch_size)


@contextmanager
def timed(clocks: Clocks, name: str, device: torch.device) -> Iterator[None]:
    """Add the seconds inside to a clock, the device's work included."""
    synchronize(device)
    started = time.perf_counter()
    yield
    synchronize(device)
    setattr(clocks, name, getattr(clocks, name) + time.perf_counter() - started)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def weights_sha256(model: nn.Module) -> str:
    """A fingerprint of all parameters and buffers, so that two runs can be compared bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _final_metrics(task: Task, curve: list[dict[str, Any]]) -> dict[str, float]:
    """The last epoch's numbers, and beside them the test score of the epoch that validation would have chosen."""
    key, sign = task.metric.key, 1 if task.metric.higher_is_better else -1
    best = max(curve, key=lambda point: (sign * point[f"val_{key}"], -point["val_loss"]))
    about = ("epoch", "passes", "train_seconds", "lr", "batch_loss")
    final = {name: value for name, value in curve[-1].items() if name not in about}
    return {**final, "selected_epoch": best["epoch"], f"selected_test_{key}": best[f"test_{key}"]}


def _finish(
    spec: RunSpec,
    folder: RunFolder,
    clocks: Clocks,
    curve: list[dict[str, Any]],
    outcome: dict[str, Any],
    metrics: dict[str, float] | None = None,
) -> dict[str, Any]:
    result = {
        "run_id": spec.run_id,
        "protocol": PROTOCOL,
        **outcome,
        **asdict(clocks),
        "metrics": metrics or {},
    }
    folder.write_result(result, curve)
    return result
