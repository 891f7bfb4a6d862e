"""Submissions on disk: one folder per submission, read by its jobs and by `bench status`.

results/<experiment>/slurm/<name>/
    submission.json     which runs each job does, job ids, settings, when, the code's hash
    runs.json           the specs of all its runs
    job-<n>.json        what became of the n-th job, from inside
    cancelled           its jobs were cancelled: none of them is to work again, whoever starts it
    submit.sh           what sbatch was given; task-<n>.pkl until the jobs' ids are known
    calls-<n>-<m>.json  of a job on several nodes, at its m-th restart: what the first node has the others do
    <job id>_0_log.err  what it printed; submitit's own files beside it
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeGuard

from bench.core import run_options
from bench.core.errors import BenchError, shown
from bench.core.run_options import DEFAULTS, RunOptions
from bench.store.run_folder import RunFolder, Store, locked, read_json, to_json, write_atomic

ENDS = ("result.json", "error.txt")
"""Files that only an ended run has."""


@dataclass(frozen=True)
class JobSettings:
    """The settings that a job needs besides its runs.

    Attributes:
        options: how its runs are done; `data` is the submitter's folder.
        gpus: how many it has.
        time: the job's limit in minutes.
        nodes: of a job, which has `gpus` and `cpus` on each.
        max_jobs: jobs of the array that are done at once; None: all of them.
    """

    gpus: int
    cpus: int
    time: int
    grace_seconds: int
    options: RunOptions = DEFAULTS
    nodes: int = 1
    max_jobs: int | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> JobSettings:
        """Return the settings in a submission.json; submissions of earlier versions have no table of options."""
        given = dict(content)
        # In earlier versions the options stood beside these settings; "gpus" was then the job's number of GPUs.
        of_runs = given.pop("options", {name: value for name, value in given.items() if name != "gpus"})
        # Fields that are newer than the file keep their defaults.
        own = {field.name: given[field.name] for field in fields(cls) if field.name in given}
        return cls(**own, options=run_options.from_json(of_runs))


@dataclass(frozen=True)
class Submission:
    """One array of jobs.

    Attributes:
        name: of its folder and of its jobs in the queue; unique.
        submitted: when, as ISO 8601.
        code: hash of the package that the jobs were submitted from.
        tasks: the run ids of each job.
        job_ids: of each job, as SLURM writes them; empty while sbatch has not answered.
        cluster: where the jobs are; "" if that is not recorded, as by earlier versions.
        user: the owner of the jobs; "" as above.
    """

    folder: Path
    name: str
    submitted: str
    code: str
    tasks: list[list[str]]
    job_ids: list[str]
    settings: JobSettings
    cluster: str = ""
    user: str = ""

    @property
    def array_id(self) -> str:
        """Return the id that SLURM gives to the whole array."""
        return self.job_ids[0].partition("_")[0]

    def ids_of(self, number: str) -> list[str]:
        """Return the ids of the submission's jobs, from the id of the array."""
        # SLURM counts an array's jobs from 0; a job that is alone has no number after its id.
        return [f"{number}_{task}" for task in range(len(self.tasks))] if len(self.tasks) > 1 else [number]

    @property
    def cancelled(self) -> bool:
        """Return whether the submission is cancelled: its jobs then do nothing, even if SLURM starts them again."""
        return (self.folder / "cancelled").exists()

    def mark_cancelled(self) -> None:
        """Mark the jobs as cancelled; each job looks at this mark at every start, and before a requeue."""
        write_atomic(self.folder / "cancelled", "")

    @property
    def results(self) -> Path:
        """Return the folder of the experiment's results."""
        # <results>/slurm/<name>: two folders up.
        return self.folder.parents[1]

    def write(self) -> None:
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        # For whoever looks for a log; `read` leaves the paths out.
        logs = [str(self.log(task)) for task in range(len(self.job_ids))]
        write_atomic(self.folder / "submission.json", to_json({**content, "logs": logs}))

    def log(self, task: int) -> Path:
        """Return the path of what a job printed."""
        # The name is submitit's; 0 is the process that leads the job.
        return self.folder / f"{self.job_ids[task]}_0_log.err"

    def pickle(self, task: int) -> Path:
        """Return the path of the pickled job, until its id is known."""
        return self.folder / f"task-{task}.pkl"

    def note(self, task: int) -> Note:
        """Return the note that a job wrote about itself."""
        path = self.folder / f"job-{task}.json"
        content, plain = read_json(path, missing={}), asdict(Note())
        if content.keys() - plain.keys() or any(type(content[name]) is not type(plain[name]) for name in content):
            raise BenchError(f"{path} is damaged (holds {shown(content)}); delete it")
        return Note(**content)

    def write_note(self, task: int, note: Note) -> None:
        write_atomic(self.folder / f"job-{task}.json", to_json(asdict(note)))

    def progress(self, task: int) -> list[int]:
        """Return when each file of a job's runs was written, in nanoseconds; a change means progress."""
        runs = self.results / "runs"
        # A run that makes progress writes a checkpoint, then a result or an error.
        files = [runs / run_id / name for run_id in self.tasks[task] for name in ("checkpoint.pt", *ENDS)]
        return [file.stat().st_mtime_ns if file.exists() else 0 for file in files]

    def runs(self) -> dict[str, Any]:
        """Return the content of runs.json: the specs, and what else jobs must know about the runs."""
        content: dict[str, Any] = read_json(path := self.folder / "runs.json")
        if not all(isinstance(content.get(name), dict) for name in ("metric", "passes", "retried", "runs")):
            raise BenchError(f"{path} is damaged (holds {shown(content)}); {_REMEDY.format(self.folder)}")
        return content


@dataclass(frozen=True)
class Note:
    """A job's note about itself.

    Attributes:
        starts: how many times it has been started; more than once if it was queued again.
        state: "" (not started), "running", "done", "stopped" (to be started again), "failed", "refused" or "cancelled".
        message: the reason of the last three.
    """

    starts: int = 0
    state: str = ""
    node: str = ""
    message: str = ""


def calls(folder: Path, task: int) -> Path:
    """Return the path of the file in which a job's first node instructs the others, at this start of the job."""
    # By restart: a helper must not follow the calls from before the job was queued again.
    return folder / f"calls-{task}-{os.environ.get('SLURM_RESTART_COUNT', '0')}.json"


def read(folder: Path) -> Submission:
    """Return the submission recorded in a folder.

    Raises:
        BenchError: the folder's submission.json is damaged.
    """
    content = read_json(path := folder / "submission.json")
    # The paths of logs are for people; `log` derives them from the job's id.
    own = {key: value for key, value in content.items() if key != "logs"}
    try:
        if not _is_whole(own):
            raise TypeError
        return Submission(**{**own, "folder": folder.resolve(), "settings": JobSettings.from_json(own["settings"])})
    except TypeError as error:  # a field is missing, or there is one more
        raise BenchError(f"{path} is damaged (holds {shown(content)}); {_REMEDY.format(folder)}") from error


_REMEDY = "if its jobs are gone, delete {}"


def _is_whole(content: Mapping[str, Any]) -> bool:
    """Return whether the values in a submission.json are of the right types; missing fields are the caller's to find.

    By hand, since a job reads this before it handles signals, and pydantic takes half a second to import.
    """
    tasks, ids, settings = content.get("tasks"), content.get("job_ids"), content.get("settings")
    if not (isinstance(settings, dict) and _are_texts(ids) and isinstance(tasks, list) and all(map(_are_texts, tasks))):
        return False
    counts = [value for key, value in settings.items() if key in ("gpus", "cpus", "time", "grace_seconds", "nodes")]
    texts = [value for key, value in content.items() if key not in ("tasks", "job_ids", "settings")]
    # No ids yet, or one for each job.
    return _are_texts(texts) and all(type(count) is int for count in counts) and len(ids) in (0, len(tasks))


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def read_all(store: Store) -> list[Submission]:
    """Return every submission of an experiment, in the order of time."""
    # Names begin with the experiment and the time (`submit._name`), so sorting by name sorts by time.
    return [read(path.parent) for path in sorted(store.folder.glob("slurm/*/submission.json"))]


def with_job_ids(submission: Submission, job_ids: list[str]) -> Submission:
    """Record the ids of a submission's jobs, and move each pickled job to the path that submitit reads."""
    known = replace(submission, job_ids=job_ids)
    # The pickles first: a job that has started waits for its own, for a minute.
    for task, job in enumerate(job_ids):
        with suppress(FileNotFoundError):  # another command has been faster
            known.pickle(task).rename(known.folder / f"{job}_submitted.pkl")
    known.write()
    return known


@contextmanager
def submitting(store: Store) -> Iterator[None]:
    """Hold a lock from reading the queue to the last sbatch, so that two commands at once submit no run twice.

    Raises:
        StorageError: the folder cannot be written.
    """
    with locked(store.folder / "slurm" / "lock"):
        yield


def code_sha256() -> str:
    """Return a hash of all files of this package, names and contents."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        # Data files of the package change results as well.
        if path.suffix in (".py", ".json", ".toml", ".typed") and path.is_file():
            content = path.read_bytes()
            # The length keeps the content of a file apart from the name of the next.
            digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def failed_at(run: RunFolder) -> int | None:
    """Return when a run failed, in nanoseconds, or None; this separates failures before and after a submission."""
    try:
        # Nanoseconds: as an integer in JSON the time compares exactly.
        return (run.path / "error.txt").stat().st_mtime_ns
    except FileNotFoundError:
        return None
