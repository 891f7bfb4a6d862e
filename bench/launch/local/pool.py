"""Workers on this machine: a queue of runs over its GPUs, or over its cores."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess

from bench.core import data_folder
from bench.core.experiment import PlannedRun
from bench.core.registry import optimizers, undeclared
from bench.core.run_options import DEFAULTS, RunOptions
from bench.launch import speeds
from bench.launch.estimate import Speed, configuration, samples
from bench.launch.local.server import start_fork_server
from bench.launch.local.signals import Interrupts
from bench.launch.local.slots import Slot, slow_precision
from bench.launch.local.worker import Event, MeasureSpeed, Rehearse, RunJob, work
from bench.launch.outcome import Outcome
from bench.launch.progress import ProgressDisplay
from bench.store.run_folder import RunLocked, Store, reason_in
from bench.training.passes import passes_per_step
from bench.training.precision import allow_deterministic_kernels

GRACE_SECONDS = 30.0
"""How long workers may take to reach the end of their step and save, once asked to stop."""


@dataclass
class _Worker:
    slot: Slot
    process: ForkServerProcess
    connection: Connection
    run: PlannedRun | None = None
    # Its run must have the device for itself.
    alone: bool = False


def run_local(
    runs: Sequence[PlannedRun],
    store: Store,
    display: ProgressDisplay,
    *,
    shares: Sequence[Slot],
    options: RunOptions = DEFAULTS,
    only_estimate: bool = False,
    grace_seconds: float = GRACE_SECONDS,
    meanwhile: Callable[[str | None], None] = lambda run_id: None,
) -> Outcome:
    """Do all runs, several at once; a failed run is recorded and the others continue.

    Args:
        runs: what is to do, in the order of doing.
        shares: the machine in the shares that runs get, from `slots`.
        options: whether the first failure ends the launch, and what each run is told.
        only_estimate: only measure, and try a step of each configuration; those that fail are the failed runs.
        grace_seconds: how long workers may take to save, once asked to stop.
        meanwhile: called with the id of every run that has finished, and with None about every second.
    """
    if any(run.spec.train.deterministic for run in runs):
        allow_deterministic_kernels()
    with Interrupts() as interrupts:

        def between(run_id: str | None) -> None:
            interrupts.check()
            meanwhile(run_id)

        pool = _Pool(runs, store, display, options, between)
        try:
            pool.start(shares[: len(runs)])
            pool.measure()
            pool.rehearse() if only_estimate else pool.work_off()
        except KeyboardInterrupt:
            interrupts.heard()
            pool.outcome.interrupted = True
            display.say("Stopping: runs save where they are. Ctrl-C again stops them at once.")
            pool.drain(grace_seconds)
        finally:
            # From here on signals are ignored, so that no worker is left behind.
            interrupts.close()
            pool.close()
    return pool.outcome


def speeds_here(
    runs: Sequence[PlannedRun], store: Store, display: ProgressDisplay, shares: Sequence[Slot]
) -> tuple[dict[str, Speed], str]:
    """Return the measured cost of each kind of run on this machine, and why a cost is missing ("" if none is)."""
    pool = _Pool(runs, store, display)
    try:
        pool.start(shares[: len(runs)])
        return pool.speeds()
    finally:
        pool.close()


class _Pool:
    def __init__(
        self,
        runs: Sequence[PlannedRun],
        store: Store,
        display: ProgressDisplay,
        options: RunOptions = DEFAULTS,
        meanwhile: Callable[[str | None], None] = lambda run_id: None,
    ) -> None:
        self.queue = deque(runs)
        self.meanwhile = meanwhile
        self.store = store
        self.display = display
        self.options = options
        self.outcome = Outcome()
        self.deaths: dict[str, int] = {}
        # By device: runs that ran out of memory, to be retried once with the device to themselves.
        self.lonely: defaultdict[str, deque[PlannedRun]] = defaultdict(deque)
        self.draining = False
        self.rehearsing = False
        # Whether a rehearsal needed data that are not downloaded.
        self.absent = False
        # Configurations that a speed measurement has already tried on every worker.
        self.tried: set[str] = set()
        self.workers: list[_Worker] = []
        self.context = multiprocessing.get_context("forkserver")
        start_fork_server()

    def start(self, shares: Sequence[Slot]) -> None:
        for slot in shares:  # one by one, so that those that are there are seen off if this is interrupted
            self.workers.append(self._hire(slot))

    def _hire(self, slot: Slot) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        process = self.context.Process(
            target=work, args=(theirs, slot, {**os.environ, **data_folder.variables()}), daemon=True
        )
        process.start()
        # While a copy of the worker's end is open here, `recv` does not notice that the worker has died.
        theirs.close()
        return _Worker(slot, process, ours)

    def measure(self) -> None:
        """Print how long the queue will take, after timing a few steps of each kind of run on all workers at once."""
        if words := slow_precision([run.spec for run in self.queue], [worker.slot for worker in self.workers]):
            self.display.say(words)
        measured, reason = self.speeds()
        if reason:
            self.display.say(f"No estimate of the time: {reason}")
        else:
            self.display.estimated(list(self.queue), measured, len(self.workers))

    def speeds(self) -> tuple[dict[str, Speed], str]:
        """Return the measured cost of each kind of queued run, and why a cost is missing ("" if none is)."""
        kinds, reason = samples(self.queue), ""
        shares = [worker.slot for worker in self.workers]
        keys = {name: speeds.key(spec, shares) for name, spec in kinds.items()}
        # What an earlier launch measured on this machine is not measured again.
        known = speeds.recalled(keys)
        measured: dict[str, Speed] = {}
        for name, spec in kinds.items():
            if name in known:
                continue
            events = self._ask_all(MeasureSpeed(spec.model_dump_json()))
            answers = [event.content for event in events if event.kind == "speed"]
            if not answers:
                reason = events[0].content if events else "the worker died, possibly out of memory"
                continue
            if len(answers) == len(self.workers):  # a rehearsal would only repeat what every worker has done
                self.tried.add(configuration(spec))
            measured[name] = max(answers, key=lambda speed: speed.a_pass)
        speeds.remember({keys[name]: speed for name, speed in measured.items()})
        return known | measured, reason

    def _ask_all(self, question: MeasureSpeed) -> list[Event]:
        """Return the answers of all workers; a worker that dies while measuring gives none and is replaced."""
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

    def rehearse(self) -> None:
        """Build every configuration and take one step with it, to find failures before any run starts."""
        of_seeds = {configuration(run.spec): run for run in reversed(self.queue)}
        self.queue = deque(run for name, run in reversed(of_seeds.items()) if name not in self.tried)
        self.rehearsing = True
        self.work_off()
        if not (self.outcome.interrupted or self.outcome.failed or self.absent):
            self.display.say(f"Took one step of {len(of_seeds)} configurations: all of them can run.")

    def work_off(self) -> None:
        """Hand out runs and receive messages until the queue is empty and no worker has a run."""
        while self.queue or any(self.lonely.values()) or any(worker.run for worker in self.workers):
            self._hand_out()
            self._listen(timeout=1.0)
            self.meanwhile(None)
            if self._ended_early():
                self.drain()
                return

    def _ended_early(self) -> bool:
        if self.outcome.disk is None and not (self.options.fail_fast and self.outcome.failed):
            return False
        waiting = bool(self.queue) or any(self.lonely.values())
        self.outcome.interrupted = waiting or any(worker.run for worker in self.workers)
        return True

    def _hand_out(self) -> None:
        for place in range(len(self.workers)):
            if self.workers[place].run is None and (run := self._next(self.workers[place].slot.device)):
                self._give(place, run)

    def _next(self, device: str) -> PlannedRun | None:
        """Return the next run for a free worker of a device; None while a run has, or awaits, the device alone."""
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
        spec, folder = run.spec.model_dump_json(), self.store.run(run.spec.run_id).path
        self.display.started(run)
        job = Rehearse(spec, alone) if self.rehearsing else RunJob(spec, folder, self.options, alone)
        try:
            worker.connection.send(job)
        except OSError:  # it died while it had nothing to do
            self._replace(worker)

    def _clear(self, device: str) -> None:
        """Replace all processes of an idle device: the old ones may keep memory that they do not use."""
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
        if event.kind == "said":
            self.display.say(f"{run.name}: {event.content}")
            return
        # All other kinds end the job: the worker is free.
        worker.run, worker.alone = None, False
        if event.kind == "done":
            self.outcome.finished += 1
            self.display.finished(run, event.content)
            self.meanwhile(run.spec.run_id)
        elif event.kind == "rehearsed":
            self._compare_passes(run, event.content)
        elif event.kind == "absent":
            self._absent(run, event.content)
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

    def _compare_passes(self, run: PlannedRun, passes: float) -> None:
        """Print a warning if an optimizer's passes per step could not be counted when the runs were planned."""
        self.display.dropped(run)
        name, planned = run.spec.optimizer.name, passes_per_step(run.spec.optimizer)
        if optimizers[name].passes is undeclared and planned == 1 and not math.isclose(passes, planned, abs_tol=1e-6):
            self.display.say(
                f"{run.name}: its first step took {passes:g} passes, but 1 was planned; declare how many "
                f'{name} takes: register_optimizer("{name}", passes=lambda params: {passes:g})'
            )

    def _absent(self, run: PlannedRun, reason: str) -> None:
        """End a rehearsal because its data are not downloaded yet: no step can be tried, which is no failure."""
        self.display.dropped(run)
        self.queue.clear()
        if not self.absent:
            self.display.say(f"No step was taken: {reason}")
        self.absent = True

    def _failed(self, run: PlannedRun, text: str) -> None:
        reason = reason_in(text)
        self.outcome.failed.append((run, reason))
        self.display.failed(run, reason)

    def _short_of_memory(self, device: str, run: PlannedRun, reason: str) -> None:
        """Queue one retry of a run that ran out of memory, with the device to itself; a second shortage fails it."""
        self.display.dropped(run)
        if self.draining:
            return
        place = "its GPU" if device.startswith("cuda") else "this machine"
        self.display.say(f"{run.name}: {reason}; retrying once, alone on {place}")
        self.lonely[device].append(run)

    def _replace(self, worker: _Worker) -> None:
        """Replace a worker that died under its run, which is retried once from its checkpoint, then has failed."""
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
            self.display.say(f"{run.name}: worker died ({cause}); retrying once")
            (self.lonely[worker.slot.device] if worker.alone else self.queue).appendleft(run)
            return
        if self.rehearsing:
            self._failed(run, f"the worker process died twice in its first step ({cause}), possibly out of memory")
            return
        text = f"the worker process died twice during this run ({cause}), possibly out of memory"
        folder = self.store.run(run.spec.run_id)
        try:
            with folder.claim():
                folder.write_error(text + "\n")
        except RunLocked:  # taken over by another launch meanwhile
            self.outcome.elsewhere += 1
            self.display.dropped(run)
            return
        self._failed(run, text)

    def drain(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Ask all workers to save and stop, and wait for them for a limited time; another Ctrl-C ends the wait."""
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
    """Tell an idle worker to end, and kill a worker that still has a run."""
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
