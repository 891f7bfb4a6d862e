"""Evaluation on a CPU: a ResNet as it is written beside its faster twins, folded or compiled. Part of `make perf`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from bench.training.evaluate import outputs, outputs_with
from bench.training.folding import folded
from bench.training.step import set_up
from tests.perf.images import make_spec

EXAMPLES = 2048


def on_cpu(compare: Callable[[str, str, dict[str, Callable[[], float]]], None]) -> None:
    """Time an evaluation per image: the check of a twin's predictions is part of what it costs, compiling is not."""
    run = set_up(make_spec("resnet20"), torch.device("cpu"))
    inputs = run.task.model_inputs(run.data.train.inputs[:512])
    with torch.no_grad():
        for batch in torch.split(inputs, 128):  # statistics that are no longer those of a new model
            run.model.train()(batch)
    run.model.eval()
    compiled: nn.Module = torch.compile(run.model, dynamic=False)  # type: ignore[assignment]
    split = run.data.train[torch.arange(EXAMPLES)]

    def as_written() -> float:
        started = time.perf_counter()
        outputs(run.model, run.task, split, run.autocast)
        return (time.perf_counter() - started) / EXAMPLES

    def with_twin() -> float:
        started = time.perf_counter()
        outputs_with(folded(run.model), run.model, run.task, split, run.autocast)
        return (time.perf_counter() - started) / EXAMPLES

    def with_compiled() -> float:
        started = time.perf_counter()
        outputs_with(compiled, run.model, run.task, split, run.autocast, fixed=True)
        return (time.perf_counter() - started) / EXAMPLES

    with_compiled()
    title = f"An image of an evaluation, ResNet-20 on 32x32, {EXAMPLES} images"
    ways = {"as written": as_written, "folded and checked": with_twin, "compiled and checked": with_compiled}
    compare(title, "folded and compiled under 0.95", ways)
