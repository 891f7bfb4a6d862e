"""Repeating finished runs in a separate folder, for `bench verify` to compare and `bench measure` to measure."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from bench.config import file
from bench.core import terminal
from bench.core.errors import BadValue, BenchError, nearest
from bench.core.experiment import Experiment, PlannedRun
from bench.core.run_options import RunOptions
from bench.core.spec import PROTOCOL
from bench.launch.compiling import as_decided
from bench.launch.local.pool import run_local
from bench.launch.local.slots import Slot, slots
from bench.launch.outcome import Outcome
from bench.launch.prepare import fetch_files
from bench.launch.progress import ProgressDisplay
from bench.store import records
from bench.store.conditions import keyed
from bench.store.records import Results
from bench.store.run_folder import FINISHED, Store
from bench.store.selection import chosen_runs
from bench.training.environment import processor

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Recorded:
    """An experiment and what its folder of results says of its runs.

    Attributes:
        finished: the finished runs by run_id, as planned.
    """

    experiment: Experiment
    results: Results
    folder: Path
    finished: dict[str, PlannedRun]

    def record(self, run_id: str) -> pd.Series[Any]:
        """Return a run's row of records.csv."""
        rows = self.results.records
        # A run of several optimizers has a row for each, with the same numbers.
        return rows.loc[rows["run_id"] == run_id].iloc[0]

    def curve(self, run_id: str) -> pd.DataFrame:
        """Return a run's rows of curves.csv, by epoch; of the first label that has the run."""
        rows = self.results.curves
        return rows.loc[rows["run_id"] == run_id].drop_duplicates("epoch").set_index("epoch")

    def chosen(self) -> list[str]:
        """Return the ids of the finished runs that tables report: those of each optimizer's choice, each once."""
        return chosen_runs(self.results.meta, self.results.records)

    def done(self) -> list[str]:
        """Return the ids of the runs that ended with weights."""
        return [run_id for run_id in self.finished if self.record(run_id)["status"] == "done"]

    def one_of_each(self) -> list[str]:
        """Return, per optimizer, the first finished seed of its chosen configuration, under its first condition."""
        first: dict[str, str] = {}
        frame = self.results.records.set_index("run_id")
        for run_id in self.chosen():
            # With a list as the key, pandas gives a column also for a single row.
            labels = frame.loc[[run_id], "optimizer"]
            for label in labels:
                first.setdefault(label, run_id)
        return list(dict.fromkeys(first.values()))

    def select(self, run_ids: Collection[str], *, of_weights: bool = False) -> list[PlannedRun]:
        """Return these runs, as planned.

        Args:
            of_weights: refuse runs that diverged.

        Raises:
            BadValue: an id belongs to no run or to an unfinished run; the message names the nearest id.
        """
        status = dict(zip(self.results.records["run_id"], self.results.records["status"], strict=True))
        wrong = []
        for run_id in run_ids:
            if run_id not in status:
                wrong.append(f"{run_id}: no such run; {nearest(run_id, self.finished)}")
            elif status[run_id] not in FINISHED:
                wrong.append(f"{run_id}: is {status[run_id]}; only a finished run can be repeated")
            elif of_weights and status[run_id] != "done":
                wrong.append(f"{run_id}: is {status[run_id]}: there are no weights to measure")
        if wrong:
            raise BadValue(str(self.folder / "records.csv"), wrong)
        return [self.finished[run_id] for run_id in run_ids]


def recorded(name: str, out: Path, overrides: Sequence[str] = (), results_name: str | None = None) -> Recorded:
    """Read an experiment and its results; folders of runs are not needed.

    Args:
        name, out, overrides, results_name: as for `bench.run`.

    Raises:
        BenchError: there are no results, or the experiment is no longer the one that they are of.
    """
    path = file.find(name)
    experiment = file.load(path, overrides, results_name=results_name)
    folder = out / experiment.name
    results = records.read(folder)
    # compile = "auto" stands for what was decided when the results were made.
    experiment = as_decided(experiment, folder)
    experiment = experiment.with_seeds(results.meta["seeds"])  # `bench run --seeds N`, or of several machines
    # Final runs are those of the recorded choice; nothing is chosen anew.
    if experiment.phases:
        final = keyed(results.records[results.records["phase"] == "final"])
        tuned = final[final["optimizer"].isin(experiment.phases.trials)]
        places = zip(tuned["condition"], tuned["optimizer"], strict=True)
        experiment = experiment.with_final(dict(zip(places, tuned["config"], strict=True)))
    if (protocol := results.meta.get("protocol")) not in (None, PROTOCOL):
        raise BenchError(
            f"the results in {folder} were measured under protocol {protocol}, and this version of the package has "
            f"protocol {PROTOCOL}, which cannot reproduce them: repeat them with the version that made them (the "
            "commit under their tables), or run the experiment again with `bench run`"
        )
    # Reversed, so that of a run at several places the first one stays in the dict.
    planned = {run.spec.run_id: run for run in reversed(experiment.runs)}
    done = results.records.loc[results.records["status"].isin(FINISHED), "run_id"]
    if gone := [run_id for run_id in done if run_id not in planned]:
        raise BenchError(
            f"{path} does not describe {len(set(gone))} of the finished runs in {folder} (the first: {gone[0]}): "
            "it, or a plug-in, has changed since, or was overridden with --set"
        )
    return Recorded(experiment, results, folder, {run_id: planned[run_id] for run_id in done})


def repeat(
    of: Recorded,
    runs: Sequence[PlannedRun],
    store: Store,
    *,
    jobs: int | None = None,
    keep_weights: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Repeat runs on this machine, each with its recorded number of threads.

    A run that was recorded on this machine's processor is repeated on it, even if there are GPUs; any other run is
    repeated on a GPU, if there is one.

    Args:
        store: where to; it holds no runs yet.
        jobs: runs at once; default as many as there are GPUs, or cores for their threads.
        keep_weights: leave their final weights in their folders.
        console: where progress is shown; default standard error.

    Returns:
        The outcome of all runs together; `interrupted` is set if they were stopped before their end.

    Raises:
        BenchError: data or weights cannot be obtained.
    """
    fetch_files(replace(of.experiment, runs=tuple(runs)))
    total, options = Outcome(), RunOptions(keep_weights=keep_weights)
    # Runs of one group need the same kind of hardware and the same number of threads.
    groups: dict[tuple[bool, int, int], list[PlannedRun]] = defaultdict(list)
    for run in runs:
        record = of.record(run.spec.run_id)
        groups[(_on_processor(record["device"]), _threads(record["threads"]), run.spec.train.processes)].append(run)
    passes = {run.spec.run_id: int(of.record(run.spec.run_id)["passes"]) for run in runs}
    with ProgressDisplay(passes, of.experiment.metric, console or terminal.console(stderr=True)) as display:
        for (on_processor, threads, processes), group in groups.items():
            if on_processor:
                shares = _cores(jobs, threads * processes)
            else:
                # The recorded number of threads, not the one that fits this machine: the bits depend on it.
                shares = [replace(slot, threads=threads * processes) for slot in slots(jobs, processes=(processes,))]
            outcome = run_local(group, store, display, shares=shares, options=options)
            total.finished += outcome.finished
            total.failed += outcome.failed
            total.interrupted, total.disk = outcome.interrupted, outcome.disk
            if outcome.interrupted or outcome.disk:
                break
    return total


def _threads(recorded: Any) -> int:
    """Return the number of threads of a recorded run; 1 if its environment is lost."""
    # NaN is the only value that differs from itself.
    return 1 if recorded != recorded else int(recorded)


def _on_processor(device: str) -> bool:
    """Return whether a run that was done on `device` is repeated on the processor."""
    return device == processor() or not torch.cuda.is_available()


def _cores(jobs: int | None, threads: int) -> list[Slot]:
    """Return the processor in shares of this many threads, each pinned to its own cores if there are enough."""
    # Not every system can say which cores a process may use; macOS cannot.
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = len(cores) or os.cpu_count() or 1
    jobs = jobs or max(1, count // threads)
    # Too few cores to give each job its own: the system shares them out.
    if jobs * threads > len(cores):
        return [Slot("cpu", (), threads)] * jobs
    return [Slot("cpu", tuple(cores[n * threads : (n + 1) * threads]), threads) for n in range(jobs)]
