"""What SLURM says of our jobs, and what follows from it for the runs."""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.launch import submission as submissions
from bench.launch.submission import Note, Submission
from bench.store import Store

OVER = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL"),
    *("DEADLINE", "REVOKED"),
)
"""States of jobs that do nothing any more."""


@dataclass(frozen=True)
class Queued:
    """A job as the queue shows it: its state ("PENDING", "RUNNING", ...), node, name, and why it waits or ended."""

    state: str
    node: str
    name: str
    reason: str

    @property
    def live(self) -> bool:
        return self.state not in OVER


@dataclass(frozen=True)
class Standing:
    """Where a submitted run stands.

    Attributes:
        submission: the newest that has it.
        job: its job's id.
        state: of the job; "" if SLURM knows it no more.
        reason: why the job waits, as SLURM says.
        log: what the job printed.
    """

    submission: Submission
    job: str
    state: str
    node: str
    reason: str
    note: Note
    log: Path

    @property
    def live(self) -> bool:
        """Whether the job is in the queue or runs."""
        return self.state not in ("", *OVER)

    def words(self) -> str:
        """The standing of a run that is not finished, in one line."""
        requeued = self.note.starts - (self.state != "PENDING")
        times = f", requeued {requeued} time{'s' * (requeued > 1)}" if requeued > 0 else ""
        if self.state == "PENDING":
            return f"pending{times} (job {self.job}: {self.reason})"
        if self.live:
            return f"{self.state.lower()} on {self.node or '?'}{times} (job {self.job})"
        if self.note.state in ("refused", "failed"):
            return f"{self.note.state}: {self.note.message} (job {self.job}); log: {self.log}"
        if not self.note.starts:
            return f"job {self.job} never started: {self._ending()}"
        return f"its job {self.job} ended without finishing it: {self._ending()}; log: {self.log}"

    def _ending(self) -> str:
        return self.state.lower().replace("_", " ") or "SLURM does not know it any more"


def ask() -> dict[str, Queued]:
    """The user's jobs that the controller knows, by id; a job of an array has an id of its own ("12_3").

    Raises:
        BenchError: there is no SLURM here, or it does not answer.
    """
    command = ["squeue", "--array", "--noheader", "--states=all", "--format=%i|%T|%N|%j|%r"]
    jobs: dict[str, Queued] = {}
    for line in call([*command, f"--user={getpass.getuser()}"]).splitlines():
        job, state, node, name, reason = line.split("|", 4)
        jobs |= dict.fromkeys(expanded(job), Queued(state, node, name, reason))
    return jobs


def expanded(job: str) -> list[str]:
    """The ids in an id as SLURM writes it: "12_[0-2,5%4]" as 12_0, 12_1, 12_2 and 12_5."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job.strip())
    if match is None:
        return [job.strip()]
    ends = [part.partition("-") for part in match[2].split(",")]
    return [f"{match[1]}_{task}" for first, _, last in ends for task in range(int(first), int(last or first) + 1)]


def accounted(job_ids: Sequence[str]) -> dict[str, str]:
    """The states of jobs that the controller has forgotten, where the site keeps accounts."""
    if not job_ids or shutil.which("sacct") is None:
        return {}
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", "--jobs"]
    some = [job_ids[start : start + 1000] for start in range(0, len(job_ids), 1000)]  # an argument has a longest length
    try:
        answers = [call([*command, ",".join(ids)]) for ids in some]
    except BenchError:
        return {}
    lines = [line.split("|", 1) for answer in answers for line in answer.splitlines()]
    return {job: state.split(" ")[0] for jobs, state in lines for job in expanded(jobs)}


def call(command: Sequence[str]) -> str:
    """What a command of SLURM prints.

    Raises:
        BenchError: it is not there, or failed.
    """
    if shutil.which(command[0]) is None:
        raise BenchError(
            f"no {command[0]} on PATH: --on slurm works where jobs can be submitted (a login node of a cluster)"
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(f"SLURM does not answer: {command[0]}: {error}") from error
    if done.returncode:
        raise BenchError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def live_runs(store: Store) -> set[str]:
    """The runs whose jobs are queued or running.

    Raises:
        BenchError: SLURM does not answer.
    """
    jobs = ask()
    found: set[str] = set()
    for submission in known(store, jobs):
        for job, runs in zip(submission.job_ids, submission.tasks, strict=True):
            queued = _find(jobs, job, submission)
            if queued is not None and queued.live:
                found.update(runs)
    return found


def elsewhere(store: Store, run_ids: Collection[str]) -> tuple[set[str], str]:
    """Of runs that are to be done on this machine, those that a job in the queue will do or is doing.

    Returns:
        Those; and what is wrong if SLURM cannot be asked although some were submitted whose jobs have not ended as far
        as is known here.
    """
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
        return live_runs(store) & unended, ""
    except BenchError as error:
        return (
            set(),
            f"{len(unended)} of these runs were submitted to SLURM, and may be in its queue: {error}",
        )


def known(store: Store, jobs: dict[str, Queued]) -> list[Submission]:
    """The submissions that have jobs; one that died before it could record their ids finds them by their name."""
    found = []
    for submission in submissions.read_all(store):
        if not submission.job_ids:
            ids = [job for job, queued in jobs.items() if queued.name == submission.name]
            if len(ids) != len(submission.tasks):
                continue
            submission = submissions.with_job_ids(submission, sorted(ids, key=_place))
        found.append(submission)
    return found


def standings(store: Store) -> dict[str, Standing]:
    """Where every run stands that was submitted, by run id; what counts is its newest submission.

    Raises:
        BenchError: SLURM does not answer.
    """
    jobs = ask()
    all_submissions = known(store, jobs)
    newest = {
        run: (submission, task)
        for submission in all_submissions
        for task, runs in enumerate(submission.tasks)
        for run in runs
    }
    forgotten = sorted({s.job_ids[task] for s, task in newest.values() if _find(jobs, s.job_ids[task], s) is None})
    accounts = accounted(forgotten)
    return {run: _standing(submission, task, jobs, accounts) for run, (submission, task) in newest.items()}


def cancel(store: Store) -> list[str]:
    """Cancel the experiment's jobs that are queued or running: their ids.

    Raises:
        BenchError: SLURM does not answer.
    """
    jobs = ask()
    live = [
        job
        for submission in known(store, jobs)
        for job in submission.job_ids
        if (queued := _find(jobs, job, submission)) and queued.live
    ]
    for some in (live[start : start + 500] for start in range(0, len(live), 500)):
        call(["scancel", *some])
    return live


def ranges(job_ids: Iterable[str]) -> str:
    """Job ids in short: "12_0 ... 12_7 (8 jobs)"."""
    ids = list(job_ids)
    return f"{ids[0]} ... {ids[-1]} ({len(ids)} jobs)" if len(ids) > 2 else ", ".join(ids)


def _find(jobs: dict[str, Queued], job: str, submission: Submission) -> Queued | None:
    """A job of a submission in the queue; an array that was cancelled whole is there under its first number alone.

    Job ids begin anew when a controller loses its state; names do not.
    """
    queued = jobs.get(job) or jobs.get(job.partition("_")[0])
    return queued if queued is not None and queued.name == submission.name else None


def _standing(submission: Submission, task: int, jobs: dict[str, Queued], accounts: dict[str, str]) -> Standing:
    job = submission.job_ids[task]
    queued = _find(jobs, job, submission)
    note, log = submission.note(task), submission.log(task)
    if queued is None:
        return Standing(submission, job, accounts.get(job, ""), note.node, "", note, log)
    return Standing(submission, job, queued.state, queued.node or note.node, queued.reason, note, log)


def _place(job: str) -> int:
    """The place of a job in its array."""
    match = re.search(r"_(\d+)$", job)
    return int(match[1]) if match else 0
