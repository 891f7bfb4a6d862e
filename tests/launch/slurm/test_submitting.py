"""Submitting from where variables of SLURM are set, what sbatch does not say, and limits, on a real SLURM.

The jobs are submitted by this process, which saves the start of a command each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.config.file import load
from bench.launch.plan import Plan, make_plan
from bench.launch.slurm import job_status, profile, submission
from bench.launch.slurm import submit as slurm
from bench.launch.slurm.submission import Submission
from bench.store.run_folder import Store
from tests.launch.slurm.cluster import Cluster
from tests.launch.slurm.conftest import Queue, Site

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def plan(tiny: Any, write_experiment: Any, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Three short runs."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return make_plan(load(write_experiment(tiny({"seeds": 1}))), Store(tmp_path / "out"))


@pytest.fixture
def submit(plan: Plan) -> Callable[..., Submission]:
    def call(**settings: Any) -> Submission:
        slurm.submit(plan, profile.load(None, settings))
        return submission.read_all(plan.store)[-1]

    return call


Submit = Callable[..., Submission]


def finished(plan: Plan) -> int:
    return sum(plan.store.run(run.spec.run_id).result() is not None for run in plan.to_do)


def shown(queue: Queue, job: str) -> dict[str, str]:
    words = queue.cluster.call("scontrol", "show", "job", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


# ---- the submitter's variables -------------------------------------------------------------------------------


def test_jobs_submitted_inside_an_allocation_are_as_those_submitted_outside(site: Site, queue: Queue) -> None:
    """An allocation of two tasks and a memory per core, which its jobs must not inherit."""
    flags = ["--seeds", "1", "--on", "slurm", "--mem-gb", "1", "--runs-per-job", "2"]
    done = subprocess.run(
        ["salloc", "--ntasks=2", "--mem-per-cpu=500M", sys.executable, "-m", "bench", "run", "touchy.toml", *flags],
        cwd=site.path,
        env=site.environment | {"SRUN_CPUS_PER_TASK": "2"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (job,) = site.job_ids()
    assert queue.wait_until_over([job]) == ["COMPLETED"]
    assert len(site.weights()) == 2
    assert [note["starts"] for note in site.notes()] == [1]
    assert shown(queue, job)["NumCPUs"] == "1"


def test_settings_go_over_variables_and_a_job_without_the_submitters_variables_works(
    plan: Plan, submit: Submit, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_user = {"TIMELIMIT": "3", "JOB_NAME": "mine", "MEM_PER_CPU": "1", "ARRAY_INX": "0-3", "EXPORT": "NONE"}
    for name, value in of_user.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    one = submit(time=30, mem_gb=1, runs_per_job=3)
    (job,) = one.job_ids
    about = shown(queue, job)
    assert (about["TimeLimit"], about["JobName"], about["MinMemoryNode"]) == ("00:30:00", one.name, "1G")
    assert queue.wait_until_over([job]) == ["COMPLETED"]
    assert finished(plan) == 3
    script = (one.folder / "submit.sh").read_text()
    assert "#SBATCH --export=NONE\n" in script
    assert f"\nexport SLURM_CONF={os.environ['SLURM_CONF']}\n" in script


# ---- what sbatch does not say --------------------------------------------------------------------------------


def test_sbatch_that_fails_although_it_has_submitted_submits_once(
    plan: Plan, submit: Submit, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = tmp_path / "late" / "sbatch"
    late.parent.mkdir()
    error = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    late.write_text(f'#!/bin/sh\n/usr/bin/sbatch "$@" > /dev/null\necho "{error}" >&2\nexit 1\n')
    late.chmod(0o755)
    monkeypatch.setenv("PATH", f"{late.parent}:{os.environ['PATH']}")
    one = submit(runs_per_job=2)
    assert queue.wait_until_over(one.job_ids) == ["COMPLETED"] * 2
    assert finished(plan) == 3


def test_a_job_that_died_before_python_started_names_its_log(plan: Plan, submit: Submit, queue: Queue) -> None:
    one = submit(runs_per_job=3, setup=["echo no such module: cuda >&2", "exit 3"])
    (job,) = one.job_ids
    assert queue.wait_until_over([job]) == ["FAILED"]
    words = {status.words() for status in job_status.statuses(plan.store).values()}
    log = one.log(0)
    assert words == {f'its job {job} ended before Python started: failed ("no such module: cuda"); log: {log}'}


# ---- limits --------------------------------------------------------------------------------------------------


def test_no_more_jobs_at_once_than_max_jobs_in_arrays_and_in_further_submissions(
    plan: Plan, submit: Submit, queue: Queue
) -> None:
    wait = {"setup": ["sleep 1", "exit 0"], "max_jobs": 1, "runs_per_job": 1, "max_array_size": 2}
    submit(**wait)
    first, second = submission.read_all(plan.store)
    queue.cluster.call("scancel", first.job_ids[1])  # a job of an array that has not begun vanishes without a trace
    third = submit(**wait)  # its run, in a job of its own
    jobs = [first.job_ids[0], *second.job_ids, *third.job_ids]
    most = 0
    while (states := queue.states(jobs)) and any(state in ("PENDING", "RUNNING", "COMPLETING") for state in states):
        most = max(most, sum(state in ("RUNNING", "COMPLETING") for state in states))
    assert most == 1
    assert queue.states(jobs) == ["COMPLETED"] * 3
