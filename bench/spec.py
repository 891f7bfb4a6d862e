"""RunSpec: everything that decides the numbers of one run, frozen and fully resolved.

Hand its JSON to another machine and the same run happens there. Paths, workers and devices are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from bench.registry import STRICT

PROTOCOL = 1
"""Version of the measuring rules. Raise it when a change of code changes the numbers: old runs are then not reused."""


class _Frozen(BaseModel):
    model_config = STRICT


class DataSettings(_Frozen):
    """What is done to a task's data, alike for every task."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training set held out, by a fixed permutation; everything that is chosen is chosen on it."""
    label_noise: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of the training labels replaced by a wrong one, drawn uniformly; validation and test stay clean."""


class TrainSettings(_Frozen):
    """How a run is trained; an optimizer's entry may override any of these."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Examples a step; the rest of an epoch that fills no batch is left out of it."""
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs over which lr rises linearly to its value."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the final gradient (never of the ascent's)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs forward passes under autocast; weights stay fp32."""
    eval_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between evaluations; the last epoch is always evaluated."""

    @field_validator("warmup_epochs")
    @classmethod
    def _warmup_fits(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("epochs", value):
            raise ValueError(f"must be at most epochs ({info.data['epochs']})")
        return value


class Choice(_Frozen):
    """A registered name with all its hyperparameters, defaults filled in."""

    name: str
    params: dict[str, Any] = {}


class OptimizerChoice(Choice):
    base: Choice | None = None
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

    task: Choice
    model: Choice
    optimizer: OptimizerChoice
    data: DataSettings
    train: TrainSettings
    seed: Annotated[int, Field(ge=0)]
    plugins: tuple[PluginFile, ...] = Field(default=(), strict=False)

    @property
    def run_id(self) -> str:
        """12 hex digits: a hash of the resolved spec and the protocol version."""
        content = self.model_dump(mode="json")
        content["plugins"] = sorted(plugin.sha256 for plugin in self.plugins)
        canonical = json.dumps({"protocol": PROTOCOL, **content}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def hyperparameters(self) -> dict[str, Any]:
        """Every setting under the name of its column in records.csv."""
        base = self.optimizer.base
        return {
            "method": self.optimizer.name,
            "base": base.name if base else None,
            **(base.params if base else {}),
            **self.optimizer.params,
            **self.train.model_dump(),
            **self.data.model_dump(),
            **{f"task.{key}": value for key, value in self.task.params.items()},
            **{f"model.{key}": value for key, value in self.model.params.items()},
        }


@dataclass(frozen=True)
class PlannedRun:
    """A run in its place in an experiment: one spec may stand under several labels, but runs once.

    Attributes:
        label: the optimizer's entry in the experiment file.
        config: the swept hyperparameters and this run's values of them, by column name.
    """

    label: str
    config: dict[str, Any]
    spec: RunSpec

    @property
    def name(self) -> str:
        """The run in words: "sam rho=0.1 seed 3"."""
        return " ".join(filter(None, (self.label, self.config_text, f"seed {self.spec.seed}")))

    @property
    def config_text(self) -> str:
        return ", ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.config.items()
        )
