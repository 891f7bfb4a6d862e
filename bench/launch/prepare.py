"""Have everything that an experiment needs on this machine, so that runs never download."""

from __future__ import annotations

from bench.registry import models, tasks
from bench.spec import Experiment


def fetch(experiment: Experiment) -> None:
    """Fetch and check data and pretrained weights, each once.

    Raises:
        BenchError: something is missing and cannot be had, or is not what it should be.
    """
    specs = [run.spec for run in experiment.runs]
    for task in {task.model_dump_json(): task for task in (spec.task for spec in specs)}.values():
        tasks[task.name].build(**task.params).fetch()
    for model in {model.model_dump_json(): model for model in (spec.model for spec in specs)}.values():
        models[model.name].prepare(model.params)
