"""`bench watch`: beside a launch in another process, after one that was killed, before any, and on damaged files."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.cli import watch
from bench.config.file import load
from bench.core.experiment import PlannedRun
from bench.launch.overview import Observer
from bench.store.run_folder import Store
from tests.launch.local.site import RUNS, Site
from tests.prefork import HANGS, Popen
from tests.prefork import run as run_command
from tests.run_folders import ENVIRONMENT, finish

Bench = Callable[..., Any]
Tiny = Callable[..., dict[str, Any]]
Write = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The results of the tiny experiment, as commands in the fixture `bench` find them."""
    return Store(tmp_path / "cwd" / "results" / "tiny")


def begin(store: Store, run: PlannedRun, *points: dict[str, Any]) -> None:
    """Write what a run leaves that has come so far."""
    folder = store.run(run.spec.run_id)
    folder.write_start(run.spec.model_dump_json(), ENVIRONMENT)
    for point in points:
        folder.append_curve(point)


# ---- beside a launch -------------------------------------------------------------------------------------------


def look(site: Site, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "watch", "touchy.toml", *options]
    return run_command(command, cwd=site.path, env=site.environment)


def states(out: str, label: str) -> list[str]:
    """Return an optimizer's row of counts: done, running, partial, missing, diverged, failed."""
    return next(line.split()[1:] for line in out.splitlines() if re.match(rf" ?{label} .*·", line))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.slow
def test_a_launch_is_watched_while_it_goes_on_and_after_it_was_killed(site: Site) -> None:
    launch = site.start("--set", "train.epochs=200", "--name", "touchy")
    options = ("--set", "train.epochs=200", "--name", "touchy")
    try:
        site.wait_for("runs/*/curve.jsonl", 2)
        said = look(site, *options)
        assert (said.returncode, said.stderr) == (0, "")
        assert "2" in states(said.stdout, "sgd")[1] + states(said.stdout, "sam")[1]
        running = re.findall(
            r"(?:sgd|sam) seed \d +[▁▂▃▄▅▆▇█]+ +(\d+) of 200 +accuracy \d+\.\d % \(validation\)", said.stdout
        )
        assert len(running) == 2
        assert "cpu of " in said.stdout
        assert "test" not in said.stdout
        assert re.search(r"about .* left", said.stdout)
    finally:
        os.killpg(launch.pid, signal.SIGKILL)
        launch.communicate(timeout=HANGS)
    said = look(site, *options, "--once")
    assert (said.returncode, said.stderr) == (0, "")
    assert "No run is in progress; the same `bench run` continues." in said.stdout
    assert [states(said.stdout, label)[1] for label in ("sgd", "sam")] == ["·", "·"]
    assert "time left unknown" in said.stdout


@pytest.mark.slow
def test_in_a_terminal_it_refreshes_and_ends_with_the_last_run(tmp_path: Path) -> None:
    site = Site(tmp_path, batch_size=256)
    process, terminal = watch_in_a_terminal(site)
    shown = read_until(terminal, "No run has started yet.")
    launch = site.start()
    shown += read_until(terminal, "No run is left to do")
    assert process.wait(timeout=HANGS) == 0
    launch.communicate(timeout=HANGS)
    assert launch.returncode == 0
    assert f"{RUNS} of {RUNS} runs" in shown
    assert "best so far, by validation" in shown
    os.close(terminal)


@pytest.mark.slow
def test_ctrl_c_leaves_with_status_0_and_stops_no_run(tmp_path: Path) -> None:
    process, terminal = watch_in_a_terminal(Site(tmp_path))
    read_until(terminal, "No run has started yet.")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=HANGS) == 0
    os.close(terminal)


def watch_in_a_terminal(site: Site) -> tuple[subprocess.Popen[Any], int]:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "bench", "watch", "touchy.toml", "--every", "0.1"]
    environment = site.environment | {"TERM": "xterm", "LINES": "60", "COLUMNS": "160"}
    process = Popen(command, cwd=site.path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    return process, ours


def read_until(terminal: int, text: str) -> str:
    shown, deadline = "", time.monotonic() + HANGS
    while text not in shown:
        assert time.monotonic() < deadline, shown
        shown += os.read(terminal, 1 << 16).decode(errors="replace")
        # Of colours and movements only the text counts.
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    return shown


# ---- one picture -----------------------------------------------------------------------------------------------


def test_an_experiment_without_runs_is_all_missing_and_nothing_is_made(
    bench: Bench, write_experiment: Write, tiny: Tiny, tmp_path: Path
) -> None:
    said = bench("watch", write_experiment(tiny()), "--once")
    assert (said.status, said.err) == (0, "")
    assert states(said.out, "sam") == ["·", "·", "·", "4", "·", "·"]
    assert "0 of 6 runs" in said.out
    assert "No run has started yet." in said.out
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_wrong_name_gets_the_nearest(bench: Bench) -> None:
    said = bench("watch", "digit_noise")
    assert (said.status, said.out) == (2, "")
    assert 'unknown experiment "digit_noise"; did you mean "digits_noise"?' in said.err


@pytest.mark.parametrize("every", ["0", "-1", "nan", "soon"])
def test_a_bad_interval_is_refused(bench: Bench, every: str) -> None:
    said = bench("watch", "digits_noise", "--every", every)
    assert said.status == 2
    assert "'--every'" in said.err


def test_best_is_by_validation_over_all_of_its_runs(
    bench: Bench, write_experiment: Write, tiny: Tiny, store: Store
) -> None:
    path = write_experiment(tiny())
    runs = load(path).runs
    # 0.5, 0.51, ... in the order of the runs: of sam the second rho is better, but one of its two seeds is missing.
    finish(store, runs[:5], runs)
    said = bench("watch", path)
    assert "5 of 6 runs" in said.out
    assert re.search(r"sgd +50\.5 % +2 of 2", said.out)
    assert re.search(r"sam rho=0\.05 +52\.5 % +2 of 2", said.out)
    # 2.3 s each, as `finish` has them.
    assert "12 s spent on runs so far" in said.out
    assert "No run is in progress" in said.out
    finish(store, runs[5:], runs)
    said = bench("watch", path)
    assert re.search(r"sam rho=0\.1 +54\.5 % +2 of 2", said.out)
    assert "6 of 6 runs" in said.out
    assert "No run is left to do" in said.out


def test_passes_and_time_left_follow_from_runs_in_progress(
    bench: Bench, write_experiment: Write, tiny: Tiny, store: Store
) -> None:
    """Two epochs of 5 steps: 10 passes for SGD, 20 for SAM; SGD has taken 2 s for 5 of them."""
    path = write_experiment(tiny({"data.validation": 0.2}))
    experiment = load(path)
    run = experiment.runs[0]
    observer = Observer(experiment, store)
    with store.run(run.spec.run_id).claim("cpu"):
        begin(store, run, {"epoch": 1, "passes": 5, "train_seconds": 2.0, "val_acc": 0.25, "test_acc": 0.99})
        overview = observer.look()
        whole = observer.look().plan.passes
        half = whole[run.spec.run_id] / 2
        assert overview.passes_done == half
        assert overview.seconds == 2.0
        # At 0.4 s a pass, in one process.
        assert overview.left == pytest.approx(0.4 * (overview.passes - half))
        said = bench("watch", path)
        assert re.search(r"sgd seed 0 +▄ +1 of 2 +accuracy 25\.0 % \(validation\) +cpu of ", said.out)
        assert "99" not in said.out


def test_tuned_runs_show_no_test_numbers_and_final_runs_are_counted_before_they_are_chosen(
    bench: Bench, write_experiment: Write, tiny: Tiny, store: Store
) -> None:
    tuned = {"seeds": ..., "tune": {"seeds": 1, "trials": 2}, "final": {"seeds": [5, 6]}}
    tuned["optimizers.sgd.sweep"] = {"lr": [0.1, 0.2]}
    tuned["optimizers.sgd.lr"] = ...
    path = write_experiment(tiny(tuned))
    experiment = load(path)
    observer = Observer(experiment, store)
    assert "0 of 8 runs" in bench("watch", path).out
    for run in experiment.tuning[:-1]:
        finish(store, [run], experiment.tuning)
    overview = observer.look()
    assert not overview.over
    assert {best.label for best in overview.best} == {"sgd", "sam"}
    # The last run of tuning ends: now final runs are known, although no launch has written down a choice.
    finish(store, experiment.tuning[-1:], experiment.tuning)
    overview = observer.look()
    assert not overview.over
    final = [run for run in overview.plan.experiment.runs if run.phase == "final"]
    assert len(final) == 4
    finish(store, final)
    said = bench("watch", path)
    assert "8 of 8 runs" in said.out
    # Validation of tuning: 0.51 and 0.53 are the best; all test numbers of `finish` are the same as validation's, but
    # final runs count for nothing here.
    assert re.search(r"sgd lr=0\.2 +51\.0 % +1 of 1", said.out)
    assert re.search(r"sam rho=0\.1 +53\.0 % +1 of 1", said.out)


def test_torn_and_damaged_files_are_told_and_never_end_it(
    bench: Bench, write_experiment: Write, tiny: Tiny, store: Store
) -> None:
    path = write_experiment(tiny())
    experiment = load(path)
    observer = Observer(experiment, store)
    one, two, three, *_ = experiment.runs
    begin(store, one, {"epoch": 1, "val_acc": 0.5})
    with open(store.run(one.spec.run_id).path / "curve.jsonl", "a") as file:
        file.write('{"epoch": 2, "val_a')
    begin(store, two)
    (store.run(two.spec.run_id).path / "result.json").write_text('{"status": "do')
    begin(store, three, {"epoch": 1, "val_acc": float("nan"), "train_loss": float("inf")})
    for name in ("experiment.json", "chosen.json", "compiling.json", "records.csv"):
        (store.folder / name).write_text('{"half')
    with store.run(one.spec.run_id).claim("cpu"), store.run(three.spec.run_id).claim("cpu"):
        overview = observer.look()
        assert [len(running.curve) for running in overview.running] == [1, 0]
        said = bench("watch", path)
    assert said.status == 0
    assert said.out.count(" 1 of 2 ") == 2
    assert "failed: sgd seed 1: " in said.out
    assert said.out.count("result.json is damaged") == 1
    assert "results/tiny/records.csv is not a table of records" in said.out
    # Mended, it goes on as if nothing had been.
    for name in ("experiment.json", "chosen.json", "compiling.json", "records.csv"):
        (store.folder / name).unlink()
    (store.run(two.spec.run_id).path / "result.json").unlink()
    assert observer.look().faults == []


def test_results_that_only_the_records_hold_count_as_done(
    bench: Bench, write_experiment: Write, tiny: Tiny, tmp_path: Path
) -> None:
    from bench.launch.outcome import Outcome
    from bench.launch.run import collect, plan

    path = write_experiment(tiny())
    planned = plan(str(path), out=tmp_path / "cwd" / "results")
    finish(planned.store, planned.experiment.runs)
    collect(planned, Outcome())
    for run in planned.experiment.runs:
        folder = planned.store.run(run.spec.run_id).path
        folder.rename(tmp_path / folder.name)
    said = bench("watch", path)
    assert "6 of 6 runs" in said.out
    assert json.loads((planned.store.folder / "experiment.json").read_text())["name"] == "tiny"


# ---- parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([0.5], "▄"),
        ([2.0, 2.0, 2.0], "▄▄▄"),
        ([0.0, 1.0], "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([3.0, 2.0, -1.0], "█▆▁"),
    ],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest(values: list[float], line: str) -> None:
    assert watch.sparkline(values) == line


def test_a_long_curve_is_thinned_out_with_its_first_and_last_value() -> None:
    line = watch.sparkline([float(n) for n in range(1000)])
    assert (len(line), line[0], line[-1]) == (watch.WIDTH, "▁", "█")
    assert list(line) == sorted(line)


def test_without_utf_8_it_is_spelled_out(tmp_path: Path) -> None:
    text = "".join(watch.BLOCKS)
    code = f"from bench.core import terminal; terminal.print_in_any_encoding(); print({text!r})"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "_.-~=+*#\n"
