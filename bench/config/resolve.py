"""From the content of an experiment file to the full list of runs, checked whole before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bench.config import search_space, titles
from bench.config.document import Document, FinalSettings
from bench.config.presentation import presentation
from bench.config.resolve_optimizers import Label, OptimizerResolver, TuneSettings
from bench.core.errors import BenchError, clipped, nearest, shown
from bench.core.experiment import Experiment, Phases, PlannedRun, settings_text
from bench.core.meta import MetricMeta, Presentation, SuiteMeta, TaskMeta
from bench.core.registry import Entry, Registry, load_builtins, load_plugin, models, optimizers, tasks
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, PluginFile, RunSpec, TrainSettings
from bench.data.datasets import user_files_sha256
from bench.store.columns import TAKEN, metric_columns
from bench.store.files import expanded

if TYPE_CHECKING:
    from bench.tasks.base import Task

MOST_RUNS = 100_000
"""Most runs of an experiment: these take minutes and GB to plan; ten times as many could not be planned at all."""

Condition = tuple[dict[str, Any], ComponentSpec, ComponentSpec, DataSettings]
"""Varied values by column name, and the resulting task, model and data settings."""


@dataclass(frozen=True)
class _Phased:
    """Tables [tune] and [final], checked."""

    tune: TuneSettings
    final: FinalSettings
    tune_seeds: tuple[int, ...]
    final_seeds: tuple[int, ...]


class Resolver(OptimizerResolver):
    """Resolves one document, and gathers every problem on the way."""

    def __init__(self, path: Path, raw: dict[str, Any]) -> None:
        super().__init__(str(path))
        self.path = path
        self.raw = raw
        self.presented: Presentation = {}

    def experiment(self, name: str) -> Experiment:
        """Return the whole experiment.

        Raises:
            BadValue: anything is wrong; the message lists every problem.
            BenchError: a plug-in fails.
        """
        # 1. The top level, and the plug-ins, whose names the rest may use.
        document = self.check(Document, ("", self.raw))
        # Any of the three will do, so none of them can be required by the schema.
        if not self.raw.keys() & {"seeds", "tune", "final"}:
            self.problem("seeds", "required, but missing")
        if document is None:  # unknown keys are no reason to leave the rest unchecked
            known = {key: value for key, value in self.raw.items() if key in Document.model_fields}
            document = self.check(Document, ("", known))
        if document is None:
            raise self.verdict()
        for fault in titles.problems(document.title):
            self.problem("title", fault)
        load_builtins()
        self.presented = presentation(self, self.raw, self.path.parent)
        for plugin in document.plugins:
            load_plugin(self.path.parent / plugin)

        # 2. What varies, and how often; too large an experiment is refused before its runs are listed.
        phased = self.phased(document)
        seeds = phased.final_seeds if phased else self.seeds(document.seeds, "seeds") if "seeds" in self.raw else ()
        vary = self.vary(document)
        self.size(document, vary, seeds, phased.tune if phased else None)
        conditions = [self.condition(document, point) for point in search_space.grid(vary)]
        self.check(TrainSettings, ("train", document.train))
        if not document.optimizers:
            self.problem("optimizers", "at least one optimizer is needed")
        elif document.baseline not in document.optimizers:
            self.problem(
                "baseline",
                f'no optimizer "{clipped(document.baseline)}"; {nearest(document.baseline, document.optimizers)}',
            )
        # 3. Every optimizer with its configurations.
        tune = phased.tune if phased else None
        labels = {
            label: resolved
            for label, table in document.optimizers.items()
            if (resolved := self.label(label, table, document.train, tune))
        }
        # Only without other problems, which would make the numbers of configurations wrong.
        if tune and not self.problems:
            labels = self.budgeted(tune, labels)
        if self.problems:
            raise self.verdict()
        valid = [condition for condition in conditions if condition]  # all of them, since there are no problems
        about = {task.name: tasks[task.name].build(**task.params) for _, task, _, _ in valid}
        # 4. Checks that need every part to be resolved.
        metric = self.metric(about)
        self.columns(labels, metric, about)
        self.distinct("vary", (condition for condition, *_ in valid))
        for label, one in labels.items():
            self.distinct(f"optimizers.{label}", (config for config, *_ in one.configurations))
        if self.problems:
            raise self.verdict()
        notes = [about[task.name].note for _, task, _, _ in valid] + [models[m.name].note for _, _, m, _ in valid]
        phases = _phases(phased, labels) if phased else None
        return Experiment(
            name=name,
            title=titles.filled(
                document.title,
                (about[task.name].title or task.name for _, task, _, _ in valid),
                (models[model.name].title or model.name for _, _, model, _ in valid),
                (data.label_noise for *_, data in valid),
            )
            or name,
            baseline=document.baseline,
            seeds=seeds,
            labels=tuple(labels),
            sweeps={label: list(one.space) for label, one in labels.items() if one.space},
            vary={key: list(dict.fromkeys(condition[key] for condition, *_ in valid)) for key in valid[0][0]},
            metric=metric,
            tasks={name: _about(task) for name, task in about.items()},
            notes=tuple(dict.fromkeys(note for note in notes if note)),
            runs=tuple(_runs(valid, labels, seeds, phases)),
            phases=phases,
            presented=self.presented,
        )

    # ---- the parts -------------------------------------------------------------------------------------------

    def phased(self, document: Document) -> _Phased | None:
        """Return the tuning and the final phase, which set the seeds; None if the experiment has no phases."""
        if document.tune is None and document.final is None:
            return None
        if "seeds" in self.raw:
            self.problem("seeds", "[tune] and [final] set their own seeds; remove this key")
        for table in ("tune", "final"):
            if getattr(document, table) is None:
                self.problem(
                    table, "required, but missing: hyperparameters are chosen in [tune], and [final] runs them"
                )
                return None
        tune = self.check(TuneSettings, ("tune", document.tune or {}))
        final = self.check(FinalSettings, ("final", document.final or {}))
        if tune is None or final is None:
            return None
        tune_seeds = self.seeds(tune.seeds, "tune.seeds")
        # A number of final seeds counts on from the tuning seeds, so that the two never meet.
        final_seeds = self.seeds(final.seeds, "final.seeds", start=max(tune_seeds, default=-1) + 1)
        if shared := sorted({*tune_seeds} & {*final_seeds}):
            self.problem("final.seeds", f"must be fresh, but tune.seeds has {', '.join(map(str, shared))} too")
        return _Phased(tune, final, tune_seeds, final_seeds)

    def seeds(self, seeds: Any, key: str, start: int = 0) -> tuple[int, ...]:
        """Return the seeds, given as a number of seeds, counted from `start`, or as a list."""
        if type(seeds) is int and seeds > MOST_RUNS:
            self.problem(key, f"{seeds:,} seeds; an experiment has at most {MOST_RUNS:,} runs")
            return ()
        listed = range(start, start + seeds) if type(seeds) is int else seeds
        whole = isinstance(listed, range | list) and all(type(seed) is int and seed >= 0 for seed in listed)
        if not whole or not listed or len(set(listed)) < len(listed):
            self.problem(key, f"must be a number >= 1, or a list of different numbers >= 0, got {shown(seeds)}")
            return ()
        return tuple(listed)

    def size(
        self, document: Document, vary: Mapping[str, list[Any]], seeds: Sequence[int], tune: TuneSettings | None
    ) -> None:
        """Raise BadValue if the experiment has more than `MOST_RUNS` runs, before they are listed."""
        conditions = math.prod(map(len, vary.values()))
        sweeps = [table.get("sweep") for table in document.optimizers.values() if isinstance(table, dict)]
        # A drawn search has as many configurations as trials, however large its space is.
        drawn = tune.trials if tune and tune.search != "grid" else math.inf
        configurations = sum(int(min(search_space.grid_size(sweep), drawn)) for sweep in sweeps)
        if conditions * max(1, len(seeds)) * configurations > MOST_RUNS:
            self.problem(
                "runs",
                f"{conditions:,} conditions, {configurations:,} configurations of all optimizers and {len(seeds):,} "
                f"seeds are more than the {MOST_RUNS:,} runs that an experiment may have",
            )
            raise self.verdict()

    def vary(self, document: Document) -> dict[str, list[Any]]:
        """Return what varies between conditions: dotted keys of task, model and data, each with its values."""
        fixed = {"task": document.task, "model": document.model, "data": document.data}
        # In [vary], a list at task or model is one of names: short for task.name and model.name.
        axes = {key + ".name" if key in ("task", "model") else key: v for key, v in _flatten(document.vary)}
        for key, values in axes.items():
            table, _, setting = key.partition(".")
            taken = fixed.get(table)
            if table not in fixed or not setting:
                self.problem(f"vary.{key}", "only keys of task, model and data can be varied: data.label_noise, ...")
            elif key == "task.path":
                self.problem(f"vary.{key}", "cannot be varied; make one experiment per data set")
            elif isinstance(taken, dict) and setting in taken and setting != "name":
                self.problem(f"{table}.{setting}", "both fixed and varied; keep one of the two")
            elif self.is_axis(f"vary.{key}", values):
                continue
            return {}
        return axes

    def condition(self, document: Document, point: dict[str, Any]) -> Condition | None:
        """Return one condition: its varied values by column name, and its task, model and data settings."""
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
        # Columns of records.csv have shorter names: task.name is "task", data.label_noise is "label_noise".
        columns = {key: key.removeprefix("data.").removesuffix(".name") for key in point}
        return {columns[key]: resolved[key] for key in point}, task, model, data

    def columns(self, labels: Mapping[str, Label], metric: MetricMeta, about: Mapping[str, Task]) -> None:
        """Raise BadValue for hyperparameters that are called as another column of records.csv; each is named."""
        settings = {*TrainSettings.model_fields, *DataSettings.model_fields}
        measured = {*metric_columns(metric["key"]), *(name for task in about.values() for name in task.reported)}
        for label, entry in labels.items():
            # All configurations of an entry have the same hyperparameters, so the first stands for all.
            _, optimizer, _ = entry.configurations[0]
            for one in filter(None, (optimizer, optimizer.base)):
                for name in sorted(one.params.keys() & (TAKEN | settings | measured)):
                    self.problem(
                        f"optimizers.{label}",
                        f'"{one.name}" has a hyperparameter "{name}", which is a column of records.csv already; '
                        f'rename it in its file ("{one.name}_{name}")',
                    )
        if self.problems:
            raise self.verdict()

    def distinct(self, where: str, points: Iterable[Mapping[str, Any]]) -> None:
        """Refuse different points with the same text, since configurations are told apart by that text everywhere."""
        named: dict[str, Mapping[str, Any]] = {}
        for point in points:
            text = settings_text(point)
            if named.setdefault(text, point) != point:
                self.problem(where, f"two points are the same to six digits ({text}); round their values, or drop one")

    def metric(self, about: Mapping[str, Task]) -> MetricMeta:
        """Return the score of the tasks, which must be the same, since one table cannot hold two kinds."""
        metrics = {name: asdict(task.metric) for name, task in about.items()}
        first, *others = metrics
        for other in others:
            if metrics[other] != metrics[first]:
                self.problem("vary.task", f'"{first}" and "{other}" have different metrics; make two experiments')
                raise self.verdict()
        return cast(MetricMeta, metrics[first])

    def reads(self, task: ComponentSpec, model: ComponentSpec) -> None:
        """Check that models that read text get texts, and that other models do not."""
        factory = tasks[task.name].factory
        # Of a task that may be of texts or of images its settings tell.
        has_text = factory.is_text(task.params) if hasattr(factory, "is_text") else getattr(factory, "text", False)
        if has_text == (models[model.name].tokenizer is not None):
            return
        reading = ", ".join(entry.name for entry in models if entry.tokenizer)
        problem = "does not read text, which {} is; these do: {}" if has_text else "reads text, which {} is not"
        self.problem("model", f'"{model.name}" ' + problem.format(f'"{task.name}"', reading))

    def choice(
        self, registry: Registry, value: Any, where: str, varied: Mapping[str, Any] | None = None
    ) -> ComponentSpec | None:
        """Return a task or model, given by name or as a table with a name, with the settings of this condition."""
        if not isinstance(value, str | dict):
            self.problem(where, f"must be a name, or a table of a name and its settings, got {shown(value)}")
            return None
        settings = dict(value) if isinstance(value, dict) else {"name": value}
        changed = dict(varied or {})
        place = f"vary.{where}" if "name" in changed else where
        name = changed.pop("name", settings.pop("name", ""))
        settings.pop("name", None)
        if not isinstance(name, str) or name not in registry:
            self.problem(place, f'unknown {registry.kind} "{clipped(str(name))}"; {registry.nearest(str(name))}')
            return None
        checked = self.check(registry[name].schema, (where, settings), (f"vary.{where}", changed))
        if checked is None:
            return None
        params = checked.model_dump()
        try:
            # A task of the user's own files; one that may have data of the hub instead has no path then.
            if hasattr(registry[name].factory, "files") and params["path"] is not None:
                # Relative to the experiment file, not to the folder that `bench` is called from.
                params["path"] = str(self.path.parent.joinpath(expanded(Path(params["path"]))).resolve())
            user_files_sha256(registry[name].factory, params)
        except (BenchError, OSError) as error:  # OSError: a name longer than any file's
            self.problem(f"{where}.path", clipped(str(error)) if isinstance(error, OSError) else str(error))
            return None
        return ComponentSpec(name=name, params=params)


def _phases(phased: _Phased, labels: Mapping[str, Label]) -> Phases:
    tuned = {label: one for label, one in labels.items() if one.tuned}
    return Phases(
        tune_seeds=phased.tune_seeds,
        final_seeds=phased.final_seeds,
        trials={label: len(one.configurations) for label, one in tuned.items()},
        spaces={label: one.space for label, one in tuned.items()},
        limits={label: one.limits for label, one in tuned.items() if one.limits},
        search=phased.tune.search,
        budget=phased.tune.budget,
        refit=phased.final.refit,
    )


def _runs(
    conditions: Sequence[Condition], labels: Mapping[str, Label], seeds: Sequence[int], phases: Phases | None
) -> Iterator[PlannedRun]:
    """Yield every run that is known before anything is chosen: condition, label, configuration, seed."""
    for condition, task, model, data in conditions:
        files = user_files_sha256(tasks[task.name].factory, task.params)
        for label, one in labels.items():
            for config, optimizer, train in one.configurations:
                plugins = _plugin_files(tasks[task.name], models[model.name], *_entries(optimizer))
                spec = RunSpec(
                    task=task,
                    model=model,
                    optimizer=optimizer,
                    data=data,
                    train=train,
                    # A placeholder: `with_seeds` puts the seeds in.
                    seed=0,
                    files_sha256=files,
                    plugins=plugins,
                )
                run = PlannedRun(label, config, spec, condition)
                if phases is None:
                    yield from run.with_seeds(seeds)
                elif one.tuned:
                    yield from run.with_seeds(phases.tune_seeds, "tune", "tune")
                else:
                    yield from phases.final_runs(run)


def _about(task: Task) -> TaskMeta:
    """Return the facts about a task that tables need, as plain values."""
    return {
        "title": task.title,
        "loss": task.loss_name,
        "reported": dict(task.reported) or {f"test_{task.metric.key}": task.metric.name},
        "suite": cast("SuiteMeta | None", task.suite and asdict(task.suite)),
    }


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield {"train": {"batch_size": [...]}} as "train.batch_size": [...]."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _entries(optimizer: OptimizerSpec) -> list[Entry]:
    names = [optimizer.name] + ([optimizer.base.name] if optimizer.base else [])
    return [optimizers[name] for name in names]


def _plugin_files(*entries: Entry) -> tuple[PluginFile, ...]:
    plugins = {entry.plugin.path: entry.plugin for entry in entries if entry.plugin}
    return tuple(PluginFile(path=str(path), sha256=plugins[path].sha256) for path in sorted(plugins))
