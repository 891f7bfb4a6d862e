"""Preparation of an experiment: fetch its data and weights, so that runs never download, and try text models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.core.errors import BenchError
from bench.core.experiment import Experiment
from bench.core.registry import models
from bench.core.spec import RunSpec
from bench.data.packing import Documents
from bench.data.tokens import Tokens
from bench.launch.trial import try_texts
from bench.tasks.base import Encode, Task, fingerprint, prepare_data
from bench.training.encoding import encoder
from bench.training.step import load_task

if TYPE_CHECKING:
    from bench.launch.plan import Plan


def fetch_files(experiment: Experiment) -> None:
    """Fetch and check data and pretrained weights, each once, have texts tokenised, and try the models on them.

    A model is tried once in each precision on single texts, and once on pairs.

    Raises:
        BenchError: something is missing, cannot be obtained or is wrong, or a model cannot be trained.
    """
    specs = [run.spec for run in experiment.runs]
    # 1. Data, once per task and its settings.
    for spec in {spec.task.model_dump_json(): spec for spec in specs}.values():
        load_task(spec).fetch()
    # 2. Pretrained weights, once per model.
    for model in {spec.model.model_dump_json(): spec.model for spec in specs}.values():
        models[model.name].fetch_weights(model.params)
    # 3. Texts. Tokens are cached on disk here, so that workers neither tokenise nor start the threads it takes.
    tried = set[str]()
    for spec in {f"{spec.task} {spec.model} {spec.train.precision}": spec for spec in specs}.values():
        task = load_task(spec)
        encode = encoder(spec, task)
        if encode is None:
            continue
        train, *others = (*task.load(), *task.load_others().values())
        tokens = encode(train.inputs)
        for split in others:
            encode(split.inputs)
        if isinstance(tokens, Documents):
            tokens = _packed(task, encode, [one for one in specs if (one.task, one.model) == (spec.task, spec.model)])
        kind = f"{spec.model} {spec.train.precision} {train.inputs.second is None}"
        if kind not in tried:
            try_texts(spec, task, tokens)
            tried.add(kind)


def _packed(task: Task, encode: Encode, specs: list[RunSpec]) -> Tokens:
    """Return the training blocks of a task's last run, once the documents of each way to split them were packed."""
    ways = {f"{spec.data} {spec.phase} {spec.seed if spec.phase == 'tune' else ''}": spec for spec in specs}
    for spec in ways.values():  # each, since any of them may leave a set without a whole block
        data = prepare_data(task, spec.data, spec.seed, encode, spec.phase)
    assert task.block is not None
    return Tokens(data.train.inputs, np.full(len(data.train), task.block), task.block)


def check_data(planned: Plan) -> None:
    """Raise BenchError if a task's data here differ from the data of runs that other machines did."""
    there = planned.store.present()
    # Only runs without a folder here: those with one were done with the data here.
    known = {
        run.condition_text: planned.trusted.rows[run_id].get("data_fingerprint")
        for run_id, run in zip(planned.ids, planned.experiment.runs, strict=True)
        if run_id in planned.trusted.rows and run_id not in there
    }
    # Only conditions that have runs to do: in the others nothing can be mixed.
    for condition, run in {run.condition_text: run for run in planned.to_do}.items():
        if (recorded := known.get(condition)) and recorded != (here := fingerprint(load_task(run.spec))):
            raise BenchError(
                f"the data of task {run.spec.task.name} here (fingerprint {here}) are not those of the runs in "
                f"{planned.store.folder / 'records.csv'} ({recorded}), so their results cannot be combined: "
                "use the same files here, or write to separate results with --name NAME"
            )
