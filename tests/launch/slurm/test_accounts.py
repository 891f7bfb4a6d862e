"""Jobs that the controller has forgotten: what became of them is in the site's accounts."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.launch.slurm import queue as slurm_queue
from tests.launch.slurm.accounts import AccountedCluster
from tests.launch.slurm.conftest import Queue, Site, pids_of, queue_of

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(AccountedCluster.missing()), reason=AccountedCluster.missing() or "it is there"),
]


@pytest.fixture
def queue() -> Iterator[Queue]:
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, AccountedCluster(Path(folder)) as cluster:
        yield from queue_of(cluster)


def test_the_accounts_tell_what_became_of_jobs_that_the_queue_does_not_know_any_more(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path / "site", queue.cluster.environment)
    site.submit("--seeds", "1", "--only", "sam", "--sbatch", "hold")
    assert site.bench("cancel")[0] == 0
    site.slow(True)
    site.submit("--seeds", "1", "--only", "sgd")
    queue.wait_for(site.working)
    cancelled, killed = site.job_ids()
    for pid in pids_of(killed, "submitit.core._submit"):
        os.kill(pid, signal.SIGKILL)
    queue.wait_for(lambda: not queue.cluster.call("squeue", "--noheader", "--states=all").strip())
    monkeypatch.setenv("SLURM_CONF", queue.cluster.environment["SLURM_CONF"])
    queue.wait_for(lambda: slurm_queue.accounted([cancelled, killed]) == {cancelled: "CANCELLED", killed: "FAILED"})
    output = site.bench("status", "--seeds", "1")[1]
    assert f"sam seed 0: job {cancelled} never started: cancelled" in output
    assert re.search(rf"sgd seed 0: its job {killed} ended without finishing it: failed; log: \S+_log.err", output)
