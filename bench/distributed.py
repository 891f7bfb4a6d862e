"""One run over several processes of this machine: they are started, listened to, and ended together.

    run_distributed(...)                           what the worker of a launch calls
    python -m bench.distributed SPEC.json FOLDER   the same by hand; started by srun or torchrun it is one of them

A process that we start hears on its standard input (a line asks it to stop; the end of it means that we have died, and
so does it, at once, however we did) and tells on a pipe, in lines of JSON. Whatever it prints is kept for the case that
it dies without a word.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from bench.errors import BenchError
from bench.rank import be_one, place_of
from bench.spec import RunSpec
from bench.store import RunFolder, StorageError, write_atomic
from bench.train import Report, Stopped

SETTLE_SECONDS = 1.0
"""After a first failure, how long others may tell of theirs: the first sign of one is not always its cause."""

FAREWELL_SECONDS = 60.0
"""How long processes may take to end once the first has said that all is done."""

LAST_WORDS = 2_000
"""Characters of what a process printed that are told when it died without a word."""


class ProcessFailed(Exception):
    """One of the processes met an error that is no message of ours; its traceback is the text."""


@dataclass
class _Rank:
    """One of the processes, as we see it."""

    number: int
    process: subprocess.Popen[bytes]
    news: IO[bytes]
    printed: IO[bytes]
    unread: bytes = b""
    messages: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> list[dict[str, Any]]:
        """What it has told since the last time."""
        while chunk := self.news.read(65536):
            self.unread += chunk
        *lines, self.unread = self.unread.split(b"\n")
        new = [json.loads(line) for line in lines]
        self.messages += new
        return new

    @property
    def has_failed(self) -> bool:
        return bool(self.process.poll()) or any("text" in message for message in self.messages)

    def stop(self) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # it is gone: that will be seen
            self.process.stdin.write(b"stop\n")
            self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        self.news.close()
        self.printed.close()


def run_distributed(
    spec: RunSpec,
    folder: RunFolder,
    devices: Sequence[torch.device],
    report: Report = lambda done, epochs, measured: None,
    checkpoint_minutes: float = 5.0,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Do one run, or what is left of it, in a process for each device. Arguments and errors are those of `train`.

    Args:
        folder: where the run lives; claimed by the caller, who holds it for all of them.
        devices: one for each process; the threads of this process are shared out among them.

    Raises:
        ProcessFailed: a process met an error that is no message of ours.
        BenchError: a process has died, by a signal or in silence.
    """
    if len(devices) != spec.train.processes:
        raise BenchError(f"train.processes = {spec.train.processes}, but there are {len(devices)} devices for this run")
    write_atomic(folder.path / "spec.json", spec.model_dump_json(indent=1) + "\n")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # it chooses a port that is free
    ranks: list[_Rank] = []
    try:
        for number, device in enumerate(devices):
            ranks.append(_start(number, device, len(devices), store.port, folder, checkpoint_minutes))
        last = _listen(ranks, report, stop)
    finally:
        for rank in ranks:
            rank.end()
    if last == "stopped":
        raise Stopped
    result = folder.result()
    if result is None:
        raise BenchError("all processes of this run ended well, but left no result")
    return result


def _start(
    number: int, device: torch.device, count: int, port: int, folder: RunFolder, checkpoint_minutes: float
) -> _Rank:
    place = {
        "RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(number),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is ours, not the first process's
    }
    if sys.platform == "linux":
        place["GLOO_SOCKET_IFNAME"] = "lo"  # whatever this machine's own name leads to
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "bench.distributed", str(folder.path / "spec.json"), str(folder.path)]
    command += ["--device", str(device), "--checkpoint-minutes", str(checkpoint_minutes), "--watched", str(theirs)]
    command += ["--threads", str(max(1, torch.get_num_threads() // count))]
    printed = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=printed,
        stderr=subprocess.STDOUT,
        env=os.environ | place,
        pass_fds=[theirs],
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    return _Rank(number, process, open(ours, "rb", buffering=0), printed)


def _listen(ranks: Sequence[_Rank], report: Report, stop: Callable[[], bool]) -> str:
    """Hand on the news until all have ended; how the run has: "done" or "stopped"."""
    told_to_stop, last, deadline = False, "", float("inf")
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            selector.register(rank.news, selectors.EVENT_READ, rank)
        while True:
            ended = [rank.process.poll() is not None for rank in ranks]  # before reading: nothing comes after
            for rank in ranks:
                for message in rank.read():
                    if message["kind"] == "epoch":
                        report(message["done"], message["epochs"], message["measured"])
                    elif "text" not in message:
                        last, deadline = message["kind"], time.monotonic() + FAREWELL_SECONDS
            if any(rank.has_failed for rank in ranks):
                raise _cause(ranks)
            if all(ended) or time.monotonic() > deadline:
                return last
            if stop() and not told_to_stop:
                told_to_stop = True
                ranks[0].stop()
            for key, _ in selector.select(timeout=0.1):
                if key.data.process.poll() is not None:  # the end of its pipe would be news for ever
                    selector.unregister(key.fileobj)


def _cause(ranks: Sequence[_Rank]) -> Exception:
    """What made the run fail: a process that was killed, else the first that told of an error."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline and any(rank.process.poll() is None for rank in ranks):
        time.sleep(0.02)
    for rank in ranks:
        rank.read()
    told = [message for rank in ranks for message in rank.messages if "text" in message]
    dead = [rank for rank in ranks if rank.process.poll() and not any("text" in message for message in rank.messages)]
    dead.sort(key=lambda rank: rank.process.returncode)  # signals, which are negative, first
    if dead and (dead[0].process.returncode < 0 or not told):
        return BenchError(_obituary(dead[0], len(ranks)))
    first = min(told, key=lambda message: message["time"])
    if first["kind"] == "disk":
        return StorageError(first["text"])
    if first["kind"] == "told":
        return BenchError(first["text"])
    return ProcessFailed(f"in process {first['rank']} of {len(ranks)}:\n{first['text'].rstrip()}")


def _obituary(rank: _Rank, count: int) -> str:
    code = rank.process.returncode
    cause = f"signal {-code} ({signal.Signals(-code).name}); was memory short?" if code < 0 else f"exit status {code}"
    rank.printed.seek(0)
    words = rank.printed.read().decode(errors="replace").strip()[-LAST_WORDS:]
    return f"process {rank.number} of the {count} of this run died by {cause}" + (f"\n{words}" if words else "")


def main(arguments: list[str]) -> int:
    """`python -m bench.distributed`: one of the processes of a run, or all of them; the status to exit with."""
    parser = argparse.ArgumentParser(prog="python -m bench.distributed", description="One run over several processes.")
    parser.add_argument("spec", type=Path, help="the run's spec.json")
    parser.add_argument("folder", type=Path, help="the run's folder, named by its run_id")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    parser.add_argument("--device", help="default: a GPU for each process, if there are any")
    parser.add_argument("--threads", type=int, help="torch's threads; default: the cores, shared out")
    parser.add_argument("--watched", type=int, help=argparse.SUPPRESS)  # a pipe: we are one that `_start` started
    options = parser.parse_args(arguments)
    try:
        spec, place = RunSpec.model_validate_json(options.spec.read_text()), place_of(os.environ)
        if place is None:
            _all_of_them(spec, options)
            return 0
    except (BenchError, ProcessFailed) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return be_one(
        spec,
        options.folder,
        place,
        device=options.device,
        threads=options.threads,
        checkpoint_minutes=options.checkpoint_minutes,
        watched=options.watched,
    )


def _all_of_them(spec: RunSpec, options: argparse.Namespace) -> None:
    count = spec.train.processes
    gpus = torch.cuda.device_count() if options.device is None else 0
    devices = [torch.device(f"cuda:{n}" if gpus >= count else options.device or "cpu") for n in range(count)]
    if options.threads:
        torch.set_num_threads(options.threads * count)
    folder = RunFolder(options.folder)
    with folder.claim():
        run_distributed(
            spec,
            folder,
            devices,
            lambda done, epochs, measured: print(f"epoch {done} of {epochs}: {measured}", flush=True),
            options.checkpoint_minutes,
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
