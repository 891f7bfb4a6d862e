"""The outcome of a launch."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.core.experiment import PlannedRun


@dataclass
class Outcome:
    """The outcome of a launch.

    Attributes:
        failed: the runs that failed, with the last line of what went wrong.
        elsewhere: runs that another launch is doing.
        interrupted: stopped by Ctrl-C or by `--fail-fast` before the queue was empty.
        disk: the message, if the disk refused.
    """

    # Of this launch only: runs that were finished before it are not counted.
    finished: int = 0
    failed: list[tuple[PlannedRun, str]] = field(default_factory=list)
    elsewhere: int = 0
    interrupted: bool = False
    disk: str | None = None

    def __add__(self, other: Outcome) -> Outcome:
        """Return the outcome of two phases of a launch, one after the other."""
        return Outcome(
            self.finished + other.finished,
            self.failed + other.failed,
            self.elsewhere + other.elsewhere,
            self.interrupted or other.interrupted,
            # The first message tells most; the full disk behind it is the same.
            self.disk or other.disk,
        )
