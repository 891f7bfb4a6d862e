"""The tests of this checkout beside those of another one: what the same tests cost in both, in processor seconds.

    python -m tests.perf.suite --beside PATH [--parts 4] [--run 4] [-m "not slurm"] [--junit FOLDER]

Tests move and are renamed, so files are not compared. A test of the other checkout is matched with one here that has
the same function name and parameter id. Of what is left of a function, all cases are matched where both checkouts have
equally many. Matched functions are dealt into parts by a seed. Each part runs in both checkouts in turn, here first in
the first part and there first in the next one. Every process that has ended by then counts: workers, fork servers and
orphans, too.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.perf.commands import ROOT, adopt_orphans, processor_seconds, python_of, wait_for_orphans

SUMMED = ("passed", "failed", "skipped")


@dataclass
class Matched:
    """Tests that both checkouts have, by node id, and the node ids of the other checkout that have no match."""

    here: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """One test that ran: its function, file, outcome and seconds on the wall, with its set-up and what follows it."""

    function: str
    file: str
    outcome: str
    seconds: float


@dataclass(frozen=True)
class Ran:
    """What running tests took, in seconds, and what each of them did."""

    cpu: float
    wall: float
    cases: list[Case]

    def told(self) -> str:
        outcomes = Counter(case.outcome for case in self.cases)
        return ", ".join(f"{outcomes[name]} {name}" for name in SUMMED)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, required=True, metavar="PATH", help="the other checkout")
    parser.add_argument("--parts", type=int, default=4, help="parts, each of which starts pytest anew (default: 4)")
    parser.add_argument("--run", type=int, metavar="N", help="run the first N parts alone (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed that deals them (default: 0)")
    parser.add_argument("-m", dest="marks", default="not slurm", help='pytest\'s -m (default: "not slurm")')
    parser.add_argument("--slowest", type=int, default=30, help="functions to list (default: 30)")
    parser.add_argument("--junit", type=Path, metavar="FOLDER", help="keep the junit file of every run there")
    options = parser.parse_args(arguments)
    beside = options.beside.resolve()
    adopt_orphans()
    matched = match(collect(ROOT, options.marks), collect(beside, options.marks))
    print(f"{len(matched.there)} tests are in both checkouts, {len(matched.unmatched)} only in {beside}")
    for name, count in Counter(map(function_of, matched.unmatched)).most_common():
        print(f"  only there: {name} ({count})", flush=True)
    ran: dict[str, list[Ran]] = {"here": [], "there": []}
    for number, part in enumerate(deal(matched, options.parts, options.seed)[: options.run], 1):
        print(f"part {number} of {options.parts}: {len(part.there)} tests", flush=True)
        sides = [("here", ROOT, part.here), ("there", beside, part.there)]
        for name, root, nodes in sides if number % 2 else reversed(sides):
            with tempfile.TemporaryDirectory() as folder:
                kept = (options.junit or Path(folder)).resolve()
                kept.mkdir(parents=True, exist_ok=True)
                one = run(root, nodes, kept / f"{number}-{name}.xml")
            ran[name].append(one)
            print(
                f"  {name:<5} {one.cpu:8.1f} s of processors, {one.wall:8.1f} s on the wall: {one.told()}", flush=True
            )
    print_ratio(ran["here"], ran["there"])
    print_slowest(ran["here"], options.slowest)


def collect(root: Path, marks: str) -> list[str]:
    """Return the node ids of a checkout's tests, in the order in which they run."""
    done = pytest(root, ["--collect-only", "-q", "-m", marks, "tests"])
    if done.returncode:
        sys.exit(f"{root}: its tests cannot be collected:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return [line for line in done.stdout.splitlines() if line.startswith("tests/") and ".py::" in line]


def run(root: Path, nodes: Sequence[str], junit: Path) -> Ran:
    """Run tests of a checkout in one process, and return what they took."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder) / "nodes"
        chosen.write_text("\n".join(nodes) + "\n")
        before, started = processor_seconds(), time.perf_counter()
        done = pytest(root, ["-q", f"--basetemp={folder}/tmp", f"--junitxml={junit}", f"@{chosen}"])
        wait_for_orphans()
        cost = processor_seconds() - before, time.perf_counter() - started
    if done.returncode not in (0, 1) or not junit.exists():  # 1: some tests failed, which is told
        sys.exit(f"{root}: its tests cannot be run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    ran = Ran(*cost, read_junit(junit))
    for case in ran.cases:
        if case.outcome == "failed":
            print(f"  failed in {root}: {case.file}::{case.function}")
    return ran


def pytest(root: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run pytest in a checkout with that checkout's Python, without workers."""
    command = [str(python_of(root)), "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "PYTHONPATH")}
    try:
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"{shlex.join(command[:3])} cannot be started in {root}: {error}")


def read_junit(path: Path) -> list[Case]:
    """Return the tests of a junit file."""
    cases = []
    for one in ElementTree.parse(path).iter("testcase"):
        kinds = {child.tag for child in one}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        function = one.attrib["name"].split("[", 1)[0]
        cases.append(Case(function, one.attrib["classname"], outcome, float(one.attrib["time"])))
    return cases


def function_of(node: str) -> str:
    """Return the name of a node id's function: of "tests/test_a.py::test_b[c]", "test_b"."""
    return node.split(".py::", 1)[1].split("[", 1)[0].rpartition("::")[2]


def match(here: Iterable[str], there: Iterable[str]) -> Matched:
    """Match tests by function and parameter id, then what is left of a function where both have as many cases."""
    groups: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = defaultdict(
        lambda: (defaultdict(list), defaultdict(list))
    )
    there = list(there)
    here = list(here)
    for side, nodes in enumerate((here, there)):
        for node in nodes:
            groups[function_of(node)][side][node.partition("[")[2]].append(node)
    chosen: tuple[set[str], set[str]] = (set(), set())
    for ours, theirs in groups.values():
        left: tuple[list[str], list[str]] = ([], [])
        for parameters in {*ours, *theirs}:
            pair = ours.get(parameters, []), theirs.get(parameters, [])
            for side in (0, 1):
                (chosen[side].update if len(pair[0]) == len(pair[1]) else left[side].extend)(pair[side])
        if len(left[0]) == len(left[1]):
            for side in (0, 1):
                chosen[side].update(left[side])
    return Matched(
        [node for node in here if node in chosen[0]],
        [node for node in there if node in chosen[1]],
        [node for node in there if node not in chosen[1]],
    )


def deal(matched: Matched, parts: int, seed: int) -> list[Matched]:
    """Deal the functions into parts, the same ones on both sides."""
    names = sorted(set(map(function_of, matched.there)))
    random.Random(seed).shuffle(names)
    part_of = {name: number % parts for number, name in enumerate(names)}
    return [
        Matched(
            *([node for node in side if part_of[function_of(node)] == part] for side in (matched.here, matched.there))
        )
        for part in range(parts)
    ]


def print_ratio(here: Sequence[Ran], there: Sequence[Ran]) -> None:
    """Print how many times as much the other checkout takes, of all parts together, and the range over parts."""
    ratios = sorted(theirs.cpu / ours.cpu for ours, theirs in zip(here, there, strict=True))
    ours, theirs = (sum(one.cpu for one in side) for side in (here, there))
    ratio = f"x {theirs / ours:.2f}  [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
    print(f"{ours:.1f} s of processors here, {theirs:.1f} s there   {ratio}")


def print_slowest(ran: Sequence[Ran], count: int) -> None:
    """Print the functions of this checkout that take longest, all cases of a function together."""
    seconds: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    for case in (case for one in ran for case in one.cases):
        name = f"{case.file}::{case.function}"
        seconds[name] += case.seconds  # type: ignore[assignment]
        cases[name] += 1
    print("Longest here, in seconds on the wall, set-up included:")
    for name, total in seconds.most_common(count):
        print(f"  {total:7.2f}  {name}" + (f" ({cases[name]} cases)" if cases[name] > 1 else ""))


if __name__ == "__main__":
    main()
