"""The comparison of whole commands counts every process of a command, and gives the ratios of pairs run in turn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.perf import commands
from tests.perf.commands import Cost

LEAVES_AN_ORPHAN = """
import subprocess, sys
burn = "import time\\nwhile time.process_time() < 0.5: pass"
subprocess.Popen([sys.executable, "-c", burn])  # and ends without waiting for it, as a launch does with its fork server
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to another process than init")
def test_processes_that_outlive_their_parent_are_counted() -> None:
    code = (
        f"from tests.perf import commands as c\nimport subprocess, sys\nc.adopt_orphans()\n"
        f"subprocess.run([sys.executable, '-c', {LEAVES_AN_ORPHAN!r}], check=True)\n"
        "c.wait_for_orphans()\nprint(c.processor_seconds())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=1200)
    assert float(done.stdout) >= 0.5


def test_ratios_are_those_of_neighbours_in_the_order_a_b_b_a(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[Path] = []
    costs = iter([Cost(1, 10), Cost(2, 15), Cost(3, 20), Cost(1, 8)])

    def cost(root: Path) -> Cost:
        order.append(root)
        return next(costs)

    there = Path("/there")
    commands.compare("quickstart", there, 1, cost)
    assert order == [commands.ROOT, there, there, commands.ROOT]
    assert "x 2.000  [1.500, 2.500]" in capsys.readouterr().out


def test_steps_of_both_are_measured_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[Path] = []
    overheads = iter([1.0, 4.0, 6.0, 2.0])

    def measured(root: Path) -> dict[str, float]:
        order.append(root)
        return {"overhead": next(overheads), "copies": 1.0}

    there = Path("/there")
    commands.compare_steps("a model", measured, there, 1)
    assert order == [commands.ROOT, there, there, commands.ROOT]
    ours, theirs = capsys.readouterr().out.splitlines()[1:]
    assert ours.split() == ["here", "+1.50", "%", "[+1.00,", "+2.00]", "1.00", "copies"]
    assert theirs.split() == ["there", "+5.00", "%", "[+4.00,", "+6.00]", "1.00", "copies"]


def test_a_command_that_there_is_not_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.main(["quickstat", "--beside", "."])
    assert 'quickstat: did you mean "quickstart"?' in capsys.readouterr().err
