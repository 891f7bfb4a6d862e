"""Rules for experiment.json. A module of its own, since importing pydantic takes longer than making tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bench.core.errors import BenchError, clipped, nearest, shown
from bench.core.schema import Checker
from bench.store.contract import LARGEST


class _Known(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Metric(_Known):
    key: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    name: str
    unit: str
    scale: float = Field(gt=0)
    higher_is_better: bool
    definition: str


class _Suite(_Known):
    name: str
    tasks: int


class _Task(_Known):
    title: str
    loss: str
    reported: dict[str, str]
    suite: _Suite | None = None


class _Tune(_Known):
    seeds: list[int]
    search: str
    budget: str
    trials: dict[str, int]
    spaces: dict[str, dict[str, Any]]
    passes: dict[str, int] = {}


class _Final(_Known):
    seeds: list[int]
    refit: bool


class _Superseded(_Known):
    condition: str
    label: str
    config: str
    finished: int


class _Phases(_Known):
    tune: _Tune
    final: _Final
    untuned: list[str]
    superseded: list[_Superseded] = []


class _Data(_Known):
    validation: float = Field(gt=0, lt=1)
    train_size: int | None = None
    train_share: float | None = None
    label_noise: float = 0.0


class _Compiling(_Known):
    compile: bool
    why: str


class _Part(_Known):
    from_: str = Field(alias="from", min_length=1)
    runs: int = Field(ge=1)
    run_ids_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    devices: list[str]


class _Meta(_Known):
    name: str = Field(min_length=1)
    of: str = Field(default="", min_length=1)
    title: str
    baseline: str
    task: str
    model: str
    labels: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    sweeps: dict[str, list[str]]
    vary: dict[str, list[Any]] = {}
    conditions: list[str] = []
    protocol: int = Field(ge=1)
    data: _Data
    metric: _Metric
    tasks: dict[str, _Task] = {}
    notes: list[str] = []
    compiling: _Compiling | None = None
    phases: _Phases | None = None
    parts: list[_Part] = []
    before_shards: list[str] = []
    sha256: dict[str, str]


def read_meta(path: Path, content: bytes) -> dict[str, Any]:
    """Return what experiment.json says.

    Raises:
        BenchError: it is no JSON, or not what `bench` writes there; everything wrong is listed.
    """
    remedy = "restore it, or have it collected anew with `bench run`"
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path} is damaged ({clipped(str(error))}); {remedy}") from error
    if not isinstance(meta, dict):
        raise BenchError(f"{path} is damaged (holds {shown(meta)}); {remedy}")
    checker = Checker(str(path))
    if checker.check(_Meta, ("", meta)) is not None:
        for problem in _contradictions(meta):
            checker.problem(*problem)
    if checker.problems:
        raise checker.verdict()
    return meta


def _contradictions(meta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    labels = meta["labels"]
    for key in ("labels", "seeds", "conditions"):
        if len(set(meta.get(key) or ())) < len(meta.get(key) or ()):
            yield key, "has one of them twice"
    if meta["baseline"] not in labels:
        yield "baseline", f"{shown(meta['baseline'])} is no label; {nearest(meta['baseline'], labels)}"
    phases = meta.get("phases") or {"tune": {"trials": {}, "spaces": {}}, "untuned": []}
    tune = phases["tune"]
    for label in {*meta["sweeps"], *tune["trials"], *tune["spaces"], *phases["untuned"]} - {*labels}:
        yield "labels", f"{shown(label)} is not among them, but swept, tuned or left untuned"
    for label, space in tune["spaces"].items():
        for key, values in space.items():
            ends = [values.get("low"), values.get("high")] if isinstance(values, dict) else [0, 1]
            if not isinstance(values, dict | list) or not all(map(_is_number, ends)):
                yield f"phases.tune.spaces.{label}.{key}", f"is neither a list nor a range: {shown(values)}"
    for key, values in (meta.get("vary") or {}).items():
        if not values or not all(
            isinstance(value, str | bool) or _is_number(value) or value is None for value in values
        ):
            yield f"vary.{key}", f"must be a list of values, got {shown(values)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
