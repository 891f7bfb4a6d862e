"""Watching runs that are done elsewhere: what their folders and the queue show, every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.core.errors import BenchError
from bench.core.experiment import PlannedRun
from bench.launch.outcome import Outcome
from bench.launch.progress import ProgressDisplay
from bench.launch.slurm import job_status
from bench.launch.slurm.job_status import JobStatus
from bench.launch.slurm.submission import failed_at
from bench.store.run_folder import Store, reason_in

SECONDS = 3.0
"""Interval between checks of the run folders."""

QUEUE_SECONDS = 12.0
"""Interval between queries to SLURM's controller, which the whole site shares."""

LOOKS = 3
"""Checks that must find a job ended before its unfinished runs are given up: files may appear late."""


Lost = tuple[PlannedRun, str]
"""A run whose job ended without finishing it, with the reason if it is known."""


@dataclass
class Followed:
    """The result of following runs.

    Attributes:
        lost: runs that will not be finished without another launch.
        detached: Ctrl-C; the jobs go on.
    """

    outcome: Outcome = field(default_factory=Outcome)
    lost: list[Lost] = field(default_factory=list)
    detached: bool = False


def follow(
    runs: Sequence[PlannedRun],
    store: Store,
    display: ProgressDisplay,
    seconds: float = SECONDS,
    meanwhile: Callable[[str | None], None] = lambda run_id: None,
) -> Followed:
    """Show the progress of submitted runs until each is finished, has failed or has no job any more.

    Args:
        meanwhile: called with the id of every run that has finished, and with None after every look.
    """
    watch = _Watch(runs, store, display, meanwhile)
    try:
        while watch.waiting:
            watch.look()
            meanwhile(None)
            if watch.waiting:
                time.sleep(seconds)
    except KeyboardInterrupt:
        watch.followed.detached = True
    return watch.followed


class _Watch:
    def __init__(
        self,
        runs: Sequence[PlannedRun],
        store: Store,
        display: ProgressDisplay,
        meanwhile: Callable[[str | None], None],
    ) -> None:
        self.meanwhile = meanwhile
        self.waiting = {run.spec.run_id: run for run in runs}
        self.store = store
        self.display = display
        self.followed = Followed()
        self.idle: dict[str, int] = {}
        self.retried: dict[str, dict[str, int]] = {}
        self.silent = False
        self.statuses: dict[str, JobStatus] | None = None
        self.asked = float("-inf")

    def look(self) -> None:
        if time.monotonic() - self.asked >= QUEUE_SECONDS:
            self.statuses, self.asked = self._ask(), time.monotonic()
        # A copy, since runs that are over leave `waiting` meanwhile.
        for run_id, run in list(self.waiting.items()):
            # statuses is None as long as SLURM does not answer.
            if self._look_at(run, (self.statuses or {}).get(run_id), self.statuses is None):
                del self.waiting[run_id]

    def _ask(self) -> dict[str, JobStatus] | None:
        try:
            statuses = job_status.statuses(self.store)
        except BenchError as error:
            # Told once, until SLURM answers again.
            if not self.silent:
                self.display.say(f"{str(error).splitlines()[0]} (still looking)")
            self.silent = True
            return None
        self.silent = False
        return statuses

    def _look_at(self, run: PlannedRun, job: JobStatus | None, queue_is_silent: bool) -> bool:
        """Show a run's status, and return whether the run is over."""
        folder = self.store.run(run.spec.run_id)
        if result := folder.result():
            self.followed.outcome.finished += 1
            self._show_running(run)
            self.display.finished(run, result)
            self.meanwhile(run.spec.run_id)
            return True
        status = folder.status()
        # An old error.txt stays until the job does the run again: that is no new failure.
        if status == "failed" and failed_at(folder) != self._retried(run, job):
            reason = reason_in(folder.error() or "")
            self.followed.outcome.failed.append((run, reason))
            self.display.failed(run, reason)
            return True
        if status == "running":
            self._show_running(run)
            if curve := folder.curve():
                point = curve[-1]
                self.display.progressed(run, point["epoch"], run.spec.train.epochs, point)
        # It has been stopped, to be resumed later: nobody works on it now.
        elif run.spec.run_id in self.display.running:
            self.display.dropped(run)
        # Somebody works on it, or may do so: it counts as idle only in looks that follow each other.
        if queue_is_silent or status == "running" or (job and (job.live or job.hidden)):
            self.idle.pop(run.spec.run_id, None)
            return False
        return self._is_lost(run, job)

    def _show_running(self, run: PlannedRun) -> None:
        if run.spec.run_id not in self.display.running:
            self.display.started(run)

    def _is_lost(self, run: PlannedRun, job: JobStatus | None) -> bool:
        self.idle[run.spec.run_id] = looks = self.idle.get(run.spec.run_id, 0) + 1
        if looks < LOOKS:
            return False
        words = job.words() if job else "it was never submitted"
        self.followed.lost.append((run, words))
        self.display.failed(run, words)
        return True

    def _retried(self, run: PlannedRun, job: JobStatus | None) -> int | None:
        """Return the time of a run's earlier failure if its job will retry the run, else None."""
        # Nobody will repeat the run, so an earlier failure is its end.
        if job is None or not job.live:
            return None
        key = job.submission.name
        # Read once per submission: the file has the specs of all of its runs.
        if key not in self.retried:
            self.retried[key] = job.submission.runs()["retried"]
        return self.retried[key].get(run.spec.run_id)
