"""From the content of an experiment file to the full list of runs, checked whole before anything starts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from bench.checking import Checker
from bench.errors import BenchError, nearest
from bench.registry import STRICT, Entry, Registry, load_builtins, load_plugin, models, optimizers, tasks
from bench.spec import (
    Choice,
    DataSettings,
    Experiment,
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


class _Document(BaseModel):
    """The top level of the file; the inner tables are checked against what they name."""

    model_config = STRICT

    title: str = ""
    task: Any
    model: Any
    baseline: str
    seeds: Any
    plugins: list[str] = []
    vary: dict[str, Any] = {}
    data: dict[str, Any] = {}
    train: dict[str, Any]
    optimizers: dict[str, Any]


class Resolver(Checker):
    """Resolves one document, and gathers every problem on the way."""

    def __init__(self, path: Path, raw: dict[str, Any]) -> None:
        super().__init__(str(path))
        self.path = path
        self.raw = raw

    def experiment(self, name: str) -> Experiment:
        """The whole experiment.

        Raises:
            BadValue: anything is wrong; all of it is listed.
            BenchError: a plug-in fails.
        """
        document = self.check(_Document, ("", self.raw))
        if document is None:  # unknown keys are no reason to leave the rest unchecked
            known = {key: value for key, value in self.raw.items() if key in _Document.model_fields}
            document = self.check(_Document, ("", known))
        if document is None:
            raise self.verdict()
        load_builtins()
        for plugin in document.plugins:
            load_plugin(self.path.parent / plugin)

        seeds = self.seeds(document.seeds)
        vary = self.vary(document)
        conditions = [self.condition(document, point) for point in _grid(vary)]
        self.check(TrainSettings, ("train", document.train))
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
        if self.problems:
            raise self.verdict()
        found = [condition for condition in conditions if condition]  # all of them, since there are no problems
        about = {task.name: tasks[task.name].build(**task.params) for _, task, _, _ in found}
        metric = self.metric(about)
        notes = [about[task.name].note for _, task, _, _ in found] + [models[m.name].note for _, _, m, _ in found]
        runs = []
        for condition, task, model, data in found:
            for label, configurations in resolved.items():
                for config, optimizer, train in configurations:
                    plugins = _plugin_files(tasks[task.name], models[model.name], *_entries(optimizer))
                    spec = RunSpec(
                        task=task, model=model, optimizer=optimizer, data=data, train=train, seed=0, plugins=plugins
                    )
                    specs = (spec.model_copy(update={"seed": seed}) for seed in seeds)
                    runs += [PlannedRun(label, config, seeded, condition) for seeded in specs]
        return Experiment(
            name=name,
            title=document.title or name,
            baseline=document.baseline,
            seeds=seeds,
            labels=tuple(resolved),
            sweeps={
                label: list(configurations[0][0]) for label, configurations in resolved.items() if configurations[0][0]
            },
            vary={key: list(dict.fromkeys(condition[key] for condition, *_ in found)) for key in found[0][0]},
            metric=metric,
            tasks={name: _about(task) for name, task in about.items()},
            notes=tuple(dict.fromkeys(note for note in notes if note)),
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

    def vary(self, document: _Document) -> dict[str, list[Any]]:
        """What is varied between conditions: dotted keys of task, model and data, each with its values."""
        fixed = {"task": document.task, "model": document.model, "data": document.data}
        axes = {key + ".name" if key in ("task", "model") else key: v for key, v in _flatten(document.vary)}
        for key, values in axes.items():
            table, _, setting = key.partition(".")
            taken = fixed.get(table)
            if table not in fixed or not setting:
                self.problem(f"vary.{key}", "only keys of task, model and data can be varied: data.label_noise, ...")
            elif isinstance(taken, dict) and setting in taken and setting != "name":
                self.problem(f"{table}.{setting}", "both fixed and varied; keep one of the two")
            elif self.is_axis(f"vary.{key}", values):
                continue
            return {}
        return axes

    def condition(
        self, document: _Document, point: dict[str, Any]
    ) -> tuple[dict[str, Any], Choice, Choice, DataSettings] | None:
        """One point of what is varied: its values by column name, and the task, the model and the data settings."""
        varied: dict[str, dict[str, Any]] = {"task": {}, "model": {}, "data": {}}
        for key, value in point.items():
            table, _, setting = key.partition(".")
            varied[table][setting] = value
        task = self.choice(tasks, document.task, "task", varied["task"])
        model = self.choice(models, document.model, "model", varied["model"])
        data = self.check(DataSettings, ("data", document.data), ("vary.data", varied["data"]))
        if task and model:
            self.reads(task, model)
        if not (task and model and data):
            return None
        resolved: dict[str, Any] = {"task.name": task.name, "model.name": model.name}
        resolved |= {f"task.{key}": value for key, value in task.params.items()}
        resolved |= {f"model.{key}": value for key, value in model.params.items()}
        resolved |= {f"data.{key}": value for key, value in data.model_dump().items()}
        columns = {key: key.removeprefix("data.").removesuffix(".name") for key in point}
        return {columns[key]: resolved[key] for key in point}, task, model, data

    def metric(self, about: Mapping[str, Task]) -> dict[str, Any]:
        """The score of the tasks; one table cannot hold two kinds."""
        metrics = {name: asdict(task.metric) for name, task in about.items()}
        first, *others = metrics
        for other in others:
            if metrics[other] != metrics[first]:
                self.problem("vary.task", f'"{first}" and "{other}" have different metrics; make two experiments')
                raise self.verdict()
        return metrics[first]

    def reads(self, task: Choice, model: Choice) -> None:
        """Models that read text learn from texts, and from nothing else."""
        has_text = getattr(tasks[task.name].factory, "text", False)
        if has_text == (models[model.name].tokenizer is not None):
            return
        reading = ", ".join(entry.name for entry in models if entry.tokenizer)
        problem = "does not read text, which {} is; these do: {}" if has_text else "reads text, which {} is not"
        self.problem("model", f'"{model.name}" ' + problem.format(f'"{task.name}"', reading))

    def choice(
        self, registry: Registry, value: Any, where: str, varied: Mapping[str, Any] | None = None
    ) -> Choice | None:
        """A task or a model: a name, or a table of a name and its settings; and what this condition makes of it."""
        settings = dict(value) if isinstance(value, dict) else {"name": value}
        changed = dict(varied or {})
        place = f"vary.{where}" if "name" in changed else where
        name = changed.pop("name", settings.pop("name", ""))
        settings.pop("name", None)
        if not isinstance(name, str) or name not in registry:
            self.problem(place, f'unknown {registry.kind} "{name}"; {registry.nearest(str(name))}')
            return None
        checked = self.check(registry[name].schema, (where, settings), (f"vary.{where}", changed))
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
            self.problem(key, f'unknown optimizer "{name}"; {optimizers.nearest(str(name))}')
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
        for config in _grid(self.sweep(table.get("sweep", {}), taken, where)):
            swept_train = {key[6:]: value for key, value in config.items() if key.startswith("train.")}
            values = fixed | {key: value for key, value in config.items() if not key.startswith("train.")}
            optimizer = self.optimizer(entry, base, values, where)
            settings = self.check(TrainSettings, ("train", train), (f"{where}.train", own_train | swept_train))
            if optimizer and settings:
                self.parts(settings, optimizer.params.get("m"), where)
                of_base = optimizer.base.params if optimizer.base else {}
                resolved = of_base | optimizer.params | settings.model_dump()  # 1 is now 1.0 where a float is meant
                swept = [key.removeprefix("train.") for key in config]
                yield {key: resolved[key] for key in swept}, optimizer, settings

    def parts(self, settings: TrainSettings, m: int | None, where: str) -> None:
        """A batch divides into what the processes have of it, and into parts of m that no two processes share."""
        batch, processes = settings.batch_size, settings.processes
        if m and batch % m:
            self.problem(f"{where}.m", f"must divide batch_size ({batch}), got {m}")
        elif batch % processes:
            self.problem(f"{where}.train.processes", f"must divide batch_size ({batch}), got {processes}")
        elif m and m < batch and batch // processes % m:
            self.problem(
                f"{where}.m",
                f"must divide what each of {processes} processes has of a batch ({batch // processes}), or be the "
                f"whole batch ({batch}), got {m}",
            )

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

    def sweep(self, sweep: Any, fixed: Collection[str], where: str) -> dict[str, list[Any]] | None:
        """The swept hyperparameters, each with its values; None if something is wrong with them."""
        if not isinstance(sweep, dict):
            self.problem(f"{where}.sweep", f"must be a table of lists, got {sweep!r}")
            return None
        axes = dict(_flatten(sweep))
        for key, values in axes.items():
            if key in RESERVED:
                self.problem(f"{where}.sweep.{key}", "cannot be swept; give each value an entry of its own")
            elif key in fixed:
                self.problem(f"{where}.{key}", "both fixed and swept; keep one of the two")
            elif self.is_axis(f"{where}.sweep.{key}", values):
                continue
            return None
        return axes

    def is_axis(self, where: str, values: Any) -> bool:
        """Whether these are values to go through: a list, none of them twice."""
        if not isinstance(values, list) or not values:
            self.problem(where, f"must be a list of at least one value, got {values!r}")
        elif any(value in values[:index] for index, value in enumerate(values)):
            self.problem(where, f"the same value twice: {values}")
        else:
            return True
        return False

    def optimizer(self, entry: Entry, base: Entry | None, values: dict[str, Any], where: str) -> OptimizerChoice | None:
        """Hand each hyperparameter to the method that knows it, the rest to the base."""
        if base is None:
            params = self.check(entry.schema, (where, values))
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
        own = self.check(entry.schema, (where, {key: values[key] for key in values.keys() & own_names}))
        rest = self.check(base.schema, (where, {key: values[key] for key in values.keys() & base_names}))
        if unknown or own is None or rest is None:
            return None
        return OptimizerChoice(
            name=entry.name,
            params=own.model_dump(),
            base=Choice(name=base.name, params=rest.model_dump()),
        )


def _about(task: Task) -> dict[str, Any]:
    """What tables must know of a task, as plain values."""
    return {
        "title": task.title,
        "loss": task.loss_name,
        "reported": dict(task.reported) or {f"test_{task.metric.key}": task.metric.name},
        "suite": task.suite and asdict(task.suite),
    }


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"train": {"batch_size": [...]}} as "train.batch_size": [...]."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _grid(axes: dict[str, list[Any]] | None) -> Iterator[dict[str, Any]]:
    """Every combination of the values: one empty one of no axes, none at all where the axes are wrong (None)."""
    if axes is not None:
        for point in itertools.product(*axes.values()):
            yield dict(zip(axes, point, strict=True))


def _entries(optimizer: OptimizerChoice) -> list[Entry]:
    names = [optimizer.name] + ([optimizer.base.name] if optimizer.base else [])
    return [optimizers[name] for name in names]


def _plugin_files(*entries: Entry) -> tuple[PluginFile, ...]:
    plugins = {entry.plugin.path: entry.plugin for entry in entries if entry.plugin}
    return tuple(PluginFile(path=str(path), sha256=plugins[path].sha256) for path in sorted(plugins))
