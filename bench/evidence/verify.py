"""Verification that a repeated run gives the recorded numbers.

On the recorded hardware, with as many threads and the same versions, every bit must come again (on a GPU: where the run
says `deterministic = true`). Anywhere else sums are rounded differently, and training enlarges that until the repeated
run is like one of another seed; then the final numbers must agree as closely as the seeds of its configuration do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from bench.store.columns import metric_columns
from bench.store.conditions import keyed
from bench.store.records import Results

SPREADS = 4.0
"""Standard deviations over the seeds by which a final number may differ where bits need not repeat: more than two runs
of other seeds usually do (their difference has sqrt(2) deviations). Ten runs of digits_noise, on two threads instead of
one, were all within: the farthest number at 0.8 of what is allowed, every other at 0.6 or less."""

FLOOR_SCORE = 0.01
"""Difference of a score, as stored, that is allowed where bits need not repeat: few seeds can be close by chance."""

FLOOR_LOSS = 0.05
"""The same for a loss, as a share of the recorded loss."""

SAME = ("device", "threads", "torch", "python")
"""Columns that must be as recorded, besides the code, for a repeated run to give the same bits."""

EXACT = ("status", "data_fingerprint", "passes", "examples", "tokens", "sequences", "truncated")
"""Columns that are equal on every machine."""

BITS = ("initial_weights_sha256", "weights_sha256", "skipped_steps")

Word = Literal["identical", "agrees", "differs"]


class Numbers(Protocol):
    """Results of which single runs can be looked up."""

    @property
    def results(self) -> Results: ...

    def record(self, run_id: str) -> pd.Series[Any]: ...

    def curve(self, run_id: str) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Reproduction:
    """The result of repeating a run.

    Attributes:
        word: "identical": every bit is as recorded. "agrees": bits need not repeat here, and the final numbers are
            within tolerance. "differs": neither; `faults` say in what.
        faults: what is not as it must be, a line each.
        elsewhere: what differs from the recorded circumstances ("threads 1, here 2"): with any, bits need not repeat.
        first_epoch: the first evaluated epoch that has another number; None if none has.
        code: recorded and present commit, where they differ: for information.
    """

    run_id: str
    word: Word
    faults: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    first_epoch: int | None = None
    code: str = ""


def reproduction(run_id: str, then: Numbers, now: Numbers) -> Reproduction:
    """Compare a run that was done again with what is recorded of it.

    Args:
        then: as recorded.
        now: as collected from the repetition.
    """
    # 1. Gather what is different: what may never be, and what depends on the machine.
    old, new = then.record(run_id), now.record(run_id)
    if new["status"] not in ("done", "diverged"):
        return Reproduction(run_id, "differs", [f"failed here: {new['error']}"])
    elsewhere = _elsewhere(old, new)
    exact = list(_unequal(old, new, EXACT))
    bits = list(_unequal(old, new, BITS))
    first_epoch, in_curve = _first_difference(then.curve(run_id), now.curve(run_id))
    key = then.results.meta["metric"]["key"]
    bits += [*_unequal_finals(old, new, key), *in_curve]
    code = _code(old, new)
    # 2. Judge: identical, agrees or differs.
    if not exact and not bits:
        return Reproduction(run_id, "identical", [], elsewhere, None, code)
    # Elsewhere the bits may differ, but not what EXACT lists.
    if elsewhere and not exact:
        if far := list(_too_far(then.results, old, new, key)):
            return Reproduction(run_id, "differs", far, elsewhere, first_epoch, code)
        return Reproduction(run_id, "agrees", [], elsewhere, first_epoch, code)
    # The same circumstances, or a difference that no circumstances explain.
    return Reproduction(run_id, "differs", [*exact, *bits], elsewhere, first_epoch, code)


def tolerances(then: Results, recorded: pd.Series[Any], key: str) -> dict[str, float]:
    """Return the allowed difference of each final number of a run on other hardware or with other versions.

    Args:
        recorded: the run's row of the records.
    """
    records = keyed(then.records)
    done = records[records["status"] == "done"]
    place = [name for name in ("condition", "phase", "optimizer", "config") if name in then.records]
    # The other seeds of the same configuration: they differ by chance alone.
    seeds = done[(done[place].fillna("") == recorded[place].fillna("")).all(axis="columns")]
    allowed = {}
    for name in (f"{split}_{what}" for split in ("train", "val", "test") for what in ("loss", key)):
        # A number that the record lacks cannot be compared.
        if name not in seeds or pd.isna(recorded[name]):
            continue
        floor = FLOOR_LOSS * abs(float(recorded[name])) if name.endswith("_loss") else FLOOR_SCORE
        # The deviation of a single seed is NaN: only the floor counts then.
        spread = seeds[name].astype(float).std(ddof=1)
        allowed[name] = max(floor, 0.0 if np.isnan(spread) else SPREADS * float(spread))
    return allowed


def _too_far(then: Results, old: pd.Series[Any], new: pd.Series[Any], key: str) -> Iterator[str]:
    for name, allowed in tolerances(then, old, key).items():
        difference = abs(float(new[name]) - float(old[name]))
        # Not `>`: a difference that is NaN must count as too large.
        if not difference <= allowed:
            values = f"recorded {old[name]:.6g}, here {new[name]:.6g}"
            yield f"{name}: {values}; {difference:.3g} apart, allowed {allowed:.3g}"


def _elsewhere(old: pd.Series[Any], new: pd.Series[Any]) -> list[str]:
    differences = list(_unequal(old, new, SAME))
    # A truth value is True when it was just collected, and may be the text "True" when it was read.
    if new.get("device_type") == "cuda" and str(new["deterministic"]).lower() != "true":
        differences.append("a GPU without deterministic = true")
    return differences


def _unequal(old: pd.Series[Any], new: pd.Series[Any], names: tuple[str, ...]) -> Iterator[str]:
    """Yield the fields that both have and that differ; an older version recorded fewer fields."""
    for name in names:
        if name in old and name in new and not pd.isna(old[name]) and not _same(old[name], new[name]):
            yield f"{name}: recorded {_text(old[name])}, here {_text(new[name])}"


def _unequal_finals(old: pd.Series[Any], new: pd.Series[Any], key: str) -> Iterator[str]:
    names = [name for name in metric_columns(key) if name in old and name in new]
    if other := [name for name in names if not _same(old[name], new[name])]:
        # The test metric if it is among those that differ, since readers look for it.
        shown = f"test_{key}" if f"test_{key}" in other else other[0]
        apart = f"{shown} recorded {float(old[shown])!r}, here {float(new[shown])!r}"
        yield f"final numbers: {len(other)} of {len(names)}; {apart}"


def _first_difference(old: pd.DataFrame, new: pd.DataFrame) -> tuple[int | None, list[str]]:
    """Return the first epoch whose numbers differ from the recorded ones, and the differing numbers.

    Timings are not compared.
    """
    # With other epochs, the first one that only one side has says where the runs parted.
    if list(old.index) != list(new.index):
        return _first(set(old.index) ^ set(new.index)), [f"curve: recorded epochs {_ends(old)}, here {_ends(new)}"]
    numbers = [
        name
        for name in old.columns.intersection(new.columns)
        if pd.api.types.is_numeric_dtype(old[name]) and name not in ("seed", "train_seconds")
    ]
    a, b = old[numbers].astype(float), new[numbers].astype(float)
    # Two missing numbers are equal here; NaN and NaN are not by themselves.
    other = ~((a == b) | (a.isna() & b.isna()))
    if not other.to_numpy().any():
        return None, []
    epoch = _first(other.index[other.any(axis=1)])
    recorded, here = ({name: side[name].to_dict()[epoch] for name in numbers} for side in (a, b))
    names = [name for name in numbers if other.loc[epoch, name]]
    # A number that only one side has is the worst of all: NaN is larger than nothing.
    worst = max(names, key=lambda name: np.nan_to_num(abs(recorded[name] - here[name]), nan=np.inf))
    apart = f"{worst} recorded {recorded[worst]!r}, here {here[worst]!r}"
    return epoch, [f"curve: from epoch {epoch} on, {len(names)} of {len(numbers)} numbers there; {apart}"]


def _first(epochs: Any) -> int:
    return int(min(epochs))


def _ends(curve: pd.DataFrame) -> str:
    return f"{curve.index[0]} to {curve.index[-1]}" if len(curve) else "none"


def _same(old: Any, new: Any) -> bool:
    return bool(old == new) or bool(pd.isna(old) and pd.isna(new))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _code(old: pd.Series[Any], new: pd.Series[Any]) -> str:
    then, now = (_commit(row) for row in (old, new))
    return "" if then == now else f"recorded at commit {then}, this is {now}"


def _commit(row: pd.Series[Any]) -> str:
    if pd.isna(row["commit"]):
        return "unknown"
    changed = str(row["dirty"]).lower() == "true"
    return str(row["commit"])[:10] + (" + uncommitted changes" if changed else "")
