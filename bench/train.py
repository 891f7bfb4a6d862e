"""THE training loop: one run, from its spec to its result. Read it top to bottom.

The same code runs for every task, model and optimizer; `optimizer.step(closure)` is all it knows of a method. A run
that is stopped anywhere goes on from its last checkpoint and ends with the same bits as one that never was.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.process_group import ALONE, Group
from bench.core.seeding import StreamState, continued, derive, numpy_stream, state_of
from bench.core.spec import PROTOCOL, RunSpec
from bench.optim.base.schedule import scheduler
from bench.store.run_folder import KEEP_WEIGHTS, RunFolder
from bench.tasks.base import Data, Task, sampled
from bench.training import checkpoint
from bench.training.environment import PeakMemory, describe
from bench.training.evaluate import evaluate
from bench.training.step import set_up

Report = Callable[[int, int, dict[str, float]], None]
"""Told after every epoch: epochs done, epochs in all, the newest measurements."""


ASK_EVERY = 4
"""Steps between two talks of processes on GPUs about stopping: a talk makes them wait for each other's hosts."""


EPOCH_SHARE = 0.1
"""Of the time between two checkpoints, how much must be over for one at the end of an epoch, after its evaluation."""


class Stopped(Exception):
    """The run was asked to stop; it has a checkpoint and goes on from there."""


class StopSign:
    """Whether a run is to stop: raised by signal handlers, looked at by the loop after every step.

    A plain flag. A second signal in the middle of `threading.Event.set` would wait for the first one, for ever.
    """

    def __init__(self) -> None:
        self.is_up = False

    def put_up(self, *_: object) -> None:
        """As a signal handler is called, or by anyone."""
        self.is_up = True


@dataclass
class Clocks:
    """What a run costs, summed over interruptions. Seconds are taken with the device synchronised."""

    setup_seconds: float = 0.0
    train_seconds: float = 0.0
    train_cpu_seconds: float = 0.0
    """CPU time of this process, all of its threads, in `train_seconds`: less than usual on a machine that is busy."""
    eval_seconds: float = 0.0
    passes: int = 0
    """Forward-backward passes over a batch."""
    examples: int = 0
    """Training examples that took part in a step."""
    tokens: int = 0
    """Tokens of these, without padding, where they are texts."""
    skipped_steps: int = 0
    """Steps left out because a gradient was not finite."""
    peak_memory_mb: float = 0.0
    resumes: int = 0


@dataclass
class Place:
    """Where in its epochs a run is, and what it has of the epoch so far.

    Attributes:
        step: steps of this epoch that are done.
        lr: at the beginning of the epoch.
        loss_sum: of its steps.
        augment: the state of its stream of augmentation; None at its beginning.
    """

    epoch: int = 0
    step: int = 0
    lr: float = 0.0
    loss_sum: float = 0.0
    augment: StreamState | None = None


def train(
    spec: RunSpec,
    folder: RunFolder,
    device: torch.device,
    report: Report = lambda done, epochs, measured: None,
    checkpoint_minutes: float = 5.0,
    stop: Callable[[], bool] = lambda: False,
    group: Group = ALONE,
    say: Callable[[str], None] = warnings.warn,
) -> dict[str, Any]:
    """Do one run, or what is left of it.

    Args:
        folder: where the run lives; claimed by the caller.
        device: where data and model live.
        report: called after every epoch.
        checkpoint_minutes: time between two checkpoints, which are written between two steps; an epoch that ends has
            one after a tenth of it.
        stop: asked after every step and every epoch; True makes a checkpoint and ends the work.
        group: the processes that do the run together, all of which call this (see `bench/distributed/launcher.py`): the
            first evaluates and writes; whoever is asked to stop stops all of them, after the same step.
        say: takes what the user should know although the run goes on: that a checkpoint was damaged.

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
    run = set_up(spec, device, group)
    model, optimizer, data = run.model, run.optimizer, run.data
    some = sampled(data.train, spec.train.eval_train)
    origin = {"data_fingerprint": data.fingerprint, "data_verified": data.verified, **_texts(data)}
    origin["initial_weights_sha256"] = weights_sha256(model)  # of a seed, or of a file of pretrained ones
    group.check_alike("initial weights", lambda: origin["initial_weights_sha256"])
    group.check_alike("data", lambda: data.fingerprint)
    folder.write_start(spec.model_dump_json(indent=1) + "\n", {**describe(device), "processes": group.size, **origin})
    epochs, steps = spec.train.epochs, run.steps
    warmup = spec.train.warmup_epochs * steps or round(spec.train.warmup_ratio * epochs * steps)
    schedule = scheduler(optimizer, epochs * steps, warmup, spec.train.schedule)
    torch.manual_seed(derive(spec.seed, "dropout", group.rank))

    # ---- resume ----------------------------------------------------------------------------------------------
    clocks, curve, place = Clocks(), [], Place()

    def restore(state: dict[str, Any]) -> None:
        nonlocal clocks, curve, place
        fresh = {"place": asdict(Place()), "clocks": asdict(Clocks()), "schedule": schedule.state_dict()}
        checkpoint.check_keys(state, {**fresh, "optimizer": optimizer.state_dict()})
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        checkpoint.set_random_state(state["random"], device)
        if not group.is_first:
            checkpoint.set_own(state["others"][group.rank - 1], model, device)
        clocks, curve, place = Clocks(**state["clocks"]), state["curve"], Place(**state["place"])
        run.work = state["work"]

    if checkpoint.resume(folder, device, group, restore, say):
        clocks.resumes += 1
    folder.write_curve(curve)
    skipped_before = clocks.skipped_steps
    if device.type == "cuda" or spec.train.compile:
        run.warm_up()
    clocks.setup_seconds += time.perf_counter() - started
    last_checkpoint, stopping, asked = time.monotonic(), False, itertools.count(1)

    def is_due(*, epoch_over: bool = False) -> bool:
        nonlocal stopping
        if group.size > 1 and device.type == "cuda" and not epoch_over and next(asked) % ASK_EVERY:
            return False
        late = time.monotonic() - last_checkpoint >= 60 * checkpoint_minutes * (EPOCH_SHARE if epoch_over else 1.0)
        word = group.largest(2 if stop() else int(late and group.is_first))
        stopping = word == 2
        return word > 0

    def save(place: Place) -> None:
        """Leave everything that the rest of the run hangs on; end the work here if that is asked."""
        nonlocal last_checkpoint
        group.check_alike("states of the optimizers", lambda: _sha256(_tensors(optimizer)))
        _, *others = group.gathered(checkpoint.own(model, device))
        state = {
            "run_id": spec.run_id,
            "place": asdict(place),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "random": checkpoint.random_state(device),
            "others": others,
            "clocks": asdict(clocks),
            "work": run.work,
            "curve": curve,
        }
        if group.is_first:
            checkpoint.save(folder, state)
        last_checkpoint = time.monotonic()
        if stopping:
            raise Stopped

    # ---- epochs ----------------------------------------------------------------------------------------------
    for epoch in range(place.epoch, epochs):
        if place.step == 0:
            place = Place(epoch, lr=optimizer.param_groups[0]["lr"])
        loss_sum = torch.tensor(place.loss_sum, device=device)
        batches, step = run.batches(epoch), place.step
        augment = continued(numpy_stream(spec.seed, "augment", epoch), place.augment)
        model.train()

        while step < steps:
            first = step
            with timed(clocks, "train_seconds", device):
                for batch in batches[first:]:
                    loss_sum += run.step(batch, augment)
                    schedule.step()
                    step += 1
                    if is_due():
                        break
            clocks.examples += (step - first) * run.batch_size
            clocks.tokens += sum(batch.tokens for batch in batches[first:step])
            clocks.passes = run.passes
            clocks.skipped_steps = skipped_before + getattr(optimizer, "skipped_steps", 0)
            clocks.peak_memory_mb = max(clocks.peak_memory_mb, memory.megabytes())
            if step < steps:
                save(Place(epoch, step, place.lr, loss_sum.item(), state_of(augment)))

        # ---- a loss that is not a number ends the run, and is told -------------------------------------------
        batch_loss = loss_sum.item() / steps
        if not math.isfinite(batch_loss):
            return _finish(spec, folder, clocks, curve, {"status": "diverged", "epochs_done": epoch + 1})

        # ---- measure, in eval mode on un-augmented data ------------------------------------------------------
        measured: dict[str, float] = {}
        if (epoch + 1) % spec.train.eval_every == 0 or epoch + 1 == epochs:
            with timed(clocks, "eval_seconds", device), run.measured_weights():
                last = epoch + 1 == epochs
                seen = data.train if last else some
                found = evaluate(model, run.task, data, run.autocast, seen) if group.is_first else {}
                measured = group.from_first(found)
                if last:  # the weights that were measured are the ones that the run ends with
                    final_sha256 = _end(model, folder, spec.run_id, keep=group.is_first)
            if not math.isfinite(measured["train_loss"]):
                return _finish(spec, folder, clocks, curve, {"status": "diverged", "epochs_done": epoch + 1})
            point = {"epoch": epoch + 1, "passes": clocks.passes, "train_seconds": clocks.train_seconds, "lr": place.lr}
            curve.append({**point, "batch_loss": batch_loss, **measured})
            folder.append_curve(curve[-1])
        report(epoch + 1, epochs, measured)
        place = Place(epoch + 1)
        if epoch + 1 < epochs and is_due(epoch_over=True):
            save(place)

    # ---- the result ------------------------------------------------------------------------------------------
    group.check_alike("weights", lambda: _sha256(dict(model.named_parameters())))
    done = {"status": "done", "epochs_done": epochs, "weights_sha256": final_sha256}
    return _finish(spec, folder, clocks, curve, done, metrics=_final_metrics(run.task, curve))


# ---- the parts -----------------------------------------------------------------------------------------------


@contextmanager
def timed(clocks: Clocks, name: str, device: torch.device) -> Iterator[None]:
    """Add the seconds inside to a clock, the device's work included."""
    synchronize(device)
    started, cpu = time.perf_counter(), time.process_time()
    yield
    synchronize(device)
    setattr(clocks, name, getattr(clocks, name) + time.perf_counter() - started)
    if name == "train_seconds":
        clocks.train_cpu_seconds += time.process_time() - cpu


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _texts(data: Data) -> dict[str, int]:
    """Of texts: how many there are, how many of them were too long, and to how many tokens those were cut."""
    if data.train.lengths is None:
        return {}
    splits = data.splits().values()
    counts = {"sequences": sum(map(len, splits)), "truncated": sum(split.cut for split in splits)}
    return {**counts, "max_tokens": max(split.inputs.shape[-1] for split in splits)}


def weights_sha256(model: nn.Module) -> str:
    """Return a fingerprint of all parameters and buffers, so that two runs can be compared bit for bit."""
    return _sha256(model.state_dict())


def _end(model: nn.Module, folder: RunFolder, run_id: str, *, keep: bool) -> str:
    """Return the fingerprint of the weights that are there, and write them where somebody has asked for them.

    Args:
        keep: whether this process is the one that writes.
    """
    sha256 = weights_sha256(model)
    if keep and os.environ.get(KEEP_WEIGHTS):
        checkpoint.keep_weights(folder.weights, model, {"run_id": run_id, "sha256": sha256})
    return sha256


def _tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimizer remembers of each parameter, by the parameter's number."""
    state = optimizer.state_dict()["state"]
    found = {f"{number} {name}": value for number, kept in state.items() for name, value in kept.items()}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _final_metrics(task: Task, curve: list[dict[str, Any]]) -> dict[str, float]:
    """Return the last epoch's numbers; where there is validation, also the test score of the epoch it would choose."""
    key, sign = task.metric.key, 1 if task.metric.higher_is_better else -1
    about = ("epoch", "passes", "train_seconds", "lr", "batch_loss")
    final = {name: value for name, value in curve[-1].items() if name not in about}
    if "val_loss" not in final:
        return final
    best = max(curve, key=lambda point: [*map(_rankable, (sign * point[f"val_{key}"], -point["val_loss"]))])
    selected = {f"selected_test_{key}": best[f"test_{key}"]} if "test_loss" in final else {}
    return {**final, "selected_epoch": best["epoch"], **selected}


def _rankable(value: float) -> float:
    """Return a number that is the better the higher; one that is not finite comes last."""
    return value if math.isfinite(value) else -math.inf


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
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "metrics": metrics or {},
    }
    folder.write_result(result, curve)
    return result
