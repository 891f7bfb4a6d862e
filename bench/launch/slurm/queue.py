"""SLURM's commands, and the state of jobs in its queue and its accounting."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.core.errors import BenchError, counted

OVER = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL"),
    *("DEADLINE", "REVOKED"),
)
"""States of jobs that have ended."""

OF_SLURM = re.compile(r"(SLURM|SLURMD|SRUN|SALLOC|SBATCH|SQUEUE|SCANCEL|SACCT|SCONTROL|SINFO)_")
"""Variables of SLURM: of an allocation that this process is in, and of the user's habits."""

KEPT = {"SLURM_CONF", "SLURM_JWT"}
"""Variables of these that are kept: they name the cluster's configuration and the user's token."""

MANY = 500
"""Names or ids per command, since the length of its arguments is limited."""


@dataclass(frozen=True)
class Queued:
    """A job as the queue shows it: its state ("PENDING", ...), node, user, name, and why it waits or ended."""

    state: str
    node: str
    user: str
    name: str
    reason: str

    @property
    def live(self) -> bool:
        return self.state not in OVER


@dataclass(frozen=True)
class Cluster:
    """The settings that a cluster reports.

    Attributes:
        private: a user may be shown no jobs but their own.
        max_array_size: jobs of the longest array.
    """

    name: str
    private: bool
    max_array_size: int


def environment() -> dict[str, str]:
    """Return the variables for SLURM's commands: this process's own, without `OF_SLURM`.

    Inside an allocation SLURM_* and SRUN_* would size the jobs that are submitted, and reach them; SBATCH_* go over an
    experiment's settings, SQUEUE_* hide jobs, SCANCEL_* spare them.
    """
    return {name: value for name, value in os.environ.items() if name in KEPT or not OF_SLURM.match(name)}


def user() -> str:
    """Return the name of the user that this process runs as, not from LOGNAME; the user's number if it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def own_job() -> str | None:
    """Return the id of the job that this process is part of, as `ask` writes it; None outside of a job.

    SLURM_JOB_ID alone would not do: that of an array's last job is the number of the array, and means all of its jobs.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def call(command: Sequence[str], seconds: float = 120) -> str:
    """Return what a command of SLURM prints.

    Args:
        seconds: after which it counts as failed.

    Raises:
        BenchError: it is not there, or failed.
    """
    if shutil.which(command[0]) is None:
        raise BenchError(
            f"no {command[0]} on PATH: --on slurm works where jobs can be submitted (a login node of a cluster)"
        )
    try:
        # errors="replace": a message of a site in another encoding must not end in a UnicodeDecodeError.
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False, env=environment()
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(f"SLURM does not answer: {command[0]}: {error}") from error
    if done.returncode:
        raise BenchError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def cluster(seconds: float = 120) -> Cluster:
    """Ask the controller which cluster this is.

    Args:
        seconds: after which it counts as not answering.

    Raises:
        BenchError: there is no SLURM here, or it does not answer.
    """
    pairs = (line.partition("=") for line in call(["scontrol", "show", "config"], seconds).splitlines())
    config = {key.strip(): value.strip() for key, _, value in pairs}
    size = config.get("MaxArraySize", "")
    return Cluster(
        name=config.get("ClusterName", ""),
        private="jobs" in config.get("PrivateData", "").split(","),
        # Jobs are counted from 0, and MaxArraySize is one above the largest number. SLURM's default is 1001.
        max_array_size=max(1, int(size)) if size.isdecimal() else 1001,
    )


def ask(names: Sequence[str]) -> dict[str, Queued]:
    """Return the jobs of these names that the controller knows and shows, by id; of an array each has its own ("12_3").

    They are asked for by name: a user's jobs would leave out those of others on a shared folder.

    Raises:
        BenchError: there is no SLURM here, or it does not answer.
    """
    jobs: dict[str, Queued] = {}
    for some in _some(names):
        # --array: a line per job. --states=all: those too that have ended and are not forgotten yet.
        asked = ["--array", "--noheader", "--states=all", f"--name={','.join(some)}"]
        for line in call(["squeue", *asked, "--format=%i|%T|%N|%u|%j|%r"]).splitlines():
            # The reason comes last: it is free text, and a "|" in it does no harm there.
            job, state, node, user, name, reason = line.split("|", 5)
            jobs |= dict.fromkeys(expanded(job), Queued(state, node, user, name, reason))
    return jobs


def fate() -> str:
    """Return what SLURM is doing with the job that this process is part of.

    Returns:
        "" (the job goes on or has reached its time limit, or SLURM does not answer), "requeued" (SLURM is ending the
        job and has queued it again by itself) or "ended" (SLURM is ending the job for good: it was cancelled).
    """
    job = own_job()
    if job is None:
        return ""
    try:
        # A short wait, since the grace time is running.
        shown = call(["scontrol", "show", "job", job], seconds=20)
    except BenchError:
        # No answer counts as if the job goes on: submitit then queues it again.
        return ""
    about = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    # A job that is being ended is COMPLETING, whatever ends it; these two tell what.
    if int(about.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return "requeued"
    over = about.get("JobState") in ("COMPLETING", *OVER)
    # The time limit ends a job too, but such a job is queued again.
    return "ended" if over and about.get("Reason") != "TimeLimit" else ""


def is_running(job: str) -> bool:
    """Return whether the queue shows a job as running; False if SLURM does not answer."""
    try:
        return call(["squeue", "--noheader", "--format=%T", f"--jobs={job}"], seconds=60).strip() == "RUNNING"
    except BenchError:
        return False


def accounted(job_ids: Sequence[str]) -> dict[str, str]:
    """Return the states of jobs that the controller has forgotten, if the site keeps accounting records."""
    if not job_ids or shutil.which("sacct") is None:
        return {}
    # --allocations: a line per job, without those of its steps.
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", "--jobs"]
    try:
        answers = [call([*command, ",".join(ids)]) for ids in _some(job_ids)]
    except BenchError:
        return {}
    lines = [line.split("|", 1) for answer in answers for line in answer.splitlines()]
    # "CANCELLED by 1000" is CANCELLED.
    return {job: state.split(" ")[0] for jobs, state in lines for job in expanded(jobs)}


def scancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs.

    Raises:
        BenchError: SLURM refuses, or does not answer.
    """
    for some in _some(job_ids):
        call(["scancel", *some])


def expanded(job: str) -> list[str]:
    """Return the ids in an id as SLURM writes it: "12_[0-2,5%4]" as 12_0, 12_1, 12_2 and 12_5."""
    # %4 is how many of the array may run at once, and no part of the ids.
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job.strip())
    if match is None:
        return [job.strip()]
    ends = [part.partition("-") for part in match[2].split(",")]
    return [f"{match[1]}_{task}" for first, _, last in ends for task in range(int(first), int(last or first) + 1)]


def ranges(job_ids: Iterable[str]) -> str:
    """Return job ids in short: "12_0 ... 12_7 (8 jobs)"."""
    ids = list(job_ids)
    return f"{ids[0]} ... {ids[-1]} ({counted(len(ids), 'job')})" if len(ids) > 2 else ", ".join(ids)


def _some(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[start : start + MANY] for start in range(0, len(items), MANY))
