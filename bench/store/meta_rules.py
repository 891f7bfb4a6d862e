"""Rules for experiment.json. A module of its own, since importing pydantic takes longer than making tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ConfigDict, RootModel

from bench.core.errors import BenchError, clipped, nearest, shown
from bench.core.meta import Meta
from bench.core.schema import Checker
from bench.store.contract import LARGEST


class _Written(Meta):
    """experiment.json as it is on disk: with the sha256 of every table beside it."""

    sha256: dict[str, str]


class _Document(RootModel[_Written]):
    # strict: "1" is not taken for 1. Python's JSON parser reads NaN and Infinity, which JSON does not have.
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


def read_meta(path: Path, content: bytes) -> _Written:
    """Return what experiment.json says.

    Raises:
        BenchError: it is no JSON, or not what `bench` writes there; everything wrong is listed.
    """
    remedy = "restore it, or collect it again with `bench run`"
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path} is damaged ({clipped(str(error))}); {remedy}") from error
    if not isinstance(meta, dict):
        raise BenchError(f"{path} is damaged (holds {shown(meta)}); {remedy}")
    checker = Checker(str(path))
    # Contradictions are looked for only where all types are right, because that code relies on them.
    if checker.check(_Document, ("", meta)) is not None:
        for problem in _contradictions(meta):
            checker.problem(*problem)
    if checker.problems:
        raise checker.verdict()
    return cast(_Written, meta)


def _contradictions(meta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    labels = meta["labels"]
    # The key becomes a part of column names, such as test_acc.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", meta["metric"]["key"]):
        yield "metric.key", f"is not a valid column name: {shown(meta['metric']['key'])}"
    for place, part in enumerate(meta.get("parts") or ()):
        if not re.fullmatch("[0-9a-f]{64}", part["run_ids_sha256"]):
            yield f"parts.{place}.run_ids_sha256", f"is no sha256: {shown(part['run_ids_sha256'])}"
    for key in ("labels", "seeds", "conditions"):
        if len(set(meta.get(key) or ())) < len(meta.get(key) or ()):
            yield key, "has a duplicate"
    if meta["baseline"] not in labels:
        yield "baseline", f"{shown(meta['baseline'])} is not a label; {nearest(meta['baseline'], labels)}"
    # Without phases there is nothing in these tables to check.
    phases = meta.get("phases") or {"tune": {"trials": {}, "spaces": {}}, "untuned": []}
    tune = phases["tune"]
    for label in {*meta["sweeps"], *tune["trials"], *tune["spaces"], *phases["untuned"]} - {*labels}:
        yield "labels", f"{shown(label)} is not among them, but swept, tuned or left untuned"
    for label, space in tune["spaces"].items():
        for key, values in space.items():
            # A list has no ends: two valid numbers stand in for them.
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
