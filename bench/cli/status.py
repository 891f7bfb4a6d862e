"""Messages about a plan: those of `bench run` before it begins, and of `bench status` about unfinished runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bench.core.errors import BenchError, counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bench.launch.plan import Plan
    from bench.store.run_folder import Status

STATES: tuple[Status, ...] = ("done", "running", "partial", "missing", "diverged", "failed")
"""The columns of the table of `bench status`, in their order."""


def tell_plan(plan: Plan, console: Console) -> None:
    """Print how many runs are done, how many this launch will do, and how many others are doing."""
    passes = sum(plan.passes[run.spec.run_id] for run in plan.to_do)
    elsewhere = f" ({plan.count_held()} of them on other machines, by the records)" * bool(plan.count_held())
    parts = [
        f"{plan.count('done', 'diverged')} done{elsewhere}",
        f"{len(plan.to_do)} to do ({counted(passes, 'pass')})",
    ]
    if plan.count("partial"):
        parts.append(f"{plan.count('partial')} of them from a checkpoint")
    if plan.count("running"):
        parts.append(f"{plan.count('running')} being done by another launch")
    if plan.count("failed") and not plan.retry_failed:
        parts.append(f"{plan.count('failed')} failed before (--retry-failed retries them)")
    shard = f", shard {plan.shard}" if plan.shard else ""
    console.print(f"{plan.experiment.name}{shard}: {', '.join(parts)}", highlight=False, soft_wrap=True)
    if plan.to_be_chosen:
        passes = sum(plan.passes[run.spec.run_id] for run in plan.to_be_chosen)
        final = counted(len(plan.to_be_chosen), "final run")
        waiting = f"then {final} ({counted(passes, 'pass')}) of the configurations that tuning chooses"
        console.print(f"{plan.experiment.name}: {waiting}", highlight=False, soft_wrap=True)
    for change in (*plan.experiment.unreached, *plan.choices.changed()):
        console.print(change, style="yellow", highlight=False, markup=False, soft_wrap=True)


NO_ID = "-" * 12
"""In place of the run_id of a run whose settings are not all known."""


def print_runs(plan: Plan) -> None:
    """List every run that would start, with its passes."""
    from bench.launch.compiling import is_open

    # A run_id depends on the decision on compile = "auto", so it is not known while that is open.

    open_ = is_open(plan.experiment)
    for run in plan.to_do:
        passes = plan.passes[run.spec.run_id]
        print(f"{NO_ID if open_ else run.spec.run_id}  {run.name}: {counted(passes, 'pass')}")
    for run in plan.to_be_chosen:
        print(f"{NO_ID}  {run.name}, setting to be chosen: {counted(plan.passes[run.spec.run_id], 'pass')}")
    if open_:
        print('train.compile = "auto": a measurement before the first run decides whether runs are compiled')


def counts(plan: Plan, statuses: Mapping[str, Status]) -> Table:
    """Return how many runs of every optimizer are in which state, phase by phase.

    Args:
        statuses: by run_id, of every run of the plan.
    """
    from rich.table import Table

    table = Table("optimizer", *STATES, box=None)
    # Final runs whose setting is not chosen yet have no run_id to look up: they count as missing.
    waiting = Counter(("final", run.label) for run in plan.to_be_chosen)
    ids: dict[tuple[str, str], set[str]] = {}
    for run_id, run in zip(plan.ids, plan.experiment.runs, strict=True):
        # A set, because one run may stand at several places.
        ids.setdefault((run.phase, run.label), set()).add(run_id)
    for phase in ("tune", "final") if plan.experiment.phases else ("",):
        for label in plan.experiment.labels:
            count = Counter(statuses[run_id] for run_id in ids.get((phase, label), ()))
            count["missing"] += waiting[phase, label]
            if count.total():
                table.add_row(f"{phase} {label}".strip(), *(str(count[state] or "·") for state in STATES))
    return table


def show_running(plan: Plan, console: Console) -> None:
    """Show the runs in progress, how far each one is, and who works on it."""
    import time

    from bench.launch.estimate import duration
    from bench.store.run_folder import live

    metric = plan.experiment.metric
    # Each run once, though several optimizers may share it.
    for run in {run.spec.run_id: run for run in plan.experiment.runs}.values():
        if plan.statuses[run.spec.run_id] != "running":
            continue
        now = live(plan.store.run(run.spec.run_id), metric["key"])
        if now is None:  # over since we looked
            continue
        parts = [f"epoch {now['epochs_done']} of {now['epochs']}" if now["epochs"] else "setting up"]
        if now["score"] is not None:
            score = f"{metric['name']} {now['score'] * metric['scale']:.1f} {metric['unit']}".rstrip()
            parts.append(f"{score} (validation)")
        parts.append(f"on {now['device'] or '?'} of {now['host'] or '?'} (process {now['pid'] or '?'})")
        if now["since"]:
            # The clock of another host may be ahead of ours: no time is negative.
            parts.append(f"for {duration(max(0.0, time.time() - now['since']))}")
        console.print(f"running: {run.name}: {', '.join(parts)}", highlight=False, markup=False, soft_wrap=True)


def show_queue(plan: Plan, console: Console) -> None:
    """Show the status of the unfinished runs that were submitted to SLURM; nothing if none was ever submitted."""
    from bench.launch.slurm import job_status
    from bench.store.run_folder import FINISHED

    if not (plan.store.folder / "slurm").is_dir():
        return
    try:
        statuses = job_status.statuses(plan.store)
    except BenchError as error:
        # A queue that does not answer must not hide the rest of `bench status`.
        console.print(f"SLURM: {error}", highlight=False, markup=False, soft_wrap=True)
        return
    for run in {run.spec.run_id: run for run in plan.experiment.runs}.values():
        job = statuses.get(run.spec.run_id)
        if job and plan.statuses[run.spec.run_id] not in FINISHED:
            line = f"{run.name}: {job.words()}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
