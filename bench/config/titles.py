"""Titles of experiments that follow what they are about: placeholders, and overrides named after a literal title."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import Formatter
from typing import Any

from bench.core.errors import nearest

PLACEHOLDERS = {"model": "model", "task": "task", "label_noise": "data.label_noise"}
"""Placeholders of a title, each with the key of the experiment that it stands for."""


def problems(title: str) -> Iterator[str]:
    """Yield every problem with the placeholders of a title."""
    try:
        fields = _fields(title)
    except ValueError:
        yield 'an unmatched brace; write a literal brace twice: "{{" or "}}"'
        return
    for field in fields:
        if field not in PLACEHOLDERS:
            yield f'unknown placeholder "{{{field}}}"; {nearest(field, PLACEHOLDERS)}; a brace is written "{{{{"'


def filled(title: str, tasks: Iterable[str], models: Iterable[str], label_noise: Iterable[float]) -> str:
    """Return a title with its placeholders replaced: by each different value once, "20 % and 40 %".

    A title that begins with a placeholder begins with a capital letter.

    Args:
        title: one without `problems`.
        tasks, models: what to call those of every condition.
        label_noise: the share of replaced labels of every condition.
    """
    noise = [f"{100 * share:.3g} %" for share in label_noise]
    texts = {"task": _listed(tasks), "model": _listed(models), "label_noise": _listed(noise)}
    text = title.format(**texts)
    # "{{" is a brace, not a placeholder.
    return text[:1].upper() + text[1:] if title.startswith("{") and not title.startswith("{{") else text


def with_overrides(shown: str, title: str, overrides: Sequence[str]) -> str:
    """Return a filled title, followed by the overrides that its placeholders do not show, the last one per key.

    Args:
        shown: the filled title.
        title: as the file has it; overrides of what its placeholders stand for are in `shown` already.
        overrides: "KEY=VALUE" each; one of the title itself was made for all of them.
    """
    said = {key.strip(): " ".join(value.split()) for key, _, value in (one.partition("=") for one in overrides)}
    # An experiment without a title is called by its name, which has the overrides in it.
    if not title or "title" in said:
        return shown
    follows = {PLACEHOLDERS[field] for field in _fields(title)}
    further = [f"{key}={value}" for key, value in said.items() if _about(key) not in follows or _has_settings(value)]
    return f"{shown} ({', '.join(further)})" if further else shown


def of_document(document: Mapping[str, Any]) -> str:
    """Return the title of an unresolved experiment file, with tasks and models named as the file names them.

    For lists of experiments; a title that cannot be filled comes back as it is.
    """
    title = str(document.get("title", ""))
    try:
        here = document.get("data", {}).get("label_noise", 0.0)
        # [vary] takes the place of the value in [data].
        noise = document.get("vary", {}).get("data", {}).get("label_noise", [here])
        return filled(title, _names(document, "task"), _names(document, "model"), noise)
    # The document is unchecked: any part may be missing or of another type.
    except (ValueError, LookupError, TypeError, AttributeError):
        return title


def _names(document: Mapping[str, Any], kind: str) -> list[str]:
    varied = document.get("vary", {}).get(kind)
    names = varied.get("name") if isinstance(varied, Mapping) else varied
    one = document[kind]
    return names or [one["name"] if isinstance(one, Mapping) else one]


def _fields(title: str) -> list[str]:
    """Return the content of every placeholder of a title, with its conversion and format."""
    # The parser gives None as the field of text without a placeholder behind it.
    parts = ((field, conversion, form) for _, field, form, conversion in Formatter().parse(title))
    return [
        field + f"!{conversion}" * bool(conversion) + f":{form}" * bool(form)
        for field, conversion, form in parts
        if field is not None
    ]


def _listed(texts: Iterable[str]) -> str:
    # Each text once, in the order of the conditions.
    *others, last = dict.fromkeys(texts)
    return f"{', '.join(others)} and {last}" if others else last


def _has_settings(value: str) -> bool:
    """Return whether an override is a table with more than a name, which no placeholder shows."""
    try:
        table = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:  # a name without quotes
        return False
    return isinstance(table, Mapping) and bool({*table} - {"name"})


def _about(key: str) -> str:
    """Return the subject of an override: "model", "task" or a data key as placeholders name it, else the key."""
    return key.removeprefix("vary.").removesuffix(".name")
