"""--shard: the missing runs shared out among machines that share nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.config.file import load
from bench.core.errors import BadValue
from bench.core.experiment import Experiment
from bench.launch import run as launch
from bench.launch.outcome import Outcome
from bench.launch.plan import Plan, make_plan
from bench.launch.shard import Shard, parse
from bench.store import records
from bench.store.run_folder import Store
from tests.run_folders import finish

Write = Callable[..., Path]
Tiny = Callable[..., dict[str, Any]]


def shares(experiment: Experiment, store: Store, count: int) -> list[Plan]:
    return [make_plan(experiment, store, shard=Shard(number, count)) for number in range(1, count + 1)]


def ids(plan: Plan) -> list[str]:
    return [run.spec.run_id for run in plan.to_do]


def work(plan: Plan) -> int:
    return sum(plan.passes[run_id] for run_id in ids(plan))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results" / "tiny")


def test_shards_are_all_of_the_work_once_longest_first_and_a_seed_stays_on_one_machine(
    write_experiment: Write, tiny: Tiny, store: Store
) -> None:
    experiment = load(write_experiment(tiny({"seeds": 10})))
    plans = shares(experiment, store, 5)
    assert sorted(run_id for plan in plans for run_id in ids(plan)) == sorted(ids(make_plan(experiment, store)))
    assert [{run.spec.seed for run in plan.to_do} for plan in plans] == [{n, n + 5} for n in range(5)]
    assert len({work(plan) for plan in plans}) == 1
    for plan in plans:
        passes = [plan.passes[run_id] for run_id in ids(plan)]
        assert passes == sorted(passes, reverse=True)


@pytest.mark.parametrize(("seeds", "count"), [(5, 2), (5, 3), (2, 5), (1, 3), (7, 4)])
def test_a_share_is_a_fair_one_where_seeds_do_not_come_out_even(
    write_experiment: Write, tiny: Tiny, store: Store, seeds: int, count: int
) -> None:
    experiment = load(write_experiment(tiny({"seeds": seeds, "optimizers.adam": {"lr": 0.01}})))
    plans = shares(experiment, store, count)
    everything = make_plan(experiment, store)
    assert sorted(run_id for plan in plans for run_id in ids(plan)) == sorted(ids(everything))
    longest = max(everything.passes.values())
    assert max(map(work, plans)) - min(map(work, plans)) <= longest, "no more than a run apart"


def test_what_is_missing_is_shared_out_and_not_what_is_done(write_experiment: Write, tiny: Tiny, store: Store) -> None:
    experiment = load(write_experiment(tiny({"seeds": 4})))
    finish(store, [run for run in experiment.runs if run.spec.seed != 3], experiment.runs)
    launch.collect(make_plan(experiment, store), Outcome())
    shutil.rmtree(store.folder / "runs")
    assert [len(plan.to_do) for plan in shares(experiment, store, 3)] == [1, 1, 1]


def test_a_shard_is_the_same_after_a_part_of_it_is_done_and_everywhere(
    write_experiment: Write, tiny: Tiny, store: Store
) -> None:
    experiment = load(write_experiment(tiny({"seeds": 4})))
    (first, second) = shares(experiment, store, 2)
    finish(store, first.to_do[:2], experiment.runs)
    launch.collect(first, Outcome())
    assert ids(make_plan(experiment, store, shard=Shard(1, 2))) == ids(first)[2:]
    assert ids(make_plan(experiment, store, shard=Shard(2, 2))) == ids(second), "another takes over"
    launch.collect(make_plan(experiment, store), Outcome())
    assert "before_shards" not in records.read(store.folder).meta, (
        "a launch without shards: the rest is shared out anew"
    )


def test_phases_are_shared_out_each_by_itself(write_experiment: Write, tiny: Tiny, store: Store) -> None:
    phases: dict[str, Any] = {"tune": {"seeds": 2, "trials": 2}, "final": {"seeds": 4}, "seeds": ...}
    experiment = load(write_experiment(tiny({**phases, "optimizers.sgd": {"sweep": {"lr": [0.1, 0.2]}}})))
    plans = shares(experiment, store, 2)
    assert [len(plan.to_do) for plan in plans] == [4, 4]
    finish(store, experiment.tuning, experiment.tuning)
    finals = shares(experiment, store, 2)
    assert [[(run.phase, run.spec.seed) for run in plan.to_do] for plan in finals] == [
        [("final", 2), ("final", 4)] * 2,
        [("final", 3), ("final", 5)] * 2,
    ]
    assert launch.next_phase(plans[0]) is not None


@pytest.mark.parametrize("text", ["", "0/5", "6/5", "2", "2/0", "a/b", "2/5/1", "-1/5", "1/20000", "²/5"])
def test_what_is_no_shard_is_told(text: str) -> None:
    with pytest.raises(BadValue, match="must be N/COUNT"):
        parse(text)


def test_the_command_says_which_shard_and_does_no_other(
    bench: Callable[..., Any], write_experiment: Write, tiny: Tiny
) -> None:
    path = write_experiment(tiny())
    said = [bench("run", path, "--dry-run", "--shard", f"{number}/2") for number in (1, 2)]
    assert all(f"tiny, shard {number}/2: 0 done, 3 to do" in one.err for number, one in enumerate(said, 1))
    first, second = ({line.split()[0] for line in one.out.splitlines()} for one in said)
    assert (len(first), len(second), first & second) == (3, 3, set())
    assert bench("run", path, "--shard", "3/2").status == 2
