"""Runs as arrays of SLURM jobs, through submitit."""

from __future__ import annotations

import datetime
import os
import re
import shlex
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import submitit
from submitit.core.utils import DelayedSubmission

from bench.core.errors import BenchError
from bench.core.experiment import PlannedRun
from bench.core.run_options import DEFAULTS, RunOptions
from bench.launch import compiling, tuning
from bench.launch.plan import Plan
from bench.launch.prepare import fetch_files
from bench.launch.slurm import job_status, queue
from bench.launch.slurm import submission as submissions
from bench.launch.slurm.job import Job
from bench.launch.slurm.job_status import JobStatus
from bench.launch.slurm.profile import Profile
from bench.launch.slurm.queue import Cluster
from bench.launch.slurm.submission import JobSettings, Submission, code_sha256, failed_at
from bench.store.run_folder import to_json, write_atomic

TIME_OUTS = 1000
"""Number of times that a job that reaches its time limit is queued again; it makes progress every time."""


UNCLEAR = re.compile(r"timed out|unable to contact|communicat|transmitted|transport|does not answer|said: ", re.I)
"""Errors of sbatch after which the controller may have accepted the jobs nevertheless."""

LOOKS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further look into the queue for jobs that sbatch is not sure of; a job waits a minute for us."""


class Unsure(BenchError):
    """sbatch has failed, and whether the jobs are in the queue cannot be found out."""


@dataclass(frozen=True)
class Submitted:
    """The result of a launch on SLURM.

    Attributes:
        jobs: ids of the jobs that it submitted.
        new: the runs that these do.
        queued: runs that earlier submissions already had in the queue.
        hidden: jobs that have others of the runs and cannot be seen from here; these runs were left to them.
    """

    jobs: list[str]
    new: set[str]
    queued: set[str]
    hidden: list[JobStatus]


def submit(plan: Plan, profile: Profile, options: RunOptions = DEFAULTS) -> Submitted:
    """Submit the runs that are missing and not in the queue yet.

    Args:
        options: how runs are done; how many at once in a job is for the profile to say.

    Raises:
        BenchError: SLURM is missing or refuses, or data cannot be obtained. The message says what was submitted
            before.
    """
    # 1. Refuse what cannot work before anything is written.
    check_there_is_slurm()
    compiling.refuse_open(plan.experiment, "--on slurm")
    plan.check_records()
    profile.check({run.spec.train.processes for run in plan.to_do})
    store = plan.store
    store.check_writable()
    _check_folder(store.folder)
    tuning.write_down(plan.choices, plan.experiment, store)
    # 2. Find the runs that nobody has. The lock covers this and sbatch, or two commands could submit the same runs.
    with submissions.submitting(store):
        statuses = job_status.look(store)
        of_runs = job_status.by_run(statuses)
        chosen = {run.spec.run_id for run in plan.chosen}
        queued = {run for run, status in of_runs.items() if status.live and run in chosen}
        runs = [run for run in _free(plan, of_runs) if store.run(run.spec.run_id).result() is None]  # ended meanwhile
        left = {run.spec.run_id for run in plan.to_do}
        hidden = [status for run, status in of_runs.items() if status.hidden and run in left]
        if not runs:
            return Submitted([], set(), queued, hidden)
        # Here, on the login node: nodes of a cluster often cannot reach the internet.
        fetch_files(plan.experiment)
        jobs: list[str] = []
        cluster = queue.cluster()
        # 3. Submit array by array; what the jobs read is on disk before sbatch is called.
        at_once, after = _room(profile.max_jobs, statuses)
        for number, tasks in enumerate(_arrays(runs, profile, cluster)):
            submission = _prepare(plan, profile, tasks, number, cluster, at_once, options)
            try:
                submission = _submit(submission, profile, after)
            except BenchError as error:
                nothing = "" if isinstance(error, Unsure) else "; nothing was submitted"
                # Arrays that were submitted already stay in the queue.
                before = f"; submitted before that: {queue.ranges(jobs)}" if jobs else nothing
                raise BenchError(f"{error}{before}") from error
            jobs += submission.job_ids
            # Each further array waits for the one before: together they could exceed max_jobs.
            after = [submission.array_id]
    return Submitted(jobs, {run.spec.run_id for run in runs}, queued, hidden)


def scripts(plan: Plan, profile: Profile) -> Iterator[str]:
    """Yield the sbatch script of every array that `submit` would submit now, without writing anything.

    Raises:
        BenchError: there is no SLURM here, or it does not answer.
    """
    check_there_is_slurm()
    compiling.refuse_open(plan.experiment, "--on slurm")
    plan.check_records()
    profile.check({run.spec.train.processes for run in plan.to_do})
    _check_folder(plan.store.folder)
    statuses = job_status.look(plan.store)
    at_once, after = _room(profile.max_jobs, statuses)
    runs = _free(plan, job_status.by_run(statuses))
    for number, tasks in enumerate(_arrays(runs, profile, queue.cluster())):
        name = _name(plan.experiment.name, number)
        yield _script(plan.store.folder.resolve() / "slurm" / name, name, profile, len(tasks), at_once, after)
        # In the place of an id, which SLURM gives only when the array is submitted.
        after = ["ARRAY_BEFORE"]


def check_there_is_slurm() -> None:
    """Raise BenchError if jobs cannot be submitted here."""
    for command in ("sbatch", "srun", "squeue"):
        if shutil.which(command) is None:
            raise BenchError(
                f"no {command} on PATH: --on slurm works where jobs can be submitted (a login node of a cluster); "
                "leave it out to run on this machine"
            )


def _check_folder(folder: Path) -> None:
    path = str(folder.resolve())
    # The path is a part of lines of the job's script.
    if "%" in path or not path.isprintable():
        raise BenchError(
            f"{path!r}: SLURM cannot write logs to a path with a %, a line break or another control character in it; "
            "choose another --out"
        )


def _free(plan: Plan, of_runs: Mapping[str, JobStatus]) -> list[PlannedRun]:
    """Return the runs to do that no job has, or may have."""
    # Hidden jobs may be alive: a run is rather left out than done twice.
    taken = {run for run, status in of_runs.items() if status.live or status.hidden}
    return [run for run in plan.to_do if run.spec.run_id not in taken]


def _room(max_jobs: int, statuses: Sequence[JobStatus]) -> tuple[int, list[str]]:
    """Return the number of jobs that a new array may run at once, given the queued jobs of earlier submissions.

    Returns:
        The number of jobs; and the earlier arrays after whose end the new array may begin, if they leave no room now.
    """
    earlier: dict[str, list[JobStatus]] = {}
    for status in statuses:
        if status.live:
            earlier.setdefault(status.submission.array_id, []).append(status)
    # An array never runs more jobs at once than its own limit.
    used = sum(min(len(some), some[0].submission.settings.max_jobs or len(some)) for some in earlier.values())
    return (max_jobs - used, []) if used < max_jobs else (max_jobs, sorted(earlier))


def _arrays(runs: Sequence[PlannedRun], profile: Profile, cluster: Cluster) -> Iterator[list[list[PlannedRun]]]:
    """Yield arrays of jobs, each of a size that the site accepts; the runs of one job take about equally long."""
    pack = profile.pack(max((run.spec.train.processes for run in runs), default=1))
    # Runs come longest first (`Plan.to_do`), so neighbours take about equally long.
    jobs = [list(runs[start : start + pack]) for start in range(0, len(runs), pack)]
    size = profile.max_array_size or cluster.max_array_size
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _prepare(
    plan: Plan,
    profile: Profile,
    tasks: list[list[PlannedRun]],
    number: int,
    cluster: Cluster,
    at_once: int,
    options: RunOptions,
) -> Submission:
    """Write all that the jobs of an array read, before the first of them can start."""
    name = _name(plan.experiment.name, number)
    settings = JobSettings(
        gpus=profile.gpus,
        cpus=profile.cpus,
        time=profile.time,
        grace_seconds=profile.grace,
        options=replace(options, jobs=profile.jobs, jobs_per_gpu=profile.jobs_per_gpu),
        nodes=profile.nodes,
        max_jobs=at_once,
    )
    submission = Submission(
        folder=plan.store.folder.resolve() / "slurm" / name,
        name=name,
        submitted=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        code=code_sha256(),
        tasks=[[run.spec.run_id for run in runs] for runs in tasks],
        # Not known yet. If this process dies before they are, the jobs are found by their name.
        job_ids=[],
        settings=settings,
        cluster=cluster.name,
        user=queue.user(),
    )
    runs = {run.spec.run_id: run for some in tasks for run in some}
    content = {
        "metric": plan.experiment.metric,
        "passes": {run_id: plan.passes[run_id] for run_id in runs},
        # When runs failed before: these failures are repeated, newer ones are not.
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
    """Return a new submission's name: unique, in the order of time, and valid in a path and for sbatch."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%f")
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', experiment)[:60]}-{stamp}-{number}-{os.getpid()}"


def _submit(submission: Submission, profile: Profile, after: Sequence[str]) -> Submission:
    """Submit an array, or a single job, and return the submission with the ids of its jobs.

    Args:
        after: ids of arrays that must end before.
    """
    folder, count = submission.folder, len(submission.tasks)
    for task in range(count):
        job = DelayedSubmission(Job(folder, task, submission.code))
        job.set_timeout(profile.time, TIME_OUTS)
        job.dump(submission.pickle(task))
    path = folder / "submit.sh"
    write_atomic(path, _script(folder, submission.name, profile, count, submission.settings.max_jobs or count, after))
    return submissions.with_job_ids(submission, submission.ids_of(_sbatch(path, submission)))


def _sbatch(script: Path, submission: Submission) -> str:
    """Run sbatch and return the number that SLURM gives to the jobs of a script.

    sbatch may fail although the controller has taken the jobs (its answer came too late), so the queue is asked before
    the submission is given up.

    Raises:
        Unsure: sbatch has failed, and the queue does not show whether the jobs were taken.
        BenchError: SLURM refuses the jobs; the folder of the submission is gone.
    """
    try:
        said = queue.call(["sbatch", "--parsable", str(script)])
        if match := re.search(r"^(?:Submitted batch job )?(\d+)(?:;\S+)?$", said, flags=re.M):
            return match[1]
        failure = BenchError(f"sbatch said: {said}")
    except BenchError as error:
        failure = error
    unsure = bool(UNCLEAR.search(str(failure)))
    # After a clear refusal one look is enough; otherwise jobs may appear in the queue late.
    for seconds in (0.0, *LOOKS) if unsure else (0.0,):
        time.sleep(seconds)
        try:
            if jobs := queue.ask([submission.name]):
                return next(iter(jobs)).partition("_")[0]
        except BenchError:
            unsure = True
    if unsure:
        raise Unsure(
            f"sbatch failed: {_last_words(failure)}; it is unknown whether SLURM accepted the jobs. If "
            "it did, `bench status` will show them, and `bench cancel` stops them"
        ) from failure
    # SLURM has no such jobs, so nobody will read the folder.
    shutil.rmtree(submission.folder, ignore_errors=True)
    raise BenchError(f"sbatch refused the jobs: {_last_words(failure)}") from failure


def _script(folder: Path, name: str, profile: Profile, count: int, at_once: int, after: Sequence[str]) -> str:
    """Return the sbatch script of an array, or of a single job.

    Args:
        count: jobs of the array.
        at_once: jobs of the array that run at the same time.
        after: ids of arrays that must end before.

    Raises:
        BenchError: submitit does not take the settings.
    """
    # Since 22.05 srun does not take the number of cores from the job. --ntasks: one process per node, whatever else the
    # job asks for. --export=ALL: the script's variables, also where --export=NONE keeps the submitter's from the job.
    srun_args = [f"--cpus-per-task={profile.cpus}", f"--ntasks={profile.nodes}", "--export=ALL"]
    if profile.nodes > 1:
        srun_args.append("--kill-on-bad-exit=1")  # a node that is lost would be waited for
    parameters = {"requeue": True, **profile.sbatch}
    if after:
        # afterany: the jobs before may also have failed.
        own = [str(parameters["dependency"])] if "dependency" in parameters else []
        parameters["dependency"] = ",".join([*own, f"afterany:{':'.join(after)}"])
    settings = profile.parameters()
    # What a job needs to start, also with --export=NONE.
    given = {name: os.environ[name] for name in ("PYTHONPATH", "SLURM_CONF") if name in os.environ}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in given.items()]
    settings["setup"] = [*exports, *settings.get("setup", [])] or None
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=TIME_OUTS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            executor.update_parameters(
                job_name=name,
                wckey=None,  # "submitit" by default, which sites that keep such keys refuse
                array_parallelism=at_once,
                additional_parameters=parameters,
                srun_args=srun_args,
                **settings,
            )
    except (ValueError, TypeError, RuntimeError) as error:
        raise BenchError(f"submitit refuses the settings: {error}") from error
    if count > 1:
        # The number of jobs, which submitit sets itself where it submits an array.
        executor.parameters["map_count"] = count
    # The text alone: `_sbatch` submits it, with a clean environment and a second look after a failure.
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def _last_words(error: Exception) -> str:
    """Return what sbatch said, on one line."""
    lines = [line[line.index("sbatch: ") :].strip() for line in str(error).splitlines() if "sbatch: " in line]
    return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines) or str(error).strip()
