"""The follower: a thread beside a launch that reads what runs write anyway, and hands what is new to sinks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

from bench.core.errors import BenchError
from bench.core.experiment import PlannedRun
from bench.core.meta import Meta
from bench.sinks.run import ENDED, LoggedRun, from_folder, from_records
from bench.sinks.sink import COMPLETE, Sink, opened, reason
from bench.store.run_folder import FINISHED, Store

if TYPE_CHECKING:
    from rich.console import Console

    from bench.store.records import Results

SECONDS = 2.0
"""Interval between two looks at the runs that go on."""

PATIENCE = 120.0
"""Seconds without progress after which the end of a launch no longer waits for a sink."""

MADE = ("*.csv", "*.json", "*.html", "tables/*", "figures/*.*")


class Feeder:
    """Hands points and ends of runs to sinks, each once.

    Args:
        failed: told of a sink that has raised, and of its error; the sink gets nothing more.
    """

    def __init__(self, sinks: Sequence[Sink], failed: Callable[[Sink, Exception], None]) -> None:
        self.sinks, self.failed = [*sinks], failed
        self.reached: dict[tuple[Sink, str], float] = {}

    def send(self, run: LoggedRun, *, over: bool) -> None:
        """Hand a run to every sink; `over`: nothing more of it is to come in this launch."""
        self._each(lambda sink: self._send(sink, run, over))

    def send_results(self, results: Results, folder: Path, sent: Callable[[], None] = lambda: None) -> None:
        """Hand all runs that have ended to every sink, then what was made of them; `sent` is called after each."""
        for run in from_records(results):
            if run.status in ENDED:
                self.send(run, over=True)
                sent()
        files = {str(path.relative_to(folder)): path for made in MADE for path in sorted(folder.glob(made))}
        self._each(lambda sink: sink.add_files(results.meta["name"], files))

    def _each(self, work: Callable[[Sink], None]) -> None:
        for sink in [*self.sinks]:
            try:
                work(sink)
            # Whatever another package raises: the other sinks and the runs go on.
            except Exception as error:
                self.sinks.remove(sink)
                self.failed(sink, error)

    def _send(self, sink: Sink, run: LoggedRun, over: bool) -> None:
        key, ended = (sink, run.run_id), run.status in ENDED
        if key not in self.reached:
            if over and not ended:  # another launch has the run, or it was stopped before anything was seen of it
                return
            self.reached[key] = sink.begin(run)
        if self.reached[key] < COMPLETE:
            points = [point for point in run.curve if point["epoch"] > self.reached[key]]
            if points:
                sink.add(run, points)
                self.reached[key] = points[-1]["epoch"]
            if over:
                sink.end(run)
        if over:
            # Whatever is not complete may be begun once more.
            del self.reached[key]
            self.reached |= {key: COMPLETE} if run.status in FINISHED else {}


class Follower:
    """A context in which the runs of a launch are handed to sinks while they go on; without sinks it does nothing.

    Args:
        wanted: the sinks as `--log` names them, which are opened here.

    Raises:
        BenchError: see `opened`.
    """

    def __init__(self, wanted: Sequence[str], store: Store, meta: Meta, console: Console) -> None:
        self.store, self.meta, self.console = store, meta, console
        self.feeder = Feeder(opened(wanted, store.folder.parent), self._failed)
        self.told: SimpleQueue[tuple[PlannedRun, bool]] = SimpleQueue()
        self.going: dict[str, PlannedRun] = {}
        self.results: Results | None = None
        self.ending, self.beat = threading.Event(), 0.0
        # A daemon: a server that never answers must not keep the process alive.
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Follower:
        for sink in self.feeder.sinks:
            self.console.print(f"Logging to {sink.address}", highlight=False, markup=False, soft_wrap=True)
        if self.feeder.sinks:
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.ending.set()
        self._alive()
        while self.thread.is_alive() and time.monotonic() < self.beat + PATIENCE:
            self.thread.join(0.1)
        if self.thread.is_alive():
            self._warn(self.feeder.sinks[0].name, f"no answer for {PATIENCE:.0f} s")

    def follow(self, run: PlannedRun, over: bool) -> None:
        """Look at a run from now on or, if it is over, for the last time."""
        self.told.put((run, over))

    def finish(self, results: Results) -> None:
        """Let the results of the launch follow its runs, with all that was made of them."""
        self.results = results

    def _work(self) -> None:
        while not self.ending.wait(SECONDS):
            self._look(ending=False)
        self._look(ending=True)
        if self.results is not None:
            self.feeder.send_results(self.results, self.store.folder, self._alive)

    def _look(self, *, ending: bool) -> None:
        while not self.told.empty():
            run, over = self.told.get()
            self.going[run.spec.run_id] = run
            if over:
                self._send(self.going.pop(run.spec.run_id), over=True)
        for run in self.going.values():
            self._send(run, over=ending)

    def _send(self, run: PlannedRun, *, over: bool) -> None:
        try:
            logged = from_folder(self.store, self.meta, run)
        except BenchError:  # a damaged folder, which the launch itself will tell
            return
        self.feeder.send(logged, over=over)
        self._alive()

    def _alive(self) -> None:
        self.beat = time.monotonic()

    def _failed(self, sink: Sink, error: Exception) -> None:
        self._warn(sink.name, reason(error))

    def _warn(self, name: str, words: str) -> None:
        text = (
            f"Not logged to {name}: {words}. Runs go on; `bench sync {self.meta['name']} --to {name}` sends the rest."
        )
        self.console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
