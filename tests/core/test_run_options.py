"""How runs are done travels as one value, and where their data are as one setting."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from bench.cli.options import RUN_OPTIONS
from bench.core import data_folder
from bench.core.errors import BadValue
from bench.core.run_options import RunOptions, from_json
from bench.distributed.launcher import Call
from bench.launch.slurm.submission import JobSettings
from bench.store.files import to_json

ALL = RunOptions(3, 2, (0, 2), True, 0.5, True, "/data")


def test_every_setting_is_an_option_of_the_command_line() -> None:
    assert {field.name for field in fields(RunOptions)} == {*RUN_OPTIONS, "data"}


def test_options_come_back_from_json() -> None:
    assert from_json(json.loads(json.dumps(asdict(ALL)))) == ALL
    assert from_json({"jobs": 2, "something": "else"}) == RunOptions(jobs=2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("checkpoint_minutes", value) for value in (-1.0, math.nan, math.inf, "5", True)),
        *((key, value) for key in ("jobs", "jobs_per_gpu") for value in (0, -1, 1.5, True, "2", 10_001)),
        *(("gpus", value) for value in ((), (0, 0), (-1,), ("0",), (True,))),
        *((key, value) for key in ("fail_fast", "keep_weights") for value in (1, "yes", None)),
        *(("data", value) for value in ("", 3)),
    ],
)
def test_an_impossible_value_is_refused_and_its_key_named(key: str, value: Any) -> None:
    with pytest.raises(BadValue, match=rf"^options of the launch: 1 problem\n  {key}: ") as caught:
        RunOptions(**{key: value})
    assert repr(value) in str(caught.value)
    read = list(value) if isinstance(value, tuple) else value
    with pytest.raises(BadValue, match=rf"  {key}: "):
        from_json({key: read})


def test_all_impossible_values_are_told_at_once() -> None:
    with pytest.raises(BadValue, match=r"2 problems\n  jobs: .*\n  gpus: "):
        from_json({"jobs": 0, "gpus": 1})


def test_processes_on_other_nodes_read_the_options_of_their_call(tmp_path: Path) -> None:
    path = tmp_path / "calls.json"
    assert Call.read(path) == Call()
    call = Call("1", "127.0.0.1", 5, options=ALL)
    path.write_text(to_json(asdict(call)))
    assert Call.read(path) == call
    path.write_text(to_json({"over": True}))
    assert Call.read(path).over


def test_a_job_reads_the_options_of_its_submission() -> None:
    settings = JobSettings(1, 4, 60, 120, options=ALL, max_jobs=3)
    assert JobSettings.from_json(json.loads(to_json(asdict(settings)))) == settings


def test_submissions_of_earlier_versions_are_read() -> None:
    old: dict[str, Any] = {"jobs": 2, "jobs_per_gpu": 1, "gpus": 1, "cpus": 4, "time": 60, "grace_seconds": 120}
    old |= {"checkpoint_minutes": 0.5, "fail_fast": True, "data": "/data", "nodes": 1, "keep_weights": True}
    options = RunOptions(2, 1, None, True, 0.5, True, "/data")
    assert JobSettings.from_json(old) == JobSettings(1, 4, 60, 120, options)


# ---- the data folder -----------------------------------------------------------------------------------------


def test_a_given_folder_goes_before_the_environments_and_ends_with_its_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "env"))
    before = dict(os.environ)
    with data_folder.data_folder_given(tmp_path / "given"):
        assert data_folder.data_folder() == tmp_path / "given"
        assert data_folder.named_data_folder() == str(tmp_path / "given")
        assert data_folder.variables() == {"BENCH_DATA": str(tmp_path / "given")}
        with data_folder.data_folder_given(None):
            assert data_folder.data_folder() == tmp_path / "given"
        assert dict(os.environ) == before
    assert data_folder.data_folder() == tmp_path / "env"
    assert data_folder.variables() == {}


def test_the_variable_is_read_and_set_in_one_module_only() -> None:
    using = [
        path.name
        for path in Path(data_folder.__file__).parents[1].rglob("*.py")
        if re.search(r"data_folder\.VARIABLE|environ\b[^\n]*BENCH_DATA", path.read_text())
    ]
    assert using == []


def test_a_folder_that_nobody_named_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA")
    assert data_folder.named_data_folder() is None
    monkeypatch.setenv("BENCH_DATA", "~nobody-of-that-name/data")
    assert data_folder.named_data_folder()  # and who reads data from there is told
