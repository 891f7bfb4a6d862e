"""The process that SLURM starts: it runs the launcher of its node and handles SLURM's signals.

The runs themselves are done by `bench.launch.slurm.node`, a process of its own with the same launcher as on any
machine. So submitit's handler, which runs in the middle of whatever this process does, meets only a wait, and handlers
are in place a tenth of a second after the start, before torch is imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core import data_folder
from bench.core.errors import BenchError
from bench.launch.slurm import queue
from bench.launch.slurm import submission as submissions
from bench.launch.slurm.submission import JobSettings, Note, Submission, code_sha256
from bench.store.run_folder import to_json, write_atomic

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

STOPPED = 3
"""Exit status of a launcher that was stopped before its runs were finished."""

MARGIN = 5.0
"""Seconds of the grace time that are left for queueing the job again."""

IDLE_LIMIT = 3
"""Number of time limits in a row, without any progress, after which a job is not queued again."""

CANCELLED = "SLURM was ending this job for good when it was told to save, so it was not queued again"
MARKED = "this job was started again after `bench cancel`, and has done nothing"

LONGEST_GRACE = 600.0
"""Seconds for which a job that was told to end waits for SLURM to end it."""


class Job:
    """One job of a submission: it does its runs, and resumes them when SLURM starts it again.

    Args:
        folder: of the submission.
        task: which of its jobs this is.
        code: hash of the code it was submitted from.
        idle: how often in a row it has reached its time limit without progress.
    """

    def __init__(self, folder: Path, task: int, code: str, idle: int = 0) -> None:
        self.folder = folder
        self.task = task
        self.code = code
        self.idle = idle
        self._started = time.monotonic()
        self._progress: list[int] = []
        self._launcher: subprocess.Popen[bytes] | None = None
        self._stop_asked = False
        self._cancelled = False

    def __call__(self) -> str:
        """Do the runs. Called by submitit, at every start of the job.

        Returns:
            The state in words.

        Raises:
            BenchError: the job was cancelled, the code has changed since, or runs failed; submitit prints it to the
                job's log.
        """
        # First of all: SIGTERM without a handler would end the job before its runs have saved.
        signal.signal(signal.SIGTERM, lambda number, frame: self._ask_to_stop())
        submission = submissions.read(self.folder)
        # One process per node: 0 leads the job, the others start what it asks for.
        if int(os.environ.get("SLURM_PROCID", "0")):
            return self._help(submission)
        try:
            return self._lead(submission)
        finally:
            if submission.settings.nodes > 1:
                # After an error too, or the other nodes would wait for calls until the time limit.
                write_atomic(submissions.calls(self.folder, self.task), to_json({"over": True}))

    def _lead(self, submission: Submission) -> str:
        """Do the work of the job's first node, which is mostly the only one."""
        note = replace(submission.note(self.task), node=os.environ.get("SLURMD_NODENAME") or os.uname().nodename)
        note = replace(note, starts=note.starts + 1, state="running", message="")
        from submitit.core.utils import UncompletedJobError

        # SLURM may start a job again although `bench cancel` has cancelled it.
        if submission.cancelled:
            submission.write_note(self.task, replace(note, state="cancelled", message=MARKED))
            raise BenchError(MARKED)
        try:
            self._check_code()
        except BenchError as error:
            submission.write_note(self.task, replace(note, state="refused", message=str(error)))
            raise
        submission.write_note(self.task, note)
        # To compare with in `checkpoint`: whether this start of the job has got any further.
        self._started, self._progress = time.monotonic(), submission.progress(self.task)
        try:
            status = self._launch(submission, "bench.launch.slurm.node")
        except UncompletedJobError as error:  # submitit's, out of its handler, when the job is not queued again
            message = (
                f"reached its time limit of {submission.settings.time} min {IDLE_LIMIT} times without progress, "
                "and was not queued again; give it more with --time"
            )
            state, message = ("cancelled", CANCELLED) if self._cancelled else ("failed", message)
            submission.write_note(self.task, replace(note, state=state, message=message))
            raise BenchError(message) from error
        return self._end(submission, note, status)

    def _help(self, submission: Submission) -> str:
        """Do the work of another node: start what the first node asks for. A failing node ends the job on all nodes."""
        self._check_code()
        if status := self._launch(submission, "bench.launch.slurm.node_helper"):
            raise BenchError(f"the helper of this node ended with {_in_words(status)}")
        return "helped"

    def _check_code(self) -> None:
        if (now := code_sha256()) != self.code:
            raise BenchError(
                f"bench has changed since this job was submitted ({self.code}, now {now}): its runs would "
                "mix two versions, and were not started. `bench run --on slurm` submits them again"
            )

    def checkpoint(self) -> DelayedSubmission | None:
        """Make all runs save and stop. Called by submitit on its signal, in the middle of `__call__`.

        Writes nothing itself; runs save between two steps.

        Returns:
            What SLURM is to start again; None if nothing: the job was cancelled, or has reached its time limit
            `IDLE_LIMIT` times in a row without progress.

        Raises:
            SystemExit: SLURM has queued the job again by itself. Should it be cancelled now, doing so once more would
                bring it back to life.
        """
        from submitit.core.utils import DelayedSubmission

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it would kill the `scontrol requeue` that follows
        self._ask_to_stop()
        launcher = self._launcher
        if launcher is not None and launcher.returncode is None:
            # Until MARGIN before the end of the grace time: submitit still has to queue the job again.
            deadline = time.monotonic() + submissions.read(self.folder).settings.grace_seconds - MARGIN
            # This handler interrupts `_launch`, which may have collected the exit status already.
            with suppress(ChildProcessError):
                while not _is_over(launcher.pid) and time.monotonic() < deadline:
                    time.sleep(0.05)
        # Read again: `bench cancel` may have come while the runs saved.
        submission = submissions.read(self.folder)
        # The last look before submitit queues the job again.
        fate = "ended" if submission.cancelled else queue.fate()
        if fate == "requeued":
            sys.exit(-1)
        if fate == "ended":
            self._cancelled = True
            return None
        if submission.progress(self.task) != self._progress:
            self.idle = 0
        elif self._is_at_its_limit(submission.settings):
            self.idle += 1
        if self.idle >= IDLE_LIMIT:
            return None
        return DelayedSubmission(type(self)(self.folder, self.task, self.code, self.idle))

    def _is_at_its_limit(self, settings: JobSettings) -> bool:
        """Tell whether the job reached its time limit, rather than being preempted.

        Preemption may come at any time and says nothing about the runs. SLURM's signal comes up to a minute early.
        """
        usable = 60 * settings.time - settings.grace_seconds
        return time.monotonic() - self._started >= max(usable - 60, usable / 2)

    def _ask_to_stop(self) -> None:
        """Ask the launcher to stop, only once: on a second signal it would kill its workers while they save."""
        if self._launcher is None:
            self._stop_asked = True
        elif self._launcher.stdin is not None:
            with suppress(OSError):
                os.write(self._launcher.stdin.fileno(), b".")

    def _launch(self, submission: Submission, module: str) -> int:
        """Start the process that does this node's work, wait for its end, and return its exit status."""
        command = [sys.executable, "-m", module, str(self.folder), str(self.task)]
        blocked = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}  # SLURM sends them to all; they are for us alone
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            # A byte on its standard input asks it to stop; where that ends it dies, so nothing survives this process.
            launcher = subprocess.Popen(command, stdin=subprocess.PIPE, env=_environment(submission))
            self._launcher = launcher
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        # SIGTERM came before there was a launcher to pass it on to.
        if self._stop_asked:
            self._ask_to_stop()
        try:
            os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)  # holds no lock that the handler could want
            return launcher.wait()
        finally:
            # submitit's handler has raised an error in the wait: the runs must not go on without this process.
            if launcher.returncode is None:
                launcher.kill()

    def _end(self, submission: Submission, note: Note, status: int) -> str:
        if status == STOPPED:
            submission.write_note(self.task, replace(note, state="stopped"))
            _wait_while_running()
            return "stopped"
        note = submission.note(self.task)  # the launcher has written what it knows
        if status == 0:
            return note.state
        # A launcher that was killed has not written why.
        if note.state != "failed":
            note = replace(note, state="failed", message=f"its launcher ended with {_in_words(status)}")
            submission.write_note(self.task, note)
        raise BenchError(note.message)


def _environment(submission: Submission) -> dict[str, str]:
    """Return the launcher's environment variables: the submitter's data folder, and no GPU that was not asked for."""
    environment = os.environ | data_folder.variables(submission.settings.options.data)
    if not submission.settings.gpus and not {"SLURM_JOB_GPUS", "SLURM_STEP_GPUS"} & environment.keys():
        # A site that does not hide its GPUs would show them to a job that has asked for none.
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _is_over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _wait_while_running() -> None:
    """Wait until SLURM ends the job, if the job was told to end by SIGTERM alone.

    Some sites send it at the beginning of the grace time before a preemption: a job that ended by itself then would
    count as completed, and not be started again.
    """
    job, deadline = queue.own_job(), time.monotonic() + LONGEST_GRACE
    while job and time.monotonic() < deadline and queue.is_running(job):
        time.sleep(2)


def _in_words(status: int) -> str:
    return f"signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"exit status {status}"
