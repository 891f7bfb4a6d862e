"""`bench new`: an experiment's file to start from, with a task or an optimizer of one's own beside it."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

import click

from bench.core.errors import BadValue, BenchError, clipped
from bench.store.files import write_atomic

TEMPLATES = Path(__file__).with_name("templates")
# Valid as the name of a file, as a key in TOML and as a name in Python.
NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")


@click.command()
@click.argument("name")
@click.option("--task", "own_task", is_flag=True, help="Add a file with a task of your own: data, outputs, metric.")
@click.option("--optimizer", "own_optimizer", is_flag=True, help="Add a file with an optimizer of your own.")
def new(name: str, own_task: bool, own_optimizer: bool) -> None:
    """Write a commented experiment file to start from; it runs as it is.

    NAME.toml goes into the folder experiments/ if there is one here, else into this folder.
    """
    if not NAME.fullmatch(name):
        fault = "must be small letters, digits and _, a letter first, at most 60 of them: it names files and entries"
        raise BadValue(f"bench new {clipped(name)}", [fault])
    _check_free(name, own_task, own_optimizer)
    folder = Path("experiments") if Path("experiments").is_dir() else Path()
    # The path of the current folder has an empty name; the experiment is then given by its file.
    files = written(name, own_task, own_optimizer, name if folder.name else f"{name}.toml")
    # All files are looked at before the first one is written.
    if there := [str(folder / file) for file in files if (folder / file).exists()]:
        raise BenchError(f"{', '.join(there)} would be overwritten, and nothing was written; give another name")
    for file, content in files.items():
        write_atomic(folder / file, content)
        print(f"wrote {folder / file}")
    print(f"Try it: bench run {name if folder.name else f'{name}.toml'} --dry-run")


def _check_free(name: str, own_task: bool, own_optimizer: bool) -> None:
    if not (own_task or own_optimizer):
        return
    from bench.core import registry  # with the registries filled, torch is imported

    registry.load_builtins()
    for own, known in ((own_task, registry.tasks), (own_optimizer, registry.optimizers)):
        if own and name in known:
            raise BadValue(f"bench new {name}", [f"{known.kind} {name} already exists; give another name"])


def written(name: str, own_task: bool, own_optimizer: bool, place: str) -> dict[str, str]:
    """Return the content of each file, by the file's name.

    Args:
        place: what `bench run` is given for the experiment.
    """
    plugins = [f"{name}_{kind}.py" for kind, own in (("task", own_task), ("optimizer", own_optimizer)) if own]
    listed = ", ".join(f'"{plugin}"' for plugin in plugins)
    values = {
        "name": name,
        "place": place,
        "task": name if own_task else "digits",
        "task_comment": f"  # from {name}_task.py" if own_task else "  # `bench list tasks` has the others",
        "model": '"mlp"' if own_task else '{ name = "resnet8", width = 8 }',
        "plugins": f"plugins = [{listed}]\n" if plugins else "",
    }
    experiment = ["experiment.toml", *(["optimizer.toml"] if own_optimizer else [])]
    files = {f"{name}.toml": "".join(_filled(template, values) for template in experiment)}
    # NAME_task.py is made from task.py.template, NAME_optimizer.py from optimizer.py.template.
    return files | {plugin: _filled(plugin.removeprefix(f"{name}_"), values) for plugin in plugins}


def _filled(template: str, values: dict[str, str]) -> str:
    return Template((TEMPLATES / f"{template}.template").read_text(encoding="utf-8")).substitute(values)
