"""The follower: runs as their folders show them, to sinks that work, fail or never answer; and `bench sync`."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.config.file import load
from bench.core.experiment import Experiment
from bench.sinks import following, sink
from bench.sinks.following import Feeder, Follower
from bench.sinks.run import LoggedRun, Point, from_folder, from_records
from bench.sinks.sink import Sink
from bench.store import collecting, records
from bench.store.run_folder import Store
from tests.run_folders import ENVIRONMENT, finish
from tests.sinks.read_back import needs, read

Write = Callable[..., Path]
Tiny = Callable[..., dict[str, Any]]


class Notes(Sink):
    """A sink that remembers, and fails or hangs when it is told to."""

    def __init__(self, where: str | None = None, folder: Path = Path()) -> None:
        self.name, self.address = "notes", "nowhere"
        self.begun: list[str] = []
        self.points: list[tuple[str, float]] = []
        self.ended: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        self.fails: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()

    def begin(self, run: LoggedRun) -> float:
        self.begun.append(run.run_id)
        return 0

    def add(self, run: LoggedRun, points: Sequence[Point]) -> None:
        if self.fails:
            raise self.fails
        self.answers.wait()
        self.points += [(run.run_id, point["epoch"]) for point in points]

    def end(self, run: LoggedRun) -> None:
        self.ended[run.run_id] = run.status

    def add_files(self, experiment: str, files: Mapping[str, Path]) -> None:
        self.files = dict(files)


@pytest.fixture
def experiment(write_experiment: Write, tiny: Tiny) -> Experiment:
    return load(write_experiment(tiny({"train.epochs": 3})))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results" / "tiny")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    """The one sink that is opened, and a follower that looks often."""
    one = Notes()
    monkeypatch.setattr(following, "opened", lambda wanted, folder: [one] if wanted else [])
    monkeypatch.setattr(following, "SECONDS", 0.01)
    return one


def until(true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass within a minute")


def quiet() -> Console:
    return Console(record=True, width=300, file=io.StringIO())


def collected(experiment: Experiment, store: Store) -> records.Results:
    return collecting.collect(store, experiment.meta(), experiment.runs)


def start(store: Store, run: Any) -> Any:
    folder = store.run(run.spec.run_id)
    folder.path.mkdir(parents=True)
    folder.write_start(run.spec.model_dump_json(), ENVIRONMENT)
    return folder


# ---- a run as it is on disk ----------------------------------------------------------------------------------


def test_a_run_is_the_same_from_its_folder_and_from_the_records(experiment: Experiment, store: Store) -> None:
    finish(store, experiment.runs)
    by_id = {run.run_id: run for run in from_records(collected(experiment, store))}
    assert len(by_id) == 6
    for run in experiment.runs:
        there = from_folder(store, experiment.meta(), run)
        assert there == by_id[run.spec.run_id]
        assert there.name == run.name
        assert there.settings["lr"] == 0.1
        assert (there.environment["device"], there.status) == ("a CPU", "done")
        assert [point["epoch"] for point in there.curve] == [1, 2, 3]
        assert there.final["selected_test_acc"] == 0.3


def test_a_run_that_goes_on_has_its_points_and_no_end(experiment: Experiment, store: Store) -> None:
    run = experiment.runs[0]
    start(store, run).append_curve({"epoch": 1, "train_loss": float("inf"), "val_acc": 0.5, "passes": 5})
    there = from_folder(store, experiment.meta(), run)
    assert there.curve == [{"epoch": 1, "val_acc": 0.5, "passes": 5}]
    assert there.status not in ("done", "diverged", "failed")
    assert there.final == {}


# ---- the thread ----------------------------------------------------------------------------------------------


def test_points_arrive_while_a_run_goes_on_and_results_at_the_end(
    experiment: Experiment, store: Store, notes: Notes
) -> None:
    first, other = experiment.runs[0], experiment.runs[1]
    run_id = first.spec.run_id
    with Follower(["notes"], store, experiment.meta(), quiet()) as follower:
        folder = start(store, first)
        follower.follow(first, False)
        for epoch in (1, 2):
            folder.append_curve({"epoch": epoch, "val_acc": 0.5})
            until(lambda epoch=epoch: (run_id, epoch) in notes.points)  # type: ignore[misc]
        assert notes.ended == {}
        finish(store, [first, other])
        follower.follow(first, True)
        until(lambda: run_id in notes.ended)
        (store.folder / "tables").mkdir()
        (store.folder / "tables" / "main.md").write_text("a table")
        follower.finish(collected(experiment, store))
    assert [epoch for name, epoch in notes.points if name == run_id] == [1, 2, 3]
    assert notes.ended == {run_id: "done", other.spec.run_id: "done"}
    assert notes.begun == [run_id, other.spec.run_id]
    assert [*notes.files] == ["tables/main.md"]


def test_a_run_that_is_stopped_is_left_open_and_begun_again(experiment: Experiment, store: Store, notes: Notes) -> None:
    run = experiment.runs[0]
    folder = start(store, run)
    folder.append_curve({"epoch": 1, "val_acc": 0.5})
    with Follower(["notes"], store, experiment.meta(), quiet()) as follower:
        follower.follow(run, False)
        until(lambda: bool(notes.points))
        follower.follow(run, True)
        until(lambda: bool(notes.ended))
        assert {*notes.ended.values()} <= {"partial", "missing", "running"}
        follower.follow(run, False)
        until(lambda: len(notes.begun) == 2)


def test_a_run_that_another_launch_has_is_left_alone(experiment: Experiment, store: Store, notes: Notes) -> None:
    start(store, experiment.runs[0]).append_curve({"epoch": 1, "val_acc": 0.5})
    with Follower(["notes"], store, experiment.meta(), quiet()) as follower:
        follower.follow(experiment.runs[0], True)
    assert notes.begun == []


def test_a_sink_that_fails_gets_nothing_more_and_is_told_once(
    experiment: Experiment, store: Store, notes: Notes
) -> None:
    notes.fails = OSError("disk full\nmore than anyone reads")
    console = quiet()
    finish(store, experiment.runs)
    with Follower(["notes"], store, experiment.meta(), console) as follower:
        for run in experiment.runs:
            follower.follow(run, True)
        follower.finish(collected(experiment, store))
    told = [line for line in console.export_text().splitlines() if "disk full" in line]
    assert told == ["Not logged to notes: disk full. Runs go on; `bench sync tiny --to notes` sends the rest."]
    assert (len(notes.begun), notes.files) == (1, {})


def test_a_sink_that_never_answers_is_left_behind(
    experiment: Experiment, store: Store, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.3)
    notes.answers.clear()
    console = quiet()
    finish(store, experiment.runs[:1])
    with Follower(["notes"], store, experiment.meta(), console) as follower:
        follower.follow(experiment.runs[0], True)
        until(lambda: bool(notes.begun))
    assert "Not logged to notes: no answer for 0 s" in console.export_text()
    notes.answers.set()


def test_one_sink_that_fails_does_not_stop_another(experiment: Experiment, store: Store) -> None:
    finish(store, experiment.runs)
    good, bad, told = Notes(), Notes(), []
    bad.fails = ValueError("no")
    Feeder([bad, good], lambda sink, error: told.append(sink)).send_results(collected(experiment, store), store.folder)
    assert told == [bad]
    assert len(good.ended) == 6


# ---- commands ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["run", "digits_noise", "--log", "tensorbord"],
            '--log: 1 problem\n  "tensorbord": no such sink; did you mean',
        ),
        (["sync", "digits_noise", "--to", "mlfow"], '--to: 1 problem\n  "mlfow": no such sink; did you mean "mlflow"?'),
        (["sync", "digits_noise"], "--to: 1 problem\n  name a sink: tensorboard, mlflow or wandb"),
        (["sync", "digits_noise", "--to", "mlflow"], 'results holds no results of "digits_noise"'),
    ],
)
def test_a_mistake_is_one_message_before_any_work(
    bench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], said: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    answer = bench(*command)
    assert answer.status == 2
    assert said in answer.err
    assert [*(tmp_path / "cwd").iterdir()] == []


def test_a_launch_is_logged_and_sync_has_nothing_to_add(
    bench: Callable[..., Any], write_experiment: Write, tiny: Tiny, tmp_path: Path, without_report: None
) -> None:
    needs("tensorboard")
    path = write_experiment(tiny({"seeds": 1}))
    said = bench("run", path, "--log", "tensorboard", "--jobs", 1)
    assert said.status == 0
    assert "Logging to tensorboard --logdir results/logs/tensorboard" in said.err
    shown = read("tensorboard", tmp_path / "cwd" / "results" / "logs")
    runs = {run_id: run for run_id, run in shown.items() if run_id != "results"}
    assert len(runs) == 3
    assert {run.group for run in runs.values()} == {"sgd", "sam"}
    for run in runs.values():
        assert run.status == "done"
        assert {epoch for epoch, _ in run.points["test_acc"]} == {1, 2}
    assert any(name.startswith("tables/") for name in shown["results"].files)
    said = bench("sync", "tiny", "--to", "tensorboard")
    assert (said.status, said.out) == (0, "tiny: tensorboard --logdir results/logs/tensorboard\n")
    again = read("tensorboard", tmp_path / "cwd" / "results" / "logs")
    assert {name: run.points for name, run in again.items()} == {name: run.points for name, run in shown.items()}


def test_sync_ends_with_an_error_where_a_sink_fails(
    bench: Callable[..., Any], experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "cwd" / "results" / "tiny")
    finish(store, experiment.runs)
    records.publish(collected(experiment, store), store.folder)
    notes = Notes()
    notes.fails = OSError("gone")
    monkeypatch.setattr(sink, "opened", lambda wanted, folder: [notes])
    said = bench("sync", "tiny", "--to", "mlflow")
    assert (said.status, said.err) == (2, "Error: notes: gone; the same command sends the rest\n")
