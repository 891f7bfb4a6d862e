"""docs/several-machines.md does what it says: its commands run as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.store import records

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/several-machines.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.M | re.S) for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("without_report")
def test_the_commands_run_and_two_machines_are_one(
    bench: Callable[..., Any], write_experiment: Callable[..., Path], tiny: Callable[..., dict[str, Any]]
) -> None:
    write_experiment(tiny(), "sweep").rename("sweep.toml")
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "bench"
        said = bench(*arguments)
        assert said.status == 0, f"{command}\n{said.out}{said.err}"
    whole = records.read(Path("results/whole"))
    assert list(whole.records.status) == ["done"] * 6
    assert [one["runs"] for one in whole.meta["parts"]] == [3, 3]
    assert records.read(Path("results/short")).meta["overrides"] == ["train.epochs=1"]


def test_the_page_is_linked() -> None:
    assert "](docs/several-machines.md)" in (ROOT / "README.md").read_text()
