"""Parts shared by several commands: options, and finding results by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bench.core.data_folder import data_folder_given, named_data_folder
from bench.core.errors import BadValue, BenchError, nearest
from bench.core.run_options import DEFAULTS, MOST_AT_ONCE, RunOptions


class Grouped(click.Command):
    """A command whose `--help` lists options under headings, without the ranges that numbers are checked for.

    Args:
        headings: each with the flags of its options, in order. An option under none of them is an error.
    """

    def __init__(self, *arguments: Any, headings: Mapping[str, Sequence[str]], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.headings = headings

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options per heading."""
        # By the long form, which is the last one: -h comes before --help.
        options = {option.opts[-1]: option for option in self.get_params(ctx) if isinstance(option, click.Option)}
        # A new option must be put under a heading, or this fails at every --help.
        assert {*options} == {flag for flags in self.headings.values() for flag in flags}
        for heading, flags in self.headings.items():
            with formatter.section(heading):
                formatter.write_dl([_row(options[flag], ctx) for flag in flags], col_max=22)


def _row(option: click.Option, context: click.Context) -> tuple[str, str]:
    metavar = "" if option.is_flag else f" {option.make_metavar(context)}"
    default = f" [default: {option.default}]" if option.show_default else ""
    return ", ".join(option.opts) + metavar, f"{option.help}{default}"


class _Finite(click.FloatRange):
    """A finite number: nan and inf are refused, since range checks do not catch them all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


NUMBER = _Finite()
NOT_NEGATIVE = _Finite(min=0)
POSITIVE = _Finite(min=0, min_open=True)
SECONDS = _Finite(min=0.1, max=86_400)
COUNT = click.IntRange(min=1, max=2**31 - 1)
AT_ONCE = click.IntRange(min=1, max=MOST_AT_ONCE)

out = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="Folder of all results."
)
set_ = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key: train.epochs=10. Repeatable."
)


def _sinks(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    from bench.sinks import sink

    return sink.checked(texts, parameter.opts[0]) if texts else sink.usual()


def sinks(flag: str, help_: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option, --log or --to, that names sinks; without it those of the user's log.toml are meant."""
    return click.option(flag, "sinks", multiple=True, metavar="NAME[=WHERE]", callback=_sinks, help=help_)


name = click.option(
    "--name",
    "results_name",
    metavar="NAME",
    help="Name of the results' folder. [default: EXPERIMENT+SETTINGS]",
)


def which(command: Any) -> Any:
    """Add the options --set and --name to a command; they select the results that it works on."""
    # The decorator that is applied last stands first in --help.
    return set_(name(command))


def width(context: click.Context, parameter: click.Parameter, text: str) -> str:
    """Return the width of figures: "page", "column", or a number of inches, as text."""
    if text in ("page", "column"):
        return text
    try:
        inches = float(text.removesuffix("in"))
    except ValueError:
        inches = math.nan
    # Panels do not fit into less, and no page has more.
    if not 2 <= inches <= 20:
        raise BadValue(f"--width {text}", ["must be page, column, or inches from 2 to 20, such as 5.5"])
    return f"{inches:g}"


def _set_data_dir(context: click.Context, parameter: click.Parameter, folder: Path | None) -> None:
    """Use the data folder until the command is over."""
    context.with_resource(data_folder_given(folder))


data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="PATH",
    # The callback does all there is to do: the command receives no argument.
    expose_value=False,
    callback=_set_data_dir,
    help="Folder of data and weights. [default: $BENCH_DATA]",
)


def _gpu_numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    numbers = text.split(",")
    # No GPU has a number of more than eight digits.
    if not all(number.strip().isdecimal() and len(number) < 9 for number in numbers):
        raise BadValue(f"--gpus {text}", ["must be whole numbers with commas between them: --gpus 0,1,3"])
    return tuple(int(number) for number in numbers)


RUN_OPTIONS: dict[str, dict[str, Any]] = {
    "jobs": {"type": AT_ONCE, "metavar": "N", "help": "Runs at once. [default: one per GPU, else per core]"},
    "jobs_per_gpu": {"type": AT_ONCE, "metavar": "N", "help": "Runs at once per GPU. [default: 1]"},
    "gpus": {
        "callback": _gpu_numbers,
        "metavar": "0,1,...",
        "help": "GPUs of this machine to use. [default: all]",
    },
    "fail_fast": {"is_flag": True, "help": "Stop at the first run that fails."},
    "checkpoint_minutes": {
        "type": NOT_NEGATIVE,
        "default": DEFAULTS.checkpoint_minutes,
        "show_default": True,
        "metavar": "N",
        "help": "Minutes between checkpoints.",
    },
    "keep_weights": {
        "is_flag": True,
        "help": "Keep final weights, for `bench measure`.",
    },
}
"""The options of `RunOptions`, by the names of its fields; `data` is --data-dir, which other commands have as well."""


def run_options(command: Any) -> Any:
    """Add the options of `RunOptions` to a command, which receives them as `options`."""

    # click gathers options as an attribute of the function, which `wraps` copies.
    @functools.wraps(command)
    def with_options(**arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in RUN_OPTIONS}
        # Read when the command runs: by then the callback of --data-dir has set the folder.
        return command(options=RunOptions(**given, data=named_data_folder()), **arguments)

    decorated: Any = data_dir(with_options)
    for name, settings in RUN_OPTIONS.items():
        decorated = click.option(f"--{name.replace('_', '-')}", name, **settings)(decorated)
    return decorated


def results_folder(experiment: str, out: Path, overrides: Sequence[str] = (), results_name: str | None = None) -> Path:
    """Return the folder of results for an experiment's name, its file, or the folder itself.

    Args:
        overrides, results_name: what the results are of and what they are called, as for `bench run`.

    Raises:
        BenchError: there are none, or they are of other overrides.
    """
    name = Path(experiment).stem if experiment.endswith(".toml") else experiment
    if overrides or results_name:
        from bench.config.file import results_called
        from bench.store.files import read_json

        name = results_called(name, overrides, results_name)
        folder = out / name
        if (folder / "experiment.json").exists():
            there = read_json(folder / "experiment.json").get("overrides", [])
            # With --name, the folder may hold results of any overrides.
            if overrides and there != list(overrides):
                was = " ".join(f"--set {override}" for override in there) or "no --set"
                raise BenchError(f"{folder} holds results of {was}; give the same settings, or another --name")
            return folder
    for folder in (out / name, Path(experiment)):
        # With --set or --name only the folder above would do.
        if (folder / "experiment.json").exists() and not (overrides or results_name):
            return folder
    known = [path.parent.name for path in out.glob("*/experiment.json")]
    raise BenchError(f'{out} holds no results of "{name}"; {nearest(name, known)}; `bench run` makes them')
