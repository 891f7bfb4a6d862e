"""Checking tables against schemas: every problem under its dotted key, in our words, all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bench.core.errors import BadValue, clipped, nearest, shown

Schema = TypeVar("Schema", bound=BaseModel)


class Checker:
    """Collects the problems of one input.

    Attributes:
        source: the file at fault.
        problems: one line each, in order; a set, since a sweep meets the same problem many times.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: dict[str, None] = {}

    def problem(self, key: str, message: str) -> None:
        self.problems[f"{clipped(key)}: {message}"] = None

    def verdict(self) -> BadValue:
        """Return all problems as one error to raise."""
        return BadValue(self.source, self.problems)

    def check(
        self, schema: type[Schema], *layers: tuple[str, Mapping[str, Any]], context: Mapping[str, Any] | None = None
    ) -> Schema | None:
        """Return a validated table; for an invalid one note each problem under its dotted key and return None.

        Args:
            layers: tables with their places in the file; the values of a later one go over those of an earlier one.
            context: what else a value may depend on.
        """
        merged = {key: value for _, values in layers for key, value in values.items()}
        try:
            return schema.model_validate(merged, context=context)
        except ValidationError as error:
            for fault in error.errors():
                # The setting itself: what follows in "loc" may be pydantic's own, such as the members of a union.
                key = str(fault["loc"][0])
                # The layer whose value counted is at fault; a key that no layer has belongs to the first.
                where = next((where for where, values in reversed(layers) if key in values), layers[0][0])
                self.problem(f"{where}.{key}" if where else key, _say(fault, schema))
            return None


def _say(fault: Any, schema: type[BaseModel]) -> str:
    """Return a pydantic error as one of this package's messages."""
    key = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return f"unknown key; {nearest(key, schema.model_fields)}"
    if fault["type"] == "missing":
        return "required, but missing"
    # pydantic's sentence, in the words of this package's other messages.
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("dictionary", "table")
    return f"{message[0].lower()}{message[1:]}, got {shown(fault['input'])}"
