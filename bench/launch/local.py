"""Workers on this machine: a queue of runs over its GPUs, or over its cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess

from bench.launch.display import Display
from bench.launch.estimate import samples
from bench.launch.slots import Slot
from bench.launch.worker import Event, Job, Measure, work
from bench.numerics import allow_deterministic_kernels
from bench.spec import PlannedRun
from bench.store import Claimed, Store, reason_in

GRACE_SECONDS = 30.0
"""How long workers may take to reach the end of their step and save, once asked to stop."""


@dataclass
class Outcome:
    """What became of a launch.

    Attributes:
        failed: the runs that failed, with the last line of what went wrong.
        elsewhere: runs that another launch is doing.
        interrupted: stopped by Ctrl-C or by `--fail-fast` before the queue was empty.
        disk: the message, if the disk refused.
    """

    finished: int = 0
    failed: list[tuple[PlannedRun, str]] = field(default_factory=list)
    elsewhere: int = 0
    interrupted: bool = False
    disk: str | None = None

    def __add__(self, other: Outcome) -> Outcome:
        """Of two phases of a launch, one after the other."""
        return Outcome(
            self.finished + other.finished,
            self.failed + other.failed,
            self.elsewhere + other.elsewhere,
            self.interrupted or other.interrupted,
            self.disk or other.disk,
        )


@dataclass
class _Worker:
    slot: Slot
    process: ForkServerProcess
    connection: Connection
    run: PlannedRun | None = None
    alone: bool = False
    """Its run must have the device for itself."""


def run_local(
    runs: Sequence[PlannedRun],
    store: Store,
    display: Display,
    *,
    shares: Sequence[Slot],
    fail_fast: bool = False,
    checkpoint_minutes: float = 5.0,
    only_estimate: bool = False,
    grace_seconds: float = GRACE_SECONDS,
) -> Outcome:
    """Do all the runs, several at once; a failed one is recorded and the others go on.

    Args:
        runs: what is to do, in the order of doing.
        shares: the machine in the shares that runs get, from `slots`.
        fail_fast: end the launch at the first failure.
        checkpoint_minutes: time between two checkpoints of a run.
        only_estimate: measure and say how long they would take, and do none of them.
        grace_seconds: how long workers may take to save, once asked to stop.
    """
    if any(run.spec.train.deterministic for run in runs):
        allow_deterministic_kernels()
    pool = _Pool(runs, store, display, fail_fast, checkpoint_minutes)
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` stops us as Ctrl-C does
    try:
        pool.start(shares[: len(runs)])
        pool.measure()
        if not only_estimate:
            pool.work_off()
    except KeyboardInterrupt:
        pool.outcome.interrupted = True
        display.say("Stopping: runs save where they are. Ctrl-C again stops them at once.")
        pool.drain(grace_seconds)
    finally:
        pool.close()
        signal.signal(signal.SIGTERM, terminate)
    return pool.outcome


class _Pool:
    def __init__(
        self,
        runs: Sequence[PlannedRun],
        store: Store,
        display: Display,
        fail_fast: bool,
        checkpoint_minutes: float,
    ) -> None:
        self.queue = deque(runs)
        self.store = store
        self.display = display
        self.fail_fast = fail_fast
        self.checkpoint_minutes = checkpoint_minutes
        self.outcome = Outcome()
        self.deaths: dict[str, int] = {}
        self.lonely: defaultdict[str, deque[PlannedRun]] = defaultdict(deque)
        """By device: runs that memory was short for, to be done once more with nothing else there."""
        self.draining = False
        self.workers: list[_Worker] = []
        # A fork server imports torch once for all workers; without threads or a CUDA context it is safe to fork.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["bench.launch.worker"])

    def start(self, shares: Sequence[Slot]) -> None:
        self.workers = [self._hire(slot) for slot in shares]

    def _hire(self, slot: Slot) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        process = self.context.Process(target=work, args=(theirs, slot, dict(os.environ)), daemon=True)
        process.start()
        theirs.close()
        return _Worker(slot, process, ours)

    def measure(self) -> None:
        """Say how long the queue will take: a few steps of every kind of run, on all workers at once, are timed."""
        speeds = {}
        for name, spec in samples(self.queue).items():
            events = self._ask_all(Measure(spec.model_dump_json()))
            found = [event.content for event in events if event.kind == "speed"]
            if not found:
                reason = events[0].content if events else "the worker died; was memory short?"
                self.display.say(f"No estimate of the time: {reason}")
                return
            speeds[name] = max(found, key=lambda speed: speed.a_pass)
        self.display.estimated(list(self.queue), speeds, len(self.workers))

    def _ask_all(self, question: Measure) -> list[Event]:
        """The answers of all workers; one that dies over it gives none, and is replaced."""
        for worker in self.workers:
            worker.connection.send(question)
        events = []
        for place, worker in enumerate(self.workers):
            try:
                events.append(worker.connection.recv())
            except (EOFError, ConnectionResetError):
                worker.process.join()
                self.workers[place] = self._hire(worker.slot)
        return events

    def work_off(self) -> None:
        """Hand out runs and listen, until the queue is empty and all is quiet."""
        while self.queue or any(self.lonely.values()) or any(worker.run for worker in self.workers):
            self._hand_out()
            self._listen(timeout=1.0)
            if self._ended_early():
                self.drain()
                return

    def _ended_early(self) -> bool:
        if self.outcome.disk is None and not (self.fail_fast and self.outcome.failed):
            return False
        waiting = bool(self.queue) or any(self.lonely.values())
        self.outcome.interrupted = waiting or any(worker.run for worker in self.workers)
        return True

    def _hand_out(self) -> None:
        for place in range(len(self.workers)):
            if self.workers[place].run is None and (run := self._next(self.workers[place].slot.device)):
                self._give(place, run)

    def _next(self, device: str) -> PlannedRun | None:
        """What a free worker of a device does now: nothing, while a run there is alone, or waits to be."""
        busy = [worker for worker in self.workers if worker.run and worker.slot.device == device]
        if self.lonely[device]:
            return None if busy else self.lonely[device][0]
        if any(worker.alone for worker in busy) or not self.queue:
            return None
        return self.queue.popleft()

    def _give(self, place: int, run: PlannedRun) -> None:
        device = self.workers[place].slot.device
        alone = bool(self.lonely[device])
        if alone:
            self.lonely[device].popleft()
            self._clear(device)
        worker = self.workers[place]
        worker.run, worker.alone = run, alone
        folder = self.store.run(run.spec.run_id).path
        self.display.started(run)
        try:
            worker.connection.send(Job(run.spec.model_dump_json(), folder, self.checkpoint_minutes, alone))
        except OSError:  # it died while it had nothing to do
            self._replace(worker)

    def _clear(self, device: str) -> None:
        """New processes for all of an idle device: the old ones may keep memory that they do not use."""
        old = [(place, worker) for place, worker in enumerate(self.workers) if worker.slot.device == device]
        for _, worker in old:
            _dismiss(worker)
        for place, worker in old:
            _see_off(worker)
            self.workers[place] = self._hire(worker.slot)

    def _listen(self, timeout: float) -> None:
        busy = {worker.connection: worker for worker in self.workers if worker.run}
        for connection in wait(list(busy), timeout):
            worker = busy[connection]  # type: ignore[index]
            try:
                event: Event = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                self._replace(worker)
            else:
                self._take(worker, event)

    def _take(self, worker: _Worker, event: Event) -> None:
        run = worker.run
        assert run is not None
        if event.kind == "epoch":
            self.display.progressed(run, event.epochs_done, event.epochs, event.content)
            return
        worker.run, worker.alone = None, False
        if event.kind == "done":
            self.outcome.finished += 1
            self.display.finished(run, event.content)
        elif event.kind == "failed":
            self._failed(run, event.content)
        elif event.kind == "memory":
            self._short_of_memory(worker.slot.device, run, event.content)
        elif event.kind == "claimed":
            self.outcome.elsewhere += 1
            self.display.dropped(run)
        elif event.kind == "disk":
            self.outcome.disk = self.outcome.disk or event.content  # the first tells most
            self.display.dropped(run)
        elif event.kind == "stopped":  # by us, or by whoever told its worker to end
            self.outcome.interrupted = True
            self.display.dropped(run)

    def _failed(self, run: PlannedRun, text: str) -> None:
        reason = reason_in(text)
        self.outcome.failed.append((run, reason))
        self.display.failed(run, reason)

    def _short_of_memory(self, device: str, run: PlannedRun, reason: str) -> None:
        """One more try, when nothing else of this launch is on the device. It fails if that is not enough."""
        self.display.dropped(run)
        if self.draining:
            return
        place = "its GPU" if device.startswith("cuda") else "this machine"
        self.display.say(f"{run.name}: {reason}; once more, alone on {place}")
        self.lonely[device].append(run)

    def _replace(self, worker: _Worker) -> None:
        """A worker died under its run: one more try from the checkpoint, on a new worker; then the run has failed."""
        run = worker.run
        assert run is not None
        worker.process.join()
        if self.draining:  # asked to stop before it could listen
            worker.run = None
            self.display.dropped(run)
            return
        code = worker.process.exitcode or 0
        cause = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"
        self.workers[self.workers.index(worker)] = self._hire(worker.slot)
        self.deaths[run.spec.run_id] = deaths = self.deaths.get(run.spec.run_id, 0) + 1
        if deaths == 1:
            self.display.say(f"{run.name}: worker died ({cause}); once more")
            (self.lonely[worker.slot.device] if worker.alone else self.queue).appendleft(run)
            return
        text = f"the worker process died twice under this run, last by {cause}; was memory short?"
        folder = self.store.run(run.spec.run_id)
        try:
            with folder.claim():
                folder.write_error(text + "\n")
        except Claimed:  # taken over by another launch meanwhile
            self.outcome.elsewhere += 1
            self.display.dropped(run)
            return
        self._failed(run, text)

    def drain(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Ask all workers to save and stop, and wait for them, but not for ever. A further Ctrl-C ends the wait."""
        self.draining = True
        self.queue.clear()
        self.lonely.clear()
        for worker in self.workers:
            if worker.run and worker.process.is_alive():
                worker.process.terminate()  # SIGTERM: stop after this step
        deadline = time.monotonic() + grace_seconds
        try:
            while any(worker.run for worker in self.workers) and time.monotonic() < deadline:
                self._listen(timeout=0.2)
        except KeyboardInterrupt:
            pass

    def close(self) -> None:
        for worker in self.workers:
            _dismiss(worker)
        for worker in self.workers:
            _see_off(worker)


def _dismiss(worker: _Worker) -> None:
    """Tell a worker that it is not needed any more; one that still has a run is not asked."""
    if worker.run is None:
        with suppress(OSError):
            worker.connection.send(None)
    else:
        worker.process.kill()
    worker.connection.close()


def _see_off(worker: _Worker) -> None:
    worker.process.join(timeout=5)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
