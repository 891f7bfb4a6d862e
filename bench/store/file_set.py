"""Files that are right only together: all of them are replaced or none, at whatever moment a process dies.

The new ones are written into a folder beside, whose renaming is the one moment at which they come to count. From then
on a file is read from there until it has been moved to its place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bench.store.files import storage_error, write_atomic

STAGED = ".publishing"


def replace_all(folder: Path, contents: Mapping[str, str]) -> None:
    """Write these files of a folder, all or none. One process at a time may.

    Raises:
        StorageError: the folder cannot be written; what was there before is untouched.
    """
    # An interrupted replacement is finished first: its folder has the name that ours will get.
    complete(folder)
    staging = folder / f"{STAGED}.{os.getpid()}.tmp"
    try:
        for name, content in contents.items():
            write_atomic(staging / name, content)
        os.rename(staging, folder / STAGED)  # from here on the new files count, even if this process is killed
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    complete(folder)


def complete(folder: Path) -> None:
    """Finish a replacement that was interrupted by a kill, and remove staged files that never became valid.

    Raises:
        StorageError: the folder cannot be written.
    """
    for left_over in folder.glob(f"{STAGED}.*.tmp"):
        shutil.rmtree(left_over, ignore_errors=True)
    staged = folder / STAGED
    try:
        if staged.is_dir():
            # The order does not matter: until a file is moved, `path_of` finds it in the staged folder.
            for path in sorted(staged.iterdir()):
                os.replace(path, folder / path.name)
            staged.rmdir()
    except OSError as error:
        raise storage_error(folder, error) from error


def path_of(folder: Path, name: str) -> Path:
    """Return the current path of a file of the set."""
    staged = folder / STAGED / name
    with suppress(OSError):
        if staged.exists():
            return staged
    return folder / name
