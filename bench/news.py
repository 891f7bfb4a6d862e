"""What the processes of one run and whoever started them tell each other, in torch's store of keys and values.

The starter has the store (`Listener`); every process is a client of it (`Teller`), on this machine or on another. A
process whose starter has died, however it did, loses the connection and ends at once.
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

LOOK_SECONDS = 0.1
"""Between two looks of a process at whether it is to stop, and whether its starter lives."""

PLACE_SECONDS = 1.0
"""Between two looks at where a process is."""

PATIENCE = timedelta(minutes=1)
"""How long a process tries to reach its starter, whose store is there before it starts anything."""

_STOP = "bench/stop"


class Listener:
    """The starter's end.

    Args:
        processes: how many there are, on all machines.
        nodes: machines; who looks after the processes of a further one tells of them too.

    Attributes:
        port: where the store listens; torch has it listen on all interfaces, since processes may be on other machines.
        messages: all that the processes have told, in the order of arrival.
    """

    def __init__(self, processes: int, nodes: int = 1) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # it chooses a port that is free
        self.processes = processes
        self.nodes = nodes
        self._senders = [*map(str, range(processes)), *(f"node {node}" for node in range(1, nodes))]
        self._read: Counter[str] = Counter()
        self.port: int = self._store.port
        self.messages: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """What they have told since the last time."""
        new = []
        for sender in self._senders:
            while self._store.check([key := f"bench/news/{sender}/{self._read[sender]}"]):
                new.append(json.loads(self._store.get(key)))
                self._read[sender] += 1
        self.messages += new
        return new

    def places(self) -> dict[int, str]:
        """Where each process is in its code, in words; a process that has not moved since has the same ones."""
        keys = {rank: f"bench/place/{rank}" for rank in range(self.processes)}
        return {rank: self._store.get(key).decode() for rank, key in keys.items() if self._store.check([key])}

    def ask_to_stop(self) -> None:
        self._store.set(_STOP, "")


class Teller:
    """A process's end.

    Args:
        host, port: where the starter's store is.
        sender: the process's rank; "node 1" for who looks after the processes of that machine.
    """

    def __init__(self, host: str, port: int, sender: str) -> None:
        self._store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=PATIENCE)
        self._sender = sender
        self._told = 0
        self._over = threading.Event()
        self._follower: threading.Thread | None = None

    def tell(self, message: dict[str, Any]) -> None:
        """Returns when the starter has it, so that a process may end after that."""
        key = f"bench/news/{self._sender}/{self._told}"
        self._store.set(key, json.dumps(message))
        self._store.check([key])  # the answer comes after the value is there
        self._told += 1

    def follow(self, stop: Callable[[], None], steps: Callable[[], int]) -> None:
        """In a thread: stop when the starter says so, tell where this process is, and die with the starter.

        Args:
            stop: has this process stop; called again and again.
            steps: how many were taken: a sign of life where a process is mostly at one place.
        """
        self._follower = threading.Thread(target=self._follow, args=(stop, steps), daemon=True)
        self._follower.start()

    def end(self) -> None:
        """Before the process ends: a thread that is inside torch then would have it aborted."""
        self._over.set()
        if self._follower is not None:
            self._follower.join()

    def _follow(self, stop: Callable[[], None], steps: Callable[[], int]) -> None:
        main, looked, moves, last = threading.main_thread().ident or 0, float("-inf"), 0, None
        try:
            while not self._over.wait(LOOK_SECONDS):
                if self._store.check([_STOP]):
                    stop()
                if time.monotonic() - looked > PLACE_SECONDS:
                    looked, place = time.monotonic(), (steps(), _stack(main))
                    if place != last:
                        last, moves = place, moves + 1
                        self._store.set(f"bench/place/{self._sender}", f"{moves} {_in_words(main)}")
        except RuntimeError:  # the connection is gone, and so is the starter
            os._exit(1)


def _stack(thread: int) -> tuple[tuple[int, int], ...]:
    """Where a thread is, down to the instruction of every function that it is in."""
    frame, found = sys._current_frames().get(thread), []
    while frame is not None:
        found.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def _in_words(thread: int) -> str:
    """The innermost place in this package, else the innermost of all: "group.py:96 in largest"."""
    frame, words = sys._current_frames().get(thread), ""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        here = f"{path.name}:{frame.f_lineno} in {frame.f_code.co_name}"
        if path.is_relative_to(Path(__file__).parent):
            return here
        words, frame = words or here, frame.f_back
    return words or "an end"
