"""Damage in what runs left: told with its file, never a traceback or a wait, and of no harm to the other runs."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import pytest

from bench.analysis import tables
from bench.analysis.answer import answer, question
from bench.analysis.study import Study
from bench.config.file import load
from bench.core.errors import BenchError
from bench.core.experiment import Experiment
from bench.launch.tuning import choose
from bench.store import archive, collecting, file_set, records
from bench.store.files import StorageError, read_json
from bench.store.run_folder import RunFolder, Store, live
from tests.run_folders import finish

Bench = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """A FIFO that somebody reads after all is a failure, and no test run without end."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def experiment(write_experiment: Callable[..., Path], tiny: Callable[..., dict[str, Any]]) -> Experiment:
    return load(write_experiment(tiny()))


@pytest.fixture
def store(tmp_path: Path, experiment: Experiment) -> Store:
    """Six finished runs."""
    store = Store(tmp_path / "results" / "tiny")
    finish(store, experiment.runs)
    return store


def collect(store: Store, experiment: Experiment) -> records.Results:
    return collecting.collect(store, experiment.meta(), experiment.runs)


def put(path: Path, content: bytes | str | None) -> None:
    """Have a file hold this; None makes it a FIFO, "" of a missing file."""
    path.unlink(missing_ok=True)
    if content is None:
        os.mkfifo(path)
    elif content != "":
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


DEEP = "[" * 20_000
NOTHING = [None, b"\xff\x00\xfe", "{", "3", '"x"', "null", "[]", "[3]", DEEP, "9" * 5000]
"""What no file of a run holds: a FIFO, bytes, JSON that is cut short, of another type, too deep, or too long."""


# ---- run folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [*NOTHING, "{}", '{"status": "done"}', '{"status": "done", "metrics": {"a": "b"}}'])
def test_a_damaged_result_is_told_and_the_others_are_collected(
    store: Store, experiment: Experiment, content: bytes | str | None
) -> None:
    folder = store.run(experiment.runs[0].spec.run_id)
    put(folder.path / "result.json", content)
    with pytest.raises(BenchError, match=r"result\.json"):
        folder.status()
    found = collect(store, experiment)
    assert list(found.records.status) == ["failed", *["done"] * 5]
    assert "result.json" in found.damaged[0]
    assert found.records.error[0] == found.damaged[0]


def cut(curve: bytes) -> bytes:
    return curve.splitlines(keepends=True)[0]


@pytest.mark.parametrize("of_an_older_version", [False, True])
@pytest.mark.parametrize("content", [*NOTHING, "", cut])
def test_a_curve_that_is_not_as_it_was_is_not_drawn_from_less(
    store: Store, experiment: Experiment, content: Any, of_an_older_version: bool
) -> None:
    folder = store.run(experiment.runs[0].spec.run_id)
    path = folder.path / "curve.jsonl"
    if of_an_older_version:
        result = json.loads((folder.path / "result.json").read_bytes())
        del result["curve_sha256"]
        (folder.path / "result.json").write_text(json.dumps({**result, "epochs_done": 2}))
    put(path, content(path.read_bytes()) if callable(content) else content)
    folder.last_point(), folder.error()
    found = collect(store, experiment)
    assert list(found.records.status) == ["failed", *["done"] * 5]
    assert found.damaged[0].endswith(f"delete {folder.path} to do this run again")
    assert "curve.jsonl is damaged" in found.damaged[0]
    assert set(found.curves.run_id) == {run.spec.run_id for run in experiment.runs[1:]}


@pytest.mark.parametrize("content", [*NOTHING, "{}", "", '[{"device": {}}]'])
def test_a_lost_environment_costs_its_run_the_hardware_and_nobody_anything_else(
    store: Store, experiment: Experiment, content: bytes | str | None
) -> None:
    folder = store.run(experiment.runs[0].spec.run_id)
    put(folder.path / "environment.json", content)
    found = collect(store, experiment)
    assert list(found.records.status) == ["done"] * 6
    assert pd.isna(found.records.device[0])
    assert list(found.records.device[1:]) == ["a CPU"] * 5
    assert "environment.json" in found.damaged[0]
    records.publish(found, store.folder)
    assert tables.build(Study(records.read(store.folder)))
    folder.write_start("{}", {"device": "here"})  # goes on all the same
    assert folder.environments() == [{"device": "here"}]


def test_a_fifo_anywhere_is_not_waited_for(store: Store, experiment: Experiment) -> None:
    folder = RunFolder(store.run("0123456789ab").path)
    folder.path.mkdir()
    for name in ("spec.json", "curve.jsonl", "error.txt", "lock", "result.json", "environment.json"):
        put(folder.path / name, None)
    assert "cannot be read" in (folder.error() or "")
    assert folder.last_point() == {}
    assert live(folder) is None
    with pytest.raises(StorageError):
        folder.append_curve({"epoch": 1})
    with pytest.raises(BenchError), folder.claim():
        pass
    os.mkfifo(store.folder / "runs" / "lock")
    with pytest.raises(BenchError), store.collecting():
        pass


@pytest.mark.parametrize(
    "content", [*NOTHING, *(f'{{"history": {text}}}' for text in ("3", "[3]", "{}", '[{"label": 1}]'))]
)
def test_a_damaged_file_of_choices_is_told(
    write_experiment: Callable[..., Path], tiny: Callable[..., dict[str, Any]], tmp_path: Path, content: Any
) -> None:
    phases = {"tune": {"seeds": 1, "trials": 2}, "final": {"seeds": 1}, "optimizers.sgd.tune": False, "seeds": ...}
    put(tmp_path / "chosen.json", content)
    with pytest.raises(BenchError, match=r"chosen\.json is damaged"):
        choose(load(write_experiment(tiny(phases))), Store(tmp_path))


@pytest.mark.parametrize("content", [*NOTHING, "{}", '{"labels": 3}'])
def test_a_damaged_experiment_json_is_told_and_made_anew(
    store: Store, experiment: Experiment, content: bytes | str | None
) -> None:
    found = collect(store, experiment)
    records.publish(found, store.folder)
    put(store.folder / "experiment.json", content)
    with pytest.raises(BenchError, match=r"experiment\.json"):
        records.read(store.folder)
    records.publish(found, store.folder)
    assert records.read(store.folder).meta == found.meta


@pytest.mark.usefixtures("without_report")
def test_the_launch_says_what_is_damaged_and_collects_the_rest(
    bench: Bench, store: Store, experiment: Experiment, tmp_path: Path
) -> None:
    for run, name in zip(experiment.runs, ("curve.jsonl", "environment.json"), strict=False):
        (store.run(run.spec.run_id).path / name).write_text("[]")
    said = bench("run", tmp_path / "tiny.toml", "--out", tmp_path / "results")
    assert said.status == 1
    assert "Traceback" not in said.err
    assert said.err.count("damaged: ") == 2
    assert list(records.read(store.folder).records.status) == ["failed", *["done"] * 5]


# ---- the collected files as a set ----------------------------------------------------------------------------


class Killed(BaseException):
    pass


def test_a_process_killed_anywhere_leaves_the_old_set_or_the_new_one(
    store: Store, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = collect(store, experiment)
    finish(store, experiment.runs, train_seconds=3.0)
    new = collect(store, experiment)
    seen = []
    real = {name: getattr(os, name) for name in ("replace", "rename", "rmdir")}
    for moment in range(20):
        shutil.rmtree(store.folder / file_set.STAGED, ignore_errors=True)
        records.publish(old, store.folder)
        left = moment

        def until_killed(name: str, *arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real[name](*arguments, **named)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, functools.partial(until_killed, name))
            try:
                records.publish(new, store.folder)
                over = True
            except Killed:
                over = False
        seen.append(records.read(store.folder).records.train_seconds[0])
        assert records.finished(store.folder) == {run.spec.run_id for run in experiment.runs}
        if over:
            break
    assert over
    assert moment > 5
    assert seen == sorted(seen)
    assert set(seen) == {2.0, 3.0}
    records.publish(new, store.folder)
    assert {path.name for path in store.folder.iterdir()} == {"runs", "experiment.json", "records.csv", "curves.csv"}


# ---- archives, and tables that agree with their sha256 -------------------------------------------------------

CELLS = [
    "",
    "NA",
    "x",
    "-1",
    "1e400",
    "nan",
    "inf",
    "9" * 400,
    "1.5",
    "True",
    "a\nb",
    '"',
    "0x10",
    "[bold]",
    "$x$",
    "\0",
]


def spoilt(frame: pd.DataFrame, chance: random.Random) -> pd.DataFrame:
    """The table with one thing in it changed."""
    column = chance.choice(list(frame.columns))
    change = chance.randrange(6)
    if change == 0:
        return frame.drop(columns=column)
    if change == 1:
        return frame.rename(columns={column: chance.choice([*frame.columns, "", "x"])})
    if change == 2:
        return frame.iloc[: chance.randrange(len(frame))]
    if change == 3:
        return pd.concat([frame, frame.iloc[chance.randrange(len(frame)) :]])
    spoilt = frame.astype(object)
    rows = [chance.randrange(len(frame))] if change == 4 else list(range(len(frame)))
    spoilt.loc[rows, column] = chance.choice(CELLS)
    return spoilt


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with one thing in it changed."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        if chance.random() < 0.2:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.6:
        place = chance.randrange(len(value))
        return [*value[:place], changed(value[place], chance), *value[place + 1 :]]
    return chance.choice([None, 3, -1, 1e308, "x", "", [], {}, [3], {"x": 1}, True, "9" * 400, 10**400])


@pytest.mark.parametrize("seed", range(120))
def test_records_that_agree_with_their_sha256_are_tabulated_or_refused(
    store: Store, experiment: Experiment, seed: int
) -> None:
    found = collect(store, experiment)
    chance = random.Random(seed)
    name = ("records", "curves", "meta")[seed % 3]
    meta = changed(found.meta, chance) if name == "meta" else found.meta
    frames: dict[str, Any] = {name: spoilt(getattr(found, name), chance)} if name != "meta" else {}
    broken = replace(found, meta=meta, **frames)
    try:
        if not isinstance(broken.meta, dict):
            return
        records.publish(broken, store.folder)
        results = records.read(store.folder)
        tables.build(Study(results))
        question(Study(results)), answer(Study(results))
    except BenchError as error:
        said = str(error)
    else:
        said = ""
    assert len(said) < 20_000


def test_runs_of_two_seeds_are_not_one_run(store: Store, experiment: Experiment) -> None:
    found = collect(store, experiment)
    one = found.records["run_id"][0]
    records.publish(replace(found, records=found.records.assign(run_id=one)), store.folder)
    with pytest.raises(BenchError, match=f"line 2: run_id '{one}' is that of another seed, too"):
        records.read(store.folder)


def test_what_is_no_missing_value_is_a_word(
    write_experiment: Callable[..., Path], tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    words = ("NA", "null", "NaN", "None", "nan")
    labels = {f"optimizers.{word}": {"use": "sgd", "lr": 0.1 + number} for number, word in enumerate(words)}
    experiment = load(write_experiment(tiny({**labels, "baseline": "NA", "optimizers.sgd": ...})))
    store = Store(tmp_path / "results")
    finish(store, experiment.runs)
    records.publish(collect(store, experiment), store.folder)
    results = records.read(store.folder)
    assert list(dict.fromkeys(results.records.optimizer)) == ["sam", *words]
    assert set(results.curves.optimizer) == {"sam", *words}
    shown = tables.build(Study(results))[0]
    assert [row[0] for row in shown.rows][1:] == list(words)


def test_a_damaged_json_file_says_what_it_holds(tmp_path: Path) -> None:
    put(tmp_path / "x.json", DEEP)
    with pytest.raises(BenchError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")


def test_an_archive_that_is_no_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar.gz")
    with pytest.raises(BenchError, match="not a regular file"):
        archive.unpack(tmp_path / "x.tar.gz")
