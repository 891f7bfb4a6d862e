"""This machine's speed as measured by earlier launches, for later launches with the same kind of run.

<user's cache>/sam-bench/speeds.json    seconds by a hash of the kind of run, the machine, its shares and the code
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.core import allocator
from bench.core.errors import BenchError
from bench.core.spec import RunSpec
from bench.launch.estimate import Speed, kind
from bench.launch.local.slots import Slot
from bench.store.files import read_json, write_atomic
from bench.training.environment import processor

DAYS = 30
"""Days for which a measurement is used: it may have been made on a busy machine."""

MOST = 500
"""Number of newest measurements that are kept."""

PACKAGE = Path(__file__).parents[1]


def recalled(keys: Mapping[str, str]) -> dict[str, Speed]:
    """Return the cached speeds, by name; {} if the cache file is damaged or missing.

    Args:
        keys: from `key`, by any name.
    """
    kept = _kept()
    # `_is_whole` has seen to it that an entry has the fields of Speed and no others.
    return {name: Speed(**kept[key]["speed"]) for name, key in keys.items() if key in kept}


def remember(measured: Mapping[str, Speed]) -> None:
    """Add measured speeds to the cache file, by `key`; a cache that cannot be written is ignored silently."""
    if not measured:
        return
    now = time.time()
    # Without a lock: two launches at once may lose entries of each other, which costs a new measurement.
    entries = _kept() | {key: {"at": now, "speed": asdict(speed)} for key, speed in measured.items()}
    newest = sorted(entries.items(), key=lambda entry: entry[1]["at"])[-MOST:]
    # RuntimeError: there is no home folder.
    with suppress(BenchError, OSError, RuntimeError):
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(dict(newest), indent=1) + "\n")


def key(spec: RunSpec, shares: Sequence[Slot]) -> str:
    """Return a hash of everything that a speed depends on: kind of run, method, machine, shares, code, versions."""
    optimizer = spec.optimizer
    parts = {
        "kind": kind(spec),
        "method": (optimizer.name, optimizer.base and optimizer.base.name),
        "files": (spec.files_sha256, [plugin.sha256 for plugin in spec.plugins]),
        "machine": (platform.node(), platform.machine(), processor()),
        # How many cores, not which ones: the speed is the same.
        "shares": [(share.device, len(share.cores), share.threads) for share in shares],
        "allocator": allocator.variables(os.environ),
        # Any change of the package may change its speed.
        "code": _code_sha256(),
        "torch": importlib.metadata.version("torch"),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@functools.cache
def _code_sha256() -> str:
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _path() -> Path:
    """Return the path of the file of recorded speeds. Raises RuntimeError if there is no home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "sam-bench", "speeds.json").expanduser()


def _kept() -> dict[str, dict[str, Any]]:
    """Return the entries of the cache file that are complete and not too old."""
    try:
        entries = read_json(_path(), missing={})
    except (BenchError, OSError, RuntimeError):
        return {}
    return {key: entry for key, entry in entries.items() if _is_whole(entry)}


def _is_whole(entry: Any) -> bool:
    speed = entry.get("speed") if isinstance(entry, dict) else None
    # Versions of the package with other fields of Speed share this file.
    if not isinstance(speed, dict) or speed.keys() != asdict(Speed(0.0, 0.0, 0.0)).keys():
        return False
    numbers = [entry.get("at"), *speed.values()]
    if not all(isinstance(number, float) and math.isfinite(number) and number >= 0 for number in numbers):
        return False
    # An entry from the future, written under a wrong clock, would not grow old for years.
    return bool(0 <= time.time() - entry["at"] <= DAYS * 86_400)
