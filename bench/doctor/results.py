"""Check of the folder where results go. It does not need torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.doctor.finding import Finding, gigabytes, shown
from bench.store.files import StorageError
from bench.store.run_folder import Store

LITTLE = 5e9
"""Bytes on the disk below which it is told: checkpoints of large models take some of it, data sets up to 0.5 GB."""


def results(out: Path) -> Iterator[Finding]:
    """Yield whether results can be written to a folder, and how much space there is; nothing is left there."""
    place = out.absolute()
    # The folder itself is made by the first run: until then what counts is the folder in which it will be made.
    while not os.path.lexists(place):
        place = place.parent
    try:
        Store(place).check_writable()
    except StorageError as error:
        # "cannot write FILE: reason; what to do"; the file is one of ours, made to try it.
        found, _, advice = str(error).replace(f"{place}{os.sep}.writable", str(place)).partition("; ")
        yield Finding("lack", "results", found, advice, stops=True)
        return
    free = shutil.disk_usage(place).free
    words = f"{shown(out.absolute())} can be written, {gigabytes(free)} free"
    little = free < LITTLE
    yield Finding("note" if little else "ok", "results", words, "free some, or name another disk: --out" * little)
