"""Signals that stop a launch: several of them within a second are one."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

TOGETHER_SECONDS = 1.0
"""Signals that come within this time after one that counted are that one: wrappers and containers send several."""


class Interrupts:
    """SIGINT and SIGTERM as KeyboardInterrupt, each burst of them once, for as long as the context lasts.

    `close` ends that: what has to be finished then is finished whatever comes.
    """

    def __init__(self) -> None:
        self._last = float("-inf")
        self._closed = False
        self._unheard = False
        # By signal: the handler from before, which `__exit__` puts back.
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            # One that is ignored stays so: a shell starts its background jobs deaf to Ctrl-C.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        # The rest of a burst would meet the handlers from before, which end the process.
        time.sleep(max(0.0, self._last + TOGETHER_SECONDS - time.monotonic()))
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def heard(self) -> None:
        """Record that the KeyboardInterrupt has arrived."""
        self._unheard = False

    def check(self) -> None:
        """Raise a KeyboardInterrupt that was lost: Python drops exceptions raised while it frees an object."""
        if self._unheard:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Ignore every signal from here on."""
        self._closed = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._closed or now - self._last < TOGETHER_SECONDS:
            return
        self._last = now
        # Recorded before it is raised, since Python may drop the exception: see `check`.
        self._unheard = True
        raise KeyboardInterrupt
