"""Launcher of one run over several processes, on one machine or several: it starts, monitors and ends them.

    run_distributed(...)                           what the worker of a launch calls
    python -m bench.distributed SPEC.json FOLDER   the same by hand; started by srun or torchrun it is one of them

A process that we start gets and sends messages through `bench/distributed/messages.py`, and ends when we do. Its output
is kept for the case that it dies without sending an error. On the other nodes of a SLURM job the processes are started
for us by `bench.launch.slurm.node_helper`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from bench.core import allocator, data_folder, run_options
from bench.core.errors import BenchError, counted
from bench.core.run_options import DEFAULTS, RunOptions
from bench.core.spec import RunSpec
from bench.distributed import rendezvous
from bench.distributed.messages import MessageServer
from bench.distributed.process import place_of, read_spec, run_rank
from bench.distributed.rendezvous import LOOPBACK
from bench.store.run_folder import RunFolder, StorageError, read_json, to_json, write_atomic
from bench.train import Report, Stopped, StopSign

SETTLE_SECONDS = 1.0
"""Wait for reports of other processes after a first failure: the first report is not always the cause."""

AWAY_SECONDS = 5.0
"""The same for processes of other nodes, whose death is reported by the helper of their node."""

FAREWELL_SECONDS = 60.0
"""Time for processes to end after the first one has reported the end of the run."""

LAST_WORDS = 2_000
"""Characters of a process's output that are shown if it died without reporting an error."""


STUCK_MINUTES = 30.0
"""Minutes in which no process has moved at all, after which a run is given up: they wait for each other, or for one
that is frozen."""


class ProcessFailed(Exception):
    """An unexpected error in one of the processes; the text is its traceback."""


@dataclass(frozen=True)
class Team:
    """The nodes of a job that do each of its runs together, seen from the first of them.

    Attributes:
        nodes: how many, this one included; every one has as many processes of a run as every other.
        address: where the others reach this one.
        calls: the file in which they find what is to do.
    """

    nodes: int
    address: str
    calls: Path


@dataclass(frozen=True)
class Call:
    """The settings that a launcher of a run's processes needs.

    Attributes:
        number: unique per call; "" if there is no call.
        address, port: where the starter's store is.
        folder: of the run.
        here: processes on each node.
        over: the job has no more runs; the other fields mean nothing then.
        secret: of the run; the file of calls is its user's alone to read.
        rendezvous: a private folder in which the processes of one machine meet; "" where there are several.
    """

    # All fields have defaults, so that {"over": true} alone is a call, and a file that is missing an empty one.
    number: str = ""
    address: str = ""
    port: int = 0
    folder: str = ""
    here: int = 0
    nodes: int = 0
    threads: int = 1
    options: RunOptions = DEFAULTS
    over: bool = False
    secret: str = ""
    rendezvous: str = ""

    @classmethod
    def read(cls, path: Path) -> Call:
        """Return the call in a file, or an empty one if there is no file."""
        content = read_json(path, missing={})
        return cls(**{**content, "options": run_options.from_json(content.get("options", {}))})


@dataclass
class Rank:
    """One of the processes that we have started."""

    number: int
    process: subprocess.Popen[bytes]
    printed: IO[bytes]

    def death(self) -> dict[str, Any] | None:
        """Return the report of a process that ended with an error; None if it is alive or ended well."""
        # poll() returns None while the process lives, and 0 after a good end: neither is a death.
        if not (code := self.process.poll()):
            return None
        # The process wrote through the same open file, so the position is at the end of its output.
        self.printed.seek(0)
        words = self.printed.read().decode(errors="replace").strip()[-LAST_WORDS:]
        return {"kind": "died", "rank": self.number, "code": code, "words": words}

    def end(self) -> None:
        # Does nothing to a process that has ended. None may outlive the worker that holds the run's claim.
        self.process.kill()
        self.process.wait()
        self.printed.close()


def run_distributed(
    spec: RunSpec,
    folder: RunFolder,
    devices: Sequence[torch.device],
    report: Report = lambda done, epochs, measured: None,
    options: RunOptions = DEFAULTS,
    stop: Callable[[], bool] = lambda: False,
    team: Team | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> dict[str, Any]:
    """Do one run, or what is left of it, in a process for each device. Arguments and errors are those of `train`.

    Args:
        folder: where the run lives; claimed by the caller, who holds it for all of them.
        devices: one for each process of this machine; the threads of this process are shared out among them.
        team: other machines have as many processes each.

    Raises:
        ProcessFailed: a process met an unexpected error.
        BenchError: a process has died, by a signal or in silence, or all are stuck.
    """
    nodes = team.nodes if team else 1
    if len(devices) * nodes != spec.train.processes:
        there = counted(len(devices), "device") if nodes == 1 else f"{nodes} nodes of {counted(len(devices), 'device')}"
        raise BenchError(f"train.processes = {spec.train.processes}, but {there} are available for this run")
    # The processes read the spec from this file; `start` names it on their command line.
    write_atomic(folder.path / "spec.json", spec.model_dump_json(indent=1) + "\n")
    # The store must listen before any process starts: each of them connects to it first.
    news = MessageServer(spec.train.processes, nodes, team.address if team else LOOPBACK)
    with tempfile.TemporaryDirectory(prefix="bench-") as private:
        call = Call(
            # A new number for every run: a node helper answers each number once.
            number=uuid.uuid4().hex,
            address=news.address,
            port=news.port,
            folder=str(folder.path.resolve()),
            here=len(devices),
            nodes=nodes,
            threads=max(1, torch.get_num_threads() // len(devices)),
            options=options,
            secret=news.secret,
            # A folder serves the processes of one machine; those of several meet in the TCP store.
            rendezvous=private if nodes == 1 else "",
        )
        if team:
            # The helpers on the other nodes poll this file. It holds the secret, so it is readable by this user alone.
            write_atomic(team.calls, to_json(asdict(call)), private=True)
        ranks: list[Rank] = []
        try:
            # The first node has the ranks from 0 on, so that the rank is the local rank there.
            # Appended one by one, so that `finally` ends those that have started if a later one cannot start.
            for device in devices:
                ranks.append(start(call, len(ranks), len(ranks), str(device)))
            last = _listen(news, ranks, report, stop, say)
        finally:
            for rank in ranks:
                rank.end()
    if last == "stopped":
        raise Stopped
    result = folder.result()
    if result is None:
        raise BenchError("all processes of this run ended well, but left no result")
    return result


def start(call: Call, number: int, local: int, device: str) -> Rank:
    """Start one of a run's processes on this machine.

    Args:
        number: its number among all of them.
        local: its number among those of this machine.
    """
    place = {
        "RANK": str(number),
        "WORLD_SIZE": str(call.here * call.nodes),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(call.here),
        "MASTER_ADDR": call.address,
        "MASTER_PORT": str(call.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is the starter's, not the first process's
        rendezvous.SECRET: call.secret,  # in the environment, which other users cannot read, unlike the command line
        rendezvous.FOLDER: call.rendezvous,
    }
    # --watched: the process sends its messages through the store and ends with us.
    command = [sys.executable, "-m", "bench.distributed", f"{call.folder}/spec.json", call.folder, "--watched"]
    command += ["--device", device, "--threads", str(call.threads)]
    command += ["--checkpoint-minutes", str(call.options.checkpoint_minutes)]
    command += ["--keep-weights"] * call.options.keep_weights
    # A file, not a pipe: nobody reads it while the process runs, and a full pipe would block the process.
    printed = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
    # SIGTERM stays blocked until the process has a handler that stops it; before that, SIGTERM would kill it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            # `place` comes last: srun or torchrun may have given this process a rank of its own.
            env=os.environ | allocator.variables(os.environ) | data_folder.variables() | place,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Rank(number, process, printed)


def _listen(
    news: MessageServer,
    ranks: Sequence[Rank],
    report: Report,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> str:
    """Pass on messages until all processes have ended, and return how the run ended: "done" or "stopped"."""
    # away: other nodes of which some process may still be alive.
    told_to_stop, last, deadline, away = False, "", float("inf"), news.nodes - 1
    places, moved = news.places(), time.monotonic()
    while True:
        # Polled before the messages are read: what a process sent before its end is then read below, and not missed.
        ended = [rank.process.poll() is not None for rank in ranks]
        for message in news.read():
            if message["kind"] == "epoch":
                report(message["done"], message["epochs"], message["measured"])
            elif message["kind"] == "said":
                say(message["words"])
            elif message["kind"] in ("done", "stopped"):
                # Only rank 0 sends this. The others end right after it, unless one of them hangs.
                last, deadline = message["kind"], time.monotonic() + FAREWELL_SECONDS
            # From the helper of another node. If we did not wait, its processes would be killed while they end.
            elif message["kind"] == "left":
                away -= 1
        # A killed process sends no message, so the exit statuses count too.
        if any(map(_is_bad, news.messages)) or any(rank.process.poll() for rank in ranks):
            raise _cause(news, ranks)
        if (all(ended) and not away) or time.monotonic() > deadline:
            return last
        # Asked once: the processes agree by themselves on the step after which they stop.
        if stop() and not told_to_stop:
            told_to_stop = True
            news.ask_to_stop()
        # One that moves is enough: the others may rightly wait for it, e.g. while rank 0 evaluates.
        if (now := news.places()) != places:
            places, moved = now, time.monotonic()
        if time.monotonic() - moved > 60 * STUCK_MINUTES:
            raise BenchError(_standstill(places, news.processes))
        time.sleep(0.05)


def _is_bad(message: dict[str, Any]) -> bool:
    # Only errors have a "text"; "died" is how a node helper reports a process that sent no error.
    return "text" in message or message["kind"] == "died"


def _standstill(places: dict[int, str], processes: int) -> str:
    # A place begins with a counter (see `MessageClient._follow`), which is not shown.
    where = [f"process {rank} is at {place.partition(' ')[2]}" for rank, place in sorted(places.items())]
    silent = [f"process {rank} never reported" for rank in range(processes) if rank not in places]
    return f"no process of this run has moved for {STUCK_MINUTES:g} minutes; {', '.join(where + silent)}"


def _cause(news: MessageServer, ranks: Sequence[Rank]) -> Exception:
    """Return the cause of the run's failure: a process that was killed, else the first reported error."""
    # 1. Wait: if one process dies, the others report a broken connection, often before its death is seen.
    deadline, last = time.monotonic() + SETTLE_SECONDS, time.monotonic() + AWAY_SECONDS
    while time.monotonic() < deadline and any((code := rank.process.poll()) is None or code < 0 for rank in ranks):
        time.sleep(0.02)  # alive; or killed, as we are about to be ourselves if it was the whole job
    news.read()
    while time.monotonic() < last and _away_and_silent(news, ranks):
        time.sleep(0.02)
        news.read()
    # 2. Collect what was reported. A process that sent an error also exits with status 1: that is no second failure.
    told = [message for message in news.messages if "text" in message]
    dead = [message for message in news.messages if message["kind"] == "died"]
    dead += [death for rank in ranks if (death := rank.death())]
    dead = [death for death in dead if death["rank"] not in {message["rank"] for message in told}]
    dead.sort(key=lambda death: death["code"])  # signals, which are negative, first
    # 3. A death by a signal explains the errors of the others. An exit status does so only if there are no errors.
    if dead and (dead[0]["code"] < 0 or not told):
        return BenchError(_obituary(dead[0], news.processes))
    # By the time of the error: messages are read rank by rank, not in the order in which they were sent.
    first = min(told, key=lambda message: message["time"])
    # A StorageError ends the launch, and the run does not count as failed.
    if first["kind"] == "disk":
        return StorageError(first["text"])
    if first["kind"] == "told":
        return BenchError(first["text"])
    return ProcessFailed(f"in process {first['rank']} of {news.processes}:\n{first['text'].rstrip()}")


def _away_and_silent(news: MessageServer, ranks: Sequence[Rank]) -> set[int]:
    """Return the processes on other nodes that have reported no error and have not been reported dead."""
    away = set(range(news.processes)) - {rank.number for rank in ranks} if news.nodes > 1 else set()
    return away - {message["rank"] for message in news.messages if _is_bad(message)}


def _obituary(death: dict[str, Any], count: int) -> str:
    code, words = death["code"], death["words"]
    end = f"ended with exit status {code}"
    # Popen gives a death by signal N as -N.
    if code < 0:
        end = f"was killed by signal {-code} ({signal.Signals(-code).name}), possibly out of memory"
    return f"process {death['rank']} of the {count} of this run {end}" + (f"\n{words}" if words else "")


def main(arguments: list[str]) -> int:
    """Run `python -m bench.distributed`, one process or all processes of a run, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.distributed", description="One run over several processes.")
    parser.add_argument("spec", type=Path, help="the run's spec.json")
    parser.add_argument("folder", type=Path, help="the run's folder, named by its run_id")
    parser.add_argument("--checkpoint-minutes", type=float, default=DEFAULTS.checkpoint_minutes)
    parser.add_argument("--keep-weights", action="store_true", help="leave the final weights in the folder")
    parser.add_argument("--device", help="default: a GPU for each process, if there are any")
    parser.add_argument("--threads", type=int, help="torch's threads; default: the cores, shared out")
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)  # we are one that `start` started
    options = parser.parse_args(arguments)
    try:
        spec, place, given = read_spec(options.spec), place_of(os.environ), _run_options(options)
        # Neither srun nor torchrun has started us, so we start all processes of the run.
        if place is None:
            _all_of_them(spec, options, given)
            return 0
    except Stopped:
        print("Stopped. Run the same command again to continue.", file=sys.stderr)
        # 128 + SIGINT, the status that shells give to a command that Ctrl-C ended.
        return 130
    except (BenchError, ProcessFailed) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return run_rank(
        spec,
        options.folder,
        place,
        device=options.device,
        threads=options.threads,
        options=given,
        watched=options.watched,
    )


def _run_options(given: argparse.Namespace) -> RunOptions:
    return RunOptions(checkpoint_minutes=given.checkpoint_minutes, keep_weights=given.keep_weights)


def _all_of_them(spec: RunSpec, options: argparse.Namespace, given: RunOptions) -> None:
    count = spec.train.processes
    gpus = torch.cuda.device_count() if options.device is None else 0
    # One GPU per process or none at all: NCCL refuses two processes on one GPU.
    devices = [torch.device(f"cuda:{n}" if gpus >= count else options.device or "cpu") for n in range(count)]
    if options.threads:
        # --threads is per process; `run_distributed` divides the threads of this process by their number.
        torch.set_num_threads(options.threads * count)
    folder, stop_sign = RunFolder(options.folder), StopSign()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_sign.put_up)
    with folder.claim():
        run_distributed(
            spec,
            folder,
            devices,
            lambda done, epochs, measured: print(f"epoch {done} of {epochs}: {measured}", flush=True),
            given,
            lambda: stop_sign.is_up,
        )
