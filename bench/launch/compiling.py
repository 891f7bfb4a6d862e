"""The decision that `train.compile = "auto"` leaves to a launch, which measures on the machine that trains.

results/<experiment>/compiling.json    the decision and its reason, which experiment.json of collected results has too

All runs of an experiment are compiled or none is, since both round differently. Until that is decided runs have no
run_id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.core.errors import BadValue, BenchError, counted
from bench.core.experiment import Experiment, PlannedRun
from bench.core.meta import CompilingMeta
from bench.launch.estimate import duration, seconds_of
from bench.launch.local.pool import speeds_here
from bench.launch.local.slots import Slot
from bench.launch.progress import ProgressDisplay
from bench.store.files import read_json, write_atomic
from bench.store.run_folder import Store, to_json
from bench.training.environment import processor

FILE = "compiling.json"

WORTH = 0.95
"""Compilation is used if runs take less than this share of their uncompiled time."""


def is_open(experiment: Experiment) -> bool:
    """Return whether `train.compile = "auto"` is still undecided."""
    return any(run.spec.train.compile == "auto" for run in experiment.runs)


def with_decision(experiment: Experiment, decision: CompilingMeta) -> Experiment:
    """Return the experiment with `decision["compile"]` in the place of "auto"."""
    runs = tuple(_with_compile(run, decision["compile"]) for run in experiment.runs)
    return replace(experiment, runs=runs, compiling=decision)


def _with_compile(run: PlannedRun, on: bool) -> PlannedRun:
    train = run.spec.train
    if train.compile != "auto":
        return run
    # CUDA graphs need compiled code: without it the spec is the one that compile = false gives in a file.
    train = train.model_copy(update={"compile": on, "cuda_graphs": on and train.cuda_graphs})
    return replace(run, spec=run.spec.model_copy(update={"train": train}))


def as_decided(experiment: Experiment, folder: Path) -> Experiment:
    """Return an experiment with the recorded decision on compilation, if it needs one and one is recorded.

    Raises:
        BenchError: the file with the decision is damaged.
    """
    if not is_open(experiment):
        return experiment
    path = folder / FILE
    # This folder's own decision first, then that in results which were collected elsewhere.
    decision = read_json(path, missing=None)
    if decision is None:
        decision = read_json(folder / "experiment.json", missing={}).get("compiling")
    if decision is None:
        return experiment
    if not isinstance(decision, dict) or type(decision.get("compile")) is not bool:
        raise BenchError(f"{path} is damaged: it has no compile = true or false; delete it to decide again")
    return with_decision(experiment, {"compile": decision["compile"], "why": str(decision.get("why", ""))})


def refuse_open(experiment: Experiment, what: str) -> None:
    """Raise BadValue if `train.compile = "auto"` is still undecided.

    Args:
        what: the option that has runs done on other machines, which might each decide otherwise.
    """
    if is_open(experiment):
        raise BadValue(
            what,
            [
                'train.compile = "auto" is decided by measuring the machine that trains, and nothing has been measured '
                f"for {experiment.name} yet: --set train.compile=true or false, or start it without {what} on such a "
                f"machine first, and copy its {FILE} into the results here"
            ],
        )


def decide(
    runs: Sequence[PlannedRun],
    passes: Mapping[str, int],
    store: Store,
    display: ProgressDisplay,
    shares: Sequence[Slot],
) -> CompilingMeta:
    """Measure runs with and without compilation; return the decision and its reason.

    Args:
        passes: of every run, by run_id.
    """
    # The same runs twice: as they are written (False) and compiled (True).
    ways = {on: [_with_compile(run, on) for run in runs] for on in (False, True)}
    # Measured in one pool, with all workers at work, as in the launch itself.
    speeds, reason = speeds_here([*ways[False], *ways[True]], store, display, shares)
    if reason:
        # Uncompiled runs need no compiler, so they work on every machine.
        return {"compile": False, "why": f"not compiled, since that could not be measured: {reason}"}
    # From `runs` and not from `ways`: `passes` has the run_ids that the specs have while the decision is open.
    costs = [passes[run.spec.run_id] for run in runs]
    seconds = {
        on: seconds_of(list(zip((run.spec for run in way), costs, strict=True)), speeds, len(shares))
        for on, way in ways.items()
    }
    # `seconds_of` includes the time that compiling itself takes.
    on = seconds[True] < WORTH * seconds[False]
    where = processor() if shares[0].device == "cpu" else shares[0].device
    why = (
        f"{'compiled' if on else 'not compiled'}: {counted(len(runs), 'run')} were estimated to take "
        f"{duration(seconds[True])} compiled, {duration(seconds[False])} as written "
        f"({counted(len(shares), 'run')} at a time, {where})"
    )
    return {"compile": on, "why": why}


def write_down(decision: Mapping[str, Any], store: Store) -> None:
    """Write compiling.json, whole or not at all, before any run starts."""
    store.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(store.folder / FILE, to_json(dict(decision)))
