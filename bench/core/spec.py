"""RunSpec: everything that decides the numbers of one run, frozen and fully resolved.

Hand its JSON to another machine and the same run happens there. Paths, workers and devices are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator

from bench.core.meta import CompilingMeta, Meta, MetricMeta, PhasesMeta, TaskMeta
from bench.core.registry import STRICT

PROTOCOL = 2
"""Version of the measuring rules. Raise it when a change of code changes the numbers: old runs are then not reused."""


Schedule = Literal["cosine", "linear", "constant"]


class _Frozen(BaseModel):
    model_config = STRICT


class DataSettings(_Frozen):
    """Changes of a task's data, the same for every task."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training set held out, the same of each class (of numbers to predict: of each tenth); everything
    that is chosen is chosen on it."""
    train_size: Annotated[int, Field(ge=1)] | None = None
    """Number of examples to train on, of the rest, with each class in its share: a smaller set is part of a larger one.
    None: all."""
    train_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """The same as a share of what is left beside validation, for tasks of different sizes."""
    label_noise: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of the training labels replaced by a wrong one, the same of each class, drawn uniformly; validation and
    test stay clean."""

    @field_validator("train_share")
    @classmethod
    def _one_size(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("train_size") is not None:
            raise ValueError("train_size says the same; keep one of the two")
        return value


def _count_or_all(value: Any) -> Any:
    if value != "all" and (type(value) is not int or value < 1):
        raise ValueError('must be a whole number of at least 1, or "all"')
    return value


def _flag_or_auto(value: Any) -> Any:
    if value != "auto" and type(value) is not bool:
        raise ValueError('must be true, false or "auto"')
    return value


class TrainSettings(_Frozen):
    """Training settings of a run; an optimizer's entry may override any of these."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Examples a step; the rest of an epoch that fills no batch is left out of it."""
    schedule: Schedule = "cosine"
    """How lr falls, to 0 at the end of training."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs over which lr rises linearly to its value."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The same as a share of all steps."""
    weight_decay_on: Literal["all", "matrices"] = "all"
    """Which parameters an optimizer's weight_decay is for: "matrices" leaves out those with fewer than two axes, which
    are biases and the scales of normalisation, as BERT does."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the final gradient (never of the ascent's)."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32 is full single precision everywhere; tf32 lets a GPU round the factors of matrix products and convolutions
    to 10 bits; bf16 runs forward passes under autocast. Weights are fp32 in all of them."""
    compile: Annotated[bool | Literal["auto"], BeforeValidator(_flag_or_auto)] = False
    """Compile the model with torch.compile for training; evaluation runs it as written. "auto": all runs are compiled
    if that is faster on the machine of the first launch, which measures it (`bench.launch.compiling`)."""
    cuda_graphs: bool = False
    """Replay compiled passes as CUDA graphs: for small models, whose kernels are shorter than their launches."""
    deterministic: bool = False
    """On a GPU, use deterministic kernels only, so that bits repeat (slower). On a CPU they always do."""
    eval_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    eval_train: Annotated[int | Literal["all"], BeforeValidator(_count_or_all)] = 5000
    """Training examples, drawn once for all runs, that evaluations before the last epoch measure; the last one measures
    all of them. "all": every evaluation does."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes that share every batch, each on a GPU of its own: batch_size stays that of all of them together."""

    @field_validator("warmup_epochs")
    @classmethod
    def _warmup_fits(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("epochs", value):
            raise ValueError(f"must be at most epochs ({info.data['epochs']})")
        return value

    @field_validator("warmup_ratio")
    @classmethod
    def _one_warmup(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("warmup_epochs"):
            raise ValueError("warmup_epochs says the same; keep one of the two")
        return value

    @field_validator("cuda_graphs")
    @classmethod
    def _graphs_are_of_compiled_code(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("compile"):
            raise ValueError("needs compile = true beside it")
        return value


class ComponentSpec(_Frozen):
    """A registered name with all its hyperparameters, defaults filled in."""

    name: str
    params: dict[str, Any] = {}


class OptimizerSpec(ComponentSpec):
    base: ComponentSpec | None = None
    """The optimizer that a method such as SAM is built around."""


class PluginFile(_Frozen):
    """A user's file this run uses; its content, not its place, is part of the run's identity."""

    path: str
    sha256: str


class RunSpec(_Frozen):
    """One run.

    Example:
        >>> spec = RunSpec.model_validate_json(path.read_text())
        >>> spec.run_id
        '3f0c9a51d2e4'
    """

    task: ComponentSpec
    model: ComponentSpec
    optimizer: OptimizerSpec
    data: DataSettings
    train: TrainSettings
    seed: Annotated[int, Field(ge=0)]
    phase: Literal["tune", "refit"] | None = None
    """What it does with the three sets. "tune": it never looks at the test set, since something is chosen by it.
    "refit": it trains on the validation examples too, and has none to validate on. None: train, validate, test."""
    files_sha256: str | None = None
    """Of the user's own files, where the task has them at its `path`: like a plug-in's, their content and not their
    place is part of the run's identity."""
    plugins: tuple[PluginFile, ...] = Field(default=(), strict=False)

    @property
    def run_id(self) -> str:
        """Return 12 hex digits: a hash of the resolved spec and the protocol version.

        Settings of data and training that stand at their defaults, and hyperparameters that are None, are left out, so
        that one which is new in the package leaves the ids of earlier runs alone. Hence no default of data or training
        ever changes without a new PROTOCOL.
        """
        content = _without_none(self.model_dump(mode="json"))
        content["task"]["params"] = _without_none(self._task_settings())
        content["data"] = self.data.model_dump(mode="json", exclude_defaults=True)
        content["train"] = self.train.model_dump(mode="json", exclude_defaults=True)
        content["plugins"] = sorted(plugin.sha256 for plugin in self.plugins)
        canonical = json.dumps({"protocol": PROTOCOL, **content}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def hyperparameters(self) -> dict[str, Any]:
        """Return every setting under the name of its column in records.csv."""
        base = self.optimizer.base
        return {
            "method": self.optimizer.name,
            "base": base.name if base else None,
            **(base.params if base else {}),
            **self.optimizer.params,
            **self.train.model_dump(),
            **self.data.model_dump(),
            **{f"task.{key}": _cell(value) for key, value in self._task_settings().items()},
            **{f"model.{key}": value for key, value in self.model.params.items()},
        }

    def _task_settings(self) -> dict[str, Any]:
        """Return those of the task's settings that are part of the run's identity."""
        return {key: value for key, value in self.task.params.items() if key != "path" or self.files_sha256 is None}


def _cell(value: Any) -> Any:
    """Return a setting as it stands in a table, with a list of words joined into one text."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    inner = {key: _without_none(value) if isinstance(value, dict) else value for key, value in table.items()}
    return {key: value for key, value in inner.items() if value is not None}


Place = tuple[str, str]
"""Condition, in words, and label: where one configuration is chosen among several."""


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
        """Yield this run with each of the seeds, in a phase; `sets` is what its spec says of the three sets."""
        for seed in seeds:
            spec = self.spec.model_copy(update={"seed": seed, "phase": sets})
            yield replace(self, spec=spec, phase=phase)

    @property
    def name(self) -> str:
        """Return the run in words: "label_noise=0.2 tune sam rho=0.1 seed 3"."""
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
        f"{name.rpartition('.')[2]}={value:g}" if isinstance(value, float) else f"{name.rpartition('.')[2]}={value}"
        for name, value in settings.items()
    )


@dataclass(frozen=True)
class Phases:
    """Settings of the tuning phase: hyperparameters are chosen on validation, with the same budget for everyone.

    Attributes:
        trials: configurations that each tuned label gets; a label that is not here is not tuned.
        spaces: what these were drawn from: by label and column, a list of values or a table of low, high and log.
        search: "grid", "random" or "sobol".
        budget: what is the same for everyone, "trials" or "passes".
        refit: whether the chosen setting is trained on the validation examples too.
    """

    tune_seeds: tuple[int, ...]
    final_seeds: tuple[int, ...]
    trials: dict[str, int]
    spaces: dict[str, dict[str, Any]]
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
    compiling: CompilingMeta | None = None

    @property
    def tuning(self) -> list[PlannedRun]:
        """Return the runs of the tuning phase, which configurations are chosen by."""
        return [run for run in self.runs if run.phase == "tune"]

    def with_seeds(self, seeds: Iterable[int]) -> Experiment:
        """Return the experiment over other seeds; where there are phases, over other final ones."""
        seeds = tuple(seeds)
        runs: dict[Any, PlannedRun] = {}
        for run in self.runs:
            again = [run] if run.phase == "tune" else run.with_seeds(seeds, run.phase, run.spec.phase)
            runs |= {(*one.place, one.phase, one.config_text, one.spec.seed): one for one in again}
        phases = self.phases and replace(self.phases, final_seeds=seeds)
        return replace(self, seeds=seeds, runs=tuple(runs.values()), phases=phases)

    def with_final(self, chosen: Mapping[Place, str]) -> Experiment:
        """Return the experiment with the final runs of the chosen configurations, given as texts by place."""
        assert self.phases is not None
        known = [run for run in self.runs if run.phase == "tune" or run.label not in self.phases.trials]
        candidates = {(*run.place, run.config_text): run for run in known}
        final = [run for place, config in chosen.items() for run in self.phases.final_runs(candidates[*place, config])]
        return replace(self, runs=(*known, *final))

    def to_be_chosen(self) -> list[PlannedRun]:
        """Return the final runs whose configuration is not chosen yet, each with a possible one and an empty config."""
        if self.phases is None:
            return []
        final = {run.place for run in self.runs if run.phase == "final"}
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
            "task": ", ".join(dict.fromkeys(spec.task.name for spec in specs)),
            "model": ", ".join(dict.fromkeys(spec.model.name for spec in specs)),
            "protocol": PROTOCOL,
            "labels": list(self.labels),
            "seeds": list(self.seeds),
            "sweeps": self.sweeps,
            "vary": self.vary,
            "conditions": list(dict.fromkeys(run.condition_text for run in self.runs)),
            "data": specs[0].data.model_dump(),
            "metric": self.metric,
            "tasks": self.tasks,
            "notes": list(self.notes),
            "file": dict(self.file),
            "overrides": list(self.overrides),
            **({"compiling": dict(self.compiling)} if self.compiling else {}),
            **({"phases": self._phases(self.phases)} if self.phases else {}),
        }
        return cast(Meta, meta)

    def _phases(self, phases: Phases) -> PhasesMeta:
        return {
            "tune": {
                "seeds": list(phases.tune_seeds),
                "search": phases.search,
                "budget": phases.budget,
                "trials": phases.trials,
                "spaces": phases.spaces,
            },
            "final": {"seeds": list(phases.final_seeds), "refit": phases.refit},
            "untuned": [label for label in self.labels if label not in phases.trials],
        }
