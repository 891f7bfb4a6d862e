"""The place of multiprocessing's sockets: TMPDIR, which may be too long for a socket's path."""

from __future__ import annotations

import multiprocessing.util
import os
import tempfile

from bench.core.errors import BenchError

LONGEST_TEMPORARY = 70
"""Bytes of TMPDIR with which multiprocessing's sockets stay within the 107 that the system takes for a path."""


def short_sockets() -> None:
    """Make multiprocessing put its sockets where their paths are short enough for the system."""
    here = tempfile.gettempdir()
    if len(os.fsencode(here)) <= LONGEST_TEMPORARY:
        return
    tempfile.tempdir = "/tmp"
    try:
        multiprocessing.util.get_temp_dir()  # once made it is kept, for the workers too
    except OSError as error:
        raise BenchError(
            f"TMPDIR is {here}: too long for sockets ({LONGEST_TEMPORARY} bytes at most), and /tmp cannot be used "
            f"instead ({error.strerror}); set TMPDIR to a shorter path"
        ) from error
    finally:
        # All other temporary files go to the user's TMPDIR.
        tempfile.tempdir = here
