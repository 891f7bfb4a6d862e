"""Errors of the user: one clear message, exit status not 0, nothing touched."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MANY = 50
"""Most valid names, or problems, that a message lists."""

LONGEST = 200
"""Characters of a user's value that a message shows."""


def clipped(text: str) -> str:
    """Return a text, its middle left out if it is too long for a message."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 60]} [...] {text[-50:]}"


def shown(value: object) -> str:
    """Return the repr of a user's value, shortened if it is too long for a message."""
    return clipped(repr(value))


# Any other exception is a bug: the command line shows its traceback.
class BenchError(Exception):
    """A mistake in the input or the surroundings; the command line prints its text without a traceback."""


class NotPrepared(BenchError):
    """Data or weights are not on this machine; `bench prepare` brings them."""


class BadValue(BenchError):
    """Every problem found in one input, listed at once.

    Args:
        source: the file (or flag) at fault.
        problems: one line each, beginning with the key.
    """

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source = source
        self.problems = list(problems)
        lines = [f"  {line}" for line in self.problems[:MANY]]
        lines += [f"  and {len(self.problems) - MANY} more"] if len(self.problems) > MANY else []
        super().__init__("\n".join([f"{source}: {counted(len(self.problems), 'problem')}", *lines]))


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the nearest valid name, and all of them if they are few."""
    valid = sorted(valid)
    # Compared in lower case, but offered as it is written.
    written = {choice.lower(): choice for choice in valid}
    many = len(valid) > MANY
    # Only the beginning of a long name: difflib's time grows faster than the length.
    close = difflib.get_close_matches(name[:LONGEST].lower(), written, n=5 if many else 1, cutoff=0.5)
    if many:
        return f"the nearest of {len(valid)} valid names: {', '.join(written[one] for one in close) or 'none'}"
    if close:
        return f'did you mean "{written[close[0]]}"? (valid: {", ".join(valid)})'
    return f"valid: {', '.join(valid)}" if valid else "there are none"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 run", "2 runs", "1,000 passes"."""
    # For the nouns of this package's messages: "pass" becomes "passes", all others only get an "s".
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"
