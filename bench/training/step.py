"""One run's data, model and optimizer, built from its spec, and the step that all of them take together.

Over several processes each has an equal share of every batch. Each makes the random draws of the whole batch, so that a
run has the same examples, augmented alike, in however many processes: it computes the same, up to the rounding of sums.
Two kinds of models are the exception: batch norm takes its statistics over a process's share (with m, over m examples,
as in one process) and is evaluated with those that the first process has gathered, and each process draws dropout masks
of its own, from a stream of the seed and its rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.core.process_group import ALONE, ProcessGroup
from bench.core.registry import load_builtins, load_plugin, models, optimizers, tasks
from bench.core.seeding import Stream, derive, numpy_stream, seed_global
from bench.core.spec import OptimizerSpec, RunSpec
from bench.data import batching
from bench.data.batching import Batch
from bench.data.datasets import user_files_sha256
from bench.optim.base.averaging import evaluation_weights, to_training
from bench.optim.base.closures import Closure
from bench.optim.base.forward_state import kept_buffers
from bench.optim.base.side_effects import rewinder
from bench.optim.base.wrapper import OptimizerWrapper
from bench.tasks.base import Data, Task, prepare_data
from bench.training.draws import Drawn
from bench.training.encoding import encoder
from bench.training.evaluate import compilable, outputs
from bench.training.precision import compilation_errors_told, compiled, set_precision


@dataclass
class TrainingRun:
    """All that the steps of one run need, on its device.

    Attributes:
        network: what training passes go through: the model, or its compiled twin.
        seed_for: gives the seed of a random stream.
        steps: steps in an epoch.
        batch_size: examples per step, in all processes together.
        part_size: examples per closure: m for a method that has one, else this process's share of the batch.
        together: whether closures leave the mean gradient of all processes, as for one perturbation of the whole batch;
            if not, the method perturbs in each by itself, and only its final gradients are averaged.
        warm_up_passes: passes until nothing is compiled or chosen any more.
        keeps_code: whether what is compiled for it stays for the next run of its kind in this process.
        cuda_graphs: whether passes are replayed on a GPU, each overwriting the outputs and gradients of the one before.
        work: passes over a batch that this process has done its share of; a forward pass alone counts as a third.
    """

    task: Task
    data: Data
    model: nn.Module
    network: nn.Module
    optimizer: torch.optim.Optimizer
    autocast: torch.autocast
    seed_for: Callable[[Stream], int]
    batch_size: int
    steps: int
    part_size: int
    warm_up_passes: int
    group: ProcessGroup = ALONE
    together: bool = True
    keeps_code: bool = False
    cuda_graphs: bool = False
    work: float = 0.0

    @property
    def compiled(self) -> nn.Module | None:
        """Return the model's compiled twin; None if there is none."""
        return None if self.network is self.model else self.network

    @property
    def passes(self) -> int:
        """Return the forward-backward passes over a batch so far, of all processes together."""
        return round(self.work * self.group.size)

    def agree_on_work(self) -> None:
        """Take the mean of all processes' work: a method may decide on its passes in each of them by itself."""
        everyones = self.group.gathered(self.work)
        self.work = sum(everyones) / len(everyones)

    def batches(self, epoch: int) -> list[Batch]:
        """Return the batches of an epoch: the same for every optimizer with this seed."""
        return batching.epoch(self.data.train, numpy_stream(self.seed_for("order"), "order", epoch), self.batch_size)

    def step(self, batch: Batch, drawn: Drawn) -> Tensor:
        """Make one update on a batch; return the loss before it, still on its way from the device.

        Args:
            drawn: the numbers of its augmentation, or the stream to draw them from.

        Raises:
            BenchError: the optimizer returns no loss, so that it may not have evaluated the closure.
        """
        loss: Any = self.optimizer.step(self._closures(batch, drawn))  # type: ignore[arg-type]
        if not isinstance(loss, Tensor):
            raise BenchError(
                f"{type(self.optimizer).__name__}.step(closure) returned {_a(loss)}: it has to evaluate the closure, "
                "which leaves the gradients, and return its loss, as torch's optimizers do"
            )
        return loss.detach()

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _closures(self, batch: Batch, drawn: Drawn) -> Closure | list[Closure]:
        # Every process augments the whole batch, then takes its share: their number does not change the examples.
        share = self.batch_size // self.group.size
        ours = slice(self.group.rank * share, (self.group.rank + 1) * share)
        draws_itself = isinstance(drawn, np.random.RandomState)
        augment: Any = self.task.training_batch if draws_itself else self.task.augmented
        inputs, targets = (part[ours] for part in augment(*batch.of(self.data.train), drawn))
        make = self._losses if getattr(self.optimizer, "takes_losses", False) else self._closure
        if self.part_size == share:
            return make(inputs, targets)
        # One closure for every m examples: the method perturbs for each of them by itself.
        parts = zip(torch.split(inputs, self.part_size), torch.split(targets, self.part_size), strict=True)
        return [make(*part) for part in parts]

    def _closure(self, inputs: Tensor, targets: Tensor) -> Closure:
        losses = self._losses(inputs, targets)

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            if getattr(self.optimizer, "loss_only", False):  # XSAM compares losses: a third of a pass each
                with torch.no_grad():
                    loss: Tensor = losses().mean()
                    return loss
            loss = losses().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            # In every pass, so that the method sees what one process with the whole batch would see.
            if self.together:
                (loss,) = self.group.mean_gradients(self.parameters, loss)
            return loss

        return closure

    def _losses(self, inputs: Tensor, targets: Tensor) -> Closure:
        """Return a closure that gives the loss of each example, for a method that calls backward itself."""

        def losses(examples: Tensor | None = None) -> Tensor:
            x, y = (inputs, targets) if examples is None else (inputs[examples], targets[examples])
            if self.cuda_graphs:
                # What earlier passes have left may be overwritten.
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            with self.autocast:
                outputs = self.network(x)
            # A part of the batch counts as that part; a forward pass alone as a third of one with its backward pass.
            self.work += len(x) / self.batch_size * (1 if torch.is_grad_enabled() else 1 / 3)
            # Losses are computed in fp32 and outside of autocast, whatever the precision of the model.
            # A copy where a replay overwrites outputs: losses may be views of them, and ESAM keeps these for a pass.
            outputs = outputs.to(torch.float32, copy=self.cuda_graphs)
            if getattr(self.optimizer, "takes_logits", False):
                outputs = self.optimizer.logits(outputs)  # type: ignore[attr-defined]
            return self.task.losses(outputs, y)

        return losses

    @contextmanager
    def measured_weights(self, batches: int | None = None) -> Iterator[None]:
        """Put in the weights that the optimizer keeps for evaluation, if it keeps any, in this context.

        Args:
            batches: over how many batches batch norm's statistics are taken anew; None: all of an epoch.
        """

        def inputs() -> Iterator[Tensor]:
            # In an order of its own: an evaluation takes nothing from the run's random streams.
            for batch in batching.epoch(self.data.train, np.random.RandomState(0), self.batch_size)[:batches]:
                yield self.task.model_inputs(batch.of(self.data.train)[0])

        with ExitStack() as weights:
            with self.autocast:  # only where batch norm's statistics are taken
                weights.enter_context(evaluation_weights(self.optimizer, self.model, inputs()))
            yield

    def warm_up(self) -> None:
        """Compile the model and choose every kernel before times are measured; nothing else changes.

        Raises:
            BenchError: the model cannot be compiled on this machine.
        """
        rewind, work = rewinder([self.data.train.targets]), self.work
        inputs, targets = self.task.training_batch(*self.batches(0)[0].of(self.data.train), np.random.RandomState(0))
        # Passes without a step: neither the weights nor the optimizer's state change.
        closure = self._closure(inputs[: self.part_size], targets[: self.part_size])
        one = self.data.train[torch.arange(1, device=self.data.train.targets.device)]
        # Only the first process evaluates.
        splits = self.data.splits().values() if self.compiled is not None and self.group.is_first else ()
        evaluations = self.warm_up_passes if any(compilable(self.task, split) for split in splits) else 0
        with kept_buffers(self.model), compilation_errors_told():
            self.network.eval()
            for _ in range(evaluations):
                outputs(self.network, self.task, one, self.autocast, fixed=True)
            self.network.train()
            for _ in range(self.warm_up_passes):
                closure()
        self.optimizer.zero_grad()
        self.work = work
        rewind()


def load(spec: RunSpec, device: torch.device) -> tuple[Task, Data]:
    """Return the task of a run and its data, prepared and on its device."""
    task = load_task(spec)
    return task, prepare_data(task, spec.data, spec.seed_for("noise"), encoder(spec, task), spec.phase).to(device)


def set_up(
    spec: RunSpec, device: torch.device, group: ProcessGroup = ALONE, loaded: tuple[Task, Data] | None = None
) -> TrainingRun:
    """Return a run with its data, model and optimizer, the model's weights drawn from the seed's stream.

    Args:
        group: the processes that do it; each of them calls this.
        loaded: what `load` has given, for this spec or for another of the same data and seed.

    Raises:
        BenchError: data or model do not fit the spec, or there are not as many processes as it says.
    """
    # 1. Check, before anything is loaded.
    if spec.train.compile == "auto":
        raise BenchError('train.compile = "auto" is decided by `bench run`; set true or false for a single run')
    if group.size != spec.train.processes:
        raise BenchError(f"train.processes = {spec.train.processes}, but this run has {group.size}")
    # 2. Load the data, set the precision, draw the model.
    task, data = loaded or load(spec, device)
    autocast = set_precision(spec.train, device)
    # Right before the model: whatever draws in between changes its weights.
    seed_global(derive(spec.seed_for("init"), "init"))
    model: nn.Module = models[spec.model.name].build(task, **spec.model.params)
    if not isinstance(model, nn.Module):
        raise BenchError(f"{spec.model.name} cannot be built: its factory returns {_a(model)}, not a torch.nn.Module")
    # Drawn on the host, so that a seed gives the same weights on every device.
    model = model.to(device).to(memory_format=task.memory_format)
    # 3. Build the optimizer and tell it what it must know of the run.
    optimizer = build_optimizer(spec, model)
    # Before the first step: schedule-free optimizers keep other weights for training than for evaluation.
    to_training(optimizer)
    batch_size = min(spec.train.batch_size, len(data.train))
    steps = steps_per_epoch(len(data.train), spec.train.batch_size)
    if isinstance(optimizer, OptimizerWrapper):
        optimizer.total_steps = spec.train.epochs * steps
        optimizer.seed = derive(spec.seed_for("direction"), "direction")
    # 4. Decide how steps are computed.
    part_size, together = share_out(optimizer, batch_size, group)
    # Batches of texts differ in width, unless they are packed: code for them is compiled per run and not kept.
    dynamic = data.train.lengths is not None and task.block is None
    code = None if dynamic else _code(spec, optimizer, part_size, device)
    return TrainingRun(
        task=task,
        data=data,
        model=model,
        network=compiled(model, spec.train, dynamic=dynamic, code=code),
        optimizer=optimizer,
        autocast=autocast,
        seed_for=spec.seed_for,
        batch_size=batch_size,
        steps=steps,
        part_size=part_size,
        warm_up_passes=3 if spec.train.cuda_graphs else 1,  # CUDA graphs: compiled, then recorded, then replayed
        group=group,
        together=together,
        keeps_code=spec.train.compile and code is not None,
        cuda_graphs=spec.train.cuda_graphs,
    )


def _code(spec: RunSpec, optimizer: torch.optim.Optimizer, part_size: int, device: torch.device) -> str | None:
    """Return a key of the code that torch compiles for a run; None if the code also depends on the run's course.

    Batches of many widths, and a method that takes the losses of some examples, have torch compile for one shape after
    another until it stops; CUDA graphs are bound to the memory of one run.
    """
    if spec.train.cuda_graphs or getattr(optimizer, "takes_losses", False):
        return None
    # Plain optimizers do nothing to the model and share code; what a method does to it may need code of its own.
    method = spec.optimizer.name if spec.optimizer.base else ""
    settings = spec.train.precision, spec.train.deterministic
    return str((spec.task, spec.model, spec.files_sha256, spec.plugins, *settings, part_size, device, method))


def share_out(optimizer: torch.optim.Optimizer, batch_size: int, group: ProcessGroup) -> tuple[int, bool]:
    """Return the examples per closure, and whether closures average over all processes (see `TrainingRun`).

    Raises:
        BenchError: the batch does not divide into such parts.
    """
    # Without an m the whole batch shares one perturbation.
    m = getattr(optimizer, "m", None) or batch_size
    if batch_size % m:
        raise BenchError(f"m = {m} does not divide the batch of {batch_size}")
    if batch_size % group.size:
        raise BenchError(f"train.processes = {group.size} does not divide the batch of {batch_size}")
    share = batch_size // group.size
    if m == batch_size and group.size > 1 and getattr(optimizer, "takes_losses", False):
        raise BenchError(
            f"{type(optimizer).__name__} chooses examples within each perturbation; each of {group.size} processes "
            f"needs its own perturbation: set an m that divides {share}"
        )
    if m == batch_size:
        return share, True
    if share % m:
        raise BenchError(f"m = {m} does not divide the per-process batch ({batch_size} / {group.size} = {share})")
    if group.size > 1:
        if not isinstance(optimizer, OptimizerWrapper):
            raise BenchError(f"{type(optimizer).__name__} has m, but is not a bench.OptimizerWrapper: use one process")
        # Each process perturbs for its own parts; the method averages only the gradients that come out.
        optimizer.group = group
    return m, False


def load_task(spec: RunSpec) -> Task:
    """Return the task, with the registries filled and the spec's plug-ins loaded and found unchanged.

    Raises:
        BenchError: a plug-in, or a file of the user's data, is missing or not what the run was planned with.
    """
    load_builtins()
    for planned in spec.plugins:
        # The run_id is made of this hash: other code would leave its numbers under the id of this one.
        if load_plugin(Path(planned.path)).sha256 != planned.sha256:
            raise BenchError(f"plug-in {planned.path} has changed since this run was planned; plan it again")
    entry = tasks[spec.task.name]
    if user_files_sha256(entry.factory, spec.task.params) != spec.files_sha256:
        raise BenchError(f"{spec.task.params['path']} has changed since this run was planned; plan it again")
    task: Task = entry.build(**spec.task.params)
    return task


def build_optimizer(spec: RunSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a spec over the model's parameters, a method around its base where it has one.

    Raises:
        BenchError: the method can do nothing with this base or this model.
    """
    optimizer = chosen_optimizer(spec.optimizer, parameter_groups(model, spec.train.weight_decay_on), model)
    if spec.train.clip_norm is not None:
        try:
            # The wrapper by itself is its base, with clipping.
            optimizer = optimizer if isinstance(optimizer, OptimizerWrapper) else OptimizerWrapper(optimizer)
        except ValueError as error:  # LBFGS, whose step needs its closure
            raise BenchError(f"train.clip_norm: {error}") from error
        optimizer.clip_norm = spec.train.clip_norm
    return optimizer


def chosen_optimizer(choice: OptimizerSpec, parameters: list[Any], model: nn.Module) -> torch.optim.Optimizer:
    """Return the chosen optimizer over parameters: a plain one, or a method around its base."""
    if choice.base is None:
        return _optimizer(choice.name, parameters, **choice.params)
    base = _optimizer(choice.base.name, parameters, **choice.base.params)
    try:
        return _optimizer(choice.name, base, model, **choice.params)
    except ValueError as error:  # no momentum to follow, no normalisation to perturb: that depends on the two
        raise BenchError(str(error)) from error


def _optimizer(name: str, *args: Any, **params: Any) -> torch.optim.Optimizer:
    optimizer = optimizers[name].build(*args, **params)
    if not isinstance(optimizer, torch.optim.Optimizer):
        what = f"its factory returns {_a(optimizer)}, not a torch.optim.Optimizer"
        raise BenchError(f"{name} cannot be built: {what}")
    return optimizer


def _a(thing: object) -> str:
    return f"an object of type {type(thing).__name__}"


def parameter_groups(model: nn.Module, weight_decay_on: str) -> list[Any]:
    """Return the trained parameters in groups: one, or two where weight decay is not for all of them."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if weight_decay_on == "all":
        return parameters
    # Biases and the scales of normalisation have one axis or none.
    decayed, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the full batches in an epoch; a set smaller than a batch is one batch."""
    return max(1, examples // batch_size)
