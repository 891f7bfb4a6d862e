"""The schemas of an experiment file's top level and of its table [final]."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from bench.core.registry import STRICT


class Document(BaseModel):
    """The top level of the file; the inner tables are checked later, against the task, model or optimizer they name."""

    model_config = STRICT

    title: str = ""
    task: Any
    model: Any
    baseline: str
    seeds: Any = None
    tune: dict[str, Any] | None = None
    final: dict[str, Any] | None = None
    plugins: list[str] = []
    display: dict[str, Any] = {}
    published: list[str] = []
    vary: dict[str, Any] = {}
    data: dict[str, Any] = {}
    train: dict[str, Any]
    optimizers: dict[str, Any]


class FinalSettings(BaseModel):
    """[final]: chosen configurations run with fresh seeds, and tables report these runs."""

    model_config = STRICT

    seeds: Any
    refit: bool = False
    """Train on the validation examples too."""
