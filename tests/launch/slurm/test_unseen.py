"""Jobs of another user and of another cluster on a shared folder, on real SLURMs: unseen, they are not called dead."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.config.file import load
from bench.launch.plan import Plan, make_plan
from bench.launch.slurm import job_status, submission
from bench.launch.slurm import queue as slurm_queue
from bench.launch.slurm import submit as slurm
from bench.launch.slurm.profile import Profile
from bench.store.run_folder import Store
from tests.launch.slurm.cluster import Cluster, find, wait_for
from tests.launch.slurm.conftest import Queue

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def plan(tiny: Any, write_experiment: Any, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Three runs, submitted by root to the cluster "bench", where they are held."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    plan = make_plan(load(write_experiment(tiny({"seeds": 1}))), Store(tmp_path / "out"))
    slurm.submit(plan, Profile(runs_per_job=3, sbatch={"hold": True}))
    return plan


@pytest.fixture
def as_nobody(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SLURM's commands are those of the user nobody."""
    for name in ("squeue", "scancel", "scontrol", "sbatch"):
        path = tmp_path / "as-nobody" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups {find(name)} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    cluster.folder.chmod(0o755)  # munged's socket lies there
    yield
    cluster.folder.chmod(0o700)


def test_jobs_of_another_user_are_seen_or_said_to_be_out_of_sight_and_cannot_be_cancelled(
    plan: Plan, queue: Queue, cluster: Cluster, as_nobody: None
) -> None:
    (one,) = submission.read_all(plan.store)
    (job,) = one.job_ids
    assert (one.user, one.cluster, slurm_queue.user()) == ("root", "bench", "nobody")
    assert len(slurm.submit(plan, Profile()).queued) == 3
    done = job_status.cancel(plan.store)
    assert not done.jobs
    assert f"{job} of root: scancel failed: scancel: error: Kill job error on job id {job}" in done.others[0]
    assert not one.cancelled

    conf = cluster.folder / "slurm.conf"
    usual = conf.read_text()
    try:
        conf.write_text(f"{usual}\nPrivateData=jobs\n")
        cluster.call("scontrol", "reconfigure")
        submitted = slurm.submit(plan, Profile())
        assert (submitted.jobs, len(submitted.hidden)) == ([], 3)
        assert {status.words() for status in job_status.statuses(plan.store).values()} == {
            f"job {job} of root on cluster bench cannot be seen from here; it may be alive"
        }
    finally:
        conf.write_text(usual)
        cluster.call("scontrol", "reconfigure")
    assert queue.states([job]) == ["PENDING"]


def test_jobs_of_another_cluster_are_left_alone(plan: Plan, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = submission.read_all(plan.store)
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, Cluster(Path(folder), name="beta") as beta:
        monkeypatch.setenv("SLURM_CONF", beta.environment["SLURM_CONF"])
        submitted = slurm.submit(plan, Profile())
        assert (submitted.jobs, len(submitted.hidden)) == ([], 3)
        assert {status.words() for status in job_status.statuses(plan.store).values()} == {
            f"job {one.job_ids[0]} on cluster bench cannot be seen from here; it may be alive"
        }
        done = job_status.cancel(plan.store)
        assert not done.jobs
        assert "root on cluster bench, whose jobs cannot be seen from here" in done.others[0]
    monkeypatch.setenv("SLURM_CONF", queue.cluster.environment["SLURM_CONF"])
    for name, value in {"LOGNAME": "nobody", "SQUEUE_USERS": "nobody", "SCANCEL_STATE": "RUNNING"}.items():
        monkeypatch.setenv(name, value)
    assert len(slurm.submit(plan, Profile()).queued) == 3
    assert job_status.cancel(plan.store).jobs == one.job_ids
    wait_for(lambda: queue.states(one.job_ids) == ["CANCELLED"], "scancel", 60)
