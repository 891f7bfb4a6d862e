"""THE training loop: one run, from its spec to its result. Read it top to bottom.

The same code runs for every task, model and optimizer; `optimizer.step(closure)` is all it knows of a method. A run
that is stopped anywhere goes on from its last checkpoint and ends with the same bits as one that never was.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.process_group import ALONE, ProcessGroup
from bench.core.run_options import DEFAULTS, RunOptions
from bench.core.seeding import continued, derive, numpy_stream, seed_global
from bench.core.spec import PROTOCOL, RunSpec
from bench.optim.base.schedule import Scheduler
from bench.store.columns import PROGRESS
from bench.store.run_folder import RunFolder
from bench.tasks.base import Data, Task, sampled
from bench.training import checkpoint
from bench.training.draws import Draws
from bench.training.environment import PeakMemory, describe
from bench.training.evaluate import evaluate
from bench.training.state import Clocks, Progress, TrainingState
from bench.training.step import TrainingRun, set_up

Report = Callable[[int, int, dict[str, float]], None]
"""Called after every epoch with the epochs done, the number of epochs and the newest measurements."""


ASK_EVERY = 4
"""Steps between two exchanges about stopping among processes on GPUs: each exchange waits for all hosts."""


EPOCH_SHARE = 0.1
"""Share of the checkpoint interval that must have passed for a checkpoint at the end of an epoch."""


class Stopped(Exception):
    """The run was asked to stop; it has a checkpoint and can be resumed."""


class StopSign:
    """A request to stop a run: set by signal handlers, read by the loop after every step.

    A plain flag. A second signal in the middle of `threading.Event.set` would wait for the first one, for ever.
    """

    def __init__(self) -> None:
        self.is_up = False

    def put_up(self, *_: object) -> None:
        """Request the stop; the arguments of a signal handler are ignored."""
        self.is_up = True


def train(
    spec: RunSpec,
    folder: RunFolder,
    device: torch.device,
    report: Report = lambda done, epochs, measured: None,
    options: RunOptions = DEFAULTS,
    stop: Callable[[], bool] = lambda: False,
    group: ProcessGroup = ALONE,
    say: Callable[[str], None] = warnings.warn,
) -> dict[str, Any]:
    """Do one run, or what is left of it.

    Args:
        folder: where the run lives; claimed by the caller.
        device: where data and model live.
        spec: the run; all that decides its numbers.
        report: called after every epoch; the measurements are empty where the epoch is not evaluated.
        options: how often checkpoints are written (between two steps, and at the end of an epoch after a tenth of that
            time), and whether the final weights are kept.
        stop: asked after every step (every fourth on several GPUs) and every epoch; True makes a checkpoint and ends
            the work.
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
    started, memory = time.perf_counter(), PeakMemory(device)  # before data and model, which are part of the peak
    run = set_up(spec, device, group)
    # What evaluations before the last epoch measure: the same for all runs that train on the same examples.
    some = sampled(run.data.train, spec.train.eval_train)
    _write_start(spec, run, folder, device)
    state = TrainingState(spec.run_id, run, schedule_of(spec, run), device)
    # By rank: with one stream for all, the parts of a batch would have the same dropout masks.
    seed_global(derive(spec.seed_for("dropout"), "dropout", group.rank))

    # ---- resume ----------------------------------------------------------------------------------------------
    if checkpoint.resume(folder, device, group, state.load_state_dict, say):
        state.clocks.resumes += 1
    folder.write_curve(state.curve)  # without the points after the checkpoint, which are measured again
    if device.type == "cuda" or spec.train.compile:
        run.warm_up()  # on the clock of the set-up: the first steps are as fast as the others
    state.clocks.setup_seconds += time.perf_counter() - started
    timer = CheckpointTimer(options.checkpoint_minutes, stop, group, device)

    # ---- epochs ----------------------------------------------------------------------------------------------
    epochs = spec.train.epochs
    for epoch in range(state.progress.epoch, epochs):
        last = epoch + 1 == epochs
        if state.progress.step == 0:
            state.progress = Progress(epoch, lr=run.optimizer.param_groups[0]["lr"])
        while state.progress.step < run.steps:
            take_steps(state, timer, memory)
            if state.progress.step < run.steps or timer.stopping:  # an evaluation may take longer than a stop may wait
                save(state, folder, timer)

        # ---- a loss that is not a number ends the run, and is told -------------------------------------------
        # Also where a wrapper has skipped the step and kept its weights: a plain base cannot, and one rule is for all.
        batch_loss = state.progress.loss_sum / run.steps
        if not math.isfinite(batch_loss):
            return _finish(folder, state, {"status": "diverged", "epochs_done": epoch + 1})

        # ---- measure, in eval mode on un-augmented data ------------------------------------------------------
        measured: dict[str, float] = {}
        if last or (epoch + 1) % spec.train.eval_every == 0:
            with timed(state.clocks, "eval_seconds", device), run.measured_weights():
                seen = run.data.train if last else some
                own = (
                    evaluate(run.model, run.task, run.data, run.autocast, seen, run.compiled) if group.is_first else {}
                )
                measured = group.from_first(own)
                # The weights that were measured are the ones that the run ends with; a diverged run keeps none.
                if last and math.isfinite(measured["train_loss"]):
                    final_sha256 = weights_sha256(run.model)
                    if options.keep_weights and group.is_first:
                        about = {"run_id": spec.run_id, "sha256": final_sha256}
                        checkpoint.keep_weights(folder.weights, run.model, about)
            if not math.isfinite(measured["train_loss"]):
                return _finish(folder, state, {"status": "diverged", "epochs_done": epoch + 1})
            state.curve.append({**_point(state), "batch_loss": batch_loss, **measured})
            folder.append_curve(state.curve[-1])
        report(epoch + 1, epochs, measured)
        state.progress = Progress(epoch + 1)
        if not last and timer.is_due(epoch_over=True):
            save(state, folder, timer)

    # ---- the result ------------------------------------------------------------------------------------------
    # Only the first process has been evaluated: its numbers are the run's as long as all have the same weights.
    group.check_alike("weights", lambda: _sha256(dict(run.model.named_parameters())))
    done = {"status": "done", "epochs_done": epochs, "weights_sha256": final_sha256}
    return _finish(folder, state, done, metrics=_final_metrics(run.task, state.curve))


# ---- the parts -----------------------------------------------------------------------------------------------


def take_steps(state: TrainingState, timer: CheckpointTimer, memory: PeakMemory) -> None:
    """Take steps until the epoch is over or a checkpoint is due; `state.progress` tells afterwards which.

    The sum of losses and the stream of augmentation come from `state.progress` and go back there to the bit, so that a
    run that goes on after writing a checkpoint and a run that is resumed from it end with the same bits.
    """
    run, clocks, progress = state.run, state.clocks, state.progress
    batches = run.batches(progress.epoch)[progress.step :]
    augment = continued(numpy_stream(run.seed_for("augment"), "augment", progress.epoch), progress.augment)
    draws = Draws(run.task, batches, augment, state.device)
    loss_sum = torch.tensor(progress.loss_sum, device=state.device)  # to add floats would wait for every step
    done = 0
    run.model.train()
    with timed(clocks, "train_seconds", state.device):
        for batch, drawn in zip(batches, draws, strict=True):
            loss_sum += run.step(batch, drawn)
            state.schedule.step()
            done += 1
            if timer.is_due():
                break
    clocks.examples += done * run.batch_size
    clocks.tokens += sum(batch.tokens for batch in batches[:done])
    clocks.passes = run.passes
    # The optimizer's own counter is not in a checkpoint: it starts from 0 after a resume.
    clocks.skipped_steps = state.skipped_before + getattr(run.optimizer, "skipped_steps", 0)
    clocks.peak_memory_mb = max(clocks.peak_memory_mb, memory.megabytes())
    step = progress.step + done
    state.progress = Progress(progress.epoch, step, progress.lr, loss_sum.item(), draws.state_after(done))


class CheckpointTimer:
    """A timer for checkpoints: one is due some minutes after the last one, or when the run is asked to stop.

    Attributes:
        stopping: whether the run had been asked to stop at the last check.
    """

    def __init__(self, minutes: float, stop: Callable[[], bool], group: ProcessGroup, device: torch.device) -> None:
        self.seconds = 60 * minutes
        self.stop = stop
        self.group = group
        self.stopping = False
        self._talks_every = ASK_EVERY if group.size > 1 and device.type == "cuda" else 1
        self._asked = itertools.count(1)
        self._last = time.monotonic()

    def is_due(self, *, epoch_over: bool = False) -> bool:
        """Return whether a checkpoint is due, the same in all processes; all must ask after the same step."""
        if not epoch_over and next(self._asked) % self._talks_every:
            return False
        late = time.monotonic() - self._last >= self.seconds * (EPOCH_SHARE if epoch_over else 1.0)
        # The largest counts: a stop that any of them is asked for, before a checkpoint due by the first one's clock.
        word = self.group.largest(2 if self.stop() else int(late and self.group.is_first))
        self.stopping = word == 2
        return word > 0

    def restart(self) -> None:
        """Restart the timer after a checkpoint was written."""
        self._last = time.monotonic()


def save(state: TrainingState, folder: RunFolder, timer: CheckpointTimer) -> None:
    """Write a checkpoint.

    Raises:
        Stopped: the run was asked to stop; its checkpoint is written.
    """
    group, optimizer = state.run.group, state.run.optimizer
    # Only the first one's state is in the file, and all of them will go on from it.
    group.check_alike("states of the optimizers", lambda: _sha256(_tensors(optimizer)))
    content = state.state_dict()
    if group.is_first:
        checkpoint.save(folder, content)
    timer.restart()
    if timer.stopping:
        raise Stopped


@contextmanager
def timed(clocks: Clocks, name: str, device: torch.device) -> Iterator[None]:
    """Add the seconds inside to a clock, the device's work included."""
    synchronize(device)  # what the device has still to do from before is on another clock
    started, cpu = time.perf_counter(), time.process_time()
    yield
    synchronize(device)
    setattr(clocks, name, getattr(clocks, name) + time.perf_counter() - started)
    if name == "train_seconds":
        clocks.train_cpu_seconds += time.process_time() - cpu


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _write_start(spec: RunSpec, run: TrainingRun, folder: RunFolder, device: torch.device) -> None:
    """Record what the run starts from, which has to be the same in all of its processes."""
    data = run.data
    origin = {"data_fingerprint": data.fingerprint, "data_verified": data.verified, **_texts(data)}
    origin["initial_weights_sha256"] = weights_sha256(run.model)  # of a seed, or of a file of pretrained ones
    run.group.check_alike("initial weights", lambda: origin["initial_weights_sha256"])
    run.group.check_alike("data", lambda: data.fingerprint)
    environment = {**describe(device), "processes": run.group.size, **origin}
    folder.write_start(spec.model_dump_json(indent=1) + "\n", environment)


def schedule_of(spec: RunSpec, run: TrainingRun) -> Scheduler:
    """Return the schedule of a run's lr, before its first step."""
    total = spec.train.epochs * run.steps
    # In steps. A spec sets at most one of the two (`TrainSettings._one_warmup`).
    warmup = spec.train.warmup_epochs * run.steps or round(spec.train.warmup_ratio * total)
    return Scheduler(run.optimizer, total, warmup, spec.train.schedule)


def _point(state: TrainingState) -> dict[str, float]:
    """Return the fields of a curve point other than the measurements."""
    clocks, progress = state.clocks, state.progress
    passes, seconds = clocks.passes, clocks.train_seconds
    return {"epoch": progress.epoch + 1, "passes": passes, "train_seconds": seconds, "lr": progress.lr}


def _texts(data: Data) -> dict[str, int]:
    """Return the counts of texts: all, those that were too long, and the number of tokens those were cut to."""
    if data.train.lengths is None:
        return {}
    splits = data.splits().values()
    counts = {"sequences": sum(map(len, splits)), "truncated": sum(split.cut for split in splits)}
    return {**counts, "max_tokens": max(split.inputs.shape[-1] for split in splits)}


def weights_sha256(model: nn.Module) -> str:
    """Return a fingerprint of all parameters and buffers, so that two runs can be compared bit for bit."""
    return _sha256(model.state_dict())


def _tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state, by parameter number and name."""
    state = optimizer.state_dict()["state"]
    values = {f"{number} {name}": value for number, kept in state.items() for name, value in kept.items()}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        # As bytes: numpy has no bf16.
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _final_metrics(task: Task, curve: list[dict[str, Any]]) -> dict[str, float]:
    """Return the last epoch's numbers; where there is validation, also the test score of the epoch it would choose."""
    key, sign = task.metric.key, 1 if task.metric.higher_is_better else -1
    final = {name: value for name, value in curve[-1].items() if name not in PROGRESS}
    if "val_loss" not in final:
        return final
    # The best validation score, then the lowest validation loss, then the earliest epoch (`max` returns the first).
    best = max(curve, key=lambda point: [*map(_rankable, (sign * point[f"val_{key}"], -point["val_loss"]))])
    selected = {f"selected_test_{key}": best[f"test_{key}"]} if "test_loss" in final else {}
    return {**final, "selected_epoch": best["epoch"], **selected}


def _rankable(value: float) -> float:
    """Return the value as a key for `max`; a value that is not finite becomes -inf, the worst."""
    return value if math.isfinite(value) else -math.inf


def _finish(
    folder: RunFolder, state: TrainingState, outcome: dict[str, Any], metrics: dict[str, float] | None = None
) -> dict[str, Any]:
    result = {
        "run_id": state.run_id,
        "protocol": PROTOCOL,
        **outcome,
        **asdict(state.clocks),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "metrics": metrics or {},
    }
    folder.write_result(result, state.curve)
    return result
