"""Origin of an experiment's numbers: hardware, versions, commits and data of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.core.meta import Meta
from bench.store import selection
from bench.store.conditions import conditions, keyed, merged, under

if TYPE_CHECKING:
    from bench.store.records import Results


@dataclass(frozen=True)
class Provenance:
    """Origin of the numbers: the distinct values found among the finished runs, as text.

    `caution` is a sentence to stand wherever the numbers do, "" where none is needed: that some of the data files
    are not those of their publisher, by their checksums. `cut` says how many texts were longer than the model was given
    them, "" where none was. `clock` is the hardware whose times count (see `Clock`), and `timed` says how many of the
    finished runs were done on it.
    """

    devices: list[str]
    torch: list[str]
    python: list[str]
    commits: list[str]
    caution: str
    cut: str
    clock: tuple[str, ...] = ()
    timed: str = ""
    precisions: int = 1

    @property
    def mixed(self) -> bool:
        """Return whether runs of different versions, commits or precisions stand in one table."""
        # Hardware is not asked here: `Clock` already keeps times of different hardware apart.
        return max(self.precisions, *map(len, (self.torch, self.python, self.commits))) > 1


def provenance(results: Results, where: Clock) -> Provenance:
    """Return hardware, versions, commits and data of the finished runs; a dirty commit has "+ uncommitted changes"."""
    # Only runs whose numbers are in a mean: what a failed run was done on is of no interest here.
    done = results.records[results.records["status"] == "done"]
    # Flags are bools, or objects where some are missing: as text both compare.
    dirty = done["dirty"].astype(str).str.lower() == "true"
    commits = done["commit"].dropna().astype(str).str[:10]
    setups = done[["device", "threads", "precision"]].drop_duplicates()
    return Provenance(
        devices=sorted({_device(*setup) for setup in setups.itertuples(index=False)}),
        torch=_distinct(done["torch"]),
        python=_distinct(done["python"]),
        commits=_distinct(commits.where(~dirty, commits + " + uncommitted changes")),
        caution=_caution(results),
        cut=_cut(results),
        clock=tuple(dict.fromkeys(where.hardware.values())),
        timed=f"{len(done) - int(done['run_id'].isin(where.elsewhere).sum()):,} of {len(done):,}",
        precisions=done["precision"].nunique(),
    )


@dataclass(frozen=True)
class Clock:
    """The hardware whose seconds are compared with each other.

    Attributes:
        hardware: device and threads of most runs, by condition; empty if all runs were done on one kind.
        elsewhere: ids of the runs that were done on another kind.
    """

    hardware: Mapping[str, str] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()


def clock(results: Results) -> Clock:
    """Return the hardware whose times are compared: the one that did most finished runs of a condition."""
    # Diverged runs were timed, too, and the table of costs to a target reads their times.
    done = keyed(results.records[results.records["status"].isin(["done", "diverged"])])
    pairs = zip(done["device"], done["threads"], strict=True)
    # Precision is left out: one machine in two precisions is one kind, and `mixed` warns of the precisions.
    done["kind"] = [_device(device, threads, None) for device, threads in pairs]
    if done["kind"].nunique() < 2:
        return Clock()
    everywhere = dict(done["kind"].value_counts())
    most = {
        # A tie within the condition goes to the hardware with most runs over all conditions.
        condition: max(kinds.value_counts().items(), key=lambda pair: (pair[1], everywhere[pair[0]]))[0]
        for condition, kinds in selection.reported(done).groupby("condition", sort=False)["kind"]
    }
    elsewhere = done["kind"] != done["condition"].map(most)
    return Clock({str(name): str(kind) for name, kind in most.items()}, frozenset(done.loc[elsewhere, "run_id"]))


def timed(frame: pd.DataFrame, clock: Clock) -> pd.DataFrame:
    """Return records or curves without the seconds of runs that were done on other hardware than most."""
    if not clock.elsewhere:
        return frame
    return frame.assign(train_seconds=frame["train_seconds"].mask(frame["run_id"].isin(clock.elsewhere)))


def title(meta: Meta, task: str) -> str:
    """Return the name of a task in tables: its title or, without one, its name."""
    about = meta.get("tasks", {}).get(task)
    return (about and about["title"]) or task


def _caution(results: Results) -> str:
    """Return the warning on unverified data; diverged runs count too, since tables report them."""
    if "data_verified" not in results.records:
        return ""
    unverified = results.records["data_verified"].astype(str).str.lower() == "false"
    among = conditions(results.meta)
    affected = set(keyed(results.records[unverified])["condition"])
    if not affected:
        return ""
    where = under([name for name in among if name in affected], among)
    return f"Unverified data{where}: the checksums of the data files are not their publisher's."


def _cut(results: Results) -> str:
    """Return the note on truncated texts, per task, and per condition where conditions differ.

    Truncation is counted before training, so any run that has all splits will do.
    """
    columns = ["task", "condition", "sequences", "truncated", "max_tokens"]
    # Runs without text lack these columns, so no line of theirs is left.
    records = keyed(selection.reported(results.records)).reindex(columns=columns).dropna()
    among = records.groupby("task")["condition"].unique()
    notes: dict[float, dict[str, list[tuple[str, str, str]]]] = {}
    for task, condition, texts, cut, limit in records.drop_duplicates().itertuples(index=False):
        if cut > 0:
            counted = f"{cut:,.0f} of {texts:,.0f} of {title(results.meta, task)}"
            notes.setdefault(limit, {}).setdefault(task, []).append((condition, counted, ""))
    sentences = []
    for limit, of_task in notes.items():
        # Compared with the conditions of the same task: a note that holds under all of them names none.
        said = [part for task, affected in of_task.items() for part in merged(affected, among[task])]
        sentences.append(f"Texts longer than {limit:,.0f} tokens were cut: {', '.join(said)}.")
    return " ".join(sentences)


def _device(device: Any, threads: Any, precision: Any) -> str:
    """Return one setup as text, e.g. "AMD EPYC (2 threads, float32)"; what is not recorded is left out."""
    details = [] if pd.isna(threads) else [f"{int(threads)} thread{'s' * (int(threads) != 1)}"]
    details += [] if pd.isna(precision) else [str(precision)]
    name = "unknown device" if pd.isna(device) else str(device)
    return f"{name} ({', '.join(details)})" if details else name


def _distinct(column: pd.Series) -> list[str]:
    return sorted({str(value) for value in column.dropna()})
