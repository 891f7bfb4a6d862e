"""The demands on a sink, and how `--log NAME[=WHERE]` becomes sinks."""

from __future__ import annotations

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from bench.core.errors import BadValue, BenchError, nearest
from bench.sinks.run import LoggedRun, Point
from bench.store.files import config_folder, read_toml

NAMES = ("tensorboard", "mlflow", "wandb")
COMPLETE = math.inf
"""The answer of `Sink.begin` for a run of which everything is there."""


class Sink(ABC):
    """Another tool that shows runs. Whatever it raises is caught: see `bench.sinks.following`.

    Args:
        where: the WHERE of NAME=WHERE: a folder, a URI or a project; None: the tool's own setting, else `folder`.
        folder: for what stays on this machine.

    Attributes:
        name: the text that asked for it.
        address: where the user finds the runs.
    """

    name: str
    address: str

    @abstractmethod
    def __init__(self, where: str | None, folder: Path) -> None: ...

    @abstractmethod
    def begin(self, run: LoggedRun) -> float:
        """Open a run, the same one as before if it is there, and return its last epoch there: 0, or `COMPLETE`."""

    @abstractmethod
    def add(self, run: LoggedRun, points: Sequence[Point]) -> None:
        """Add evaluated epochs to a run that was begun."""

    @abstractmethod
    def end(self, run: LoggedRun) -> None:
        """Close a run that was begun: with final metrics and environment, unless it goes on in a later launch."""

    @abstractmethod
    def add_files(self, experiment: str, files: Mapping[str, Path]) -> None:
        """Add or replace what was made of an experiment's results: files by their paths in its folder."""


def checked(wanted: Sequence[str], source: str = "--log") -> tuple[str, ...]:
    """Return the sinks that are asked for as NAME or NAME=WHERE; "none" asks for none.

    Raises:
        BadValue: there is no such sink, or one is asked for twice; told of `source`.
    """
    names = [text.partition("=")[0] for text in wanted if text != "none"]
    problems = [f'"{name}": no such sink; {nearest(name, [*NAMES, "none"])}' for name in names if name not in NAMES]
    problems += [f'"{name}": given twice' for name in NAMES if names.count(name) > 1]
    if problems:
        raise BadValue(source, problems)
    return tuple(text for text in wanted if text != "none")


def usual() -> tuple[str, ...]:
    """Return the sinks of the user's log.toml, a file with `log = ["NAME", ...]`; none without such a file.

    Raises:
        BadValue: there is something else in the file.
    """
    path = config_folder() / "log.toml"
    table = read_toml(path, missing={"log": []})
    wanted = table.get("log")
    if [*table] != ["log"] or not isinstance(wanted, list) or not all(isinstance(text, str) for text in wanted):
        raise BadValue(str(path), ['must be one list called log, such as log = ["tensorboard"]'])
    return checked(wanted, str(path))


def opened(wanted: Sequence[str], folder: Path) -> list[Sink]:
    """Return the sinks that are asked for, each after a first contact with its tool.

    Args:
        wanted: see `checked`.
        folder: of all results; what stays on this machine goes to `logs` in it.

    Raises:
        BenchError: a package is missing, or the place cannot be used; in one line.
    """
    sinks = []
    for text in checked(wanted):
        name, _, where = text.partition("=")
        try:
            sink: Sink = import_module(f"bench.sinks.{name}").SINK(where or None, folder / "logs")
        except ImportError as error:
            raise BenchError(
                f"{text}: {reason(error)}; pip install 'sam-bench[{name}]' installs what it needs"
            ) from error
        # Whatever another package raises for a place that it cannot use.
        except Exception as error:
            raise BenchError(f"{text}: {reason(error)}") from error
        sink.name = text
        sinks.append(sink)
    return sinks


def check_writable(folder: Path) -> None:
    """Make a folder, and raise OSError if nothing can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def reason(error: Exception) -> str:
    """Return the first line of another package's error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
