"""`bench sync`: hand results that exist to other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli import options
from bench.core.errors import BadValue, BenchError

if TYPE_CHECKING:
    from bench.sinks.sink import Sink


@click.command()
@click.argument("experiment")
@options.sinks("--to", "tensorboard, mlflow or wandb. Repeatable. [default: ~/.config/sam-bench/log.toml]")
@options.which
@options.out
def sync(
    experiment: str, sinks: tuple[str, ...], overrides: tuple[str, ...], results_name: str | None, out: Path
) -> None:
    """Hand finished runs, tables, figures and the report to other tools.

    Only what a tool does not have yet is sent: the same command may be repeated after more runs.
    """
    from bench.sinks.following import Feeder
    from bench.sinks.sink import opened, reason
    from bench.store import records

    def failed(sink: Sink, error: Exception) -> None:
        raise BenchError(f"{sink.name}: {reason(error)}; the same command sends the rest") from error

    if not sinks:
        raise BadValue("--to", ["name a sink: tensorboard, mlflow or wandb"])
    folder = options.results_folder(experiment, out, overrides, results_name)
    results = records.read(folder)
    to = opened(sinks, folder.parent)
    Feeder(to, failed).send_results(results, folder)
    for sink in to:
        print(f"{results.meta['name']}: {sink.address}")
