"""From an experiment file (TOML) to the full list of runs, checked whole before anything starts."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

from bench.checking import Checker
from bench.errors import BadValue, BenchError, nearest
from bench.registry import STRICT, Entry, Registry, load_builtins, load_plugin, models, optimizers, tasks
from bench.spec import (
    PROTOCOL,
    Choice,
    DataSettings,
    OptimizerChoice,
    PlannedRun,
    PluginFile,
    RunSpec,
    TrainSettings,
)

if TYPE_CHECKING:
    from bench.tasks.base import Task

RESERVED = ("use", "base", "sweep", "train")
"""Keys of an optimizer's table that are not hyperparameters."""

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Experiment:
    """A resolved experiment.

    Attributes:
        name: the file's stem, with the overrides that make it another experiment.
        baseline: the label that differences are taken against, seed by seed.
        sweeps: for each label with a sweep, the names of the swept hyperparameters.
        runs: every run, in the order of the file: label, then configuration, then seed.
    """

    name: str
    title: str
    baseline: str
    seeds: tuple[int, ...]
    labels: tuple[str, ...]
    sweeps: dict[str, list[str]]
    runs: tuple[PlannedRun, ...]

    def meta(self) -> dict[str, Any]:
        """experiment.json: what tables and plots must know beside the records."""
        spec = self.runs[0].spec
        return {
            "name": self.name,
            "title": self.title,
            "baseline": self.baseline,
            "task": spec.task.name,
            "model": spec.model.name,
            "protocol": PROTOCOL,
            "labels": list(self.labels),
            "seeds": list(self.seeds),
            "sweeps": self.sweeps,
            "data": spec.data.model_dump(),
            "metric": asdict(cast("type[Task]", tasks[spec.task.name].factory).metric),
        }


class _Document(BaseModel):
    """The top level of the file; the inner tables are checked against what they name."""

    model_config = STRICT

    title: str = ""
    task: Any
    model: Any
    baseline: str
    seeds: Any
    plugins: list[str] = []
    data: dict[str, Any] = {}
    train: dict[str, Any]
    optimizers: dict[str, Any]


# ---- finding and reading the file ----------------------------------------------------------------------------


def find(name: str) -> Path:
    """The experiment file for a path, or for a name under experiments/ (here, else beside the package).

    Raises:
        BenchError: there is none; the nearest name is told.
    """
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if path.is_file():
            return path
        beside = (other.stem for other in path.parent.glob("*.toml"))
        raise BenchError(f"experiment file {path} does not exist; {nearest(path.stem, beside)}")
    folders = experiment_folders()
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = {path.stem for folder in folders for path in folder.glob("*.toml")}
    raise BenchError(f'unknown experiment "{name}"; {nearest(name, known)}')


def experiment_folders() -> list[Path]:
    here, beside_package = Path("experiments"), Path(__file__).parents[1] / "experiments"
    return [here] if here.resolve() == beside_package.resolve() else [here, beside_package]


def load(path: Path, overrides: Sequence[str] = (), seeds: int | None = None) -> Experiment:
    """Read, override, check and resolve an experiment file.

    Args:
        path: the TOML file; plug-ins in it are relative to its folder.
        overrides: "KEY=VALUE" with a dotted key and a TOML value; they make it another experiment, with results of
            its own.
        seeds: run seeds 0..seeds-1 instead of those in the file.

    Raises:
        BadValue: anything in the file or the overrides is wrong; all of it is listed.
        BenchError: the file cannot be read, or a plug-in fails.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadValue(str(path), [f"not UTF-8 text: {error}"]) from error
    except tomllib.TOMLDecodeError as error:
        raise BadValue(str(path), [f"broken TOML: {error}"]) from error
    for override in overrides:
        _override(raw, override)
    if seeds is not None:
        raw["seeds"] = seeds
    name = path.stem + "".join(f"+{_file_name(override)}" for override in overrides)
    return _Resolver(path, raw).experiment(name)


def _override(raw: dict[str, Any], override: str) -> None:
    """Apply one --set KEY=VALUE to the raw document."""
    key, equals, text = override.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not key:
        raise BadValue(f"--set {override}", ["expected KEY=VALUE, for example train.epochs=10"])
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    table = raw
    *parents, last = key.split(".")
    for depth, part in enumerate(parents, start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise BadValue(f"--set {override}", [f"{'.'.join(parents[:depth])} is a value, not a table"])
    table[last] = value


def _file_name(override: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=,-]+", "_", override.replace(" ", "")).strip("_")


# ---- checking and resolving ----------------------------------------------------------------------------------


class _Resolver(Checker):
    """Resolves one document, and gathers every problem on the way."""

    def __init__(self, path: Path, raw: dict[str, Any]) -> None:
        super().__init__(str(path))
        self.path = path
        self.raw = raw

    def experiment(self, name: str) -> Experiment:
        document = self.check(_Document, self.raw, "")
        if document is None:  # unknown keys are no reason to leave the rest unchecked
            known = {key: value for key, value in self.raw.items() if key in _Document.model_fields}
            document = self.check(_Document, known, "")
        if document is None:
            raise self.verdict()
        load_builtins()
        for plugin in document.plugins:
            load_plugin(self.path.parent / plugin)

        seeds = self.seeds(document.seeds)
        task = self.choice(tasks, document.task, "task")
        model = self.choice(models, document.model, "model")
        data = self.check(DataSettings, document.data, "data")
        self.check(TrainSettings, document.train, "train")
        if not document.optimizers:
            self.problem("optimizers", "at least one optimizer is needed")
        elif document.baseline not in document.optimizers:
            self.problem(
                "baseline", f'no optimizer "{document.baseline}"; {nearest(document.baseline, document.optimizers)}'
            )

        resolved = {
            label: list(self.configurations(label, table, document.train))
            for label, table in document.optimizers.items()
        }
        if self.problems or not (task and model and data):
            raise self.verdict()
        runs = []
        for label, configurations in resolved.items():
            for config, optimizer, train in configurations:
                plugins = _plugin_files(tasks[task.name], models[model.name], *_entries(optimizer))
                spec = RunSpec(
                    task=task, model=model, optimizer=optimizer, data=data, train=train, seed=0, plugins=plugins
                )
                runs += [PlannedRun(label, config, spec.model_copy(update={"seed": seed})) for seed in seeds]
        return Experiment(
            name=name,
            title=document.title or name,
            baseline=document.baseline,
            seeds=seeds,
            labels=tuple(resolved),
            sweeps={
                label: list(configurations[0][0]) for label, configurations in resolved.items() if configurations[0][0]
            },
            runs=tuple(runs),
        )

    # ---- the parts -------------------------------------------------------------------------------------------

    def seeds(self, seeds: Any) -> tuple[int, ...]:
        listed = range(seeds) if type(seeds) is int else seeds
        whole = isinstance(listed, range | list) and all(type(seed) is int and seed >= 0 for seed in listed)
        if not whole or not listed or len(set(listed)) < len(listed):
            self.problem("seeds", f"must be a number >= 1, or a list of different numbers >= 0, got {seeds!r}")
            return ()
        return tuple(listed)

    def choice(self, registry: Registry, value: Any, where: str) -> Choice | None:
        """A task or a model: a name, or a table of a name and its settings."""
        settings = dict(value) if isinstance(value, dict) else {"name": value}
        name = settings.pop("name", "")
        if not isinstance(name, str) or name not in registry:
            self.problem(where, f'unknown {registry.kind} "{name}"; {nearest(str(name), _names(registry))}')
            return None
        checked = self.check(registry[name].schema, settings, where)
        return Choice(name=name, params=checked.model_dump()) if checked else None

    def configurations(
        self, label: str, table: Any, train: dict[str, Any]
    ) -> Iterator[tuple[dict[str, Any], OptimizerChoice, TrainSettings]]:
        """Every point of an optimizer's sweep (one, where nothing is swept), resolved."""
        where = f"optimizers.{label}"
        if not LABEL.fullmatch(label):
            self.problem(where, "a label is letters, digits and . _ + - only")
        if not isinstance(table, dict):
            self.problem(where, f"must be a table of hyperparameters, got {table!r}")
            return
        name = table.get("use", label)
        if not isinstance(name, str) or name not in optimizers:
            key = f"{where}.use" if "use" in table else where
            self.problem(key, f'unknown optimizer "{name}"; {nearest(str(name), _names(optimizers))}')
            return
        entry = optimizers[name]
        base = self.base(entry, table, where)
        if entry.wraps_base and base is None:
            return
        fixed = {key: value for key, value in table.items() if key not in RESERVED}
        own_train = table.get("train", {})
        if not isinstance(own_train, dict):
            self.problem(f"{where}.train", f"must be a table of training settings, got {own_train!r}")
            return
        taken = {*fixed, *(f"train.{key}" for key in own_train)}
        for config in self.sweep(table.get("sweep", {}), taken, where):
            swept_train = {key[6:]: value for key, value in config.items() if key.startswith("train.")}
            values = fixed | {key: value for key, value in config.items() if not key.startswith("train.")}
            optimizer = self.optimizer(entry, base, values, where)
            settings = self.check(TrainSettings, own_train | swept_train, f"{where}.train", defaults=train)
            if optimizer and settings:
                of_base = optimizer.base.params if optimizer.base else {}
                resolved = of_base | optimizer.params | settings.model_dump()  # 1 is now 1.0 where a float is meant
                swept = [key.removeprefix("train.") for key in config]
                yield {key: resolved[key] for key in swept}, optimizer, settings

    def base(self, entry: Entry, table: dict[str, Any], where: str) -> Entry | None:
        plain = [other.name for other in optimizers if not other.wraps_base]
        name = table.get("base")
        if not entry.wraps_base:
            if name is not None:
                self.problem(f"{where}.base", f'"{entry.name}" wraps no other optimizer; leave base out')
            return None
        if name is None:
            self.problem(f"{where}.base", f'required: the optimizer that "{entry.name}" wraps; {nearest("", plain)}')
        elif name not in plain:
            self.problem(f"{where}.base", f"{name!r} is no plain optimizer; {nearest(str(name), plain)}")
        else:
            return optimizers[name]
        return None

    def sweep(self, sweep: Any, fixed: Collection[str], where: str) -> Iterator[dict[str, Any]]:
        """The grid: every combination of the swept values."""
        if not isinstance(sweep, dict):
            self.problem(f"{where}.sweep", f"must be a table of lists, got {sweep!r}")
            return
        axes = dict(_flatten(sweep))
        for key, values in axes.items():
            if key in RESERVED:
                self.problem(f"{where}.sweep.{key}", "cannot be swept; give each value an entry of its own")
            elif not isinstance(values, list) or not values:
                self.problem(f"{where}.sweep.{key}", f"must be a list of at least one value, got {values!r}")
            elif any(value in values[:index] for index, value in enumerate(values)):
                self.problem(f"{where}.sweep.{key}", f"the same value twice: {values}")
            elif key in fixed:
                self.problem(f"{where}.{key}", "both fixed and swept; keep one of the two")
            else:
                continue
            return
        for point in itertools.product(*axes.values()):
            yield dict(zip(axes, point, strict=True))

    def optimizer(self, entry: Entry, base: Entry | None, values: dict[str, Any], where: str) -> OptimizerChoice | None:
        """Hand each hyperparameter to the method that knows it, the rest to the base."""
        if base is None:
            params = self.check(entry.schema, values, where)
            return OptimizerChoice(name=entry.name, params=params.model_dump()) if params else None
        own_names, base_names = set(entry.schema.model_fields), set(base.schema.model_fields)
        if shared := own_names & base_names:
            raise BenchError(f'optimizers "{entry.name}" and "{base.name}" both have a hyperparameter {sorted(shared)}')
        unknown = [key for key in values if key not in own_names | base_names]
        for key in unknown:
            self.problem(
                f"{where}.{key}",
                f"unknown hyperparameter of {entry.name} over {base.name}; {nearest(key, own_names | base_names)}",
            )
        own = self.check(entry.schema, {key: values[key] for key in values.keys() & own_names}, where)
        rest = self.check(base.schema, {key: values[key] for key in values.keys() & base_names}, where)
        if unknown or own is None or rest is None:
            return None
        return OptimizerChoice(
            name=entry.name,
            params=own.model_dump(),
            base=Choice(name=base.name, params=rest.model_dump()),
        )


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"train": {"batch_size": [...]}} as "train.batch_size": [...]."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _names(registry: Registry) -> list[str]:
    return [entry.name for entry in registry]


def _entries(optimizer: OptimizerChoice) -> list[Entry]:
    names = [optimizer.name] + ([optimizer.base.name] if optimizer.base else [])
    return [optimizers[name] for name in names]


def _plugin_files(*entries: Entry) -> tuple[PluginFile, ...]:
    plugins = {entry.plugin.path: entry.plugin for entry in entries if entry.plugin}
    return tuple(PluginFile(path=str(path), sha256=plugins[path].sha256) for path in sorted(plugins))
