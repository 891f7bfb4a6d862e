"""Experiment files (TOML): finding them, overriding keys, and having them resolved into the full list of runs."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.config import titles
from bench.config.presentation import presentation
from bench.config.relative import Override, unreached
from bench.config.resolve import Resolver
from bench.core.errors import BadValue, BenchError, clipped, nearest
from bench.core.experiment import Experiment
from bench.core.meta import Display, Meta, Presentation
from bench.core.schema import Checker
from bench.store.files import DEEPEST, parse_toml, read_bytes, read_toml

LONGEST_NAME = 200
"""Bytes of the name of a folder of results; file systems take 255, and archives and temporary files add to it."""

FOLDER = re.compile(r"[\w+=,][\w.+=,-]*")
"""Valid names of results."""

# ---- finding and reading the file ----------------------------------------------------------------------------


def find(name: str) -> Path:
    """Return the experiment file for a path, or for a name under experiments/ (here, else beside the package).

    Raises:
        BenchError: there is no such file; the message gives the nearest name.
    """
    try:
        return _find(name)
    except (OSError, ValueError) as error:  # a name longer than any file's, or with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise BenchError(f"{clipped(name)!r} is not a valid experiment name: {reason}") from error


def _find(name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if path.is_file():
            return path
        if (path / "experiment.json").is_file():
            raise BenchError(f"{path} is a folder of results; give the experiment, its file or its name: {path.name}")
        beside = (other.stem for other in path.parent.glob("*.toml"))
        raise BenchError(f"experiment file {path} does not exist; {nearest(path.stem, beside)}")
    folders = experiment_folders()
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = {path.stem for folder in folders for path in folder.glob("*.toml")}
    raise BenchError(f'unknown experiment "{name}"; {nearest(name, known)}')


def experiment_folders() -> list[Path]:
    here, beside_package = Path("experiments"), Path(__file__).parents[2] / "experiments"
    # Inside the repository the two are one folder, which must not be searched twice.
    return [here] if here.resolve() == beside_package.resolve() else [here, beside_package]


def load(
    path: Path, overrides: Sequence[str] = (), seeds: int | None = None, results_name: str | None = None
) -> Experiment:
    """Read, override, check and resolve an experiment file.

    Args:
        path: the TOML file; plug-ins in it are relative to its folder.
        overrides: "KEY=VALUE" with a dotted key and a TOML value; they make it another experiment, with results of
            its own.
        seeds: run seeds 0..seeds-1 instead of those in the file; with phases, so many final ones, while those of
            tuning stay: they decide what is chosen.
        results_name: what its results are called; default: the file's stem, with the overrides.

    Raises:
        BadValue: anything in the file, the overrides or the name is wrong; all of it is listed.
        BenchError: the file cannot be read, or a plug-in fails.
    """
    name = results_called(path.stem, overrides, results_name)
    raw = read_toml(path)
    changes = [_override(raw, override) for override in overrides]
    # Recorded before --seeds is applied: another number of seeds does not make another experiment.
    file = settings(raw, path)
    if seeds is not None and isinstance(raw.get("final"), dict):
        raw["final"]["seeds"] = seeds
    elif seeds is not None:
        raw["seeds"] = seeds
    resolved = Resolver(path, raw).experiment(name)
    title = titles.with_overrides(resolved.title, raw.get("title", ""), overrides)
    reached = tuple(unreached(raw, changes))
    return replace(resolved, title=title, unreached=reached, file=file, overrides=tuple(overrides), of=path.stem)


def presentation_of(path: Path) -> Presentation:
    """Return what a file says now on how its results are shown.

    Raises:
        BadValue: [display] or a table of published numbers is wrong.
    """
    try:
        raw = read_toml(path)
    except BenchError:  # `bench run` tells what is wrong with it
        return {}
    checker = Checker(str(path))
    presented = presentation(checker, raw, path.parent)
    if checker.problems:
        raise checker.verdict()
    return {"display": Display(names={}, order=[], colours={}), "published": [], **presented}


def settings(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a file's settings by dotted key, with a hash per plug-in, to compare with those of earlier results."""
    plugins = raw.get("plugins")
    names = map(str, plugins) if isinstance(plugins, list) else []
    named = {
        key: {"name": raw[key]} for key in ("task", "model") if isinstance(raw.get(key), str)
    }  # a bare name is short for a table with that name
    return {**_flat({**raw, **named}), **{f"plugins.{name}": _sha256(path.parent / name) for name in names}}


def changed_keys(path: Path, meta: Meta) -> list[str]:
    """Return the keys whose values have changed since the results were made; [] if that is unknown.

    Args:
        meta: experiment.json of the results; older ones tell of baseline and optimizers alone.
    """
    try:
        raw = read_toml(path)
        # The file is compared as it was run, which is with the overrides of the results.
        for override in meta.get("overrides", []):
            _override(raw, override)
    except BenchError:  # `bench run` tells what is wrong with it
        return []
    now, then = settings(raw, path), meta.get("file")
    if then is None:
        labels = raw.get("optimizers")
        now = {"baseline": raw.get("baseline"), "optimizers": sorted(labels) if isinstance(labels, dict) else []}
        then = {"baseline": meta["baseline"], "optimizers": sorted(meta["labels"])}
    now = json.loads(json.dumps(now))  # as it would stand in experiment.json
    changed = (key for key in {**then, **now} if then.get(key) != now.get(key))
    # What only says how results are shown is read anew each time: `presentation_of`.
    return sorted(key for key in changed if key.partition(".")[0] not in ("display", "published"))


def beside(name: str) -> Path | None:
    """Return the experiment file for a path or a name of results, or None if there is no such file."""
    if name.endswith(".toml"):
        return Path(name) if Path(name).is_file() else None
    stem = Path(name).name
    # Results with overrides are called stem+override: before the "+" is the name of the file.
    candidates = (
        folder / f"{known}.toml" for folder in experiment_folders() for known in (stem, stem.partition("+")[0])
    )
    return next((path for path in candidates if path.is_file()), None)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        # An empty table is kept as a value, so that its removal counts as a change.
        inner = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: _plain(value)}
    return flat


def _plain(value: Any) -> Any:
    """Return a TOML value that JSON can hold: dates and times, which no setting uses, become text."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | dict) else str(value)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()[:12]
    except OSError:
        # Comparing goes on without the file; loading the plug-in gives the error.
        return ""


def results_called(stem: str, overrides: Sequence[str], name: str | None = None) -> str:
    """Return the name of an experiment's results, which is also the name of their folder.

    Args:
        stem: of its file.
        name: what the user calls them; default: the stem with the overrides. One too long for a folder ends in a hash
            of the whole.

    Raises:
        BadValue: no folder can have the name.
    """
    if name is not None:
        if not FOLDER.fullmatch(name) or len(name.encode()) > LONGEST_NAME:
            fault = f"must be letters, digits and any of ._+=,- with no . or - first, at most {LONGEST_NAME} bytes"
            raise BadValue(f"--name {clipped(name)}", [fault])
        return name
    name = stem + "".join(f"+{_file_name(override)}" for override in overrides)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    # No override can hold a NUL, so that two lists of overrides never give the same text.
    digest = hashlib.sha256("\0".join([stem, *overrides]).encode()).hexdigest()[:12]
    # 13 bytes are for "+" and the hash; a character that is cut in half is left out.
    return f"{name.encode()[: LONGEST_NAME - 13].decode(errors='ignore')}+{digest}"


def _override(raw: dict[str, Any], override: str) -> Override:
    """Apply one --set KEY=VALUE to the raw document; return the key and the value."""
    source = f"--set {clipped(override)}"
    key, _, text = (part.strip() for part in override.partition("="))
    if not key.isprintable():
        raise BadValue(repr(source), ["the key has a line break or another control character"])
    if not key or "=" not in override:
        raise BadValue(source, ["expected KEY=VALUE, for example train.epochs=10"])
    value = _value(text, source)
    table, above, rest = raw, "", _parts(key, source)
    while True:
        part, rest = _next(table, rest)
        if not rest:
            break
        if part in ("task", "model") and isinstance(table.get(part), str):
            table[part] = {"name": table[part]}
        table, above = table.setdefault(part, {}), f"{above}.{part}" if above else part
        if not isinstance(table, dict):
            raise BadValue(source, [f"{above} is a value, not a table"])
    table[part] = value
    return f"{above}.{part}" if above else part, value


def _value(text: str, source: str) -> Any:
    """Parse a text as a TOML value; a bare word is a string."""
    try:
        document = parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        document = {"value": text} if text.isprintable() else {}
    except ValueError as error:
        raise BadValue(source, [str(error)]) from error
    if list(document) != ["value"]:  # a line break in it began another
        raise BadValue(repr(source), ["has a line break or another control character; give each KEY=VALUE a --set"])
    return document["value"]


def _parts(key: str, source: str) -> list[str]:
    """Return the parts of a dotted key, some of which may stand in quotes: optimizers."sam-0.1".lr."""
    if '"' not in key and "'" not in key:
        parts = key.split(".")
    else:
        try:
            # TOML's own parser finds the ends of parts in quotes.
            table: Any = parse_toml(f"{key} = 0")
        except ValueError as error:
            raise BadValue(source, [f"{key} is not a valid key: {error}"]) from error
        parts = []
        while isinstance(table, dict):
            ((part, table),) = table.items()
            parts.append(part)
    if len(parts) > DEEPEST:
        raise BadValue(source, [f"has {len(parts)} parts between dots; nothing is nested deeper than {DEEPEST} levels"])
    return parts


def _next(table: Mapping[str, Any], parts: list[str]) -> tuple[str, list[str]]:
    """Return the table's key that a dotted key starts with, and the remaining parts; a label may contain dots."""
    # The longest match comes first: a label such as "sam-0.1" has a dot of its own.
    for end in range(len(parts), 1, -1):
        if (joined := ".".join(parts[:end])) in table:
            return joined, parts[end:]
    return parts[0], parts[1:]


def _file_name(override: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=,-]+", "_", override.replace(" ", "")).strip("_")
