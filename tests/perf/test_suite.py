"""The comparison of test suites runs the same tests of both checkouts, and counts what they cost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.perf import suite
from tests.perf.commands import ROOT
from tests.perf.suite import Case, Ran


def test_tests_are_matched_wherever_they_have_moved() -> None:
    matched = suite.match(
        here=[
            "tests/new/test_b.py::test_same[1]",
            "tests/new/test_b.py::test_plain",
            "tests/test_c.py::test_only_here",
        ],
        there=["tests/test_a.py::test_plain", "tests/test_a.py::test_same[1]", "tests/test_a.py::test_only_there"],
    )
    assert matched.here == ["tests/new/test_b.py::test_same[1]", "tests/new/test_b.py::test_plain"]
    assert matched.there == ["tests/test_a.py::test_plain", "tests/test_a.py::test_same[1]"]
    assert matched.unmatched == ["tests/test_a.py::test_only_there"]


def test_cases_of_other_ids_are_matched_where_there_are_equally_many() -> None:
    here = [
        "tests/t.py::test_even[x]",
        "tests/t.py::test_even[new]",
        "tests/t.py::test_more[x]",
        "tests/t.py::test_more[y]",
    ]
    there = ["tests/t.py::test_even[x]", "tests/t.py::test_even[old]", "tests/t.py::test_more[z]"]
    matched = suite.match(here, there)
    assert matched.here == here[:2]
    assert matched.there == there[:2]
    assert matched.unmatched == there[2:]


def test_brackets_and_colons_in_a_parameter_are_no_part_of_the_name() -> None:
    assert suite.function_of("tests/a/test_b.py::TestC::test_d[x::y[0]]") == "test_d"


def test_every_part_has_the_same_functions_on_both_sides_and_none_is_lost() -> None:
    here = [f"tests/new.py::test_{number}[{case}]" for number in range(10) for case in "ab"]
    there = [node.replace("new", "old") for node in here]
    parts = suite.deal(suite.match(here, there), parts=3, seed=0)
    assert sorted(node for part in parts for node in part.here) == sorted(here)
    for part in parts:
        assert [node.replace("new", "old") for node in part.here] == part.there
        assert 3 <= len(set(map(suite.function_of, part.here))) <= 4


def test_the_ratio_is_that_of_all_parts_together(capsys: pytest.CaptureFixture[str]) -> None:
    here, there = ([Ran(cpu, 0.0, []) for cpu in seconds] for seconds in ((1.0, 3.0), (4.0, 6.0)))
    suite.print_ratio(here, there)
    assert capsys.readouterr().out == "4.0 s of processors here, 10.0 s there   x 2.50  [2.00, 4.00]\n"


def test_the_longest_function_comes_first_with_all_its_cases(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [Case("test_a", "tests.t", "passed", 2.0), Case("test_b", "tests.t", "passed", 1.5)]
    suite.print_slowest([Ran(0.0, 0.0, cases), Ran(0.0, 0.0, cases[1:])], 1)
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["3.00", "tests.t::test_b", "(2", "cases)"]
    ]


def make_checkout(root: Path, tests: dict[str, str]) -> Path:
    for name, text in tests.items():
        (root / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "tests" / name).write_text(text)
    (root / "pytest.ini").write_text("[pytest]\nmarkers =\n    slurm\n")
    return root


BURNS = """
import subprocess, sys
import pytest

def test_burns():
    burn = "import time\\nwhile time.process_time() < {seconds}: pass"
    subprocess.Popen([sys.executable, "-c", burn])  # and is not waited for

@pytest.mark.parametrize("given", ["a b", "c\\nd"])
def test_of_parameters(given):
    assert given != "c\\nd" or {passes}

@pytest.mark.slurm
def test_slurm():
    raise AssertionError
"""


COMPARE = """
import sys
from pathlib import Path
from tests.perf import suite
suite.ROOT = Path(sys.argv[1])
suite.main(["--beside", sys.argv[2], "--parts", "1"])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to another process than init")
def test_the_same_tests_of_two_checkouts_are_run_and_counted(tmp_path: Path) -> None:
    new = {
        "new/test_new.py": BURNS.format(seconds=0.0, passes=True),
        "test_more.py": "def test_only_here():\n    raise AssertionError\n",
    }
    ours = make_checkout(tmp_path / "ours", new)
    theirs = make_checkout(tmp_path / "theirs", {"test_old.py": BURNS.format(seconds=5.0, passes=False)})
    command = [sys.executable, "-c", COMPARE, str(ours), str(theirs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=1200)
    assert "3 tests are in both checkouts, 0 only in" in done.stdout
    here, there = (re.search(rf"  {name} +([0-9.]+) s of .*: (.*)", done.stdout) for name in ("here", "there"))
    assert here is not None
    assert there is not None
    assert here[2] == "3 passed, 0 failed, 0 skipped"
    assert there[2] == "2 passed, 1 failed, 0 skipped"
    assert float(there[1]) >= 5 > float(here[1])
    assert f"failed in {theirs}: tests.test_old::test_of_parameters" in done.stdout
