"""Printing: to a terminal, a file or a pipe of any encoding, which may be full or gone."""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:  # takes longer to import than many commands take to run
    from rich.console import Console

SPELLED = {
    "–": "-",
    "—": "-",
    "−": "-",
    "─": "-",
    "│": "|",
    "·": ".",
    "•": "*",
    "…": "...",
    "×": "x",
    "±": "+-",
    "†": "+",
    "‡": "++",
    "≥": ">=",
    "≤": "<=",
    "“": '"',
    "”": '"',
    "’": "'",
    "ρ": "rho",
    "→": "->",
    # Of a sparkline, from low to high.
    "▁": "_",
    "▂": ".",
    "▃": "-",
    "▄": "~",
    "▅": "=",
    "▆": "+",
    "▇": "*",
    "█": "#",
}
"""ASCII replacements for this package's own signs, for encodings without them."""


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints texts as they are: brackets and colons in a user's names are no markup."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_in_any_encoding() -> None:
    """Make standard output and error spell out what their encoding cannot write, instead of failing."""
    codecs.register_error("spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError):  # not a stream of text over bytes
            stream.reconfigure(errors="spelled")  # type: ignore[union-attr]


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        # The handler is for writing only: faults in reading stay what they are.
        raise error
    part = error.object[error.start : error.end]
    plain = "".join(SPELLED.get(character, "?") for character in part)
    return plain, error.end


def let_go_of(stream: IO[str]) -> None:
    """Redirect a stream that cannot be written to to os.devnull, so that Python's final flush raises no error."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
