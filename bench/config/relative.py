"""Training settings relative to the experiment's own ("2x"), and the entries that an override does not reach."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from bench.core.spec import TrainSettings

RELATIVE = ("epochs", "warmup_epochs", "eval_every")
"""Settings of an optimizer's own training that may be given as a multiple of the common ones."""

# At most nine digits before and after the point keep the exact product small.
MULTIPLE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?x", re.ASCII)

Override = tuple[str, Any]
"""The dotted key of a --set and its value."""


def absolute(key: str, value: Any, common: Mapping[str, Any]) -> Any:
    """Return a training setting with a multiple such as "2x" resolved; any other value is returned unchanged.

    Args:
        key: of the setting, without "train.".
        value: what the optimizer's entry has.
        common: the table [train]; what it leaves out stands at its default.

    Raises:
        ValueError: the key takes no multiples, the common value is no whole number, or the product is none.

    Example:
        >>> absolute("epochs", "2x", {"epochs": 20})
        40
    """
    match = MULTIPLE.fullmatch(value) if isinstance(value, str) else None
    # Unknown keys are left to the check against the schema, which names the nearest valid one.
    if match is None or key not in TrainSettings.model_fields:
        return value
    if key not in RELATIVE:
        raise ValueError(f'"{value}": only {", ".join(RELATIVE)} may be multiples; give a value')
    whole = common.get(key, TrainSettings.model_fields[key].default)
    if type(whole) is not int:
        raise ValueError(f'"{value}" is a multiple of train.{key}, which is not a whole number; set it in [train]')
    # Exact, because 1.15 * 100 in floats is 114.99999999999999.
    product = Fraction(match[1]) * whole
    if product.denominator != 1:
        raise ValueError(f'"{value}" of train.{key} = {whole} is {float(product):g}, not a whole number')
    return int(product)


def unreached(raw: Mapping[str, Any], overrides: Sequence[Override]) -> Iterator[str]:
    """Yield a sentence for every override that parts of the experiment do not follow, since they have their own value.

    Args:
        raw: the document with the overrides in it.
    """
    said = {key for key, _ in overrides}
    for key, value in overrides:
        yield from _own_training(raw, key, value, said)
        table, _, setting = key.partition(".")
        axis = raw.get("vary", {}).get(table)
        # A [vary] of the name replaces the fixed name, also one that --set gives.
        if table in ("task", "model") and setting in ("", "name") and not _is_table_without(axis, "name"):
            varied = axis["name"] if isinstance(axis, Mapping) else axis
            yield f"--set {key} reaches no run: vary.{table} has {varied} in its place."


def _own_training(raw: Mapping[str, Any], key: str, value: Any, said: set[str]) -> Iterator[str]:
    """Yield a note on optimizers whose own training settings take precedence over an overridden common one."""
    table, _, setting = key.partition(".")
    if table != "train":
        return
    # --set train={...} overrides several settings at once.
    for name in [setting] if setting else list(value) if isinstance(value, Mapping) else []:
        own = {
            label: value_of_its_own
            for label, entry in raw.get("optimizers", {}).items()
            if (value_of_its_own := _own(entry, name)) is not None
            and not _is_set(f"optimizers.{label}.train.{name}", said)
        }
        if own:
            each = ", ".join(f"{label} ({value_of_its_own})" for label, value_of_its_own in own.items())
            hint = '; a multiple ("2x") would follow it' if name in RELATIVE else ""
            whose = "their" if len(own) > 1 else "its"
            yield f"--set {key} does not reach {each}, with train.{name} of {whose} own{hint}."


def _is_set(key: str, said: set[str]) -> bool:
    """Return whether a key, or a table that it is in, was overridden."""
    return any(f"{key}.".startswith(f"{one}.") for one in said)


def _own(entry: Any, name: str) -> Any:
    """Return an optimizer's own value, or values, of a training setting that do not follow the common one."""
    if not isinstance(entry, Mapping):
        return None
    # A fixed and a swept value both take the place of the common one.
    for table in (entry, entry.get("sweep")):
        train = table.get("train") if isinstance(table, Mapping) else None
        value = train.get(name) if isinstance(train, Mapping) else None
        values = value if isinstance(value, list) else [value]
        # A multiple such as "2x" follows the common value.
        if value is not None and not all(isinstance(one, str) and MULTIPLE.fullmatch(one) for one in values):
            return value
    return None


def _is_table_without(axis: Any, key: str) -> bool:
    return axis is None or (isinstance(axis, Mapping) and key not in axis)
