"""What several test files need: experiment files of a few seconds, plug-ins, and registries that forget them again."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import registry

TINY: dict[str, Any] = {
    "title": "Tiny",
    "task": "digits",
    "model": {"name": "mlp", "width": 8},
    "baseline": "sgd",
    "seeds": 2,
    "train": {"epochs": 2, "batch_size": 256},
    "optimizers": {
        "sgd": {"lr": 0.1},
        "sam": {"base": "sgd", "lr": 0.1, "sweep": {"rho": [0.05, 0.1]}},
    },
}
"""Six runs of a few milliseconds each: sgd, and sam at two rho, two seeds."""


@pytest.fixture
def tiny() -> Callable[..., dict[str, Any]]:
    """tiny({"train.epochs": 3, "optimizers.sgd.lr": ...}): the tiny experiment, changed; `...` takes a key out."""

    def make(changes: dict[str, Any] | None = None) -> dict[str, Any]:
        document = copy.deepcopy(TINY)
        for dotted, value in (changes or {}).items():
            *parents, last = dotted.split(".")
            table = document
            for parent in parents:
                table = table.setdefault(parent, {})
            if value is ...:
                del table[last]
            else:
                table[last] = value
        return document

    return make


@pytest.fixture
def write_experiment(tmp_path: Path) -> Callable[..., Path]:
    """write_experiment(text or document, name="tiny"): the path of an experiment file with that content."""

    def write(content: str | dict[str, Any], name: str = "tiny") -> Path:
        if not isinstance(content, str):
            content = "".join(f"{key} = {toml(value)}\n" for key, value in content.items())
        path = tmp_path / f"{name}.toml"
        path.write_text(content, encoding="utf-8")
        return path

    return write


def toml(value: Any) -> str:
    """A value as TOML writes it within a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


@pytest.fixture
def write_plugin(tmp_path: Path) -> Callable[..., Path]:
    """write_plugin(text, name="mine"): the path of a plug-in file with that content."""

    def write(text: str, name: str = "mine") -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def registries() -> Iterator[Callable[[], None]]:
    """What a test registers is gone after it; call it to forget earlier, as a new process would have."""
    registry.load_builtins()
    kinds = (registry.tasks, registry.models, registry.optimizers)
    before = [dict(kind._entries) for kind in kinds]
    loaded, modules = dict(registry._loaded), set(sys.modules)

    def forget() -> None:
        for kind, entries in zip(kinds, before, strict=True):
            kind._entries = dict(entries)
        registry._loaded.clear()
        registry._loaded.update(loaded)
        for name in [name for name in sys.modules if name.startswith("bench_plugin_") and name not in modules]:
            del sys.modules[name]

    yield forget
    forget()
