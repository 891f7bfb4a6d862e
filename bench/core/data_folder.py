"""The folder of data and weights: that of the launch, else BENCH_DATA, else one in the user's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.core.errors import BenchError

VARIABLE = "BENCH_DATA"

ANOTHER_FOLDER = f"another data folder with --data-dir DIR or the environment variable {VARIABLE}"

_given: Path | None = None  # `load` of a user's task takes no arguments, so this one setting cannot be handed to it


def data_folder() -> Path:
    """Return the given folder, else BENCH_DATA, else `sam-bench` in XDG_CACHE_HOME, else in ~/.cache.

    The folder need not exist yet.

    Raises:
        BenchError: it is something other than a folder, or there is no home folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        # `or` and not a default of `get`: a variable that is set to nothing counts as unset.
        folder = (_given or Path(os.environ.get(VARIABLE) or Path(cache, "sam-bench"))).expanduser().absolute()
    except RuntimeError as error:
        raise BenchError(f"no home folder for the data ({error}); name {ANOTHER_FOLDER}") from error
    if folder.exists() and not folder.is_dir():
        raise BenchError(f"{folder} is to hold the data, but is not a folder; name {ANOTHER_FOLDER}")
    return folder


def named_data_folder() -> str | None:
    """Return the folder that the user has named, by an option or BENCH_DATA; None for the default in the cache."""
    named = _given or os.environ.get(VARIABLE)
    return os.path.realpath(os.path.expanduser(named)) if named else None


@contextmanager
def data_folder_given(folder: Path | str | None) -> Iterator[None]:
    """Use a folder of data inside this context; None leaves it to BENCH_DATA and the cache."""
    global _given
    # None keeps the folder of an outer context.
    before, _given = _given, _given if folder is None else Path(folder).resolve()
    try:
        yield
    finally:
        _given = before


def variables() -> dict[str, str]:
    """Return the environment variable that makes a new process use the given folder."""
    return {VARIABLE: str(_given)} if _given else {}
