"""What `bench status` says of runs that are not finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.errors import BenchError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.launch.plan import Plan


def show_running(plan: Plan, console: Console) -> None:
    """What is being worked on now, how far it is, and by whom."""
    import time

    from bench.launch.estimate import duration
    from bench.store import live

    metric = plan.experiment.metric
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
            parts.append(f"for {duration(max(0.0, time.time() - now['since']))}")
        console.print(f"running: {run.name}: {', '.join(parts)}", highlight=False, markup=False, soft_wrap=True)


def show_queue(plan: Plan, console: Console) -> None:
    """Where the unfinished runs stand that were submitted to SLURM; nothing if none ever was."""
    from bench.launch import queue
    from bench.store import FINISHED

    if not (plan.store.folder / "slurm").is_dir():
        return
    try:
        standings = queue.standings(plan.store)
    except BenchError as error:
        console.print(f"SLURM: {error}", highlight=False, markup=False, soft_wrap=True)
        return
    for run in {run.spec.run_id: run for run in plan.experiment.runs}.values():
        standing = standings.get(run.spec.run_id)
        if standing and plan.statuses[run.spec.run_id] not in FINISHED:
            line = f"{run.name}: {standing.words()}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
