"""Options of a launch: one value from the command line to the worker and to each process of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bench.core.errors import BadValue


@dataclass(frozen=True)
class RunOptions:
    """Settings of a launch that are no part of a run, so that none of them is in its run_id.

    `jobs` decides how many threads a run gets; with another number of threads the last bits of its numbers may differ.

    Attributes:
        jobs: runs at once; None: one per GPU, else one per core.
        jobs_per_gpu: runs at once on each GPU, where `jobs` does not say; None: one.
        gpus: the GPUs to use, numbered as torch sees them; None: all.
        fail_fast: stop at the first run that fails.
        checkpoint_minutes: minutes between two checkpoints of a run.
        keep_weights: leave the final weights of each run in its folder.
        data: the folder of data and weights, for jobs on other machines; None: their own default.

    Raises:
        BadValue: the minutes are negative or not finite.
    """

    jobs: int | None = None
    jobs_per_gpu: int | None = None
    gpus: tuple[int, ...] | None = None
    fail_fast: bool = False
    checkpoint_minutes: float = 5.0
    keep_weights: bool = False
    data: str | None = None

    def __post_init__(self) -> None:
        # Not `x < 0 or x == inf`, which NaN would pass.
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise BadValue("checkpoint_minutes", [f"must be a finite number >= 0, got {self.checkpoint_minutes}"])


DEFAULTS = RunOptions()


def from_json(content: Mapping[str, Any]) -> RunOptions:
    """Return the options in an object of JSON, which may have other keys as well, and not all of these."""
    # Submissions of earlier versions lack newer options: these keep their defaults.
    known = {field.name: content[field.name] for field in fields(RunOptions) if field.name in content}
    if known.get("gpus") is not None:
        known["gpus"] = tuple(known["gpus"])  # JSON has lists only
    return RunOptions(**known)
