"""Options of a launch: one value from the command line to the worker and to each process of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from bench.core.errors import BadValue, shown

MOST_AT_ONCE = 10_000
"""Most runs at once, with a bound since one worker is made for each."""


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
        BadValue: with every setting that has an impossible value.
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
        if problems := list(self._problems()):
            raise BadValue("options of the launch", problems)

    def _problems(self) -> Iterator[str]:
        for name in ("jobs", "jobs_per_gpu"):
            count = getattr(self, name)
            if count is not None and not (_is_whole(count) and 1 <= count <= MOST_AT_ONCE):
                yield f"{name}: must be a whole number from 1 to {MOST_AT_ONCE:,}, got {shown(count)}"
        if self.gpus is not None:
            numbers = isinstance(self.gpus, tuple) and all(_is_whole(gpu) and gpu >= 0 for gpu in self.gpus)
            if not (self.gpus and numbers):
                yield f"gpus: must be numbers of GPUs, 0 for the first, got {shown(self.gpus)}"
            elif len(set(self.gpus)) < len(self.gpus):
                yield f"gpus: the same GPU twice in {shown(self.gpus)}; jobs_per_gpu says how many runs share one"
        for name in ("fail_fast", "keep_weights"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name}: must be true or false, got {shown(getattr(self, name))}"
        minutes = self.checkpoint_minutes
        if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 <= minutes < math.inf:
            yield f"checkpoint_minutes: must be a finite number >= 0, got {shown(minutes)}"
        if not isinstance(self.data, str | None) or self.data == "":
            yield f"data: must be the path of a folder, got {shown(self.data)}"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


DEFAULTS = RunOptions()


def from_json(content: Mapping[str, Any]) -> RunOptions:
    """Return the options in an object of JSON, which may have other keys as well, and not all of these."""
    # Submissions of earlier versions lack newer options: these keep their defaults.
    known = {field.name: content[field.name] for field in fields(RunOptions) if field.name in content}
    if known.get("gpus") is not None:
        gpus = known["gpus"]
        known["gpus"] = tuple(gpus) if isinstance(gpus, list) else gpus  # JSON has lists only
    return RunOptions(**known)
