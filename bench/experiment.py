"""Experiment files (TOML): finding them, overriding keys, and having them resolved into the full list of runs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import BadValue, BenchError, nearest
from bench.resolve import Resolver
from bench.spec import Experiment

# ---- finding and reading the file ----------------------------------------------------------------------------


def find(name: str) -> Path:
    """The experiment file for a path, or for a name under experiments/ (here, else beside the package).

    Raises:
        BenchError: there is none; the nearest name is told.
    """
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
    here, beside_package = Path("experiments"), Path(__file__).parents[1] / "experiments"
    return [here] if here.resolve() == beside_package.resolve() else [here, beside_package]


def load(path: Path, overrides: Sequence[str] = (), seeds: int | None = None) -> Experiment:
    """Read, override, check and resolve an experiment file.

    Args:
        path: the TOML file; plug-ins in it are relative to its folder.
        overrides: "KEY=VALUE" with a dotted key and a TOML value; they make it another experiment, with results of
            its own.
        seeds: run seeds 0..seeds-1 instead of those in the file; with phases, so many final ones, while those of
            tuning stay: they decide what is chosen.

    Raises:
        BadValue: anything in the file or the overrides is wrong; all of it is listed.
        BenchError: the file cannot be read, or a plug-in fails.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadValue(str(path), [f"not UTF-8 text: {error}"]) from error
    except tomllib.TOMLDecodeError as error:
        raise BadValue(str(path), [f"broken TOML: {error}"]) from error
    for override in overrides:
        _override(raw, override)
    if seeds is not None and isinstance(raw.get("final"), dict):
        raw["final"]["seeds"] = seeds
    elif seeds is not None:
        raw["seeds"] = seeds
    name = path.stem + "".join(f"+{_file_name(override)}" for override in overrides)
    return Resolver(path, raw).experiment(name)


def _override(raw: dict[str, Any], override: str) -> None:
    """Apply one --set KEY=VALUE to the raw document."""
    key, equals, text = override.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not key:
        raise BadValue(f"--set {override}", ["expected KEY=VALUE, for example train.epochs=10"])
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    table = raw
    *parents, last = key.split(".")
    for depth, part in enumerate(parents, start=1):
        if part in ("task", "model") and isinstance(table.get(part), str):
            table[part] = {"name": table[part]}
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise BadValue(f"--set {override}", [f"{'.'.join(parents[:depth])} is a value, not a table"])
    table[last] = value


def _file_name(override: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=,-]+", "_", override.replace(" ", "")).strip("_")
