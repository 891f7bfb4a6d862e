"""Have everything that an experiment needs on this machine, so that runs never download."""

from __future__ import annotations

from bench.registry import models
from bench.spec import Experiment
from bench.step import encoder, load_task


def fetch(experiment: Experiment) -> None:
    """Fetch and check data and pretrained weights, each once, and have texts tokenised.

    Raises:
        BenchError: something is missing and cannot be had, or is not what it should be.
    """
    specs = [run.spec for run in experiment.runs]
    for spec in {spec.task.model_dump_json(): spec for spec in specs}.values():
        load_task(spec).fetch()
    for model in {spec.model.model_dump_json(): spec.model for spec in specs}.values():
        models[model.name].prepare(model.params)
    for spec in {f"{spec.task} {spec.model}": spec for spec in specs}.values():
        task = load_task(spec)
        if encode := encoder(spec, task):
            for split in (*task.load(), *task.load_others().values()):
                encode(split.inputs)
