"""`bench watch`: an experiment as it goes on, from any terminal that sees the folder of results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli import options
from bench.cli import status as cli_status
from bench.core import terminal
from bench.core.errors import counted

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from bench.core.meta import MetricMeta
    from bench.launch.overview import Observer, Overview, Running

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 16
"""Characters of a sparkline."""

LINES = 12
"""Runs in progress, and best configurations, that are shown at most: one screen has room for no more."""

FEW = 3
"""Failures and faults that are shown."""


@click.command()
@click.argument("experiment")
@options.which
@click.option("--seeds", type=options.COUNT, metavar="N", help="Number of seeds; with [tune], of final seeds.")
@click.option(
    "--every", type=options.SECONDS, default=2.0, show_default=True, metavar="SECONDS", help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Print one picture and end.")
@options.out
def watch(
    experiment: str,
    overrides: tuple[str, ...],
    results_name: str | None,
    seeds: int | None,
    every: float,
    once: bool,
    out: Path,
) -> None:
    """Watch the runs of an experiment: how far each is, its curve, the best so far, the time left.

    It reads the folder of results and changes nothing, so it works from any terminal, also on another machine that
    shares the folder. It ends with the last run, or with Ctrl-C, which stops no run. Where the output is no terminal,
    one picture is printed.
    """
    from bench.config.file import find

    path = find(experiment)  # a wrong name is told before torch is imported
    try:
        from bench.config.file import load
        from bench.launch.overview import Observer
        from bench.store.run_folder import Store

        resolved = load(path, overrides, seeds, results_name)
        observer = Observer(resolved, Store(out / resolved.name))
        console = terminal.console()
        if once or not console.is_terminal:
            console.print(picture(observer.look()))
        else:
            _follow(observer, console, every)
    except KeyboardInterrupt:
        # To leave is no failure: the runs go on.
        sys.exit(0)


def _follow(observer: Observer, console: Console, every: float) -> None:
    """Show the experiment until its last run has ended."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as shown:
        while True:
            overview = observer.look()
            shown.update(picture(overview), refresh=True)
            if overview.over:
                return
            time.sleep(every)


# ---- the picture -----------------------------------------------------------------------------------------------


def picture(overview: Overview) -> RenderableType:
    """Return everything that is shown of a moment."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [*_head(overview), *_told(overview)]
    parts += [Text(), _running(overview)] if overview.running else []
    parts += [Text(), _best(overview)] if overview.best else []
    # The longest part, which a terminal may have no room for, comes last.
    parts += [Text(), cli_status.counts(overview.plan, overview.statuses)]
    return Group(*parts)


def _head(overview: Overview) -> Iterator[RenderableType]:
    """Yield how far the whole experiment is: a line of counts, and a line of times."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from bench.launch.estimate import duration
    from bench.store.run_folder import FINISHED

    done = sum(status in FINISHED for status in overview.statuses.values())
    line = Table.grid(padding=(0, 2))
    line.add_row(
        Text(overview.plan.experiment.name, "bold"),
        Text(f"{done:,} of {counted(overview.runs, 'run')}"),
        ProgressBar(total=1.0, completed=overview.passes_done / max(1, overview.passes), width=20),
        Text(f"{round(overview.passes_done):,} of {counted(overview.passes, 'pass')}"),
    )
    yield line
    left = f"about {duration(overview.left)} left" if overview.left else "time left unknown"
    cost = f"{overview.seconds:,.0f} s spent on runs so far"
    yield Text(cost if overview.over else f"{cost}, {left}", "cyan")


def _best(overview: Overview) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    metric = overview.plan.experiment.metric
    table = Table("best so far, by validation", metric["name"], "runs", box=None)
    for best in overview.best[:LINES]:
        name = " ".join(filter(None, (best.condition, best.label, best.config)))
        table.add_row(Text(name), _score(best.value, metric), f"{best.done} of {best.planned}")
    if (more := len(overview.best) - LINES) > 0:
        table.add_row(Text(f"and {more} more", "dim"))
    return table


def _running(overview: Overview) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    metric = overview.plan.experiment.metric
    table = Table("running", "curve", "epoch", "now", "where", box=None)
    for one in overview.running[:LINES]:
        epochs = one.run.spec.train.epochs
        begun = one.now["epochs_done"] or one.now["epochs"]
        epoch = f"{one.now['epochs_done']} of {epochs}" if begun else "setting up"
        table.add_row(Text(one.run.name), Text(sparkline(one.curve), "cyan"), epoch, _now(one, metric), _where(one))
    if (more := len(overview.running) - LINES) > 0:
        table.add_row(Text(f"and {more} more", "dim"))
    return table


def _now(one: Running, metric: MetricMeta) -> str:
    """Return the last value of a run's curve in words."""
    if not one.curve:
        return ""
    if one.of != metric["key"]:
        return f"training {one.of} {one.curve[-1]:.3g}"
    return f"{metric['name']} {_score(one.curve[-1], metric)} (validation)"


def _where(one: Running) -> Text:
    from rich.text import Text

    from bench.launch.estimate import duration

    # The clock of another host may be ahead of ours: no time is negative.
    since = f", for {duration(max(0.0, time.time() - one.now['since']))}" if one.now["since"] else ""
    return Text(f"{one.now['device'] or '?'} of {one.now['host'] or '?'}{since}")


def _told(overview: Overview) -> Iterator[Text]:
    """Yield what is to be said in words: failures, faults, and what to do where nobody works."""
    from rich.text import Text

    failed = [f"failed: {name}: {reason}" for name, reason in overview.failed.items()]
    for lines, style in ((failed, "red"), (overview.faults, "yellow")):
        yield from (Text(line, style) for line in lines[:FEW])
        if len(lines) > FEW:
            yield Text(f"and {len(lines) - FEW} more", style)
    if overview.over:
        yield Text("No run is left to do; `bench table` prints the tables, `bench run` collects them anew.")
    elif not overview.running:
        begun = any(status != "missing" for status in overview.statuses.values())
        words = "No run is in progress; the same `bench run` continues." if begun else "No run has started yet."
        yield Text(words, "yellow")


def sparkline(values: Sequence[float]) -> str:
    """Return finite values as a line of blocks, the lowest and the highest as the ends of the scale.

    Of more than `WIDTH` values as many are shown, equally far apart, with the first and the last.
    """
    if len(values) > WIDTH:
        values = [values[round(place * (len(values) - 1) / (WIDTH - 1))] for place in range(WIDTH)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    # A constant curve has no scale: it lies in the middle.
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale) if scale else len(BLOCKS) // 2 - 1] for value in values)


def _score(value: float, metric: MetricMeta) -> str:
    return f"{value * metric['scale']:.1f} {metric['unit']}".rstrip()
