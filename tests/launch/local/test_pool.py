"""Local launches, with real processes: killed, interrupted, crowded and failing, and always the same numbers."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pty
import random
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console

from bench.config.file import load
from bench.core.errors import BadValue
from bench.core.run_options import RunOptions
from bench.launch.estimate import Speed
from bench.launch.local import pool as local
from bench.launch.local.slots import Slot, slots
from bench.launch.local.worker import Event, RunJob, _do
from bench.launch.plan import make_plan
from bench.launch.progress import ProgressDisplay
from bench.store import locks, records
from bench.store.run_folder import Store
from bench.train import StopSign
from tests.launch.local.site import RUNS, Site, alive, workers_of
from tests.prefork import HANGS, WITHOUT_REPORT, Popen

SLOT = Slot("cpu", (), 1)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def short(tmp_path: Path) -> Site:
    """A site whose runs take a moment: not to be killed, nor compared with those left `undisturbed`."""
    return Site(tmp_path, batch_size=256)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    site = Site(tmp_path_factory.mktemp("undisturbed"))
    status, output = site.run()
    assert status == 0, output
    numbers = site.numbers()
    assert len(numbers) == RUNS
    return numbers


# ---- the ordinary course -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
def test_workers_without_a_faster_allocator_leave_the_same_bits_and_say_so(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    plain = {name: value for name, value in site.environment.items() if name not in ("LD_PRELOAD", "GLIBC_TUNABLES")}
    site.environment = plain | {"BENCH_MALLOC": "off"}
    status, output = site.run("--seeds", "1", "--only", "sam")
    assert status == 0, output
    (found,) = site.numbers().items()
    assert undisturbed[found[0]] == found[1]
    (environment,) = json.loads(next(site.results.glob("runs/*/environment.json")).read_text())
    assert environment["allocator"] == "glibc"


def test_a_launch_says_a_line_a_run_and_a_second_one_repeats_nothing(short: Site) -> None:
    status, output = short.run(report=True)
    assert status == 0
    assert re.search(r"touchy: 0 done, 6 to do \([\d,]+ passes\)", output)
    lines = re.findall(r"\[\d/6\] (?:sgd|sam) seed \d: accuracy \d+\.\d % \(validation\), \d+\.\d s", output)
    assert len(lines) == RUNS
    assert re.search(
        r"Estimated time on this machine: \d+ s \(2 at a time; measured: [\d.]+ ms per pass of touchy", output
    )
    assert "\x1b" not in output  # no terminal: no colours, no cursor movements
    assert "Records, tables and figures are in results/touchy" in output
    names = {str(path.relative_to(short.results)) for path in short.results.rglob("*") if "runs" not in path.parts}
    assert {"records.csv", "curves.csv", "experiment.json", "tables/results.md", "figures/curves.pdf"} <= names
    assert short.births() == RUNS

    status, output = short.run()
    assert status == 0
    assert "6 done, 0 to do" in output
    assert short.births() == RUNS


def test_the_planned_passes_are_those_that_are_counted(short: Site) -> None:
    _, output = short.run("--seeds", "1")
    planned = re.search(r"\(([\d,]+) passes\)", output)
    assert planned is not None
    assert int(planned[1].replace(",", "")) == sum(result["passes"] for result, _ in short.numbers().values())


def test_a_terminal_shows_what_is_running(site: Site) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "bench", "run", "touchy.toml", "--seeds", "1", "--jobs", "2"]
    environment = site.environment | {"TERM": "xterm-256color", WITHOUT_REPORT: "yes"}
    process = Popen(command, cwd=site.path, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen = b""
    while True:
        try:
            screen += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    assert process.wait(timeout=HANGS) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode())
    assert "0/2 runs" in text
    assert re.search(r"sam seed 0 +epoch \d+/24 +accuracy \d+\.\d % \(validation\)", text)


# ---- what goes wrong -----------------------------------------------------------------------------------------


def test_a_failed_run_is_recorded_the_others_go_on_and_retry_is_on_request(short: Site) -> None:
    (short.path / "raise").touch()
    status, output = short.run("--only", "sgd")
    assert status == 1
    assert output.count("FAILED: in two lines") == 3
    errors = list(short.results.glob("runs/*/error.txt"))
    assert len(errors) == 3
    assert "Traceback" in errors[0].read_text()
    assert "RuntimeError: no good" in errors[0].read_text()
    assert "failed,in two lines" in (short.results / "records.csv").read_text()

    (short.path / "raise").unlink()
    status, output = short.run()
    assert status == 1
    assert "3 failed before (--retry-failed retries them)" in output
    assert len(short.numbers()) == 3

    status, output = short.run("--retry-failed")
    assert status == 0
    assert len(short.numbers()) == RUNS
    assert not list(short.results.glob("runs/*/error.txt"))


def test_fail_fast_stops_at_the_first_failure(short: Site) -> None:
    (short.path / "raise").touch()
    status, output = short.run("--fail-fast", "--jobs", "1")
    assert status == 1
    assert output.count("FAILED") == 1
    assert short.births() == 1


def test_a_worker_that_dies_twice_under_a_run_fails_it(short: Site) -> None:
    (short.path / "die").touch()
    status, output = short.run("--seeds", "1", "--only", "sgd")
    assert status == 1
    assert "worker died (signal 9 (SIGKILL)); retrying once" in output
    assert "the worker process died twice during this run" in output
    assert short.births() == 2


def test_a_disk_that_fills_up_stops_the_launch_with_one_message_and_nothing_half_written(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))  # a checkpoint is larger than that

    status, output = site.run(preexec_fn=small_disk)
    assert status == 1
    assert output.count("Error: cannot write") == 1
    assert "checkpoint.pt: File too large" in output
    assert "Traceback" not in output
    assert site.numbers() == {}
    assert site.litter() == []
    assert site.run()[0] == 0
    assert site.numbers() == undisturbed


def test_damage_is_told_before_anything_starts(short: Site) -> None:
    short.run("--seeds", "1")
    (short.results / "records.csv").unlink()  # or what they hold is finished, whatever has become of its folder
    (short.results / "experiment.json").unlink()
    result, other = sorted(short.results.glob("runs/*/result.json"))
    result.write_text('{"run_id":')
    other.rename(other.with_name("checkpoint.pt"))  # a foreign file in the checkpoint's place
    births = short.births()
    status, output = short.run()
    assert status == 2
    assert f"{result.relative_to(short.path)} is damaged" in output
    assert f"{other.with_name('checkpoint.pt').relative_to(short.path)} is damaged" in output
    assert "Traceback" not in output
    assert short.births() == births


# ---- killed and interrupted ----------------------------------------------------------------------------------


def test_workers_killed_at_random_change_no_number(site: Site, undisturbed: dict[str, Any]) -> None:
    dice = random.Random(0)
    process = site.start()
    killed = 0
    while process.poll() is None and killed < 3:
        site.wait_for("runs/*/checkpoint.pt")
        time.sleep(dice.uniform(0.0, 0.5))
        if workers := workers_of(process.pid):
            os.kill(dice.choice(workers), signal.SIGKILL)
            killed += 1
    output, _ = process.communicate(timeout=HANGS)
    assert killed == 3
    if process.returncode:  # the dice may fall twice on one run: it has failed, and is repeated on request
        assert "died twice" in output
        assert site.run("--retry-failed")[0] == 0
    assert site.numbers() == undisturbed
    assert site.litter() == []


def test_a_worker_killed_while_idle_is_replaced(
    registries: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Site(tmp_path).path)
    monkeypatch.setenv("TOUCHY", str(tmp_path))
    plan = make_plan(load(tmp_path / "touchy.toml", ["train.epochs=1"]), Store(tmp_path / "results"))
    display = ProgressDisplay(plan.passes, plan.experiment.meta()["metric"], Console(file=io.StringIO()))
    pool = local._Pool(plan.to_do, plan.store, display, RunOptions(checkpoint_minutes=0.5))
    pool.start(slots(1))
    pool.workers[0].process.kill()
    pool.workers[0].process.join()
    pool.work_off()
    pool.close()
    assert pool.outcome.finished == RUNS
    assert pool.outcome.failed == []
    assert not pool.outcome.interrupted
    pool.workers[0].run = plan.to_do[0]  # told to end by somebody else, it saves and stops: the launch is not complete
    pool._take(pool.workers[0], Event("stopped"))
    assert pool.outcome.interrupted


@pytest.mark.parametrize(
    ("precision", "units", "warned"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)]
)
def test_bf16_on_a_cpu_without_matrix_units_is_warned_of(
    registries: Any, site: Site, monkeypatch: pytest.MonkeyPatch, precision: str, units: bool, warned: bool
) -> None:
    monkeypatch.chdir(site.path)
    monkeypatch.setenv("TOUCHY", str(site.path))
    monkeypatch.setattr("bench.launch.local.slots.has_bf16_units", lambda: units)
    plan = make_plan(load(site.path / "touchy.toml", [f"train.precision={precision}"]), Store(site.results))
    console = Console(file=io.StringIO(), width=200)
    pool = local._Pool(plan.to_do, plan.store, ProgressDisplay(plan.passes, plan.experiment.meta()["metric"], console))
    monkeypatch.setattr(pool, "_ask_all", lambda question: [])
    pool.workers = [local._Worker(slots(1)[0], None, None)]  # type: ignore[arg-type]
    pool.measure()
    assert ("no bf16 matrix units" in console.file.getvalue()) is warned  # type: ignore[attr-defined]


def test_a_second_launch_of_the_same_work_measures_nothing_and_tells_the_time_all_the_same(
    registries: Any, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site.path)
    monkeypatch.setenv("TOUCHY", str(site.path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(site.path / "cache"))
    plan = make_plan(load(site.path / "touchy.toml"), Store(site.results))
    asked = []

    def ask(question: Any) -> list[Event]:
        asked.append(question)
        return [Event("speed", content=Speed(1.0, 1.0, 1.0))]

    for launch in (1, 2):
        console = Console(file=io.StringIO(), width=200)
        display = ProgressDisplay(plan.passes, plan.experiment.meta()["metric"], console)
        pool = local._Pool(plan.to_do, plan.store, display)
        monkeypatch.setattr(pool, "_ask_all", ask)
        pool.workers = [local._Worker(slots(1)[0], None, None)]  # type: ignore[arg-type]
        pool.measure()
        assert "measured: 1e+03 ms per pass of touchy" in console.file.getvalue()  # type: ignore[attr-defined]
        assert len(asked) == 1, f"launch {launch}"
        assert len(pool.tried) == (1 if launch == 1 else 0), "of what was not measured now a rehearsal takes a step"


def test_a_launcher_killed_at_random_leaves_nobody_behind_and_changes_no_number(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    dice = random.Random(1)
    for _ in range(3):
        process = site.start()
        site.wait_for("runs/*/checkpoint.pt")
        time.sleep(dice.uniform(0.0, 0.7))
        workers = workers_of(process.pid)
        process.kill()
        process.communicate()
        deadline = time.monotonic() + HANGS
        while any(map(alive, workers)):
            assert time.monotonic() < deadline, "workers outlived the launcher"
            time.sleep(0.05)
    status, output = site.run()
    assert status == 0, output
    assert "from a checkpoint" in output
    assert site.numbers() == undisturbed
    assert site.litter() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_stops_and_says_how_to_go_on(site: Site, undisturbed: dict[str, Any], number: int) -> None:
    process = site.start()
    site.wait_for("runs/*/checkpoint.pt", count=2)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends it to all of the group
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 130, output
    assert "Stopping: runs save where they are" in output
    assert "Stopped. Run the same command again to continue." in output
    assert "Traceback" not in output
    assert site.litter() == []
    assert len(list(site.results.glob("runs/*/checkpoint.pt"))) == 2
    status, output = site.run()
    assert status == 0
    assert "2 of them from a checkpoint" in output
    assert site.numbers() == undisturbed


def test_a_storm_of_signals_stops_workers_as_one_does(site: Site, undisturbed: dict[str, Any]) -> None:
    """SLURM sends SIGTERM to all of a job, and its launcher once more to the workers, perhaps at the same instant."""
    process = site.start()
    site.wait_for("runs/*/checkpoint.pt", count=2)
    for pid in workers_of(process.pid):
        with suppress(ProcessLookupError):
            for _ in range(200_000):
                os.kill(pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 130, output
    status, output = site.run()
    assert status == 0
    assert "from a checkpoint" in output
    assert site.numbers() == undisturbed


def test_ctrl_c_at_the_very_start_fails_no_run(short: Site) -> None:
    process = short.start()
    deadline = time.monotonic() + HANGS
    while not workers_of(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 130, output
    assert "FAILED" not in output
    assert not list(short.results.glob("runs/*/error.txt"))


def test_two_launches_at_once_do_no_run_twice(site: Site, undisturbed: dict[str, Any]) -> None:
    both = [site.start(), site.start()]
    outputs = [process.communicate(timeout=HANGS)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert site.births() == RUNS
    assert site.numbers() == undisturbed
    assert list(records.read(site.results).records.status) == ["done"] * RUNS  # whoever was last wrote all of it
    assert site.run()[0] == 0
    assert site.births() == RUNS


def test_a_claim_that_another_host_took_over_ends_the_work_on_a_run(
    registries: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.01)
    monkeypatch.chdir(Site(tmp_path).path)
    monkeypatch.setenv("TOUCHY", str(tmp_path))
    plan = make_plan(load(tmp_path / "touchy.toml"), Store(tmp_path / "results"))
    folder = plan.store.run(plan.to_do[0].spec.run_id)

    class Launcher:
        told: ClassVar[list[Event]] = []

        def send(self, event: Event) -> None:
            self.told.append(event)
            if event.epochs_done == 3:
                (beat,) = (thread for thread in threading.enumerate() if thread.name == "claim")
                (folder.path / "lock").write_text('{"host": "node7", "boot": "another"}')
                beat.join(HANGS)  # it ends once it has seen the other host's name

    job = RunJob(plan.to_do[0].spec.model_dump_json(), folder.path, RunOptions())
    event = _do(job, SLOT, Launcher(), StopSign())  # type: ignore[arg-type]
    assert event.kind == "claimed"
    assert [told.epochs_done for told in Launcher.told] == [1, 2, 3]
    assert folder.checkpoint.exists()
    assert folder.status() == "running"


def test_a_launcher_that_is_gone_when_an_epoch_is_reported_is_no_failure_of_the_run(
    registries: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker may find that out before the thread that watches the launcher does."""
    monkeypatch.chdir(Site(tmp_path).path)
    monkeypatch.setenv("TOUCHY", str(tmp_path))
    plan = make_plan(load(tmp_path / "touchy.toml"), Store(tmp_path / "results"))
    folder = plan.store.run(plan.to_do[0].spec.run_id)
    launchers_end, connection = multiprocessing.Pipe()
    launchers_end.close()
    with pytest.raises(SystemExit):
        _do(RunJob(plan.to_do[0].spec.model_dump_json(), folder.path, RunOptions()), SLOT, connection, StopSign())
    assert folder.status() == "missing", "the next launch does it"
    assert not (folder.path / "error.txt").exists()


# ---- sharing the machine -------------------------------------------------------------------------------------


def test_one_worker_a_gpu_else_one_a_core_each_with_its_share(machine: Callable[[int, int], None]) -> None:
    machine(8, 2)
    assert [(slot.device, slot.cores, slot.threads) for slot in slots(None)] == [
        ("cuda:0", (0, 1, 2, 3), 4),
        ("cuda:1", (4, 5, 6, 7), 4),
    ]
    assert [slot.device for slot in slots(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    machine(4, 0)
    assert [(slot.device, slot.cores, slot.threads) for slot in slots(None)] == [
        ("cpu", (core,), 1) for core in range(4)
    ]
    assert [(slot.cores, slot.threads) for slot in slots(1)] == [((0, 1, 2, 3), 4)]
    assert [(slot.cores, slot.threads) for slot in slots(6)] == [((), 1)] * 6


def test_only_the_gpus_asked_for_are_used(machine: Callable[[int, int], None]) -> None:
    machine(8, 4)
    assert [slot.device for slot in slots(None, gpus=[0, 1, 3])] == ["cuda:0", "cuda:1", "cuda:3"]
    assert [slot.device for slot in slots(None, 2, gpus=[3, 1])] == ["cuda:3", "cuda:1", "cuda:3", "cuda:1"]
    assert [slot.device for slot in slots(3, gpus=[2, 2])] == ["cuda:2"] * 3
    assert [slot.threads for slot in slots(None, gpus=[2])] == [8]
    with pytest.raises(BadValue, match=r"--gpus 0,4,-1: 2 problems\n.*no GPU 4; valid: 0, 1, 2, 3\n.*no GPU -1"):
        slots(None, gpus=[0, 4, -1])
    with pytest.raises(BadValue, match=r"names no GPU; valid: 0, 1, 2, 3"):
        slots(None, gpus=[])
    machine(8, 0)
    with pytest.raises(BadValue, match=r"--gpus 0: 1 problem\n  torch sees no GPU here"):
        slots(None, gpus=[0])


# ---- the estimate before --------------------------------------------------------------------------------------


def test_a_worker_that_dies_while_it_is_measured_costs_only_the_estimate(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    (site.path / "die_measured").touch()
    site.environment["XDG_CACHE_HOME"] = str(site.path / "cache")  # nothing is remembered there
    status, output = site.run()
    assert status == 0, output
    assert "No estimate of the time: the worker died, possibly out of memory" in output
    assert site.numbers() == undisturbed


def test_a_dry_run_estimates_and_starts_nothing(short: Site) -> None:
    status, output = short.run("--dry-run")
    assert status == 0, output
    assert "Estimated time on this machine" in output
    assert short.births() == 0
    assert not short.results.exists()


def test_several_runs_a_gpu_need_a_gpu(short: Site) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    status, output = short.run("--jobs-per-gpu", "2")
    assert status == 2
    assert "--jobs-per-gpu 2: 1 problem" in output
    assert "torch sees no GPU here" in output
