"""The status of an experiment's SLURM jobs, its consequences for the runs, and cancelling jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.core.errors import BenchError, counted
from bench.launch.slurm import queue
from bench.launch.slurm import submission as submissions
from bench.launch.slurm.queue import OVER, Cluster, Queued
from bench.launch.slurm.submission import Note, Submission
from bench.store.run_folder import StorageError, Store

WORKING = ("RUNNING", "SUSPENDED")
"""States of jobs that have started and not begun to end."""


@dataclass(frozen=True)
class JobStatus:
    """The status of a submitted job.

    Attributes:
        task: its place in the submission.
        state: as SLURM writes it; "" if SLURM knows it no more, or does not show it here.
        reason: why the job waits, as SLURM says.
        hidden: the job may well be alive, but its queue cannot be seen from here.
    """

    submission: Submission
    task: int
    state: str = ""
    node: str = ""
    reason: str = ""
    note: Note = field(default_factory=Note)
    hidden: bool = False

    @property
    def job(self) -> str:
        """Return the job's id."""
        return self.submission.job_ids[self.task]

    @property
    def runs(self) -> list[str]:
        """Return the ids of the job's runs."""
        return self.submission.tasks[self.task]

    @property
    def known_as_live(self) -> bool:
        """Return whether the job is in the queue or runs."""
        return self.state not in ("", *OVER)

    @property
    def live(self) -> bool:
        """Return whether the job will do its runs; one of a cancelled submission ends as soon as it starts again."""
        return self.known_as_live and (self.state in WORKING or not self.submission.cancelled)

    def words(self) -> str:
        """Return the status of a run of this job that is not finished, in one line."""
        user = self.submission.user
        job = f"job {self.job}{f' of {user}' if user not in ('', queue.user()) else ''}"
        # A pending job has ended as often as it was started; any other is in its last start.
        requeued = self.note.starts - (self.state != "PENDING")
        times = f", requeued {counted(requeued, 'time')}" if requeued > 0 else ""
        # The order matters: each case takes for granted that none of those before it holds.
        if self.hidden:
            return f"{job} on cluster {self.submission.cluster or '?'} cannot be seen from here; it may be alive"
        if self.known_as_live and not self.live:
            if not self.note.starts:  # between the mark of `bench cancel` and what SLURM makes of its order
                return f"{job} never started: cancelled"
            return f"cancelled; SLURM has queued its {job} again, which will end at once"
        if self.state == "PENDING":
            return f"pending{times} ({job}: {self.reason})"
        if self.live:
            return f"{self.state.lower()} on {self.node or '?'}{times} ({job})"
        log = self.submission.log(self.task)
        if self.note.state in ("refused", "failed", "cancelled"):
            return f"{self.note.state}: {self.note.message} ({job}); log: {log}"
        if self.note.starts:
            return f"its {job} ended without finishing it: {self._ending()}; log: {log}"
        if log.exists():  # SLURM makes it when a job begins, before the first line of its script
            return f"its {job} ended before Python started: {self._ending()}{_last_words(log)}; log: {log}"
        return f"{job} never started: {self._ending()}"

    def _ending(self) -> str:
        return self.state.lower().replace("_", " ") or "SLURM does not know it any more"


def look(store: Store) -> list[JobStatus]:
    """Return the status of every job of every submission of an experiment, in the order of time.

    Raises:
        BenchError: SLURM does not answer.
    """
    everything = submissions.read_all(store)
    if not everything:
        return []
    cluster = queue.cluster()
    jobs = queue.ask([submission.name for submission in everything])
    # A submission that SLURM has never accepted has no job ids, and no jobs.
    known = [submission for one in everything if (submission := _with_job_ids(one, jobs)).job_ids]
    return [_status(one, task, jobs, cluster) for one in known for task in range(len(one.tasks))]


def by_run(statuses: Iterable[JobStatus]) -> dict[str, JobStatus]:
    """Return the status that counts for each run: of a live job, else of one that cannot be seen, else the newest."""
    best: dict[str, JobStatus] = {}
    for status in statuses:
        for run in status.runs:
            # >=, since submissions come in the order of time: of equals the newest counts.
            if run not in best or _rank(status) >= _rank(best[run]):
                best[run] = status
    return best


def statuses(store: Store) -> dict[str, JobStatus]:
    """Return the status of every run that was submitted, by run id; the site's accounts tell of forgotten jobs.

    Raises:
        BenchError: SLURM does not answer.
    """
    of_runs = by_run(look(store))
    forgotten = {status.job for status in of_runs.values() if not status.state and not status.hidden}
    accounts = queue.accounted(sorted(forgotten))
    return {
        run: replace(status, state=accounts[status.job]) if status.job in accounts and not status.state else status
        for run, status in of_runs.items()
    }


def elsewhere(store: Store, run_ids: Collection[str]) -> tuple[set[str], str]:
    """Return the runs planned for this machine that a job in SLURM's queue is doing or will do.

    Returns:
        Their ids; and a warning if some were submitted of which that cannot be found out.
    """
    # From files alone: SLURM is asked only if some of the runs may still be in its queue.
    unended = {
        run
        for submission in submissions.read_all(store)
        for task, runs in enumerate(submission.tasks)
        if submission.note(task).state in ("", "running", "stopped")
        for run in runs
    } & set(run_ids)
    if not unended:
        return set(), ""
    try:
        of_runs = by_run(look(store))
    except BenchError as error:
        return set(), f"{counted(len(unended), 'run')} submitted to SLURM may be in its queue: {error}"
    hidden = [status for run, status in of_runs.items() if run in unended and status.hidden]
    warning = f"{counted(len(hidden), 'run')} may be done elsewhere too: {describe_hidden(hidden)}" if hidden else ""
    return {run for run in unended if run in of_runs and of_runs[run].live}, warning


def describe_hidden(statuses: Iterable[JobStatus]) -> str:
    """Return the end of a sentence about jobs that cannot be seen from here: whose they are, where, and what to do."""
    hidden = {status.submission.name: status.submission for status in statuses}
    whose = {f"{one.user or '?'} on cluster {one.cluster or '?'}" for one in hidden.values()}
    folders = ", ".join(str(one.folder) for one in hidden.values())
    return (
        f"submitted by {', '.join(sorted(whose))}, whose jobs cannot be seen from here and may be alive; if they are "
        f"gone, delete {folders}"
    )


# ---- cancelling ----------------------------------------------------------------------------------------------


@dataclass
class Cancelled:
    """The result of cancelling jobs.

    Attributes:
        jobs: ids of the jobs that were cancelled.
        others: what could not be cancelled, whose it is and why; a line each.
    """

    jobs: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def cancel(store: Store) -> Cancelled:
    """Cancel the experiment's jobs that are queued or running.

    Raises:
        BenchError: SLURM does not answer, or refuses to cancel jobs of this user.
    """
    statuses, me, done = look(store), queue.user(), Cancelled()
    live: dict[str, list[JobStatus]] = {}
    for status in statuses:
        if status.known_as_live:
            live.setdefault(status.submission.user or me, []).append(status)
    for one in submissions.read_all(store):
        # Before scancel: a job that is being preempted right now would queue itself again. And jobs that SLURM took
        # without saying so (no ids yet) may turn up later.
        if one.user in ("", me) and (not one.job_ids or any(s.submission.name == one.name for s in live.get(me, []))):
            one.mark_cancelled()
    for owner, some in live.items():
        ids = [status.job for status in some]
        try:
            queue.scancel(ids)
        except BenchError as error:
            if owner == me:
                raise
            done.others.append(f"{queue.ranges(ids)} of {owner}: {str(error).splitlines()[0]}")
            continue
        done.jobs += ids
        with suppress(StorageError):  # another user's folder
            for one in {status.submission.name: status.submission for status in some}.values():
                one.mark_cancelled()
    hidden = [status for status in statuses if status.hidden]
    if hidden:
        done.others.append(f"{queue.ranges([status.job for status in hidden])}: {describe_hidden(hidden)}")
    return done


# ---- one job -------------------------------------------------------------------------------------------------


def _with_job_ids(submission: Submission, jobs: dict[str, Queued]) -> Submission:
    """Return the submission with its jobs' ids: one that could not record them finds them by their name."""
    if submission.job_ids:
        return submission
    number = next((job.partition("_")[0] for job, queued in jobs.items() if queued.name == submission.name), None)
    if number is None:
        return submission
    ids = submission.ids_of(number)
    if submission.user not in ("", queue.user()):
        return replace(submission, job_ids=ids)
    return submissions.with_job_ids(submission, ids)


def _status(submission: Submission, task: int, jobs: dict[str, Queued], cluster: Cluster) -> JobStatus:
    job, note = submission.job_ids[task], submission.note(task)
    # An array that was cancelled whole is there under its first number alone. Job ids begin anew when a controller
    # loses its state; names do not.
    queued = jobs.get(job) or jobs.get(job.partition("_")[0])
    if queued is not None and queued.name == submission.name:
        return JobStatus(submission, task, queued.state, queued.node or note.node, queued.reason, note)
    # Why the queue may be silent about a live job: it is another cluster's, or another user's on a private one.
    foreign = submission.cluster not in ("", cluster.name)
    shy = cluster.private and submission.user not in ("", queue.user())
    # A job that has written how it ended is over, whatever can be seen from here.
    over = submission.cancelled or note.state in ("done", "failed", "refused", "cancelled")
    return JobStatus(submission, task, node=note.node, note=note, hidden=(foreign or shy) and not over)


def _rank(status: JobStatus) -> int:
    # A live job before a hidden one, and both before one that is over.
    return 2 * status.live + status.hidden


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f' ("{last[:200]}")' if last else ""
