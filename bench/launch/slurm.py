"""Runs as arrays of SLURM jobs, through submitit."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from bench.data import data_folder
from bench.errors import BenchError
from bench.launch import phases, queue
from bench.launch import submission as submissions
from bench.launch.job import Job
from bench.launch.plan import Plan
from bench.launch.prepare import fetch
from bench.launch.profile import Profile
from bench.launch.submission import Settings, Submission, code_sha256, failed_at
from bench.spec import PlannedRun
from bench.store import KEEP_WEIGHTS, to_json, write_atomic

TIME_OUTS = 1000
"""How often a job that reaches its time limit is queued again; every time it gets a little further."""


@dataclass(frozen=True)
class Submitted:
    """What a launch on SLURM did.

    Attributes:
        jobs: ids of the jobs that it submitted.
        new: the runs that these do.
        queued: runs that earlier submissions already had in the queue.
    """

    jobs: list[str]
    new: set[str]
    queued: set[str]


def submit(plan: Plan, profile: Profile, *, checkpoint_minutes: float = 5.0, fail_fast: bool = False) -> Submitted:
    """Submit the runs that are missing and not in the queue yet.

    Args:
        checkpoint_minutes: time between two checkpoints of a run.
        fail_fast: a job stops at the first of its runs that fails.

    Raises:
        BenchError: there is no SLURM here, it refuses, or data cannot be had. What was submitted before that is told.
    """
    check_there_is_slurm()
    profile.check({run.spec.train.processes for run in plan.to_do})
    store = plan.store
    store.check_writable()
    _check_folder(store.folder)
    phases.write_down(plan.choices, plan.experiment, store)
    with submissions.submitting(store):
        queued = queue.live_runs(store)
        free = [run for run in plan.to_do if run.spec.run_id not in queued]
        runs = [run for run in free if store.run(run.spec.run_id).result() is None]  # a job has ended since we planned
        still = queued & {run.spec.run_id for run in plan.chosen}
        if not runs:
            return Submitted([], set(), still)
        fetch(plan.experiment)
        jobs: list[str] = []
        arrays = list(_arrays(runs, profile))
        for number, tasks in enumerate(arrays):
            submission = _prepare(plan, profile, tasks, number, checkpoint_minutes, fail_fast)
            try:
                jobs += _submit(submission, profile, len(arrays)).job_ids
            except BenchError as error:
                before = f"; submitted before that: {queue.ranges(jobs)}" if jobs else "; nothing was submitted"
                raise BenchError(f"{error}{before}") from error
    return Submitted(jobs, {run.spec.run_id for run in runs}, still)


def scripts(plan: Plan, profile: Profile) -> Iterator[str]:
    """The sbatch script of every array that `submit` would submit now; nothing is written.

    Raises:
        BenchError: there is no SLURM here, or it does not answer.
    """
    check_there_is_slurm()
    profile.check({run.spec.train.processes for run in plan.to_do})
    queued = queue.live_runs(plan.store)
    arrays = list(_arrays([run for run in plan.to_do if run.spec.run_id not in queued], profile))
    for number, tasks in enumerate(arrays):
        name = _name(plan.experiment.name, number)
        executor = _executor(plan.store.folder.resolve() / "slurm" / name, name, profile, len(arrays))
        if len(tasks) > 1:
            executor.parameters["map_count"] = len(tasks)
        yield executor._make_submission_file_text(executor._submitit_command_str, "")


def check_there_is_slurm() -> None:
    """Raises BenchError where jobs cannot be submitted."""
    for command in ("sbatch", "srun", "squeue"):
        if shutil.which(command) is None:
            raise BenchError(
                f"no {command} on PATH: --on slurm works where jobs can be submitted (a login node of a cluster); "
                "leave it out to run on this machine"
            )


def _check_folder(folder: Path) -> None:
    if "%" in str(folder.resolve()):
        raise BenchError(f"{folder.resolve()}: SLURM cannot write logs to a path with a % in it; choose another --out")


def _arrays(runs: Sequence[PlannedRun], profile: Profile) -> Iterator[list[list[PlannedRun]]]:
    """Runs put into jobs, and jobs into arrays that the site takes; runs of one job are about as long as each other."""
    pack = profile.pack(max((run.spec.train.processes for run in runs), default=1))
    jobs = [list(runs[start : start + pack]) for start in range(0, len(runs), pack)]
    size = profile.max_array_size or _site_limit()
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _site_limit() -> int:
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", queue.call(["scontrol", "show", "config"]), flags=re.M)
    return max(1, int(match[1]) - 1) if match else 1000


def _prepare(
    plan: Plan, profile: Profile, tasks: list[list[PlannedRun]], number: int, checkpoint_minutes: float, fail_fast: bool
) -> Submission:
    """Write all that the jobs of an array read, before the first of them can start."""
    name = _name(plan.experiment.name, number)
    settings = Settings(
        jobs=profile.jobs,
        jobs_per_gpu=profile.jobs_per_gpu,
        gpus=profile.gpus,
        cpus=profile.cpus,
        time=profile.time,
        grace_seconds=profile.grace,
        checkpoint_minutes=checkpoint_minutes,
        fail_fast=fail_fast,
        data=str(data_folder().resolve()) if os.environ.get("BENCH_DATA") else None,
        nodes=profile.nodes,
        keep_weights=bool(os.environ.get(KEEP_WEIGHTS)),
    )
    submission = Submission(
        folder=plan.store.folder.resolve() / "slurm" / name,
        name=name,
        submitted=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        code=code_sha256(),
        tasks=[[run.spec.run_id for run in runs] for runs in tasks],
        job_ids=[],
        settings=settings,
    )
    runs = {run.spec.run_id: run for some in tasks for run in some}
    content = {
        "metric": plan.experiment.metric,
        "passes": {run_id: plan.passes[run_id] for run_id in runs},
        "retried": {run_id: at for run_id in runs if (at := failed_at(plan.store.run(run_id)))},
        "runs": {
            run_id: {
                "label": run.label,
                "config": run.config,
                "condition": run.condition,
                "phase": run.phase,
                "spec": run.spec.model_dump_json(),
            }
            for run_id, run in runs.items()
        },
    }
    write_atomic(submission.folder / "runs.json", to_json(content))
    submission.write()
    return submission


def _name(experiment: str, number: int) -> str:
    """Of a submission: unlike any other, in the order of time, and good for a path and for sbatch."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%f")
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', experiment)[:60]}-{stamp}-{number}-{os.getpid()}"


def _submit(submission: Submission, profile: Profile, arrays: int) -> Submission:
    executor = _executor(submission.folder, submission.name, profile, arrays)
    jobs = [Job(submission.folder, task, submission.code) for task in range(len(submission.tasks))]
    try:
        submitted = executor.submit_array(jobs)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        shutil.rmtree(submission.folder, ignore_errors=True)
        raise BenchError(f"sbatch refused the jobs: {_last_words(error)}") from error
    return submissions.with_job_ids(submission, [job.job_id for job in submitted])


def _executor(folder: Path, name: str, profile: Profile, arrays: int) -> submitit.SlurmExecutor:
    """Submitit's, set up for one of so many arrays.

    Raises:
        BenchError: submitit does not take the settings.
    """
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=TIME_OUTS)
        srun_args = [f"--cpus-per-task={profile.cpus}"]  # since 22.05 srun does not take it from the job
        if profile.nodes > 1:
            srun_args.append("--kill-on-bad-exit=1")  # a node that is lost would be waited for
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            executor.update_parameters(
                job_name=name,
                wckey=None,  # "submitit" by default, which sites that keep such keys refuse
                array_parallelism=max(1, profile.max_jobs // arrays),
                additional_parameters={"requeue": True, **profile.sbatch},
                srun_args=srun_args,
                **profile.parameters(),
            )
    except (ValueError, TypeError, RuntimeError) as error:
        raise BenchError(f"submitit refuses the settings: {error}") from error
    return executor


def _last_words(error: Exception) -> str:
    """What sbatch said, of all that submitit tells."""
    lines = [line.strip() for line in str(error).splitlines() if "sbatch: " in line]
    return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines) or str(error).strip()
