"""Inside a SLURM job: what each node takes of itself, and what the further nodes do of a run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.config.file import load
from bench.core.errors import BenchError
from bench.core.run_options import RunOptions
from bench.distributed.launcher import Call, Rank, Team
from bench.distributed.messages import MessageServer
from bench.launch.local.slots import Slot
from bench.launch.outcome import Outcome
from bench.launch.plan import make_plan
from bench.launch.slurm import job, node, queue
from bench.launch.slurm import node_helper as helper
from bench.launch.slurm import submission as submissions
from bench.launch.slurm.job import STOPPED, Job
from bench.launch.slurm.submission import JobSettings, Note, Submission, code_sha256
from bench.store.run_folder import Store

Machine = Callable[[int, int], None]


def settings(**given: Any) -> JobSettings:
    usual = {"gpus": 0, "cpus": 1, "time": 60, "grace_seconds": 120}
    options = {name: given.pop(name) for name in ("jobs", "jobs_per_gpu", "data") if name in given}
    return JobSettings(**{**usual, **given}, options=RunOptions(**options))


def shares(processes: set[int] | None = None, team: Team | None = None, **given: Any) -> list[tuple[str, int]]:
    slots = node._shares(settings(**given), processes or {1}, team)
    return [(slot.device, slot.threads) for slot in slots]


def test_a_job_takes_the_gpus_and_cores_that_it_was_given(machine: Machine) -> None:
    machine(8, 2)
    assert shares(gpus=2, cpus=8) == [("cuda:0", 4), ("cuda:1", 4)]
    assert shares(gpus=2, cpus=8, jobs_per_gpu=2) == [("cuda:0", 2), ("cuda:1", 2)] * 2
    assert shares({2}, gpus=2, cpus=8) == [("cuda:0", 8)]
    machine(64, 0)  # a site that confines a job to its cores does not show the others
    assert shares(cpus=4) == [("cpu", 1)] * 4
    assert shares(cpus=4, jobs=2) == [("cpu", 2)] * 2
    assert shares({4}, cpus=8) == [("cpu", 4)] * 2


def test_on_several_nodes_a_job_does_one_run_at_a_time(machine: Machine) -> None:
    team = Team(2, "n1", Path("calls"))
    machine(8, 2)
    assert shares({4}, team, nodes=2, gpus=2, cpus=8) == [("cuda:0", 8)]
    (slot,) = node._shares(settings(nodes=2, gpus=2, cpus=8), {4}, team)
    assert [str(device) for device in slot.devices(4)] == ["cuda:0", "cuda:1"]
    machine(8, 0)
    assert shares({4}, team, nodes=2, cpus=8) == [("cpu", 8)]
    assert [str(device) for device in Slot("cpu", (), 8, team=team).devices(4)] == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("of_slurm", "gpus", "shown"),
    [
        ({"SLURM_JOB_GPUS": "3"}, 1, "3,1"),  # what SLURM says, which is what it confines the job to
        ({}, 0, ""),  # a node's GPUs that nobody asked for are somebody else's
        ({"SLURM_STEP_GPUS": "3"}, 0, "3,1"),  # asked for by a parameter of the user's own
    ],
)
def test_a_job_sees_the_gpus_that_slurm_shows_it_and_no_others(
    of_slurm: dict[str, str], gpus: int, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CUDA_VISIBLE_DEVICES": "3,1", **of_slurm}.items():
        monkeypatch.setenv(name, value)
    one = Submission(tmp_path, "name", "now", "code", [], [], settings(gpus=gpus, data="/data"))
    environment = job._environment(one)
    assert environment["CUDA_VISIBLE_DEVICES"] == shown
    assert environment["BENCH_DATA"] == "/data"


def test_where_the_first_node_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setattr(queue, "call", lambda command: f"{command[-1]} Port=1\n   NodeAddr=10.0.0.7 NodeHostName=x")
    one = Submission(tmp_path, "name", "now", "code", [], [], settings(nodes=3))
    assert node._team(one, 4) == Team(3, "10.0.0.7", tmp_path / "calls-4-2.json")
    monkeypatch.setenv("MASTER_ADDR", "ib7")
    assert node._team(one, 4) == Team(3, "ib7", tmp_path / "calls-4-2.json")
    assert node._team(Submission(tmp_path, "name", "now", "code", [], [], settings()), 0) is None


# ---- what became of it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "status", "note"),
    [
        (Outcome(finished=2), 0, ("done", "")),
        (Outcome(finished=1, interrupted=True), STOPPED, ("running", "")),
        (KeyboardInterrupt(), STOPPED, ("running", "")),
        (Outcome(disk="no space left", interrupted=True), 1, ("failed", "no space left")),
        (BenchError("no data"), 1, ("failed", "no data")),
    ],
)
def test_a_launcher_in_a_job_tells_how_it_ended(
    outcome: Any, status: int, note: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do(submission: Submission, task: int) -> Outcome:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    one = Submission(tmp_path / "slurm" / "name", "name", "now", "code", [["run"]], ["1"], settings())
    one.write()
    one.write_note(0, Note(1, "running"))
    monkeypatch.setattr(node, "do", do)
    monkeypatch.setattr(node, "_start_forkserver", lambda: None)
    monkeypatch.setattr(node, "_listen_to_the_job", lambda: None)
    monkeypatch.setattr("sys.argv", ["node", str(one.folder), "0"])
    assert node.main() == status
    assert (one.note(0).state, one.note(0).message) == note


# ---- further nodes -------------------------------------------------------------------------------------------


def heard(news: MessageServer) -> dict[str, Any]:
    deadline = time.monotonic() + 1200
    while not news.read():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (message,) = news.messages
    return message


def test_a_node_with_too_few_gpus_says_so(machine: Machine) -> None:
    machine(8, 1)
    news = MessageServer(4, 2)
    helper.answer(Call("1", "127.0.0.1", news.port, "nowhere", here=2, nodes=2, secret=news.secret), node=1)
    message = heard(news)
    assert (message["kind"], message["rank"]) == ("told", 2)
    assert "has 1 GPU for 2 processes of this run" in message["text"]


@pytest.mark.slow
def test_a_process_that_dies_on_a_further_node_is_told_with_its_last_words(machine: Machine, tmp_path: Path) -> None:
    machine(8, 0)
    news = MessageServer(2, 2)
    helper.answer(
        Call("1", "127.0.0.1", news.port, str(tmp_path / "nowhere"), here=1, nodes=2, secret=news.secret), node=1
    )
    message = heard(news)
    assert (message["kind"], message["rank"], message["code"]) == ("died", 1, 1)
    assert "No such file or directory" in message["words"]


def test_a_node_says_when_all_of_its_processes_have_left(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(call: Call, number: int, local: int, device: str) -> Rank:
        return Rank(number, subprocess.Popen(["true"]), tempfile.TemporaryFile())

    machine(8, 0)
    monkeypatch.setattr(helper, "start", start)
    news = MessageServer(4, 2)
    helper.answer(Call("1", "127.0.0.1", news.port, "nowhere", here=2, nodes=2, secret=news.secret), node=1)
    assert heard(news) == {"kind": "left"}


def test_a_helper_waits_until_the_first_node_says_that_all_is_over(tmp_path: Path) -> None:
    code = f"""
import os, sys
os.environ["SLURM_PROCID"] = "1"
sys.argv = ["helper", {str(tmp_path)!r}, "0"]
from bench.launch.slurm import node_helper as helper
sys.exit(helper.main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as waiting:
        submissions.calls(tmp_path, 0).write_text(json.dumps({"over": True}))
        assert waiting.wait(timeout=1200) == 0
    submissions.calls(tmp_path, 0).unlink()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL) as orphan:  # its job has died
        assert orphan.wait(timeout=1200) == 1


def test_code_that_differs_on_a_further_node_ends_the_job(
    tiny: Any, write_experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "out")
    plan = make_plan(load(write_experiment(tiny())), store)
    runs = [[run.spec.run_id for run in plan.to_do]]
    one = Submission(store.folder / "slurm" / "name", "name", "now", "code", runs, ["1"], settings(nodes=2))
    one.write()
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    with pytest.raises(BenchError, match="bench has changed since this job was submitted"):
        Job(one.folder, 0, "another")()
    assert one.note(0).state == ""  # the first node's to write
    monkeypatch.setattr(
        Job, "_launch", lambda self, submission, module: 0 if module == "bench.launch.slurm.node_helper" else 1
    )
    assert Job(one.folder, 0, code_sha256())() == "helped"


def test_longer_runs_come_first(tiny: Any, write_experiment: Any, tmp_path: Path) -> None:
    plan = make_plan(load(write_experiment(tiny({"optimizers.sgd.train.epochs": 9}))), Store(tmp_path))
    passes = [plan.passes[run.spec.run_id] for run in plan.to_do]
    assert passes == sorted(passes, reverse=True)
    assert [run.label for run in plan.to_do] == ["sgd"] * 2 + ["sam"] * 4
