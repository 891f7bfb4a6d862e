"""The launcher inside a SLURM job: does the job's runs with the workers of this node, as `bench run` does."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.core import terminal
from bench.core.errors import BenchError
from bench.core.experiment import PlannedRun
from bench.core.spec import RunSpec
from bench.distributed.launcher import Team
from bench.launch.local.pool import GRACE_SECONDS, run_local
from bench.launch.local.server import start_fork_server
from bench.launch.local.slots import Slot, slots
from bench.launch.outcome import Outcome
from bench.launch.progress import ProgressDisplay
from bench.launch.slurm import queue
from bench.launch.slurm import submission as submissions
from bench.launch.slurm.job import STOPPED
from bench.launch.slurm.submission import JobSettings, Submission
from bench.store.run_folder import FINISHED, Store

TAKEOVER_SECONDS = 180.0
"""Seconds for which a run that another process seems to have is waited for: a killed one may seem alive for a while."""


def main() -> int:
    """Run `python -m bench.launch.slurm.node FOLDER TASK`; the exit status is 0, 1 (failed) or STOPPED."""
    submission, task = submissions.read(Path(sys.argv[1])), int(sys.argv[2])
    # First: the server imports torch while this process reads what it has to do.
    _start_forkserver()
    threading.Thread(target=_listen_to_the_job, daemon=True).start()
    note = submission.note(task)
    try:
        outcome = do(submission, task)
    except BenchError as error:
        submission.write_note(task, replace(note, state="failed", message=str(error)))
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before or between runs
        return STOPPED
    if message := outcome.disk or _failures(outcome):
        submission.write_note(task, replace(note, state="failed", message=message))
        return 1
    if outcome.interrupted:
        return STOPPED
    submission.write_note(task, replace(note, state="done"))
    return 0


def do(submission: Submission, task: int) -> Outcome:
    """Do the missing runs of a job."""
    store = Store(submission.results)
    content, settings = submission.runs(), submission.settings
    total = Outcome()
    deadline = time.monotonic() + TAKEOVER_SECONDS
    with ProgressDisplay(
        _passes(content, submission.tasks[task]), content["metric"], terminal.console(stderr=True)
    ) as display:
        team = _team(submission, task)
        # Again while another process has some of the runs: it may have died, or may leave them unfinished.
        while runs := _to_do(store, submission.tasks[task], content):
            outcome = run_local(
                runs,
                store,
                display,
                shares=_shares(settings, {run.spec.train.processes for run in runs}, team),
                options=settings.options,
                # Workers may use the job's whole grace time to save, and have no less than outside of SLURM.
                grace_seconds=max(GRACE_SECONDS, settings.grace_seconds),
            )
            total.finished += outcome.finished
            total.failed += outcome.failed
            # Not summed: a run that was elsewhere in one round may be done in the next.
            total.interrupted, total.disk, total.elsewhere = outcome.interrupted, outcome.disk, outcome.elsewhere
            if outcome.interrupted or outcome.disk or not outcome.elsewhere or time.monotonic() > deadline:
                break
            time.sleep(5)
    return total


def _to_do(store: Store, run_ids: list[str], content: dict[str, object]) -> list[PlannedRun]:
    """Return the runs that are not finished and have not failed since they were submitted."""
    planned: dict[str, dict[str, Any]] = content["runs"]  # type: ignore[assignment]
    retried: dict[str, int] = content["retried"]  # type: ignore[assignment]
    runs = []
    for run_id in run_ids:
        folder = store.run(run_id)
        status = folder.status()
        # A failure from before the submission is what the job is to do again; a later one counts.
        if status in FINISHED or (status == "failed" and submissions.failed_at(folder) != retried.get(run_id)):
            continue
        about = dict(planned[run_id])
        spec = RunSpec.model_validate_json(about.pop("spec"))
        runs.append(PlannedRun(spec=spec, **about))
    return runs


def _passes(content: dict[str, object], run_ids: list[str]) -> dict[str, int]:
    passes: dict[str, int] = content["passes"]  # type: ignore[assignment]
    return {run_id: passes[run_id] for run_id in run_ids}


def _team(submission: Submission, task: int) -> Team | None:
    """Return the nodes of this job, or None if there is only one node.

    The other nodes reach this node at the address that SLURM uses, or at MASTER_ADDR.
    """
    if (nodes := submission.settings.nodes) == 1:
        return None
    name = os.environ["SLURMD_NODENAME"]
    # NodeAddr is the address that SLURM itself uses; the name alone may mean loopback on this node.
    match = re.search(r"\bNodeAddr=(\S+)", queue.call(["scontrol", "show", "node", name]))
    address = os.environ.get("MASTER_ADDR") or (match[1] if match else name)
    return Team(nodes, address, submissions.calls(submission.folder, task))


def _shares(settings: JobSettings, processes: set[int], team: Team | None) -> list[Slot]:
    """Return the job's resources in shares.

    A job that is not confined to its cores takes no more than that many cores.
    """
    # Processes of a run on each node.
    here = {count // settings.nodes for count in processes}
    # Without GPUs the job's cores decide how many runs there are at once; with GPUs `slots` does.
    on_cores = None if settings.gpus else max(1, settings.cpus // max(here))
    options = settings.options
    shares = slots(1 if team else options.jobs or on_cores, options.jobs_per_gpu or 1, processes=here)
    shares = [replace(share, team=team) for share in shares]
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # More cores in sight than asked for: the others may be other jobs', so no run is pinned to any.
    if seen <= settings.cpus:
        return shares
    return [replace(share, cores=(), threads=max(1, settings.cpus // len(shares))) for share in shares]


def _failures(outcome: Outcome) -> str:
    if not outcome.failed:
        return ""
    run, reason = outcome.failed[0]
    more = f" (and {len(outcome.failed) - 1} more)" if len(outcome.failed) > 1 else ""
    return f"{run.name} failed: {reason}{more}"


def _start_forkserver() -> None:
    """Start the fork server so that workers receive SIGTERM, which this process blocks from its start.

    SLURM sends it to all processes of a job, and perhaps our own signal with it. Workers save and stop by themselves
    then; the fork server must live on; and this process stops once, when the job says so: a second interruption would
    have it kill its workers while they save.
    """
    # The server inherits this: it ignores SIGTERM, and its workers, where nothing is blocked, set a handler.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    start_fork_server()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _listen_to_the_job() -> None:
    """Stop on a byte on standard input, as on Ctrl-C, and exit when the input ends.

    The input ends when the job's own process is gone.
    """
    if os.read(0, 1):
        os.kill(os.getpid(), signal.SIGINT)
        # Further bytes ask for nothing more; the end of the input is what ends this process.
        while os.read(0, 1024):
            pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
