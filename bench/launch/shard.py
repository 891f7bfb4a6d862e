"""Division of missing runs among machines without shared files: each computes its own part, and no two overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.core.errors import BadValue
from bench.core.experiment import PlannedRun

MOST = 10_000
"""Largest number of shards."""

SLACK = 1.05
"""Factor by which a shard may exceed its fair length to keep the runs of a seed on one machine."""


@dataclass(frozen=True)
class Shard:
    """One part of several: `number` of `count`, from 1 on."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse(text: str) -> Shard:
    """Parse a shard such as "2/5".

    Raises:
        BadValue: the text is not a shard.
    """
    number, _, count = text.partition("/")
    # The length is checked before `int`, which raises for thousands of digits; "10000/10000" has 11.
    if not (number.isdecimal() and count.isdecimal() and len(text) < 12 and 1 <= int(number) <= int(count) <= MOST):
        raise BadValue(f"--shard {text}", [f"must be N/COUNT with 1 <= N <= COUNT <= {MOST:,}: --shard 2/5"])
    return Shard(int(number), int(count))


def part(runs: Mapping[str, PlannedRun], costs: Mapping[str, int], shard: Shard) -> set[str]:
    """Return the ids of the runs of a shard.

    Phases are shared out each by itself, since the final runs are not known before tuning is over. The runs of a seed
    under a condition, whose times are compared, stay together where that makes no shard longer than a fair one; the
    longest are given out first, each to the shard that has least.

    Args:
        runs: all that are to be shared out, by run_id, in the order of the experiment.
        costs: passes by run_id.
    """
    # Every machine must come to the same division, so it depends on the runs and their passes alone.
    mine: set[str] = set()
    for phase in dict.fromkeys(run.phase for run in runs.values()):
        groups: dict[tuple[str, int], list[str]] = {}
        for run_id, run in runs.items():
            if run.phase == phase:
                groups.setdefault((run.condition_text, run.spec.seed), []).append(run_id)
        mine |= _shares(list(groups.values()), costs, shard.count)[shard.number - 1]
    return mine


def _shares(groups: list[list[str]], costs: Mapping[str, int], count: int) -> list[set[str]]:
    shares: list[set[str]] = [set() for _ in range(count)]
    loads = [0] * count
    fair = sum(costs[run_id] for group in groups for run_id in group) / count

    def give(some: list[str], place: int) -> None:
        shares[place].update(some)
        loads[place] += sum(costs[run_id] for run_id in some)

    parted: list[str] = []
    for group in sorted(groups, key=lambda some: -sum(costs[run_id] for run_id in some)):
        # The longest first, to the least loaded shard (Graham 1969); a tie goes to the first shard, on every machine.
        least = loads.index(min(loads))
        if loads[least] + sum(costs[run_id] for run_id in group) <= SLACK * fair:
            give(group, least)
        else:
            # No shard has room for the whole group: its runs are given out one by one.
            parted += group
    for run_id in sorted(parted, key=lambda run_id: -costs[run_id]):
        give([run_id], loads.index(min(loads)))
    return shares
