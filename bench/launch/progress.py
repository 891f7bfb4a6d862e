"""Progress of a launch: a live panel in a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.core.errors import counted
from bench.core.experiment import PlannedRun
from bench.core.meta import MetricMeta
from bench.launch.estimate import LONG, Speed, estimate

Follow = Callable[[PlannedRun, bool], None]


@dataclass
class _Running:
    run: PlannedRun
    done: int = 0
    epochs: int = 1
    score: float | None = None


class ProgressDisplay:
    """Progress of a launch: runs done, running with epoch and validation score, failed, and the time left.

    Args:
        runs: passes of each run of this launch, by run_id; the time left is reckoned from passes a second.
        metric: the task's metric (experiment.json), for showing scores.
        console: where to; live if it is a terminal.
        follow: called with a run that starts and False, and with a run that is over, for now or for good, and True.
    """

    def __init__(
        self, runs: Mapping[str, int], metric: MetricMeta, console: Console, follow: Follow = lambda run, over: None
    ) -> None:
        self.passes = runs
        self.follow = follow
        self.total = sum(runs.values())
        self.metric = metric
        self.console = console
        self.started_at = time.monotonic()
        self.running: dict[str, _Running] = {}
        self.passes_over = 0.0  # of runs that are over, whatever became of them
        self.passes_resumed = 0.0  # done in an earlier launch: no measure of today's speed
        self.over = 0
        self.failures = 0
        # transient: the panel goes at the end, and the lines of finished runs stay.
        self.live = Live(self, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.live.stop()

    def estimated(self, runs: Sequence[PlannedRun], speeds: Mapping[str, Speed], workers: int) -> None:
        """Show an estimate before anything starts, and restart the clock of the time left."""
        seconds, words = estimate(runs, self.passes, speeds, workers)
        self.console.print(Text(words, "bold yellow" if seconds > LONG else "bold"), soft_wrap=True)
        # The clock starts anew: the measurement was no progress with the runs.
        self.started_at = time.monotonic()

    # ---- what happens ----------------------------------------------------------------------------------------

    def started(self, run: PlannedRun) -> None:
        self.running[run.spec.run_id] = _Running(run, epochs=run.spec.train.epochs)
        self.follow(run, False)

    def progressed(self, run: PlannedRun, done: int, epochs: int, measured: Mapping[str, float]) -> None:
        state = self.running[run.spec.run_id]
        # A run whose first report is of a later epoch was resumed: the epochs before cost this launch nothing.
        if state.done == 0 and done > 1:
            self.passes_resumed += self.passes[run.spec.run_id] * (done - 1) / epochs
        state.done, state.epochs = done, epochs
        state.score = measured.get(f"val_{self.metric['key']}", state.score)

    def finished(self, run: PlannedRun, result: Mapping[str, Any]) -> None:
        self._end(run)
        if result["status"] == "diverged":
            what = Text(f"diverged in epoch {result['epochs_done']}", "yellow")
        else:
            # None after a refit, which trains on the validation examples.
            score = result["metrics"].get(f"val_{self.metric['key']}")
            what = Text("done" if score is None else f"{self.metric['name']} {self._score(score)} (validation)")
        seconds = result["setup_seconds"] + result["train_seconds"] + result["eval_seconds"]
        self._line(run, what.append(f", {seconds:.1f} s"))

    def failed(self, run: PlannedRun, reason: str) -> None:
        self._end(run)
        self.failures += 1
        self._line(run, Text(f"FAILED: {reason}", "bold red"))

    def dropped(self, run: PlannedRun) -> None:
        """Remove a run that was stopped or that another launch works on."""
        self.running.pop(run.spec.run_id, None)
        self.follow(run, True)

    def say(self, message: str) -> None:
        self.console.print(Text(message, "yellow"))

    def _end(self, run: PlannedRun) -> None:
        self.dropped(run)
        self.over += 1
        self.passes_over += self.passes[run.spec.run_id]

    # ---- how it looks ----------------------------------------------------------------------------------------

    def _line(self, run: PlannedRun, what: Text) -> None:
        count = f"[{self.over:>{len(str(len(self.passes)))}}/{len(self.passes)}]"
        left = "" if self.over == len(self.passes) else f" · {self._time_left()} left"
        self.console.print(Text(f"{count} {run.name}: ").append_text(what).append(left, "dim"), soft_wrap=True)

    def _score(self, value: float) -> str:
        return f"{value * self.metric['scale']:.1f} {self.metric['unit']}".rstrip()

    def _share(self) -> float:
        partly = sum(self.passes[run_id] * state.done / state.epochs for run_id, state in self.running.items())
        return (self.passes_over + partly) / max(1, self.total)

    def _time_left(self) -> str:
        done = self._share() * self.total
        fresh = done - self.passes_resumed
        if fresh <= 0:
            return "?"
        seconds = (self.total - done) / fresh * (time.monotonic() - self.started_at)
        hours, rest = divmod(round(seconds), 3600)
        return f"{hours} h {rest // 60:02} min" if hours else f"{rest // 60}:{rest % 60:02} min"

    # rich calls this to draw the panel, four times per second.
    def __rich__(self) -> RenderableType:
        head = Table.grid(padding=(0, 1))
        failures = Text(f"{self.failures} failed", "bold red") if self.failures else Text("")
        head.add_row(
            Text(f"{self.over}/{counted(len(self.passes), 'run')}", "bold"),
            ProgressBar(total=1.0, completed=self._share(), width=30),
            Text(f"{self._time_left()} left", "cyan"),
            failures,
        )
        body = Table.grid(padding=(0, 2))
        for state in self.running.values():
            score = "" if state.score is None else f"{self.metric['name']} {self._score(state.score)} (validation)"
            body.add_row(
                Text(f"  {state.run.name}"), Text(f"epoch {state.done}/{state.epochs}", "dim"), Text(score, "dim")
            )
        return Group(head, body)
