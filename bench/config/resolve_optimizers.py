"""The optimizers of an experiment: fixed, swept or searched hyperparameters, checked, for method and base."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from bench.config import relative, search_space
from bench.config.search_space import Range, Search
from bench.core.errors import BenchError, clipped, nearest, shown
from bench.core.registry import STRICT, Entry, optimizers
from bench.core.schema import Checker
from bench.core.spec import ComponentSpec, OptimizerSpec, TrainSettings
from bench.training.passes import passes_per_step

RESERVED = ("use", "base", "sweep", "train", "tune")
"""Keys of an optimizer's table that are not hyperparameters."""

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

RANGE_KEYS = ("low", "high", "log")

Configuration = tuple[dict[str, Any], OptimizerSpec, TrainSettings]
"""Swept values by column name, and the resulting optimizer and training settings."""


class TuneSettings(BaseModel):
    """[tune]: hyperparameters are chosen here, on validation, with the same budget for every optimizer."""

    model_config = STRICT

    seeds: Any
    trials: Annotated[int, Field(ge=2)]
    """Configurations of each optimizer; with equal passes, of the one whose runs take the fewest."""
    search: Search = "grid"
    budget: Literal["trials", "passes"] = "trials"


@dataclass(frozen=True)
class Label:
    """An optimizer's entry, resolved.

    Attributes:
        configurations: every point of its sweep; one, where nothing is swept.
        space: what they were drawn from, by column: a list, or a table of low, high and log.
        limits: for columns whose space goes as far as the hyperparameter itself, which of its ends do.
        tuned: whether the best of them is to be found first.
    """

    configurations: list[Configuration]
    space: dict[str, Any]
    limits: dict[str, list[str]]
    tuned: bool


class OptimizerResolver(Checker):
    """Resolves the optimizers of a document, and gathers every problem on the way."""

    def label(self, label: str, table: Any, train: dict[str, Any], tune: TuneSettings | None) -> Label | None:
        """Return an optimizer's entry, or None if the entry is too wrong to check further."""
        where = f"optimizers.{label}"
        if not LABEL.fullmatch(label):
            self.problem(where, "a label is letters, digits and . _ + - only")
        if not isinstance(table, dict):
            self.problem(where, f"must be a table of hyperparameters, got {shown(table)}")
            return None
        # A label is the method's name unless `use` names another method.
        name = table.get("use", label)
        if not isinstance(name, str) or name not in optimizers:
            key = f"{where}.use" if "use" in table else where
            self.problem(key, f'unknown optimizer "{clipped(str(name))}"; {optimizers.nearest(str(name))}')
            return None
        entry = optimizers[name]
        base = self.base(entry, table, where)
        own_train = table.get("train", {})
        if not isinstance(own_train, dict):
            self.problem(f"{where}.train", f"must be a table of training settings, got {shown(own_train)}")
            return None
        # `base` has noted the problem already.
        if entry.wraps_base and base is None:
            return None
        own_train = {
            key: absolute
            for key, value in own_train.items()
            if (absolute := self.absolute(key, value, train, where)) is not None
        }
        fixed = {key: value for key, value in table.items() if key not in RESERVED}
        # Keys that are fixed already, which a sweep must not give again.
        taken = {*fixed, *(f"train.{key}" for key in own_train)}
        axes = self.sweep(table.get("sweep", {}), taken, train, where)
        if axes is None:
            return None
        # Only the schemas know which hyperparameters are whole numbers; ranges over these draw whole numbers.
        whole = _whole_numbers(entry, base)
        axes = {
            key: replace(axis, whole=key in whole) if isinstance(axis, Range) else axis for key, axis in axes.items()
        }
        configurations = [
            configuration
            for point in self.points(axes, table, tune, where)
            if (configuration := self.configuration(entry, base, fixed, point, (train, own_train), where))
        ]
        # As the columns of records.csv are called: without "train.".
        space = {key.removeprefix("train."): _described(axis) for key, axis in axes.items()}
        fields = _fields(entry, base)
        limits = {
            key.removeprefix("train."): ends
            for key, axis in axes.items()
            if (ends := search_space.limits(axis, fields.get(key)))
        }
        return Label(configurations, space, limits, tune is not None and bool(axes))

    def points(
        self, axes: Mapping[str, list[Any] | Range], table: dict[str, Any], tune: TuneSettings | None, where: str
    ) -> list[dict[str, Any]]:
        """Return the swept hyperparameters' values in every configuration, or an empty list after a problem."""
        ranges = [key for key, axis in axes.items() if isinstance(axis, Range)]
        tuned = table.get("tune", True)
        # An entry is told one problem at most: the first that applies.
        if not isinstance(tuned, bool):
            self.problem(f"{where}.tune", f"must be true or false, got {shown(tuned)}")
        elif "tune" in table and tune is None:
            self.problem(f"{where}.tune", "only in an experiment with a table [tune]; leave it out")
        elif axes and not tuned:
            self.problem(f"{where}.tune", "false, but something is swept; keep one of the two")
        elif tune and tuned and not axes:
            self.problem(
                where,
                "nothing is swept, so there is nothing to tune: add a sweep (sweep.lr = ...), or set tune = false "
                "to run it at this setting, which every table then states",
            )
        elif ranges and (tune is None or tune.search == "grid"):
            need = 'tune.search = "random" or "sobol"' if tune else "a table [tune] with such a search"
            self.problem(f"{where}.sweep.{ranges[0]}", f"a range needs {need}; or give a list of values")
        elif axes and tune and tune.search != "grid":
            try:
                return search_space.draw(axes, tune.trials, tune.search)
            except ValueError as error:
                self.problem(f"{where}.sweep", str(error))
        else:
            return search_space.grid(axes)
        return []

    def configuration(
        self,
        entry: Entry,
        base: Entry | None,
        fixed: dict[str, Any],
        point: dict[str, Any],
        train: tuple[dict[str, Any], dict[str, Any]],
        where: str,
    ) -> Configuration | None:
        """Return one resolved point of a sweep; `train` are the common settings and the optimizer's own."""
        # 6 is the length of "train.".
        swept_train = {key[6:]: value for key, value in point.items() if key.startswith("train.")}
        values = fixed | {key: value for key, value in point.items() if not key.startswith("train.")}
        # Own settings go over the common ones, swept ones over both.
        settings = self.check(TrainSettings, ("train", train[0]), (f"{where}.train", train[1] | swept_train))
        # A moment such as "epoch 100" becomes a share of these epochs.
        context = {"epochs": settings.epochs} if settings else {}
        optimizer = self.optimizer(entry, base, values, where, context)
        if not optimizer or not settings:
            return None
        self.parts(settings, optimizer.params.get("m"), where)
        self.needs(entry, settings, where)
        if base:
            self.needs(base, settings, where)
        of_base = optimizer.base.params if optimizer.base else {}
        resolved = of_base | optimizer.params | settings.model_dump()  # 1 is now 1.0 where a float is meant
        swept = [key.removeprefix("train.") for key in point]
        return {key: resolved[key] for key in swept}, optimizer, settings

    def needs(self, entry: Entry, settings: TrainSettings, where: str) -> None:
        """Check that training is set as an optimizer needs it."""
        for key, value in entry.needs.items():
            if getattr(settings, key) != value:
                self.problem(
                    f"{where}.train.{key}",
                    f"must be {shown(value)} for {entry.name}, got {shown(getattr(settings, key))}",
                )

    def parts(self, settings: TrainSettings, m: int | None, where: str) -> None:
        """Check that a batch divides by the processes, and into parts of m that no two processes share."""
        batch, processes = settings.batch_size, settings.processes
        if m and batch % m:
            self.problem(f"{where}.m", f"must divide batch_size ({batch}), got {m}")
        elif batch % processes:
            self.problem(f"{where}.train.processes", f"must divide batch_size ({batch}), got {processes}")
        elif m and m < batch and batch // processes % m:
            self.problem(
                f"{where}.m",
                f"must divide the per-process batch ({batch} / {processes} = {batch // processes}) or equal batch_size "
                f"({batch}), got {m}",
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
        elif not isinstance(name, str) or name not in plain:
            self.problem(f"{where}.base", f"{shown(name)} is not a plain optimizer; {nearest(str(name), plain)}")
        elif name in entry.unfit:
            fit = ", ".join(other for other in plain if other not in entry.unfit)
            self.problem(f"{where}.base", f"{entry.name} cannot wrap {name}, which {entry.unfit[name]}; take {fit}")
        else:
            return optimizers[name]
        return None

    def absolute(self, key: str, value: Any, common: Mapping[str, Any], where: str) -> Any:
        """Return an optimizer's own training setting, with a multiple ("2x") resolved; None if it is invalid."""
        try:
            return relative.absolute(key, value, common)
        except ValueError as error:
            self.problem(f"{where}.train.{key}", str(error))
            return None

    def sweep(
        self, sweep: Any, fixed: Collection[str], common: Mapping[str, Any], where: str
    ) -> dict[str, list[Any] | Range] | None:
        """Return the swept hyperparameters, each with its values or its range; None if any of them is wrong."""
        if not isinstance(sweep, dict):
            self.problem(f"{where}.sweep", f"must be a table of lists, got {shown(sweep)}")
            return None
        axes: dict[str, list[Any] | Range] = {}
        for key, values in _sweep_keys(sweep):
            table, _, setting = key.partition(".")
            if table == "train" and isinstance(values, list):
                values = [self.absolute(setting, value, common, f"{where}.sweep") for value in values]
                if None in values:
                    return None
            if key in RESERVED:
                self.problem(f"{where}.sweep.{key}", "cannot be swept; add one optimizer entry per value")
            elif key in fixed:
                self.problem(f"{where}.{key}", "both fixed and swept; keep one of the two")
            elif axis := self.axis(f"{where}.sweep.{key}", values):
                axes[key] = axis
                continue
            return None
        return axes

    def axis(self, where: str, values: Any) -> list[Any] | Range | None:
        """Return the list or range of values of a hyperparameter, or None if it is wrong."""
        if not isinstance(values, dict):
            return values if self.is_axis(where, values) else None
        low, high, log = values.get("low"), values.get("high"), values.get("log", False)
        unknown = [key for key in values if key not in RANGE_KEYS]
        if unknown:
            self.problem(f"{where}.{unknown[0]}", f"unknown key of a range; {nearest(unknown[0], RANGE_KEYS)}")
        elif not (_is_number(low) and _is_number(high) and isinstance(log, bool)):
            self.problem(
                where, f"a range is {{ low = NUMBER, high = NUMBER, log = true or false }}, got {shown(values)}"
            )
        elif not low < high:
            self.problem(where, f"low must be below high, got {low} and {high}")
        elif log and low <= 0:
            self.problem(f"{where}.low", f"must be above 0 on a logarithmic scale, got {low}")
        else:
            return Range(low, high, log)
        return None

    def is_axis(self, where: str, values: Any) -> bool:
        """Return whether these are values to go through: a list without duplicates."""
        if not isinstance(values, list) or not values:
            self.problem(where, f"must be a list of at least one value, got {shown(values)}")
        elif any(isinstance(value, str) and not value.isprintable() for value in values):
            self.problem(where, f"a value has a line break or another control character: {shown(values)}")
        elif len({_as_key(value) for value in values}) < len(values):
            self.problem(where, f"the same value twice: {shown(values)}")
        else:
            return True
        return False

    def optimizer(
        self, entry: Entry, base: Entry | None, values: dict[str, Any], where: str, context: Mapping[str, Any]
    ) -> OptimizerSpec | None:
        """Hand each hyperparameter to the method that knows it, the rest to the base."""
        if base is None:
            params = self.check(entry.schema, (where, values), context=context)
            return OptimizerSpec(name=entry.name, params=params.model_dump()) if params else None
        # A key that both know could belong to either, so such a pair cannot be used at all.
        own_names, base_names = set(entry.schema.model_fields), set(base.schema.model_fields)
        if shared := own_names & base_names:
            raise BenchError(f'optimizers "{entry.name}" and "{base.name}" both have a hyperparameter {sorted(shared)}')
        unknown = [key for key in values if key not in own_names | base_names]
        for key in unknown:
            self.problem(
                f"{where}.{key}",
                f"unknown hyperparameter of {entry.name} over {base.name}; {nearest(key, own_names | base_names)}",
            )
        # Each schema sees only its own keys, so that it does not call those of the other unknown.
        own = self.check(
            entry.schema, (where, {key: values[key] for key in values.keys() & own_names}), context=context
        )
        rest = self.check(base.schema, (where, {key: values[key] for key in values.keys() & base_names}))
        if unknown or own is None or rest is None:
            return None
        return OptimizerSpec(
            name=entry.name,
            params=own.model_dump(),
            base=ComponentSpec(name=base.name, params=rest.model_dump()),
        )

    # ---- the same budget for everyone ------------------------------------------------------------------------

    def budgeted(self, tune: TuneSettings, labels: Mapping[str, Label]) -> dict[str, Label]:
        """Return the labels with as many configurations as the budget allows; a grid of another size is a problem."""
        tuned = {label: entry for label, entry in labels.items() if entry.tuned}
        if not tuned:
            self.problem("tune", "no optimizer has a sweep to tune; remove [tune] and [final], and set seeds")
            return dict(labels)
        allowed = dict.fromkeys(tuned, tune.trials)
        if tune.budget == "passes":
            costs = {label: self.cost(label, entry) for label, entry in tuned.items()}
            # The optimizer with the cheapest runs gets all trials, any other as many as take the same passes.
            least = min(costs.values())
            # 1e-9: a quotient that is whole but for rounding must not lose a trial.
            allowed = {label: max(1, int(tune.trials * least / cost + 1e-9)) for label, cost in costs.items()}
        sizes = {label: len(entry.configurations) for label, entry in tuned.items()}
        if tune.search == "grid" and sizes != allowed:
            each = ", ".join(
                f"{label} {size}" + (f" ({allowed[label]} allowed)" if size != allowed[label] else "")
                for label, size in sizes.items()
            )
            equal = "trials" if tune.budget == "trials" else "gradient passes"
            self.problem(
                "tune.trials",
                f"{tune.trials} trials with equal {equal} for every optimizer, but the grids have {each}; change "
                'their lists, or set search = "sobol"',
            )
        # The beginning of a longer list of trials is what a shorter search draws (see `search_space.draw`).
        return {
            label: replace(entry, configurations=entry.configurations[: allowed[label]]) if entry.tuned else entry
            for label, entry in labels.items()
        }

    def cost(self, label: str, entry: Label) -> float:
        """Return the passes over the training set per run of a label; a sweep that changes them is a problem."""
        costs = {train.epochs * passes_per_step(optimizer) for _, optimizer, train in entry.configurations}
        if len(costs) > 1:
            self.problem(
                f"optimizers.{label}.sweep",
                'changes the passes per run, which budget = "passes" does not allow; use budget = "trials"',
            )
        return max(costs)


def _sweep_keys(sweep: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the swept keys with their values: {"train": {"batch_size": [...]}} as "train.batch_size"."""
    for key, values in sweep.items():
        if key == "train" and isinstance(values, dict):
            yield from ((f"train.{inner}", listed) for inner, listed in values.items())
        else:
            yield key, values


def _whole_numbers(entry: Entry, base: Entry | None) -> set[str]:
    """Return the hyperparameters, and training settings, that are whole numbers."""
    # The inner types count too, since most are in an Annotated or beside None.
    return {key for key, field in _fields(entry, base).items() if int in search_space.types(field.annotation)}


def _fields(entry: Entry, base: Entry | None) -> dict[str, FieldInfo]:
    fields = {f"train.{key}": field for key, field in TrainSettings.model_fields.items()}
    for schema in (entry.schema, *([base.schema] if base else [])):
        fields |= schema.model_fields
    return fields


def _is_number(value: Any) -> TypeGuard[float]:
    # type(), not isinstance, because true and false are integers in Python.
    return type(value) in (int, float) and math.isfinite(value)


def _as_key(value: Any) -> Any:
    """Return a hashable key that is equal for equal values, also for lists and tables."""
    if isinstance(value, list):
        return ("list", *map(_as_key, value))
    if isinstance(value, dict):
        return ("table", frozenset((key, _as_key(inner)) for key, inner in value.items()))
    return value


def _described(axis: list[Any] | Range) -> Any:
    return axis.described() if isinstance(axis, Range) else axis
