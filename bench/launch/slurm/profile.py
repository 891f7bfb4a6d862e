"""Resources of SLURM jobs and the packing of runs into them: a `[slurm]` table in a file, and flags over it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, field_validator

from bench.core.errors import BadValue, BenchError, nearest
from bench.core.registry import STRICT
from bench.core.schema import Checker
from bench.store.files import config_folder, read_toml

OURS = ("array", "error", "job-name", "ntasks", "ntasks-per-node", "open-mode", "output", "signal")
"""Parameters of sbatch that `bench` sets itself."""

NAMED = {"partition", "account", "qos", "constraint", "time"} | {"mem", "cpus-per-task", "gpus-per-node", "nodes"}
"""Parameters of sbatch that have a setting of their own."""

SITE_WIDE = ("partition", "account", "qos", "constraint", "reservation", "wckey", "export")
"""Parameters whose SBATCH_* variable, which sites ask users to set, counts if neither file nor flag sets them."""

MOST = 1_000_000
"""Upper bound of counts, and of GB of memory: no site has more."""

LONGEST_TIME = 10 * 366 * 24 * 60
"""Minutes of the longest time limit: ten years."""

# [D-]a[:b[:c]]; what a, b and c are depends on how many there are and on the days: see `minutes`.
TIME = re.compile(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", re.ASCII)


class Profile(BaseModel):
    """Settings of the jobs of a site.

    Attributes:
        time: a job's time limit in minutes; in a file also "HH:MM:SS" or "D-HH:MM:SS". A job that reaches it saves
            and is queued again.
        nodes: nodes a job, each of which has the memory, GPUs and cores below. With several, a job does one run at a
            time, and `train.processes` of it are shared out equally among the nodes.
        mem_gb: memory of a job; the partition's default if left out.
        gpus: GPUs per job; with 0 its runs use the CPU, whatever the node has.
        cpus: cores a job.
        setup: shell lines before Python starts (`module load ...`).
        runs_per_job: runs that one job does; by default as many as it does at once.
        jobs: runs at once in a job; by default one per GPU, else one per core.
        jobs_per_gpu: runs at once on each GPU, where `jobs` does not say.
        max_array_size: jobs an array; the site's limit by default.
        max_jobs: jobs at once.
        grace_seconds: how long before its time limit a job is told to save; by default two minutes, or half of a
            limit that is shorter than four.
        sbatch: any other parameter of sbatch.
    """

    model_config = STRICT

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: int = Field(default=60, ge=1, le=LONGEST_TIME)
    nodes: int = Field(default=1, ge=1, le=MOST)
    mem_gb: float | None = Field(default=None, gt=0, le=MOST)
    gpus: int = Field(default=0, ge=0, le=MOST)
    cpus: int = Field(default=1, ge=1, le=MOST)
    setup: list[str] = []
    runs_per_job: int | None = Field(default=None, ge=1, le=MOST)
    jobs: int | None = Field(default=None, ge=1, le=MOST)
    jobs_per_gpu: int = Field(default=1, ge=1, le=MOST)
    max_array_size: int | None = Field(default=None, ge=1, le=MOST)
    max_jobs: int = Field(default=256, ge=1, le=MOST)
    grace_seconds: int | None = Field(default=None, ge=10, le=MOST)
    # pydantic copies the default for each instance.
    sbatch: dict[str, Any] = {}

    @field_validator("partition", "account", "qos", "constraint")
    @classmethod
    def _is_one_line(cls, value: str | None) -> str | None:
        return value and _one_line(value)

    # mode="before": text becomes minutes before pydantic checks the type and the bounds.
    @field_validator("time", mode="before")
    @classmethod
    def _in_minutes(cls, value: Any) -> Any:
        return minutes(value) if isinstance(value, str) else value

    @field_validator("sbatch")
    @classmethod
    def _is_of_sbatch(cls, table: dict[str, Any]) -> dict[str, Any]:
        # "--mem-per-cpu", "mem-per-cpu" and "mem_per_cpu" are the same parameter.
        given = {key.lstrip("-").replace("_", "-"): value for key, value in table.items()}
        for key, value in given.items():
            # Keys and texts become lines of a shell script.
            _one_line(key)
            if isinstance(value, str):
                _one_line(value)
            if key in OURS:
                raise ValueError(f'"{key}" is set by bench')
            if key in NAMED:
                raise ValueError(f'"{key}" has its own setting among {", ".join(cls.model_fields)}')
            # true and false are allowed: bool is a kind of int.
            if not isinstance(value, str | int | float):
                raise ValueError(f'"{key}" must be a text, a number or true')
        return given

    @property
    def grace(self) -> int:
        """Return the seconds before the time limit at which a job is told to save."""
        # In seconds; 30 per minute of the limit is half of it.
        return self.grace_seconds or min(120, 30 * self.time)

    def at_once(self, processes: int = 1) -> int:
        """Return the number of runs at the same time in one job, with this number of processes per run."""
        if self.nodes > 1:
            return 1
        return self.jobs or max(1, (self.gpus * self.jobs_per_gpu or self.cpus) // processes)

    def pack(self, processes: int = 1) -> int:
        """Return the number of runs that one job does."""
        return self.runs_per_job or self.at_once(processes)

    def check(self, processes: Collection[int]) -> None:
        """Raise BadValue if a job has no room for a run.

        Args:
            processes: the numbers of processes per run that occur.
        """
        problems = []
        for count in sorted(processes):
            here = count // self.nodes
            if count % self.nodes:
                problems.append(f"train.processes = {count}: must be a multiple of the {self.nodes} nodes of a job")
            elif 0 < self.gpus < here:
                problems.append(
                    f"train.processes = {count}: needs a GPU for each, {here} a node, and a job has {self.gpus} there"
                )
        # What `slots` would refuse inside the job is refused here, before the job waits in the queue.
        if self.gpus and len(set(processes)) > 1:
            problems.append("train.processes: on GPUs all must have as many; choose some with --only")
        if problems:
            raise BadValue("slurm", problems)

    def parameters(self) -> dict[str, Any]:
        """Return the settings as submitit names them; settings that are not given are left to the site."""
        given = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "nodes": self.nodes if self.nodes > 1 else None,
            # One task per node, which starts the processes of its node.
            "ntasks_per_node": 1 if self.nodes > 1 else None,
            "time": self.time,
            # In whole MB: sbatch takes no fractions.
            "mem": None if self.mem_gb is None else f"{round(self.mem_gb * 1024)}M",
            "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus,
            "setup": self.setup or None,
            # submitit makes --signal=USR2@<seconds> of it.
            "signal_delay_s": self.grace,
        }
        return {key: value for key, value in given.items() if value is not None}


def _one_line(text: str) -> str:
    """Refuse what would end a line of the job's script, and begin another there."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("has a line break or another control character")
    return text


def minutes(text: str) -> int:
    """Return the minutes in a time limit as SLURM writes it: "90", "1:30:00", "2-12", "2-12:30:00"; seconds round up.

    Raises:
        ValueError: the text is not a time limit.
    """
    match = TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError('must be minutes, "HH:MM:SS" or "D-HH:MM:SS"')
    days, *parts = (match[1], *(int(part) for part in match.groups()[1:] if part is not None))
    # D-HH[:MM[:SS]]
    if days is not None:
        hours, minute, second = (*parts, 0, 0)[:3]
    # HH:MM:SS
    elif len(parts) == 3:
        hours, minute, second = parts
    else:
        # MM[:SS]
        hours, (minute, second) = 0, (*parts, 0)[:2]
    seconds = ((int(days or 0) * 24 + hours) * 60 + minute) * 60 + second
    if seconds < 60:
        raise ValueError("must be at least a minute")
    return -(-seconds // 60)


def default_path() -> Path:
    """Return the path of the user's own profile."""
    return config_folder() / "slurm.toml"


def ignored_variables() -> list[str]:
    """Return the names of variables that sbatch would obey and that are kept from it, so that settings win."""
    heeded = {f"SBATCH_{name.upper()}" for name in SITE_WIDE}
    return sorted(name for name in os.environ if name.startswith("SBATCH_") and name not in heeded)


def load(path: Path | None = None, flags: Mapping[str, Any] | None = None) -> Profile:
    """Return the settings of a file, overridden by flags; the variables of `SITE_WIDE` are the fallback of both.

    Args:
        path: the file; by default the user's own, if there is one.
        flags: from the command line, by the settings' names.

    Raises:
        BadValue: all that is wrong with the file, or with the flags.
        BenchError: the file cannot be read.
    """
    table = _read(path or default_path(), needed=path is not None)
    checker = Checker(str(path or default_path()))
    # The file by itself first, so that its errors name the file and not the command line.
    of_file = checker.check(Profile, ("slurm", table))
    if of_file is None:
        raise checker.verdict()
    # Flags that were not given have no value, and must not hide the file's.
    given = {key: value for key, value in (flags or {}).items() if value not in (None, (), {})}
    usual = {name: text for name in SITE_WIDE if (text := os.environ.get(f"SBATCH_{name.upper()}"))}
    # Variables of settings with a field of their own go there, the others to `sbatch`.
    named = {name: usual.pop(name) for name in list(usual) if name in Profile.model_fields}
    given["sbatch"] = usual | of_file.sbatch | given.get("sbatch", {})
    checker = Checker("command line")
    # The last one counts: variables, file, flags. exclude_none: what the file leaves out must not hide a variable.
    profile = checker.check(Profile, ("", named), ("", of_file.model_dump(exclude_none=True)), ("", given))
    # Checked last, since the values may come from different sources.
    if profile is not None and profile.grace >= 60 * profile.time:
        checker.problem(
            "grace_seconds", f"{profile.grace_seconds} s are not less than the time limit of {profile.time} min"
        )
    if profile is not None and profile.nodes > 1:
        for name, value in {"jobs": profile.jobs or 1, "jobs_per_gpu": profile.jobs_per_gpu}.items():
            if value > 1:
                checker.problem(name, f"must be 1 with several nodes, which do one run at a time, got {value}")
    if profile is None or checker.problems:
        raise checker.verdict()
    return profile


def _read(path: Path, needed: bool) -> dict[str, Any]:
    if needed and not path.exists():
        raise BenchError(f"{path}: no such profile; it is a TOML file with a table [slurm]")
    document = read_toml(path, missing={})
    if unknown := [key for key in document if key != "slurm"]:
        raise BadValue(str(path), [f"{key}: unknown table; {nearest(key, ['slurm'])}" for key in unknown])
    table = document.get("slurm", {})
    if not isinstance(table, dict):
        raise BadValue(str(path), [f"slurm: must be a table, got {table!r}"])
    return table


def assignments(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return `--sbatch KEY=VALUE` options as a table; a KEY alone is a switch.

    Raises:
        BadValue: there is no KEY.
    """
    table: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key.strip("- "):
            raise BadValue(f"--sbatch {pair}", ["must be KEY=VALUE, or KEY for a switch"])
        table[key.strip()] = value if equals else True
    return table
