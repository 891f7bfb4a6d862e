"""[display], and published tables of one's own: ways to show results, on which no run depends."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.core.errors import BadValue, nearest, shown
from bench.core.meta import Presentation
from bench.core.registry import STRICT
from bench.core.schema import Checker
from bench.store.published import read_published

COLOUR = re.compile("#[0-9A-Fa-f]{6}")
LONGEST = 60
"""Letters of a name, which has to fit beside the numbers of a table."""


class DisplaySettings(BaseModel):
    """[display]: names, order and colours of optimizers in tables and figures."""

    model_config = STRICT

    names: dict[str, str] = {}
    order: list[str] = []
    colours: dict[str, str] = {}


def presentation(checker: Checker, raw: Mapping[str, Any], folder: Path) -> Presentation:
    """Return what a document says on how its results are shown; problems are noted with the checker.

    Args:
        raw: the document.
        folder: the one that paths in it start from.
    """
    presented: Presentation = {}
    optimizers = raw.get("optimizers")
    labels = list(optimizers) if isinstance(optimizers, Mapping) else []
    display = raw.get("display", {})
    settings = checker.check(DisplaySettings, ("display", display)) if isinstance(display, Mapping) else None
    if settings and display:
        _check(checker, settings, labels)
        presented["display"] = {"names": settings.names, "order": settings.order, "colours": settings.colours}
    names = raw.get("published", [])
    lines: list[dict[str, Any]] = []
    for name in names if isinstance(names, list) else []:
        try:
            lines += read_published(folder / str(name))
        except BadValue as error:
            for problem in error.problems:
                checker.problem("published", f"{name}: {problem}")
    if lines:
        presented["published"] = lines
    return presented


def _check(checker: Checker, settings: DisplaySettings, labels: Collection[str]) -> None:
    for where, given in (("names", settings.names), ("order", settings.order), ("colours", settings.colours)):
        for label in given:
            if label not in labels:
                checker.problem(f"display.{where}", f'no optimizer "{label}"; {nearest(label, labels)}')
    if len(set(settings.order)) < len(settings.order):
        checker.problem("display.order", f"names one optimizer twice: {shown(settings.order)}")
    for label, name in settings.names.items():
        # Sentences list names with commas between them.
        if not name.strip() or not name.isprintable() or len(name) > LONGEST or {*",;"} & {*name}:
            fault = f"must be 1 to {LONGEST} printable letters without , and ;"
            checker.problem(f"display.names.{label}", f"{fault}, got {shown(name)}")
    names = [settings.names.get(label, label) for label in labels]
    for name in sorted({name for name in names if names.count(name) > 1}):
        checker.problem("display.names", f"two optimizers are called {shown(name)}")
    for label, colour in settings.colours.items():
        if not COLOUR.fullmatch(colour):
            checker.problem(f"display.colours.{label}", f'must be written as "#0072B2", got {shown(colour)}')
