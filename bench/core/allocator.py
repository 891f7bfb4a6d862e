"""The memory allocator of worker processes: a faster one than glibc's, if one is installed.

glibc gives large blocks back to the system when they are freed, so every training step pays for fresh pages again.
mimalloc, tcmalloc and jemalloc keep them. An allocator must be named before a process starts, and changes no bit.
"""

from __future__ import annotations

import ctypes.util
import functools
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.core.errors import BenchError, nearest

VARIABLE = "BENCH_MALLOC"
"""The environment variable with the user's choice: one of LIBRARIES, "glibc" (tuned), "off" or "auto" (default)."""

PRELOAD = "LD_PRELOAD"
TUNABLES = "GLIBC_TUNABLES"

LIBRARIES = ("mimalloc", "tcmalloc", "jemalloc")
"""Supported libraries, the preferred one first."""

SYSTEM_NAMES = {"mimalloc": ("mimalloc",), "tcmalloc": ("tcmalloc_minimal", "tcmalloc"), "jemalloc": ("jemalloc",)}

KEEP_PAGES = {"jemalloc": {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}}
"""Environment variables that make a library keep freed pages."""

GLIBC = "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=67108864"
"""Blocks up to 32 MiB (glibc's own limit) come from the heap, and the heap does not shrink."""


@contextmanager
def preloaded() -> Iterator[None]:
    """Give processes that are started inside of this context a faster allocator, by environment variables.

    Raises:
        BenchError: BENCH_MALLOC names no allocator, or one that is not installed.
    """
    added = variables(os.environ)
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that give a new process a faster allocator.

    Args:
        environment: of the process that starts it; what a user has set there is kept.

    Raises:
        BenchError: BENCH_MALLOC names no allocator, or one that is not installed.
    """
    choice = environment.get(VARIABLE) or "auto"
    valid = ("auto", "off", "glibc", *LIBRARIES)
    if choice not in valid:
        raise BenchError(f"{VARIABLE}={choice}: no such allocator; {nearest(choice, valid)}")
    taken = environment.get(PRELOAD, "")
    # LD_PRELOAD works on Linux. An allocator that the user has named there already is left alone.
    if sys.platform != "linux" or choice == "off" or any(name in taken for name in LIBRARIES):
        return {}
    # For the choice "glibc" nothing is found here, and the last lines tune glibc.
    for name in LIBRARIES if choice == "auto" else (choice,):
        if name in LIBRARIES and (library := locate(name)):
            settings = {key: value for key, value in KEEP_PAGES.get(name, {}).items() if key not in environment}
            # The allocator stands first, before libraries that the user has preloaded for other purposes.
            return {PRELOAD: f"{library}:{taken}".rstrip(":"), **settings}
    if choice in LIBRARIES:
        raise BenchError(f"{VARIABLE}={choice}: lib{choice}.so is not installed; install it, or unset {VARIABLE}")
    # Tunables that the user has set are kept as they are.
    glibc = platform.libc_ver()[0] == "glibc" and TUNABLES not in environment
    return {TUNABLES: GLIBC} if glibc else {}


@functools.cache
def locate(name: str) -> str | None:
    """Return what LD_PRELOAD calls a library: the file of an installed package, else a library of the system."""
    try:
        files = importlib.metadata.files(f"cmeel-{name}") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == f"lib{name}.so" and (path := Path(str(file.locate())).resolve()).is_file():
            return str(path)
    return next((library for short in SYSTEM_NAMES[name] if (library := ctypes.util.find_library(short))), None)


@functools.cache
def in_use() -> str:
    """Return the name of the allocator that this process has, from the libraries that are loaded."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return "system"
    loaded = {Path(line.split()[-1]).name for line in maps if "/" in line}
    for name in LIBRARIES:
        if any(library.startswith(f"lib{name}") for library in loaded):
            return name
    if platform.libc_ver()[0] != "glibc":
        return "system"
    # Not os.environ: a worker's is the launcher's, while the tunables were those of the fork server.
    return "tuned glibc" if b"glibc.malloc" in Path("/proc/self/environ").read_bytes() else "glibc"
