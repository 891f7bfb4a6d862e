"""A job that is cancelled while SLURM is taking it away stays cancelled, on a real SLURM."""

from __future__ import annotations

import pytest

from tests.launch.slurm.conftest import Queue, Site, pids_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ONE = ("--seeds", "1", "--only", "sgd")


@pytest.mark.parametrize("how", ["signal", "preempted with grace", "preempted at once", "time limit"])
def test_a_job_cancelled_within_seconds_of_being_taken_away_is_not_queued_again(
    site: Site, queue: Queue, how: str
) -> None:
    """It is stuck in its first step, so it is still saving when it is cancelled."""
    (site.path / "stuck").touch()
    flags = {
        "preempted at once": ["--partition", "hard"],
        # SLURM warns up to a minute early: of one minute that may be before the job has a step that could hear it.
        "time limit": ["--time", "2", "--grace-seconds", "30"],
    }
    site.submit(*ONE, *flags.get(how, []))
    (job,) = site.job_ids()
    queue.wait_for(lambda: pids_of(job, "bench.launch.slurm.node"))
    if how == "signal":
        queue.cluster.call("scancel", "--signal=USR2", job)
    elif how != "time limit":
        queue.preempt()
    logs = site.results.rglob
    queue.wait_for(lambda: any("Calling checkpoint method" in path.read_text() for path in logs("*_log.out")))
    queue.cluster.call("scancel", job)
    (site.path / "stuck").unlink()
    queue.wait_for(lambda: not pids_of(job, "submitit.core._submit"))
    queue.wait_for(lambda: queue.states([job]) != ["COMPLETING"])
    assert queue.states([job]) == ["CANCELLED"]
    assert site.notes()[0]["starts"] == 1


def test_a_job_that_comes_back_after_bench_cancel_does_nothing(site: Site, queue: Queue) -> None:
    site.slow(True)
    site.submit(*ONE)
    (job,) = site.job_ids()
    queue.wait_for(lambda: pids_of(job, "bench.launch.slurm.node"))
    assert site.bench("cancel")[0] == 0
    assert queue.wait_until_over([job]) == ["CANCELLED"]
    queue.cluster.call("scontrol", "requeue", job)
    assert queue.wait_until_over([job]) == ["FAILED"]
    (note,) = site.notes()
    assert (note["starts"], note["state"]) == (2, "cancelled")
    assert "cancelled: this job was started again after `bench cancel`" in site.bench("status", "--seeds", "1")[1]
