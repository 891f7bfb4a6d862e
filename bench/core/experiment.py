"""An experiment as it is run: every planned run with its label, configuration and condition, and its phases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from bench.core.meta import CompilingMeta, Meta, MetricMeta, PhasesMeta, Presentation, TaskMeta, Tune
from bench.core.spec import PROTOCOL, RunSpec

Place = tuple[str, str]
"""Condition, in words, and label: one configuration is chosen per place."""


@dataclass(frozen=True)
class PlannedRun:
    """A run in its place in an experiment: one spec may stand under several labels, but runs once.

    Attributes:
        label: the optimizer's entry in the experiment file.
        config: the swept hyperparameters and this run's values of them, by column name.
        condition: what is varied between conditions and its values here, by column name; empty if nothing is.
        phase: "tune" if it is for choosing, "final" if it is of what was chosen, "" where there are no phases.
    """

    label: str
    config: dict[str, Any]
    spec: RunSpec
    condition: dict[str, Any] = field(default_factory=dict)
    phase: Literal["", "tune", "final"] = ""

    def with_seeds(
        self,
        seeds: Iterable[int],
        phase: Literal["", "tune", "final"] = "",
        sets: Literal["tune", "refit"] | None = None,
    ) -> Iterator[PlannedRun]:
        """Yield this run once per seed, in a phase; `sets` is the phase of the spec, which decides the data split."""
        for seed in seeds:
            # Two phases: the spec's decides the data split and is in the run_id, the planned run's is its role here.
            spec = self.spec.model_copy(update={"seed": seed, "phase": sets})
            yield replace(self, spec=spec, phase=phase)

    @property
    def name(self) -> str:
        """Return the run in words: "label_noise=0.2 tune sam rho=0.1 seed 3"."""
        # Parts that an experiment does not have are empty and leave no trace.
        parts = (self.condition_text, self.phase, self.label, self.config_text, f"seed {self.spec.seed}")
        return " ".join(filter(None, parts))

    @property
    def place(self) -> Place:
        return self.condition_text, self.label

    @property
    def config_text(self) -> str:
        return settings_text(self.config)

    @property
    def condition_text(self) -> str:
        return settings_text(self.condition)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings as one short line: {"task.augment": "basic", "rho": 0.1} as "augment=basic, rho=0.1"."""
    return ", ".join(
        # This text is also a key: choices and `with_final` know a configuration by it.
        f"{name.rpartition('.')[2]}={value:g}" if isinstance(value, float) else f"{name.rpartition('.')[2]}={value}"
        for name, value in settings.items()
    )


@dataclass(frozen=True)
class Phases:
    """Settings of the tuning phase: hyperparameters are chosen on validation, with the same budget for everyone.

    Attributes:
        trials: configurations that each tuned label gets; a label that is not here is not tuned.
        spaces: what these were drawn from: by label and column, a list of values or a table of low, high and log.
        limits: of these, the ends ("smallest", "largest") beyond which no value is valid, such as a rho of 0.
        search: "grid", "random" or "sobol".
        budget: what is the same for everyone, "trials" or "passes".
        refit: whether the chosen setting is trained on the validation examples too.
    """

    tune_seeds: tuple[int, ...]
    final_seeds: tuple[int, ...]
    trials: dict[str, int]
    spaces: dict[str, dict[str, Any]]
    limits: dict[str, dict[str, list[str]]]
    search: str
    budget: str
    refit: bool

    def final_runs(self, run: PlannedRun) -> Iterator[PlannedRun]:
        """Yield the final runs of the configuration of any run."""
        return run.with_seeds(self.final_seeds, "final", "refit" if self.refit else None)


@dataclass(frozen=True)
class Experiment:
    """A resolved experiment.

    Attributes:
        name: the file's stem, with the overrides that make it another experiment.
        baseline: the label that differences are taken against, seed by seed, condition by condition.
        sweeps: for each label with a sweep, the names of the swept hyperparameters.
        vary: the columns of what is varied between conditions, each with its values.
        metric: the score of its task (the same in every condition).
        tasks: what tables must know of each task, by name.
        notes: sentences that belong under every table.
        runs: every run, in the order of the file: condition, label, configuration, seed. With phases, those for
            choosing first, then those of what is chosen already (`with_final`).
        phases: None where all runs are of one kind.
        file, overrides: what it was resolved from: the content of its file by dotted key, and what was set over it.
        unreached: a sentence for every override that a part of the experiment does not follow.
        of: the stem of its file.
        presented: how its results are shown.
        compiling: the decision on `train.compile = "auto"`, where there is one: see `bench.launch.compiling`.
    """

    name: str
    title: str
    baseline: str
    seeds: tuple[int, ...]
    labels: tuple[str, ...]
    sweeps: dict[str, list[str]]
    vary: dict[str, list[Any]]
    metric: MetricMeta
    tasks: dict[str, TaskMeta]
    notes: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    phases: Phases | None = None
    file: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    of: str = ""
    presented: Presentation = field(default_factory=lambda: Presentation())
    compiling: CompilingMeta | None = None

    @property
    def tuning(self) -> list[PlannedRun]:
        """Return the runs of the tuning phase, from which configurations are chosen."""
        return [run for run in self.runs if run.phase == "tune"]

    def with_seeds(self, seeds: Iterable[int]) -> Experiment:
        """Return the experiment with other seeds; with phases, only the final seeds change."""
        seeds = tuple(seeds)
        # Planned runs that differ in their seed alone give the same new ones: a dictionary keeps each once, in order.
        runs: dict[Any, PlannedRun] = {}
        for run in self.runs:
            # Tuning keeps its seeds: a choice does not depend on how many final runs follow.
            again = [run] if run.phase == "tune" else run.with_seeds(seeds, run.phase, run.spec.phase)
            runs |= {(*one.place, one.phase, one.config_text, one.spec.seed): one for one in again}
        phases = self.phases and replace(self.phases, final_seeds=seeds)
        return replace(self, seeds=seeds, runs=tuple(runs.values()), phases=phases)

    def with_final(self, chosen: Mapping[Place, str]) -> Experiment:
        """Return the experiment with the final runs of the chosen configurations, given as texts by place."""
        assert self.phases is not None
        # Without the final runs of tuned labels, which may be those of an earlier choice.
        known = [run for run in self.runs if run.phase == "tune" or run.label not in self.phases.trials]
        candidates = {(*run.place, run.config_text): run for run in known}
        final = [run for place, config in chosen.items() for run in self.phases.final_runs(candidates[*place, config])]
        return replace(self, runs=(*known, *final))

    def to_be_chosen(self) -> list[PlannedRun]:
        """Return the final runs whose configuration is not chosen yet, with a candidate's spec and an empty config."""
        if self.phases is None:
            return []
        final = {run.place for run in self.runs if run.phase == "final"}
        # Any candidate of a place stands for what will be chosen: here the last one.
        open_ = {run.place: run for run in self.tuning if run.place not in final}
        return [run for one in open_.values() for run in self.phases.final_runs(replace(one, config={}))]

    def meta(self) -> Meta:
        """Return experiment.json: what tables and plots need besides the records, with "phases" if there are any."""
        specs = [run.spec for run in self.runs]
        meta = {
            "name": self.name,
            "of": self.of,
            "title": self.title,
            "baseline": self.baseline,
            # dict.fromkeys: each name once, in the order of the file.
            "task": ", ".join(dict.fromkeys(spec.task.name for spec in specs)),
            "model": ", ".join(dict.fromkeys(spec.model.name for spec in specs)),
            "protocol": PROTOCOL,
            "labels": list(self.labels),
            "seeds": list(self.seeds),
            "sweeps": self.sweeps,
            "vary": self.vary,
            "conditions": list(dict.fromkeys(run.condition_text for run in self.runs)),
            # Of the first run; what conditions change of it is under "vary".
            "data": specs[0].data.model_dump(),
            "metric": self.metric,
            "tasks": self.tasks,
            "notes": list(self.notes),
            "file": dict(self.file),
            "overrides": list(self.overrides),
            **self.presented,
            **({"compiling": dict(self.compiling)} if self.compiling else {}),
            **({"phases": self._phases(self.phases)} if self.phases else {}),
        }
        return cast(Meta, meta)

    def _phases(self, phases: Phases) -> PhasesMeta:
        tune: Tune = {
            "seeds": list(phases.tune_seeds),
            "search": phases.search,
            "budget": phases.budget,
            "trials": phases.trials,
            "spaces": phases.spaces,
        }
        if phases.limits:
            tune["limits"] = phases.limits
        return {
            "tune": tune,
            "final": {"seeds": list(phases.final_seeds), "refit": phases.refit},
            "untuned": [label for label in self.labels if label not in phases.trials],
        }
