"""`bench clean`, and the notes of other commands on results that no longer match their experiment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli import options
from bench.core.errors import counted
from bench.core.meta import Meta

if TYPE_CHECKING:
    from rich.console import Console

    from bench.launch.plan import Plan

NAMED = 8


@click.command()
@click.argument("experiment")
@options.which
@options.out
@click.option("--yes", is_flag=True, help="Remove the listed runs without asking.")
def clean(experiment: str, overrides: tuple[str, ...], results_name: str | None, out: Path, yes: bool) -> None:
    """List runs that an experiment no longer plans; remove them.

    A run is no longer planned when the experiment's file, a plug-in, its data or this package have changed since. Runs
    of seeds that are not asked for now are kept, and so are runs in progress. Runs that another machine has done, which
    only the records hold, are removed from the records. Nothing is removed before it is confirmed.
    """
    from bench.config import file
    from bench.launch import leftover
    from bench.launch.compiling import as_decided
    from bench.launch.plan import whole
    from bench.store import collecting, records
    from bench.store.run_folder import Store

    resolved = file.load(file.find(experiment), overrides, results_name=results_name)
    store = Store(out / resolved.name)
    held = collecting.held(store)
    # compile = "auto" stands for what was decided then, on which the run_ids depend.
    resolved = as_decided(resolved, store.folder)
    # With the seeds and final runs that the records have, so that these runs are not taken for leftovers.
    resolved, _ = whole(resolved, store, held, held)
    ids = [run.spec.run_id for run in resolved.runs]
    leftovers = [*leftover.leftovers(resolved, store, ids), *leftover.strangers(resolved, store, ids, held)]
    if not leftovers:
        print(f"{resolved.name}: every run in {store.folder / 'runs'} is part of the experiment")
        return
    for one in leftovers:
        print(f"{one.run_id}  {one.status:<8}  {one.why}")
    megabytes = sum(leftover.size(store.run(one.run_id)) for one in leftovers) / 1e6
    print(f"{resolved.name}: {counted(len(leftovers), 'run')}, {megabytes:.1f} MB")
    for line in leftover.told(leftovers):
        print(f"  {line}")
    if shown := records.finished(store.folder) & {one.run_id for one in leftovers}:
        print(
            f"records.csv, tables and figures in {store.folder} still show {len(shown)} of them; "
            f"`bench run {experiment}` writes them again."
        )
    if only_held := sum(one.only_held for one in leftovers):
        print(f"{counted(only_held, 'run')} of them without a folder here: the only copy is in the records.")
    # Nobody can answer without a terminal, so nothing is removed.
    if not yes and not (sys.stdin.isatty() and click.confirm("Remove these runs?")):
        print("Nothing was removed; add --yes to remove these runs.")
        return
    # `remove` returns False for a run that another process is working on.
    removed = {one.run_id for one in leftovers if one.only_held or leftover.remove(store.run(one.run_id))}
    # Under the lock of collecting, so that no launch writes the records at the same time.
    with store.collecting():
        records.forget(removed, store.folder)
    print(f"Removed {counted(len(removed), 'run')}.")
    if len(removed) < len(leftovers):
        print(f"Kept {counted(len(leftovers) - len(removed), 'run')} that another process is working on.")


def tell_leftovers(plan: Plan, console: Console) -> None:
    """Print how many finished runs a change has made missing, and why."""
    from bench.launch.leftover import leftovers, told

    finished = [one for one in leftovers(plan.experiment, plan.store, plan.ids) if one.is_finished]
    if finished:
        where = f"{counted(len(finished), 'finished run')} in {plan.store.folder / 'runs'}"
        console.print(
            f"No longer part of the experiment: {where}: {'; '.join(told(finished))}. `bench clean` lists and "
            "removes them.",
            style="yellow",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if words := plan.refusal():
        console.print(f"{words}.", style="yellow", highlight=False, markup=False, soft_wrap=True)


def tell_changes(experiment: str, folder: Path, meta: Meta) -> None:
    """Print the changed keys if the experiment file has changed since the results were made."""
    from bench.config import file

    path = file.beside(experiment) or file.beside(meta.get("of") or experiment)
    keys = file.changed_keys(path, meta) if path else []
    if keys:
        shown = ", ".join(keys[:NAMED]) + f" and {len(keys) - NAMED} more" * (len(keys) > NAMED)
        click.secho(
            f"{folder} is of an older {path}, with other {shown}: titles, baseline and numbers are those of then; "
            "`bench run` brings them up to date.",
            err=True,
            fg="yellow" if sys.stderr.isatty() else None,
        )
