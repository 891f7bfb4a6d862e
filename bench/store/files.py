"""Reading and writing files: bad content is refused with a message, and a write is complete or has no effect.

Only regular files are read: a FIFO would be waited for without end, and a device has none.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.core.errors import BadValue, BenchError, clipped, shown

DEEPEST = 32
"""Tables and lists within each other that a document may have; every recursion over one stays far from its end."""

# Stands for "not given", since None is a value that a caller may want for a missing file.
_NOTHING: Any = object()

INTEGERS = range(-(2**63), 2**63)
"""The integers of TOML. Python's have no bound, and converting large ones to float overflows."""


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: the file cannot be read, or is of another kind (a FIFO, a device, a folder).
    """
    with open(open_regular(path), "rb") as file:
        return file.read()


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file without blocking, created if `flags` say so, and return its descriptor.

    Raises:
        OSError: as `read_bytes`.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a process at its other end.
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except ValueError as error:  # a NUL
        raise OSError(errno.EINVAL, f"not a valid path: {error}", str(path)) from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_json(path: Path, missing: Any = _NOTHING, kind: type = dict) -> Any:
    """Return the content of a JSON file that this package wrote.

    Args:
        missing: the value to return if there is no such file; without it, a missing file is an error.
        kind: the type of the content, a table (dict) or a list.

    Raises:
        BenchError: the file cannot be read, is incomplete, or holds another type.
    """
    try:
        content = json.loads(read_bytes(path))
    except FileNotFoundError as error:
        if missing is not _NOTHING:
            return missing
        raise BenchError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else clipped(str(error))
        raise BenchError(f"{path} is damaged ({reason}); delete it to have it made again") from error
    if not isinstance(content, kind):
        raise BenchError(f"{path} is damaged (holds {shown(content)}); delete it to have it made again")
    return content


def to_json(value: Any) -> str:
    # Sorted keys and a fixed indent: equal values give equal bytes, whose sha256 can be compared.
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_toml(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the document in a TOML file, with or without a byte order mark.

    Args:
        missing: returned if there is no such file, where that is no fault.

    Raises:
        BadValue: the file is no TOML, or holds what no setting can be; see `parse_toml`.
        BenchError: the file cannot be read.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and missing is not None:
            return missing
        raise BenchError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadValue(str(path), [f"not UTF-8 text: {error}"]) from error
    try:
        return parse_toml(text)
    # TOMLDecodeError is a ValueError, so it must be caught before that.
    except tomllib.TOMLDecodeError as error:
        raise BadValue(str(path), [f"broken TOML: {clipped(str(error))}"]) from error
    except ValueError as error:
        raise BadValue(str(path), [str(error)]) from error


def parse_toml(text: str) -> dict[str, Any]:
    """Return a TOML document without values that no setting can have.

    Raises:
        TOMLDecodeError: broken TOML.
        ValueError: nesting deeper than `DEEPEST`, an integer of more than 64 bits, or a NUL in a string.
    """
    try:
        document = tomllib.loads(text)
    # It is a ValueError too, and must not be taken for an integer that is too long.
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from error
    except ValueError as error:  # int() refuses thousands of digits
        raise ValueError("an integer has more than 64 bits") from error
    for fault in _faults(document):
        raise ValueError(fault)
    return document


def expanded(path: Path) -> Path:
    """Return a path with its `~` or `~user` replaced.

    Raises:
        BenchError: there is no such user, or no home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise BenchError(f"{path}: {error}; give the full path") from error


def config_folder() -> Path:
    """Return the folder of the user's own settings: `sam-bench` in XDG_CONFIG_HOME, else in ~/.config."""
    return expanded(Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")) / "sam-bench"


def _faults(document: dict[str, Any]) -> Iterator[str]:
    """Yield the values that no setting can have; without recursion, since deep nesting is one of the faults."""
    waiting: list[tuple[str, Any, int]] = [("", document, 0)]
    while waiting:
        where, value, depth = waiting.pop()
        if depth > DEEPEST:
            yield f"{clipped(where)}: nested deeper than {DEEPEST} levels"
        elif isinstance(value, dict):
            waiting += [(f"{where}.{key}" if where else key, inner, depth + 1) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(where, inner, depth + 1) for inner in value]
        elif isinstance(value, int) and value not in INTEGERS:
            yield f"{clipped(where)}: {clipped(str(value))} has more than 64 bits"
        elif "\0" in where or (isinstance(value, str) and "\0" in value):
            yield f"{clipped(where)}: has a NUL character in it"


# ---- writing -----------------------------------------------------------------------------------------------


class StorageError(BenchError):
    """The disk refused: full, read-only, not ours. Whatever was there before is untouched."""


def write_atomic(path: Path, data: str | bytes, *, private: bool = False) -> None:
    """Write a whole file or nothing: beside its place, to the disk, then renamed over it.

    Args:
        private: only its user may read it.

    Raises:
        StorageError: the disk is full or refuses; the old file is as it was.
    """

    def opener(name: str, flags: int) -> int:
        # The mode is given when the file is made: with a later chmod others could read it for a moment.
        return os.open(name, flags, 0o600 if private else 0o666)

    with atomic_path(path) as temporary, open(temporary, "wb", opener=opener) as file:
        file.write(data.encode() if isinstance(data, str) else data)
        # On the disk before the renaming: a power cut must not leave an empty file under the final name.
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; a clean exit renames that file to `path`, any other removes it."""
    # In the same folder, because a renaming is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):  # gone already, if all went well
            temporary.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock file, made if missing, and hold it; the system lets go if this process dies.

    Raises:
        StorageError: its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(open_regular(path, os.O_WRONLY | os.O_CREAT), "w")  # noqa: SIM115 - closed by the `with` below
    except OSError as error:
        raise storage_error(path, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def storage_error(path: Path, error: OSError) -> StorageError:
    hint = {
        errno.ENOSPC: "free some space, then run the same command again: it resumes where it stopped",
        errno.EDQUOT: "free some of your quota, then run the same command again: it resumes where it stopped",
        errno.EACCES: "choose a folder you may write to with --out DIR",
        errno.EPERM: "choose a folder you may write to with --out DIR",
        errno.EROFS: "choose a folder you may write to with --out DIR",
        errno.EEXIST: "a file is where a folder should be; choose another place with --out DIR",
        errno.ENOTDIR: "a part of that path is a file, not a folder; choose another with --out DIR",
    }.get(error.errno or 0, "nothing was changed there")
    return StorageError(f"cannot write {path}: {error.strerror or error}; {hint}")
