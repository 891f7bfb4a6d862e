"""Tables of published numbers as CSV files: the suite's own, and those of users.

Columns our_* name the same setting in the words of this suite; those of a file that lacks the others are empty.
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

from bench.core.errors import BadValue, nearest, shown
from bench.store.files import read_bytes

REQUIRED = ("dataset", "model", "optimizer", "metric", "value", "our_task", "our_model", "our_method")
COLUMNS = (
    *("style", "source", "table", "dataset", "model", "setting", "epochs", "optimizer", "rho", "metric", "value"),
    *("ci95", "n", "reported", "verified", "our_task", "our_model", "our_method", "our_base", "our_settings"),
)
STYLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def read_published(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a table of published numbers: "value", "epochs" and "n" as numbers, all else as text.

    A file without the column style has the name of the file as its style.

    Raises:
        BadValue: it cannot be read, lacks a column, has an unknown one, or a line of it is wrong.
    """
    try:
        text = read_bytes(path).decode()
    except (OSError, ValueError) as error:
        raise BadValue(str(path), [f"cannot be read: {error}"]) from error
    reader = csv.DictReader(text.splitlines())
    columns = reader.fieldnames or []
    problems = [f"no column {name}" for name in REQUIRED if name not in columns]
    problems += [f"unknown column {shown(name)}; {nearest(name, COLUMNS)}" for name in columns if name not in COLUMNS]
    if problems:
        raise BadValue(str(path), problems)
    lines = []
    for number, line in enumerate(reader, start=2):
        if None in line or None in line.values():
            problems.append(f"line {number} has not {len(columns)} cells")
            continue
        made: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"style": path.stem, "source": path.name} | line
        for name in ("value", "epochs", "n"):
            made[name] = _number(made[name])
            if made[name] is None and (name == "value" or line.get(name)):
                problems.append(f"line {number}: {name} must be a number, got {shown(line[name])}")
        half = made["ci95"].removeprefix("<")
        if half and (_number(half) is None):
            problems.append(f"line {number}: ci95 must be a number or empty, got {shown(made['ci95'])}")
        if not STYLE.fullmatch(made["style"]):
            problems.append(f"line {number}: style must be letters, digits and . _ -, got {shown(made['style'])}")
        if not all("=" in part for part in made["our_settings"].split("; ") if part):
            text = shown(made["our_settings"])
            problems.append(f'line {number}: our_settings must be "key=value; key=value", got {text}')
        lines.append(made)
    if problems or not lines:
        raise BadValue(str(path), problems or ["has no lines"])
    return lines


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
