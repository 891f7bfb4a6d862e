"""What the user did that cannot work: one clear message, exit status not 0, nothing touched."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MANY = 50
"""So many valid names are not listed in a message any more."""


class BenchError(Exception):
    """A mistake in the input or the surroundings; the command line prints its text without a traceback."""


class BadValue(BenchError):
    """Every problem found in one input, listed at once.

    Args:
        source: the file (or flag) at fault.
        problems: one line each, beginning with the key.
    """

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source = source
        self.problems = list(problems)
        count = f"{len(self.problems)} problems" if len(self.problems) > 1 else "1 problem"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {line}" for line in self.problems)]))


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest valid one, and all of them, if they are not too many."""
    valid = sorted(valid)
    written = {choice.lower(): choice for choice in valid}
    many = len(valid) > MANY
    close = difflib.get_close_matches(name.lower(), written, n=5 if many else 1, cutoff=0.5)
    if many:
        return f"the nearest of {len(valid)} valid names: {', '.join(written[one] for one in close) or 'none'}"
    if close:
        return f'did you mean "{written[close[0]]}"? (valid: {", ".join(valid)})'
    return f"valid: {', '.join(valid)}" if valid else "there are none"
