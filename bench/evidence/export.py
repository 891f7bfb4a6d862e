"""`bench export` and `bench check`: write an experiment's results to one archive, and check an archive."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bench.analysis import render, tables
from bench.analysis.render.table import Table
from bench.analysis.study import Study
from bench.config import file as experiments
from bench.evidence.repeat import recorded
from bench.store import archive, records
from bench.store.files import read_toml
from bench.store.records import Results
from bench.store.run_folder import to_json

LOCK = "requirements.lock"
CIRCUMSTANCES = ["device", "threads", "precision", "torch", "python", "commit", "dirty"]
FORMATS = render.FORMATS

README = """# {title}

Results of the experiment `{name}`, exported by sam-bench {version}. What is here:

- `{file}`: the experiment{plugins}; `resolved.json`: what it comes to, a specification per run
- `experiment.json`, `records.csv` (a row per run), `curves.csv` (a row per evaluated epoch), measures, if any
- `tables/`: made from these; `environment.json`: hardware and versions of the runs{lock}
- `MANIFEST.json`: the sha256 of every file

To check it and make its tables again, with sam-bench installed:

    bench check {archive}

To do runs again and compare the bits (this executes the experiment's plug-ins, if it has any):

    bench check {archive} --unpack unpacked
    bench verify unpacked/{quoted}/{file}{overrides} --out unpacked

To compare it with other results: `bench diff {archive} OTHER`.
"""


@dataclass(frozen=True)
class Checked:
    """The result of checking an archive.

    Attributes:
        same, other: tables that come out byte for byte as they are in the archive, and those that do not.
    """

    name: str
    files: dict[str, bytes]
    results: Results
    tables: list[Table]
    same: list[str]
    other: list[str]


def export(name: str, out: Path, overrides: Sequence[str] = (), results_name: str | None = None) -> tuple[str, bytes]:
    """Return the experiment's name and the archive of its results. The arguments are those of `bench.run`.

    Raises:
        BenchError: there are no results, they were changed after they were written, or belong to another experiment.
    """
    of = recorded(name, out, overrides, results_name)
    path = experiments.find(name)
    # Byte for byte as they are, so that the sha256 in experiment.json still hold.
    files = records.files(of.folder)
    # Made again of the records: the tables in the folder may be of another version of this package.
    for table in tables.build(Study(of.results)):
        files |= {f"tables/{table.name}.{form}": render.render(table, form).encode() for form in FORMATS}
    # Who repeats the runs needs the experiment's file, and the plug-ins that it names.
    text, plugins = _with_plugins(path)
    files |= {path.name: text.encode(), **plugins}
    specs = {run_id: run.spec.model_dump(mode="json") for run_id, run in sorted(of.finished.items())}
    files["resolved.json"] = to_json({"overrides": list(overrides), "runs": specs}).encode()
    files["environment.json"] = to_json(_environment(of.results)).encode()
    # Only a checkout has this file; an installed package does not.
    lock = Path(__file__).parents[2] / LOCK
    if lock.is_file():
        files[LOCK] = lock.read_bytes()
    experiment = of.experiment.name
    files["README.md"] = README.format(
        title=of.experiment.title,
        name=experiment,
        version=importlib.metadata.version("sam-bench"),
        file=path.name,
        plugins=f" and its plug-ins ({', '.join(plugins)})" if plugins else "",
        lock=f"; `{LOCK}`: the versions to install" if lock.is_file() else "",
        archive=shlex.quote(experiment + archive.SUFFIX),
        quoted=shlex.quote(experiment),
        overrides="".join(f" --set {shlex.quote(override)}" for override in overrides)
        + (f" --name {shlex.quote(results_name)}" if results_name else ""),
    ).encode()
    return experiment, archive.pack(experiment, files)


def check(path: Path) -> Checked:
    """Compare an archive with its manifest, and its tables with what its records give.

    Raises:
        BadValue: files were changed, added or taken away; each is named.
        BenchError: it is no such archive.
    """
    name, files = archive.unpack(path)
    results = archive.results(files)
    built = tables.build(Study(results))
    again = {f"tables/{table.name}.{form}": render.render(table, form).encode() for table in built for form in FORMATS}
    there = {file for file in files if file.startswith("tables/")}
    same = sorted(file for file in there if again.get(file) == files[file])
    # A table that only one side has counts as different too.
    return Checked(name, files, results, built, same, sorted({*there, *again} - {*same}))


def _with_plugins(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return an experiment file's text and its plug-ins, each by the path that the text names.

    Those outside of the file's folder go under plugins/, and the text names them there. A run's identity does not
    change: it has a plug-in's content, not its path.
    """
    text, files = path.read_text(encoding="utf-8"), dict[str, bytes]()
    for plugin in read_toml(path).get("plugins", []):
        place = PurePosixPath(plugin)
        name = str(place)
        # A member with such a path is refused when the archive is unpacked (see `bench.store.archive`).
        if place.is_absolute() or ".." in place.parts:
            name = next(one for one in _names(place.name) if one not in files)
            for quote in "\"'":
                text = text.replace(f"{quote}{plugin}{quote}", f"{quote}{name}{quote}")
        files[name] = (path.parent / plugin).read_bytes()
    return text, files


def _names(name: str) -> Iterator[str]:
    """Yield names for a file under plugins/, until one is free."""
    yield f"plugins/{name}"
    for number in itertools.count(2):
        yield f"plugins/{number}/{name}"


def _environment(results: Results) -> dict[str, object]:
    """Return hardware and versions of the finished runs, and the versions that wrote the archive."""
    finished = results.records[results.records["status"].isin(["done", "diverged"])]
    among = finished[[column for column in CIRCUMSTANCES if column in finished]]
    # Through JSON, missing cells become null and numpy's numbers Python's. dropna=False keeps unknown setups.
    setups = json.loads(among.value_counts(dropna=False).rename("runs").reset_index().to_json(orient="records"))
    names = ("sam-bench", "torch", "numpy", "pandas", "scipy")
    return {"runs": setups, "exported_with": {name: importlib.metadata.version(name) for name in names}}
