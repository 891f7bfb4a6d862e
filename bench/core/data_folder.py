"""The folder of data and weights: that of the launch, else BENCH_DATA, else one in the user's cache.

Nothing else reads or sets BENCH_DATA. A folder that the command line gives is handed to other processes in the
environment that they are started with, and to jobs in their `RunOptions`. The environment of this process stays as it
is.
"""

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
    folder = _named() or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "sam-bench")
    try:
        # `or` and not a default of `get`: a variable that is set to nothing counts as unset.
        folder = folder.expanduser().absolute()
    except RuntimeError as error:
        raise BenchError(f"no home folder for the data ({error}); name {ANOTHER_FOLDER}") from error
    if folder.exists() and not folder.is_dir():
        raise BenchError(f"{folder} is to hold the data, but is not a folder; name {ANOTHER_FOLDER}")
    return folder


def named_data_folder() -> str | None:
    """Return the folder that the user has named, by an option or BENCH_DATA; None for the default in the cache."""
    named = _named()
    return os.path.realpath(os.path.expanduser(named)) if named else None


def _named() -> Path | None:
    from_environment = os.environ.get(VARIABLE)
    return _given or (Path(from_environment) if from_environment else None)


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


def variables(folder: Path | str | None = None) -> dict[str, str]:
    """Return the environment variable that makes a new process use a folder, by default the given one."""
    folder = folder or _given
    return {VARIABLE: str(folder)} if folder else {}
