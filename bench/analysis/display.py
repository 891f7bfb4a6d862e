"""[display]: optimizers under the names, in the order and in the colours that a file asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pandas as pd

from bench.core.meta import Meta
from bench.store.records import Results


def displayed(results: Results) -> Results:
    """Return results in which optimizers have their names of [display] for labels, and stand in its order.

    Labels that the order does not name come after those that it does.
    """
    display = results.meta.get("display")
    if not display or not any(display.values()):
        return results
    names, meta = display["names"], results.meta
    order = {label: place for place, label in enumerate(display["order"])}
    labels = sorted(meta["labels"], key=lambda label: order.get(label, len(order)))
    shown: dict[str, Any] = {
        **meta,
        **_renamed(meta, names),
        "labels": [names.get(label, label) for label in labels],
        "display": {"names": {}, "order": [], "colours": _keys(display["colours"], names)},
        "labels_of": {names.get(label, label): label for label in labels},
    }
    frames: Any = {
        name: _frame(getattr(results, name), names) for name in ("records", "curves", "measures", "directions")
    }
    return replace(results, meta=cast(Meta, shown), **frames)


def _renamed(meta: Meta, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the entries of experiment.json that hold labels, with names in their place."""
    renamed: dict[str, Any] = {
        "baseline": names.get(meta["baseline"], meta["baseline"]),
        "sweeps": _keys(meta["sweeps"], names),
    }
    if phases := meta.get("phases"):
        tune = {key: _keys(value, names) if isinstance(value, dict) else value for key, value in phases["tune"].items()}
        superseded = [one | {"label": names.get(one["label"], one["label"])} for one in phases.get("superseded", [])]
        untuned = [names.get(label, label) for label in phases["untuned"]]
        renamed["phases"] = {**phases, "tune": tune, "untuned": untuned, "superseded": superseded}
    return renamed


def _keys(table: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(label, label): value for label, value in table.items()}


def _frame(frame: pd.DataFrame | None, names: Mapping[str, str]) -> pd.DataFrame | None:
    if frame is None or "optimizer" not in frame:
        return frame
    return frame.assign(optimizer=frame["optimizer"].map(lambda label: names.get(label, label)))
