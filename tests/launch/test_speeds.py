"""What was measured of a machine is remembered for the same kind of run, and for nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.config.file import load
from bench.core.spec import RunSpec
from bench.launch import speeds
from bench.launch.estimate import Speed
from bench.launch.local.slots import Slot

SHARES = [Slot("cpu", (0,), 1), Slot("cpu", (1,), 1)]
SPEED = Speed(1.0, 0.25, 3.0)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sam-bench" / "speeds.json"


@pytest.fixture
def spec(write_experiment: Callable[..., Path], tiny: Callable[..., dict[str, Any]]) -> RunSpec:
    return load(write_experiment(tiny())).runs[0].spec


def test_what_is_remembered_is_recalled(spec: RunSpec) -> None:
    key = speeds.key(spec, SHARES)
    assert speeds.recalled({"sgd": key}) == {}
    speeds.remember({key: SPEED})
    assert speeds.recalled({"sgd": key, "other": "0"}) == {"sgd": SPEED}
    assert speeds.key(spec.model_copy(update={"seed": 7}), SHARES) == key, "a seed changes no speed"


def test_other_work_other_shares_and_other_code_are_other_measurements(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = spec.train.model_copy(update={"batch_size": 32})
    other_method = spec.optimizer.model_copy(update={"name": "adamw"})
    keys = [
        speeds.key(spec, SHARES),
        speeds.key(spec.model_copy(update={"train": train}), SHARES),
        speeds.key(spec.model_copy(update={"optimizer": other_method}), SHARES),
        speeds.key(spec.model_copy(update={"files_sha256": "f"}), SHARES),
        speeds.key(spec, SHARES[:1]),
    ]
    monkeypatch.setattr(speeds, "_code_sha256", lambda: "changed")
    keys.append(speeds.key(spec, SHARES))
    monkeypatch.setenv("BENCH_MALLOC", "off")
    keys.append(speeds.key(spec, SHARES))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"k": 3}',
        '{"k": {"at": 1.0}}',
        json.dumps({"k": {"at": time.time(), "speed": {"setup": "x", "a_pass": 1.0, "an_evaluation": 1.0}}}),
        json.dumps({"k": {"at": time.time(), "speed": {"setup": float("nan"), "a_pass": 1.0, "an_evaluation": 1.0}}}),
        json.dumps({"k": {"at": time.time(), "speed": {"setup": 1.0}}}),
        json.dumps({"k": {"at": 1.0, "speed": {"setup": 1.0, "a_pass": 1.0, "an_evaluation": 1.0}}}),
    ],
    # Named: names with the time in them would be others in each process that collects the tests.
    ids=["cut", "list", "number", "no speed", "text", "not a number", "half a speed", "old"],
)
def test_a_file_that_is_damaged_or_old_remembers_nothing_and_is_written_anew(content: str, file: Path) -> None:
    file.parent.mkdir()
    file.write_text(content)
    assert speeds.recalled({"sgd": "k"}) == {}
    speeds.remember({"new": SPEED})
    assert list(json.loads(file.read_text())) == ["new"]


def test_a_cache_that_cannot_be_written_costs_nothing(file: Path) -> None:
    file.parent.write_text("a file where a folder should be")
    speeds.remember({"k": SPEED})
    assert speeds.recalled({"sgd": "k"}) == {}


def test_the_newest_are_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "MOST", 2)
    for name in ("a", "b", "c"):
        speeds.remember({name: SPEED})
    assert list(json.loads(file.read_text())) == ["b", "c"]
