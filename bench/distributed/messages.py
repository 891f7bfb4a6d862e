"""Messages between the processes of one run and their starter, in torch's store of keys and values.

The starter has the store (`MessageServer`); every process is a client of it (`MessageClient`), on this machine or on
another. A process whose starter has died, however it did, loses the connection and ends at once. Whoever reaches the
store can write to it: what counts is only what is sealed with the secret of the run.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from bench.distributed.rendezvous import LOOPBACK, new_secret, opened, sealed, serve

LOOK_SECONDS = 0.1
"""Interval at which a process checks whether it must stop and whether its starter is alive."""

PLACE_SECONDS = 1.0
"""Interval at which a process's position in its code is recorded."""

CONNECT_TIMEOUT = timedelta(minutes=1)
"""How long a process tries to reach its starter, whose store is there before it starts anything."""

_STOP = "bench/stop"


class MessageServer:
    """The starter's end.

    Args:
        processes: how many there are, on all machines.
        nodes: machines; from the second on, the helper of a node sends messages too.
        host: where the store listens, and nowhere else: this machine as the others reach it.

    Attributes:
        address, port: where it listens.
        secret: of the run; messages that are not sealed with it are ignored.
        messages: all that the processes have told, in the order of arrival.
    """

    def __init__(self, processes: int, nodes: int = 1, host: str = LOOPBACK) -> None:
        self._store, self.address = serve(host)
        self.secret = new_secret()
        self.processes = processes
        self.nodes = nodes
        # No "node 0": the starter itself looks after the processes of the first node.
        self._senders = [*map(str, range(processes)), *(f"node {node}" for node in range(1, nodes))]
        # By sender: how many messages were read, which is also the number of the next one.
        self._read: Counter[str] = Counter()
        self.port: int = self._store.port
        self.messages: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived since the last call."""
        new = []
        for sender in self._senders:
            # None: not sent yet, or not sealed with the secret. Both are looked at again in the next call.
            while (text := self._text(f"bench/news/{sender}/{self._read[sender]}")) is not None:
                new.append(json.loads(text))
                self._read[sender] += 1
        self.messages += new
        return new

    def places(self) -> dict[int, str]:
        """Return each process's position in its code, as a text that stays the same while the process is stuck."""
        texts = {rank: self._text(f"bench/place/{rank}") for rank in range(self.processes)}
        return {rank: text for rank, text in texts.items() if text is not None}

    def ask_to_stop(self) -> None:
        self._store.set(_STOP, sealed(self.secret, _STOP, ""))

    def _text(self, key: str) -> str | None:
        # `check` first: `get` would wait for a key that does not exist.
        return opened(self.secret, key, self._store.get(key)) if self._store.check([key]) else None


class MessageClient:
    """A process's end.

    Args:
        host, port: where the starter's store is.
        sender: the process's rank; "node 1" for the helper of that node.
        secret: of the run.
    """

    def __init__(self, host: str, port: int, sender: str, secret: str) -> None:
        self._store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=CONNECT_TIMEOUT)
        self._sender = sender
        self._secret = secret
        self._told = 0
        self._over = threading.Event()
        self._follower: threading.Thread | None = None

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message, and return once the starter has it, so that the process may then end."""
        # Keys are numbered, so that a message never overwrites one that has not been read.
        key = f"bench/news/{self._sender}/{self._told}"
        self._store.set(key, sealed(self._secret, key, json.dumps(message)))
        self._store.check([key])  # the answer comes after the value is there
        self._told += 1

    def is_asked_to_stop(self) -> bool:
        """Return whether the starter, and nobody else, has asked this process to stop."""
        return self._store.check([_STOP]) and opened(self._secret, _STOP, self._store.get(_STOP)) is not None

    def follow(self, stop: Callable[[], None], steps: Callable[[], int]) -> None:
        """Start a thread that stops on the starter's request, reports where this process is, and dies with the starter.

        Args:
            stop: has this process stop; called again and again.
            steps: how many were taken: a sign of life where a process is mostly at one place.
        """
        self._follower = threading.Thread(target=self._follow, args=(stop, steps), daemon=True)
        self._follower.start()

    def end(self) -> None:
        """End the thread before the process ends, since a thread inside torch would abort the process."""
        self._over.set()
        if self._follower is not None:
            self._follower.join()

    def _follow(self, stop: Callable[[], None], steps: Callable[[], int]) -> None:
        main, looked, moves, last = threading.main_thread().ident or 0, float("-inf"), 0, None
        try:
            while not self._over.wait(LOOK_SECONDS):
                if self.is_asked_to_stop():
                    stop()
                # Less often than the look for a stop: every new place is one more message to the starter.
                if time.monotonic() - looked > PLACE_SECONDS:
                    looked, place = time.monotonic(), (steps(), _stack(main))
                    if place != last:
                        # The counter makes the text new even where a loop comes back to the same line.
                        last, moves = place, moves + 1
                        key, words = f"bench/place/{self._sender}", f"{moves} {_in_words(main)}"
                        self._store.set(key, sealed(self._secret, key, words))
        # The connection is gone, and so is the starter. sys.exit would end this thread only.
        except RuntimeError:
            os._exit(1)


def _stack(thread: int) -> tuple[tuple[int, int], ...]:
    """Return a thread's call stack, with the current instruction of each function."""
    frame, frames = sys._current_frames().get(thread), []
    while frame is not None:
        # f_lasti, the instruction, and not the line: a loop within one line moves too.
        frames.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return tuple(frames)


def _in_words(thread: int) -> str:
    """Return a thread's innermost place in this package, else its innermost place: "process_group.py:96 in largest"."""
    frame, words = sys._current_frames().get(thread), ""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        here = f"{path.name}:{frame.f_lineno} in {frame.f_code.co_name}"
        # parents[1] is bench/: a line of ours says more than one inside torch.
        if path.is_relative_to(Path(__file__).parents[1]):
            return here
        words, frame = words or here, frame.f_back
    return words or "an end"
