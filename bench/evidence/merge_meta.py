"""Merging experiment.json of several parts, and the keys in which the parts must agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from bench.core.experiment import settings_text
from bench.core.meta import Meta

ALIKE = ("protocol", "metric", "baseline", "overrides")
"""Keys that must be equal in all parts."""

TUNED_ALIKE = (("tune", "seeds"), ("tune", "search"), ("tune", "budget"), ("final", "refit"))
"""Keys on which a choice depends besides the runs."""

Table = Mapping[str, Any]


def disagreements(parts: Sequence[tuple[str, Table]]) -> Iterator[str]:
    """Yield every key of experiment.json in which the parts disagree, so that they are different experiments."""
    # Each part is compared with the first one, which names both sides in a message.
    (first, there), *others = parts
    for name, here in others:
        for key in ALIKE:
            if there.get(key) != here.get(key):
                yield f"{key} is {_short(there.get(key))} in {first}, {_short(here.get(key))} in {name}"
        # A part that has not decided yet contradicts nobody.
        ours, theirs = ((side.get("compiling") or {}).get("compile") for side in (there, here))
        if ours is not None and theirs is not None and ours != theirs:
            yield f'train.compile = "auto" was decided as {_flag(ours)} in {first}, as {_flag(theirs)} in {name}'
        # The varied keys must be the same; their values may differ, since parts may have other conditions.
        if list(there.get("vary") or ()) != list(here.get("vary") or ()):
            ours, theirs = (", ".join(side.get("vary") or ()) or "nothing" for side in (there, here))
            yield f"vary: {ours} is varied in {first}, {theirs} in {name}"
        for label in {*there["sweeps"]} & {*here["sweeps"]}:
            if there["sweeps"][label] != here["sweeps"][label]:
                yield f"{label}: {there['sweeps'][label]} is swept in {first}, {here['sweeps'][label]} in {name}"
        yield from _phases(first, there.get("phases"), name, here.get("phases"))
        plugins = [
            {key: value for key, value in (side.get("file") or {}).items() if key.startswith("plugins.")}
            for side in (there, here)
        ]
        # Only plug-ins that both name: a part may have others besides.
        for key in {*plugins[0]} & {*plugins[1]}:
            if plugins[0][key] != plugins[1][key]:
                yield f"{key.replace('plugins.', 'plug-in ')} differs between {first} and {name}"


def _phases(first: str, there: Table | None, name: str, here: Table | None) -> Iterator[str]:
    if (there is None) != (here is None):
        yield f"phases: only {first if there else name} has [tune] and [final]"
    elif there is not None and here is not None:
        for table, key in TUNED_ALIKE:
            if there[table].get(key) != here[table].get(key):
                yield f"{table}.{key} is {there[table].get(key)} in {first}, {here[table].get(key)} in {name}"
        for what in ("trials", "spaces"):
            for label in {*there["tune"][what]} & {*here["tune"][what]}:
                if there["tune"][what][label] != here["tune"][what][label]:
                    yield f"tune.{what} of {label} differ between {first} and {name}"


def merged_meta(parts: Sequence[Table]) -> Meta:
    """Return the experiment.json of all parts together: the union of their entries; the first part wins conflicts."""
    first = parts[0]
    meta: dict[str, Any] = {**first}
    for key in ("labels", "notes"):
        meta[key] = _union(part.get(key) or () for part in parts)
    for key in ("task", "model"):
        meta[key] = ", ".join(_union(part[key].split(", ") for part in parts))
    meta["seeds"] = sorted({seed for part in parts for seed in part["seeds"]})
    for key in ("sweeps", "tasks", "file"):
        meta[key] = _joined(part.get(key) or {} for part in parts)
    meta["vary"] = {key: _union(part["vary"][key] for part in parts) for key in first.get("vary") or {}}
    # In the order of the full grid; a condition that is not in it comes last.
    if meta["vary"]:
        every = itertools.product(*meta["vary"].values())
        known = {condition for part in parts for condition in part["conditions"]}
        texts = (settings_text(dict(zip(meta["vary"], values, strict=True))) for values in every)
        meta["conditions"] = [*(text for text in texts if text in known)]
        meta["conditions"] += sorted(known.difference(meta["conditions"]))
    # Entries are tables, which no set can hold, so duplicates are found by comparing.
    parts_of = [one for part in parts for one in part.get("parts", [])]
    meta |= {"parts": [one for place, one in enumerate(parts_of) if one not in parts_of[:place]]}
    # before_shards divides missing runs among shards, and those are put together here.
    meta.pop("before_shards", None)
    if first.get("phases"):
        meta["phases"] = _merged_phases([part["phases"] for part in parts], meta["seeds"])
    return cast(Meta, meta)


def _merged_phases(parts: Sequence[Table], seeds: Sequence[int]) -> dict[str, Any]:
    tune = {**parts[0]["tune"]}
    for key in ("trials", "spaces", "limits", "passes"):
        if any(key in part["tune"] for part in parts):
            tune[key] = _joined(part["tune"].get(key) or {} for part in parts)
    superseded = [one for part in parts for one in part.get("superseded", [])]
    return {
        **parts[0],
        "tune": tune,
        "final": {**parts[0]["final"], "seeds": list(seeds)},
        "untuned": _union(part["untuned"] for part in parts),
        "superseded": [one for place, one in enumerate(superseded) if one not in superseded[:place]],
    }


def _union(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return list(dict.fromkeys(itertools.chain.from_iterable(lists)))


def _joined(tables: Iterable[Table]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for table in tables:
        merged = {**merged, **{key: value for key, value in table.items() if key not in merged}}
    return merged


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _short(value: Any) -> str:
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)
