"""RunSpec: everything that decides the numbers of one run, frozen and fully resolved.

Hand its JSON to another machine and the same run happens there. Paths, workers and devices are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator

from bench.core.registry import STRICT
from bench.core.seeding import Source, Stream

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
        # `info.data` has only the fields declared above: here and below the order of the fields matters.
        if value is not None and info.data.get("train_size") is not None:
            raise ValueError("train_size sets the same thing; keep one of the two")
        return value


def _count_or_all(value: Any) -> Any:
    # `type is not int`, since isinstance takes True for a number.
    if value != "all" and (type(value) is not int or value < 1):
        raise ValueError('must be a whole number of at least 1, or "all"')
    return value


def _flag_or_auto(value: Any) -> Any:
    # Before pydantic's own check, whose message on a union has a line per member.
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
    """Compile the model with torch.compile; large splits are evaluated so, too. "auto": all runs are compiled
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
    random: Source = "all"
    """What a run's seed draws. One source alone (initial weights, order of examples, augmentation, dropout masks, or
    which labels are wrong) leaves all others as of seed 0: how much of the spread over seeds is due to it."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes that share every batch, each on a GPU of its own: batch_size stays that of all of them together."""

    @field_validator("warmup_epochs")
    @classmethod
    def _warmup_fits(cls, value: int, info: ValidationInfo) -> int:
        # Faulty epochs are not in `info.data`: then this check has nothing to say.
        if value > info.data.get("epochs", value):
            raise ValueError(f"must be at most epochs ({info.data['epochs']})")
        return value

    @field_validator("warmup_ratio")
    @classmethod
    def _one_warmup(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("warmup_epochs"):
            raise ValueError("warmup_epochs sets the same thing; keep one of the two")
        return value

    @field_validator("cuda_graphs")
    @classmethod
    def _graphs_are_of_compiled_code(cls, value: bool, info: ValidationInfo) -> bool:
        # "auto" passes: whoever decides on it turns CUDA graphs off if nothing is compiled.
        if value and not info.data.get("compile"):
            raise ValueError("needs compile = true")
        return value


class ComponentSpec(_Frozen):
    """A registered name with all its hyperparameters, defaults filled in."""

    name: str
    params: dict[str, Any] = {}


class OptimizerSpec(ComponentSpec):
    base: ComponentSpec | None = None
    """The optimizer that a method such as SAM is built around."""


class PluginFile(_Frozen):
    """A user's file this run uses; its content, not its path, is part of the run's identity."""

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
    # strict=False: a list is taken for a tuple, which JSON does not have.
    plugins: tuple[PluginFile, ...] = Field(default=(), strict=False)

    def seed_for(self, stream: Stream) -> int:
        """Return the seed of a random stream: the run's, or 0 where `train.random` names another stream."""
        return self.seed if self.train.random in ("all", stream) else 0

    @property
    def run_id(self) -> str:
        """Return 12 hex digits: a hash of the resolved spec and the protocol version.

        Settings of data and training that stand at their defaults, and hyperparameters that are None, are left out, so
        that a setting that is added to the package does not change the ids of earlier runs. For the same reason no
        default of data or training ever changes without a new PROTOCOL.
        """
        content = _without_none(self.model_dump(mode="json"))
        # Without the path of the user's own files, for which `files_sha256` stands.
        content["task"]["params"] = _without_none(self._task_settings())
        content["data"] = self.data.model_dump(mode="json", exclude_defaults=True)
        content["train"] = self.train.model_dump(mode="json", exclude_defaults=True)
        # Neither the order nor the place of plug-ins is part of the identity, only what is in them.
        content["plugins"] = sorted(plugin.sha256 for plugin in self.plugins)
        # One text for one content, whatever the order of the keys.
        canonical = json.dumps({"protocol": PROTOCOL, **content}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def hyperparameters(self) -> dict[str, Any]:
        """Return every setting under the name of its column in records.csv."""
        base = self.optimizer.base
        return {
            "method": self.optimizer.name,
            "base": base.name if base else None,
            # No name may come twice: a method renames a setting that its base has, too (`rename` in the registry).
            **(base.params if base else {}),
            **self.optimizer.params,
            **self.train.model_dump(),
            **self.data.model_dump(),
            **{f"task.{key}": _cell(value) for key, value in self._task_settings().items()},
            **{f"model.{key}": _cell(value) for key, value in self.model.params.items()},
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
