"""Options that several commands have."""

from __future__ import annotations

import os
from pathlib import Path

import click

out = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="Folder of all results."
)
set_ = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key (train.epochs=10). Repeatable."
)


def _set_data_dir(context: click.Context, parameter: click.Parameter, folder: Path | None) -> None:
    """Workers are told in the environment, as they are of everything that is no part of a run."""
    if folder is not None:
        os.environ["BENCH_DATA"] = str(folder.resolve())


data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    expose_value=False,
    callback=_set_data_dir,
    help="Where data sets and weights are. [default: $BENCH_DATA, else ~/.cache/sam-bench]",
)
