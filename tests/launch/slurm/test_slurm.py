"""`bench run --on slurm` on a real SLURM: jobs that finish, fail, are preempted, killed and cancelled."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.launch.slurm.cluster import Cluster
from tests.launch.slurm.conftest import RUNS, Queue, Site, pids_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ONE = ("--seeds", "1", "--only", "sgd")


# ---- the ordinary course -------------------------------------------------------------------------------------


def test_an_array_ends_with_the_same_bits_as_a_local_run(site: Site, queue: Queue, undisturbed: dict[str, str]) -> None:
    output = site.submit("--runs-per-job", "2", "--wait")
    assert re.search(r"Submitted 6 runs in 3 jobs: \d+_0 \.\.\. \d+_2 \(3 jobs\)", output)
    assert len(re.findall(r"\[\d/6\] (?:sgd|sam) seed \d: accuracy \d+\.\d % \(validation\)", output)) == RUNS
    assert "Records, tables and figures are in results/touchy" in output
    assert site.weights() == undisturbed
    assert (site.results / "tables" / "results.md").exists()
    assert queue.wait_until_over(site.job_ids()) == ["COMPLETED"] * 3

    output = site.submit()
    assert "6 done, 0 to do" in output
    assert "Submitted" not in output
    assert len(site.job_ids()) == 3


def test_five_runs_in_one_job_two_at_once(site: Site, queue: Queue, undisturbed: dict[str, str]) -> None:
    output = site.submit("--runs-per-job", "5", "--cpus-per-job", "2", "--wait", "--max-jobs", "1")
    assert "Submitted 6 runs in 2 jobs" in output
    assert site.weights() == undisturbed
    log = next(site.results.glob("slurm/*/*_0_0_log.err")).read_text()
    assert "(2 at a time;" in log
    assert log.count("(validation)") == 5


def test_a_dry_run_shows_the_scripts_and_submits_nothing(site: Site, queue: Queue) -> None:
    flags = ["--time", "1-00:00:00", "--mem-gb", "2", "--sbatch", "nice=10", "--setup", "module load cuda"]
    output = site.submit("--dry-run", "--max-array-size", "4", "--max-jobs", "2", "--partition", "low", *flags)
    assert output.count("#!/bin/bash") == 2
    assert output.index("--array=0-3%2") < output.index("--dependency=afterany:ARRAY_BEFORE")
    for line in ("--array=0-3%2", "--array=0-1%2", "--time=1440", "--mem=2048M", "--nice=10", "--partition=low"):
        assert f"#SBATCH {line}" in output
    assert "\nmodule load cuda\n" in output
    assert "--signal=USR2@120" in output
    assert not site.results.exists()


def test_runs_in_the_queue_are_not_submitted_again_and_can_be_cancelled(
    site: Site, queue: Queue, undisturbed: dict[str, str]
) -> None:
    site.submit("--sbatch", "hold", "--only", "sgd")
    status, output = site.bench("status")
    assert status == 0
    assert len(re.findall(r"sgd seed \d: pending \(job \d+_\d: JobHeldUser\)", output)) == 3

    status, output = site.bench("run", "--only", "sgd")
    assert status == 0, output
    assert "Left to SLURM, in its queue already: 3 runs" in output
    assert site.weights() == {}

    output = site.submit("--sbatch", "hold")  # sgd's runs are in the queue
    assert "In the queue already: 3 runs" in output
    assert "Submitted 3 runs in 3 jobs" in output
    both = [site.start("run", "--on", "slurm") for _ in range(2)]
    assert all("In the queue already: 6 runs" in process.communicate(timeout=1200)[0] for process in both)
    jobs = site.job_ids()
    assert len(jobs) == RUNS

    watching = site.start("run", "--on", "slurm", "--wait")
    assert watching.stdout is not None
    assert any("In the queue already" in line for line in watching.stdout)
    status, output = site.bench("cancel")
    assert f"touchy: cancelled {jobs[0]} ... {jobs[-1]} (6 jobs)" in output
    assert queue.wait_until_over(jobs) == ["CANCELLED"] * RUNS
    assert "never started: cancelled" in site.bench("status")[1]
    assert "touchy: no jobs in the queue" in site.bench("cancel")[1]
    output, _ = watching.communicate(timeout=1200)
    assert watching.returncode == 1
    assert len(re.findall(r"not finished: s\w+ seed \d: job \d+_\d never started: cancelled", output)) == RUNS

    site.submit("--runs-per-job", "3", "--wait")
    assert site.weights() == undisturbed


# ---- what goes wrong -----------------------------------------------------------------------------------------


def test_a_failed_run_is_told_with_its_log_and_repeated_on_request(site: Site, queue: Queue) -> None:
    (site.path / "raise").touch()
    site.submit(*ONE)
    assert queue.wait_until_over(site.job_ids()) == ["FAILED"]
    status, output = site.bench("status")
    match = re.search(r"sgd seed 0: failed: sgd seed 0 failed: RuntimeError: no good \(job \d+\); log: (\S+)", output)
    assert match is not None, output
    assert "FAILED: RuntimeError: no good" in Path(match[1]).read_text()

    (site.path / "raise").unlink()
    status, output = site.bench("run", *ONE, "--on", "slurm", "--wait")
    assert status == 1
    assert "1 failed before (--retry-failed retries them)" in output
    output = site.submit(*ONE, "--retry-failed", "--wait")
    assert len(site.weights()) == 1
    assert "FAILED" not in output


def test_changed_code_is_refused_and_fails_no_run(site: Site, queue: Queue, cluster: Cluster) -> None:
    site.submit(*ONE, "--sbatch", "hold")
    site.change_code()
    (job,) = site.job_ids()
    cluster.call("scontrol", "release", job)
    assert queue.wait_until_over([job]) == ["FAILED"]
    output = site.bench("status", "--seeds", "1")[1]
    assert re.search(r"sgd seed 0: refused: bench has changed since this job was submitted \(\w+, now \w+\)", output)
    assert "failed:" not in output
    output = site.submit(*ONE, "--wait")
    assert len(site.weights()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--partition", "nowhere"], "sbatch refused the jobs: .*invalid partition specified: nowhere"),
        (["--sbatch", "nonsense=1"], "sbatch refused the jobs: .*unrecognized option '--nonsense=1'"),
    ],
)
def test_what_sbatch_refuses_is_one_message(site: Site, queue: Queue, flags: list[str], message: str) -> None:
    status, output = site.bench("run", "--on", "slurm", *flags)
    assert status == 2
    assert re.search(rf"Error: {message}.*; nothing was submitted", output, flags=re.S)
    assert "Traceback" not in output
    assert not list(site.results.glob("slurm/*/"))


# ---- preempted, killed, out of time --------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["low", "hard"])
def test_a_preempted_job_is_requeued_and_goes_on(
    site: Site, queue: Queue, undisturbed: dict[str, str], partition: str
) -> None:
    """`low` gives a grace time and our signal; `hard` gives none, and both signals at once."""
    site.slow(True)
    site.submit("--runs-per-job", "3", "--partition", partition)
    queue.wait_for(site.working)
    queue.preempt()
    queue.wait_for(lambda: "PENDING" in queue.states(site.job_ids()))
    # On a busy machine the intruder may be gone before the command has looked.
    assert re.search(r"(pending|running on n1), requeued 1 time \(job", site.bench("status")[1])
    site.slow(False)
    site.submit("--wait")
    assert site.weights() == undisturbed
    assert site.resumes() >= 1
    assert max(note["starts"] for note in site.notes()) >= 2
    assert len(site.job_ids()) == 2


def test_a_job_out_of_time_is_queued_again(site: Site, queue: Queue, undisturbed: dict[str, str]) -> None:
    """The signal comes up to a minute early, so there may be nothing to save yet."""
    site.slow(True)
    site.submit("--runs-per-job", "6", "--time", "1", "--grace-seconds", "10")
    queue.wait_for(lambda: any("Requeued job" in path.read_text() for path in site.results.rglob("*_log.out")))
    site.slow(False)
    site.submit("--wait")
    assert site.weights() == undisturbed
    assert site.notes()[0]["starts"] >= 2
    assert "timed-out" in next(site.results.rglob("*_log.err")).read_text()
    assert len(site.job_ids()) == 1


def test_a_job_that_gets_no_further_is_not_queued_for_ever(site: Site, queue: Queue) -> None:
    """Its first pass would take longer than any start of it."""
    (site.path / "stuck").touch()
    site.submit(*ONE, "--time", "1", "--grace-seconds", "10")
    (job,) = site.job_ids()
    assert queue.wait_until_over([job]) == ["FAILED"]
    words = "failed: reached its time limit of 1 min 3 times without progress, and was not queued again"
    assert words in site.bench("status", "--seeds", "1")[1]
    (site.path / "stuck").unlink()
    site.submit(*ONE, "--wait")
    assert len(site.weights()) == 1


def test_sigterm_alone_saves_and_the_job_stays_until_slurm_ends_it(
    site: Site, queue: Queue, cluster: Cluster, undisturbed: dict[str, str]
) -> None:
    """As some sites send it at the beginning of the grace time: a job that ended then would count as completed."""
    site.slow(True)
    site.submit("--runs-per-job", "6")
    queue.wait_for(site.working)
    (job,) = site.job_ids()
    cluster.call("scancel", "--signal=TERM", job)
    queue.wait_for(lambda: site.notes()[0]["state"] == "stopped")
    assert queue.states([job]) == ["RUNNING"]
    cluster.call("scontrol", "requeue", job)
    site.slow(False)
    site.submit("--wait")
    assert site.weights() == undisturbed
    assert site.resumes() == 1


@pytest.mark.parametrize("module", ["submitit.core._submit", "bench.launch.slurm.node"])
def test_a_killed_job_leaves_nobody_behind_and_the_next_launch_completes_it(
    site: Site, queue: Queue, undisturbed: dict[str, str], module: str
) -> None:
    site.slow(True)
    site.submit("--runs-per-job", "6")
    queue.wait_for(site.working)
    (job,) = site.job_ids()
    for pid in pids_of(job, module):
        os.kill(pid, signal.SIGKILL)
    assert queue.wait_until_over([job]) == ["FAILED"]
    queue.wait_for(lambda: not pids_of(job, "bench.launch.slurm.node"))
    site.slow(False)
    output = site.bench("status")[1]
    assert f"job {job}" in output
    assert "log: " in output
    site.submit("--runs-per-job", "3", "--wait")
    assert site.weights() == undisturbed


def test_a_restart_of_the_controller_disturbs_nothing(
    site: Site, queue: Queue, cluster: Cluster, undisturbed: dict[str, str]
) -> None:
    site.slow(True)
    site.submit("--runs-per-job", "3")
    queue.wait_for(site.working)
    cluster.restart_controller()
    site.slow(False)
    site.submit("--wait")
    assert site.weights() == undisturbed
    assert {note["starts"] for note in site.notes()} == {1}


def test_ctrl_c_while_waiting_leaves_the_jobs_alone(site: Site, queue: Queue) -> None:
    site.slow(True)
    process = site.start("run", *ONE, "--on", "slurm", "--wait")
    queue.wait_for(site.working)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 130, output
    assert "No longer watching; the jobs continue" in output
    site.slow(False)
    site.submit(*ONE, "--wait")
    assert len(site.weights()) == 1
    assert len(site.job_ids()) == 1
