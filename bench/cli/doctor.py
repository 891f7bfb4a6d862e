"""`bench doctor`: one screen about this machine, or the same as JSON for a bug report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli import options
from bench.core import terminal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.doctor.finding import Finding

STYLES = {"ok": "green", "note": "yellow", "lack": "bold red"}


@click.command()
@options.out
@options.data_dir
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for a bug report.")
def doctor(out: Path, as_json: bool) -> None:
    """Tell what this machine can do for the suite, and what to do about each lack.

    Devices, memory, allocator, precision, data and weights, SLURM, LaTeX, space for results, versions. Nothing is
    downloaded or changed. The exit status is 1 if torch cannot be imported or results cannot be written.
    """
    from bench.doctor.examine import examine

    findings = [*examine(out)]
    if as_json:
        _print_json(findings)
    else:
        _show(findings)
    if any(finding.stops for finding in findings):
        sys.exit(1)


def _print_json(findings: Iterable[Finding]) -> None:
    import json
    from dataclasses import asdict

    print(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))


def _show(findings: Iterable[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        said = Text(finding.found)
        if finding.advice:
            said.append(f"\n→ {finding.advice}", "dim" if finding.status == "ok" else "cyan")
        table.add_row(Text(finding.status, STYLES[finding.status]), Text(finding.name), said)
    terminal.console().print(table)
