"""What several commands have: options, and how results are found by name."""

from __future__ import annotations

import os
from pathlib import Path

import click

from bench.errors import BenchError, nearest
from bench.store import KEEP_WEIGHTS

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


def _set_keep_weights(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked:
        os.environ[KEEP_WEIGHTS] = "1"


keep_weights = click.option(
    "--keep-weights",
    is_flag=True,
    expose_value=False,
    callback=_set_keep_weights,
    help="Leave the final weights of every run in its folder, for `bench measure`.",
)


def results_folder(experiment: str, out: Path) -> Path:
    """The folder of results for an experiment's name, its file, or the folder itself."""
    name = Path(experiment).stem if experiment.endswith(".toml") else experiment
    for folder in (out / name, Path(experiment)):
        if (folder / "experiment.json").exists():
            return folder
    known = [path.parent.name for path in out.glob("*/experiment.json")]
    raise BenchError(f'{out} holds no results of "{name}"; {nearest(name, known)}; `bench run` makes them')
