"""Models in pipeline stages, one in each of two processes, trained beside the same one whole."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.nn import functional as F

from bench.core.process_group import ProcessGroup
from bench.optim.friendly_sam import FriendlySAM

from .split_models import (
    CLIP,
    FEW,
    METHODS,
    NOT_IN_STAGES,
    STEPS,
    VARIANTS,
    Make,
    Net,
    apart,
    batches,
    built,
    closure_of,
    net,
)


class Stage(nn.Module):
    """One of two halves of a net, whose parameters have names of their own, as checkpoints of both need them."""

    def __init__(self, model: Net, number: int) -> None:
        super().__init__()
        first = nn.Sequential(model.embedding, model.norm, model.up, nn.Tanh())
        self.stage = nn.ModuleDict({str(number): first if number == 0 else nn.Sequential(model.down, model.head)})

    def forward(self, x: Tensor) -> Tensor:
        for layers in self.stage.values():
            x = layers(x)
        return x


class InStages(nn.Module):
    """Both of them after one another."""

    def __init__(self) -> None:
        super().__init__()
        model = net()
        self.stages = nn.ModuleList([Stage(model, 0), Stage(model, 1)])

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.stages[1](self.stages[0](words)).mean(1)
        return logits


@dataclass
class Pipeline:
    """This process's stage of a model, and the schedule that goes forward and backward through all of them."""

    group: ProcessGroup

    def __post_init__(self) -> None:
        self.module = Stage(net(), self.group.rank)
        stage = PipelineStage(self.module, self.group.rank, 2, torch.device("cpu"))
        self.scale = 1.0
        self.optimizer: Any = None
        self.schedule = ScheduleGPipe(stage, 4, loss_fn=self.loss)

    def loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        if getattr(self.optimizer, "takes_logits", False):
            logits = self.optimizer.logits(logits)
        return self.scale * F.cross_entropy(logits.mean(1), classes)

    def closure(self, optimizer: Any, words: Tensor, classes: Tensor) -> Callable[[], Tensor | None]:
        def closure() -> Tensor | None:
            self.optimizer = optimizer
            optimizer.zero_grad()
            if self.group.rank == 0:
                self.schedule.step(words)
                return None
            losses: list[Tensor] = []
            self.schedule.step(target=classes, losses=losses)
            return torch.stack(losses).mean()

        return closure

    def apart(self, twin: InStages) -> float:
        return apart(self.module, twin.stages[self.group.rank])


def trained(group: ProcessGroup, make: Make, steps: int = STEPS, **settings: Any) -> dict[str, float]:
    pipeline, twin = Pipeline(group), InStages()
    optimizer = built(pipeline.module, make, norm_group=dist.group.WORLD, **settings)
    alone = built(twin, make, **settings)
    for words, classes in batches(steps):
        optimizer.step(pipeline.closure(optimizer, words, classes))
        alone.step(closure_of(twin, alone, words, classes))
    return {"apart": pipeline.apart(twin), "come": Pipeline(group).apart(twin)}


def skipped(group: ProcessGroup, call: int, *, scaled: bool = False) -> dict[str, float]:
    """A gradient that is not finite in the last stage alone; `scaled`: in a loop with a GradScaler of each stage's."""
    pipeline, twin = Pipeline(group), InStages()
    optimizer, alone = built(pipeline.module, METHODS["sam"], norm_group=dist.group.WORLD), built(twin, METHODS["sam"])
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    some, passes = batches()[:4], 0
    for n, (words, classes) in enumerate(some):
        closure = pipeline.closure(optimizer, words, classes)

        def spoilt(closure: Callable[[], Any] = closure, n: int = n) -> Any:
            nonlocal passes
            loss = closure()
            passes += n == 1
            if group.rank == 1 and n == 1 and passes == call:
                gradient = next(p.grad for p in pipeline.module.parameters())
                assert gradient is not None
                with torch.no_grad():
                    gradient.view(-1)[0] = math.inf
            return loss

        if scaled:
            optimizer.zero_grad()
            scaler.scale(torch.ones(()))  # what it scales otherwise is inside of the schedule
            pipeline.scale = scaler.get_scale()
            optimizer.backward(spoilt)
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step(spoilt)
    for words, classes in [some[0], *some[2:]]:
        alone.step(closure_of(twin, alone, words, classes))
    return {"apart": pipeline.apart(twin), "skipped": optimizer.skipped_steps, "scale": scaler.get_scale()}


def resumed(group: ProcessGroup, make: Make, base: str) -> float:
    """Four steps of seven, a checkpoint of both stages' optimizers into new ones, the rest: against all seven."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)  # numbers of parameters say nothing across stages
    straight, first, second = (Pipeline(group) for _ in range(3))
    runs = [built(one.module, make, base, norm_group=dist.group.WORLD) for one in (straight, first, second)]
    for run in runs:
        run.total_steps = 6
    for pipeline, optimizer, some in ((straight, runs[0], batches(7)), (first, runs[1], batches(7)[:4])):
        for words, classes in some:
            optimizer.step(pipeline.closure(optimizer, words, classes))
    with tempfile.TemporaryDirectory() as own:
        folder = [own]
        dist.broadcast_object_list(folder)
        save(get_optimizer_state_dict(first.module, runs[1], options=options), checkpoint_id=folder[0])
        loaded = get_optimizer_state_dict(second.module, runs[2], options=options)
        load(loaded, checkpoint_id=folder[0])
        set_optimizer_state_dict(second.module, runs[2], loaded, options=options)
        dist.barrier()
    second.module.load_state_dict(first.module.state_dict())
    for words, classes in batches(7)[4:]:
        runs[2].step(second.closure(runs[2], words, classes))
    memories = [[*getattr(run, "memory", {}).values()] for run in (runs[0], runs[2])]
    assert len(memories[0]) == len(memories[1])
    differences = [(p - q).abs().max().detach() for p, q in zip(*memories, strict=True)]
    return max(apart(second.module, straight.module), *map(float, differences), 0.0)


def cases(group: ProcessGroup) -> Iterator[tuple[str, Any]]:
    """Each case by its name, with what it found."""
    for name, make in METHODS.items():
        if name not in NOT_IN_STAGES:
            yield f"pipeline, {name}", trained(group, make, clip_norm=CLIP)
            yield f"pipeline, {name}, resumed", resumed(group, make, "adamw")
    yield "pipeline, sam on norms", trained(group, VARIANTS["sam on norms"], FEW)
    yield "pipeline, friendly-sam every 2nd step", trained(group, partial(FriendlySAM, rho=0.2, perturb_every=2), FEW)
    for call in (1, 2):
        yield f"pipeline, skipped in pass {call}", skipped(group, call)
        yield f"pipeline, scaled, skipped in pass {call}", skipped(group, call, scaled=True)
