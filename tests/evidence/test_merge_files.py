"""`bench merge` of more than records: measures come along, archives are parts, and experiment.json is checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.config.file import load
from bench.core.errors import BenchError
from bench.core.experiment import Experiment, PlannedRun
from bench.evidence.merge import merge
from bench.launch import run as launch
from bench.launch.outcome import Outcome
from bench.launch.plan import make_plan
from bench.store import records
from bench.store.meta_rules import read_meta
from bench.store.records import Results
from bench.store.run_folder import Store
from tests.analysis.tables.test_sharpness import with_measures
from tests.run_folders import finish

Bench = Callable[..., Any]
Write = Callable[..., Path]
Tiny = Callable[..., dict[str, Any]]


def collected(folder: Path, experiment: Experiment, runs: list[PlannedRun] | tuple[PlannedRun, ...]) -> Results:
    store = Store(folder)
    finish(store, runs, experiment.runs)
    launch.collect(make_plan(experiment, store), Outcome())
    return records.read(folder)


def measured(results: Results) -> Results:
    """The results with measures of their finished runs, taken of the weights that these ended with."""
    done = results.records[results.records["status"] == "done"]
    weights = done.set_index("run_id")["weights_sha256"]
    found = with_measures(replace(results, records=done))
    assert found.measures is not None
    found.measures["recorded_sha256"] = found.measures["weights_sha256"] = found.measures["run_id"].map(weights)
    return replace(found, records=results.records)


@pytest.fixture
def halves(write_experiment: Write, tiny: Tiny, tmp_path: Path) -> tuple[Results, Results, Results]:
    """The results of two machines, a half of the runs each, and of one that did all."""
    experiment = load(write_experiment(tiny({"seeds": 3})))
    a, b = (
        collected(tmp_path / name / "tiny", experiment, experiment.runs[start::2]) for start, name in enumerate("ab")
    )
    return a, b, collected(tmp_path / "alone" / "tiny", experiment, experiment.runs)


def test_measures_of_all_parts_come_along_in_the_order_of_the_runs(halves: tuple[Results, Results, Results]) -> None:
    a, b, alone = map(measured, halves)
    merged = merge([("a", a), ("b", b)]).results
    assert alone.measures is not None
    assert alone.directions is not None
    assert merged.measures is not None
    assert merged.directions is not None
    order = list(dict.fromkeys(merged.records["run_id"]))
    assert list(merged.measures["run_id"]) == order
    for ours, theirs in ((merged.measures, alone.measures), (merged.directions, alone.directions)):
        keys = [name for name in ("run_id", "direction", "alpha", "beta") if name in ours]
        left, right = (frame.sort_values(keys, ignore_index=True) for frame in (ours, theirs))
        pd.testing.assert_frame_equal(left, right)


def test_measures_of_other_weights_are_left_behind(halves: tuple[Results, Results, Results]) -> None:
    a, b, _ = halves
    stale = measured(b)
    assert stale.measures is not None
    stale.measures.loc[0, "recorded_sha256"] = "f" * 16
    merged = merge([("a", measured(a)), ("b", stale)]).results
    assert merged.measures is not None
    assert merged.directions is not None
    lost = stale.measures.loc[0, "run_id"]
    assert set(merged.records["run_id"]) - set(merged.measures["run_id"]) == {lost}
    assert lost not in set(merged.directions["run_id"])


def test_measures_taken_with_other_settings_are_refused(halves: tuple[Results, Results, Results]) -> None:
    a, b = (measured(half) for half in halves[:2])
    assert b.measures is not None
    b.measures["rho"] = 0.5
    with pytest.raises(BenchError, match="measures were taken with other settings in a and b; repeat one of them"):
        merge([("a", a), ("b", b)])


def test_an_archive_is_a_part(
    write_experiment: Write, tiny: Tiny, halves: tuple[Results, Results, Results], tmp_path: Path, bench: Bench
) -> None:
    path = write_experiment(tiny({"seeds": 3}))
    archive = tmp_path / "b.tar.gz"
    said = bench("export", path, "--out", tmp_path / "b", "--file", archive)
    assert said.status == 0, said.err
    said = bench("merge", tmp_path / "a" / "tiny", archive)
    assert said.status == 0, said.err
    assert f"{archive}: 4 finished runs" in said.out
    whole, alone = records.read(tmp_path / "a" / "tiny"), halves[2]
    pd.testing.assert_frame_equal(whole.records, alone.records, check_exact=True)
    assert [one["from"] for one in whole.meta["parts"]] == [str(tmp_path / "a" / "tiny"), str(archive)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parts": [{"from": "a"}]}, "parts"),
        ({"parts": "a"}, "parts"),
        ({"before_shards": [1]}, "before_shards"),
        ({"of": ""}, "of"),
    ],
)
def test_what_a_merge_or_a_shard_keeps_is_checked(
    halves: tuple[Results, Results, Results], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """It is read back by the next merge and the next shard: damage is told here, not as a traceback there."""
    path = tmp_path / "a" / "tiny" / "experiment.json"
    meta = json.loads(path.read_text())
    assert read_meta(path, path.read_bytes())
    with pytest.raises(BenchError, match=rf"experiment\.json: 1 problem\n  {said}: "):
        read_meta(path, json.dumps(meta | change).encode())
