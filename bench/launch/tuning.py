"""From tuning runs to final runs: configurations are chosen here, on validation data, and recorded.

results/<experiment>/chosen.json    every candidate with its validation numbers, what was chosen of them, and why
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError, shown
from bench.core.experiment import Experiment, Place, PlannedRun
from bench.core.meta import MetricMeta, Superseded
from bench.store import collecting
from bench.store.collecting import NOTHING, Found, Held
from bench.store.run_folder import FINISHED, Store, read_json, to_json, write_atomic

if TYPE_CHECKING:
    import pandas as pd

FILE = "chosen.json"


@dataclass(frozen=True)
class Choices:
    """The choices that tuning has made so far.

    Attributes:
        chosen: the text of the chosen configuration, where all runs of tuning are over and any of them is finished.
        content: of chosen.json, beside what was chosen before.
        history: every choice that final runs were ever planned for: condition, label, config, final (their run_ids).
    """

    chosen: dict[Place, str] = field(default_factory=dict)
    content: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def superseded(self, store: Store, held: Held = NOTHING) -> list[Superseded]:
        """Return replaced choices that have finished final runs, with the number of these runs."""
        # Three sources, of which the largest count holds: the records, run folders, experiment.json.
        there = store.present()
        finished_before = Counter(_named(row) for row in held.rows.values() if row.get("phase") == "final")
        for earlier in self.history:
            runs = (collecting.look(store.run(run_id), held, there, whole=False) for run_id in earlier["final"])
            finished_before[_named(earlier)] = max(
                finished_before[_named(earlier)], sum(run.status in FINISHED for run in runs)
            )
        # experiment.json names choices whose runs may be in neither of the other two.
        for earlier in (held.meta.get("phases") or {}).get("superseded", []):
            finished_before[_named(earlier)] = max(finished_before[_named(earlier)], earlier["finished"])
        return [
            {"condition": condition, "label": label, "config": config, "finished": finished}
            for (condition, label, config), finished in finished_before.items()
            # The default is the choice itself: a place without a new choice has none that is superseded.
            if finished and self.chosen.get((condition, label), config) != config
        ]

    def changed(self) -> Iterator[str]:
        """Yield a note for each choice that differs from the choice of earlier final runs."""
        for (condition, label), config in self.chosen.items():
            before = [one["config"] for one in self.history if (one["condition"], one["label"]) == (condition, label)]
            if before and config not in before:
                where = f"{condition} {label}".strip()
                yield (
                    f"{where}: {config} is chosen now, {before[-1]} was before: the runs of tuning have changed. "
                    "Final runs of the earlier choice stay in runs/ but are not reported."
                )


def choose(experiment: Experiment, store: Store, held: Held | None = None) -> Choices:
    """Choose configurations wherever every tuning run is done or has failed.

    Nothing but the validation numbers of these runs is read.

    Args:
        held: what the records hold; default: they are read.

    Raises:
        BenchError: a result, the records or the file of earlier choices are damaged.
    """
    # Imported here, with pandas, which most commands do without.
    from bench.store import selection

    history = _history(store.folder / FILE)
    held = collecting.held(store) if held is None else held
    runs = experiment.tuning
    # Nothing has run yet, so there is nothing to compare.
    there = store.present()
    if not (there or held.rows):
        return Choices(history=history)
    # whole=False: status and metrics are enough, curves are not read.
    looked = [collecting.look(store.run(run.spec.run_id), held, there, whole=False) for run in runs]
    frame = selection.candidates(validation(runs, looked, experiment.metric["key"]), experiment.metric)
    settings = {(*run.place, run.config_text): run.config for run in runs}
    chosen, content = {}, []
    for _, group in frame.groupby(level=["condition", "optimizer"], sort=False):
        # `selection.choose` flags exactly one configuration per place.
        ((condition, label, config),) = group.index[group["chosen"]]
        best = group[group["chosen"]].iloc[0]
        # Wait for every run of tuning at this place. Without any validation score nothing is chosen.
        if group["unfinished"].any() or not best[f"val_{experiment.metric['key']}:count"]:
            continue
        chosen[condition, label] = config
        candidates = [
            _candidate(settings[key], row, experiment.metric["key"])
            for key, row in zip(group.index, group.to_dict("records"), strict=True)
        ]
        content.append(
            {
                "condition": condition,
                "label": label,
                "chosen": config,
                "why": _why(group, best, experiment.metric),
                "candidates": candidates,
            }
        )
    return Choices(chosen, content, history)


def write_down(choices: Choices, experiment: Experiment, store: Store) -> None:
    """Write chosen.json atomically before any final run starts; write nothing if nothing is chosen."""
    if experiment.phases is None or not (choices.chosen or choices.history):
        return
    history = {(one["condition"], one["label"], one["config"]): one for one in choices.history}
    for run in experiment.runs:
        if run.phase == "final" and run.place in choices.chosen:
            key = (*run.place, run.config_text)
            new = {"condition": key[0], "label": key[1], "config": key[2], "final": []}
            # The history only grows: by it final runs of earlier choices are known.
            final = history.setdefault(key, new)["final"]
            history[key] = {**history[key], "final": sorted({*final, run.spec.run_id})}
    metric = experiment.metric["name"]
    content = {
        "experiment": experiment.name,
        "rule": (
            f"the best mean validation {metric} over the seeds of tuning, among the configurations of which every run "
            "finished; ties go to the lower mean validation loss, then to the first listed"
        ),
        "seeds": list(experiment.phases.tune_seeds),
        "choices": choices.content,
        "history": list(history.values()),
    }
    write_atomic(store.folder / FILE, to_json(content))


def _history(path: Path) -> list[dict[str, Any]]:
    """Return the earlier choices recorded in chosen.json.

    Raises:
        BenchError: the file is damaged.
    """
    history: list[dict[str, Any]] = read_json(path, missing={}).get("history", [])
    for one in history if isinstance(history, list) else [None]:
        texts = isinstance(one, dict) and all(isinstance(one.get(key), str) for key in ("condition", "label", "config"))
        final = one.get("final") if isinstance(one, dict) else None
        if not texts or not isinstance(final, list) or not all(isinstance(run_id, str) for run_id in final):
            raise BenchError(f"{path} is damaged (its history has {shown(one)}); delete it and choices are made again")
    return history


# ---- parts ---------------------------------------------------------------------------------------------------


def validation(runs: Iterable[PlannedRun], looked: Iterable[Found], key: str) -> pd.DataFrame:
    """Return every run's status and validation numbers, as `selection.candidates` takes them.

    Args:
        looked: what there is of each of them.
        key: of the metric.
    """
    import pandas as pd

    rows = []
    for run, found in zip(runs, looked, strict=True):
        of_val = {name: found.row.get(name, float("nan")) for name in (f"val_{key}", "val_loss")}
        place = {"condition": run.condition_text, "optimizer": run.label, "config": run.config_text}
        rows.append({**place, "status": found.status, **of_val})
    return pd.DataFrame(rows)


def _named(choice: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the place and the configuration of an earlier choice, or of a row of records."""
    return choice.get("condition", ""), choice.get("label") or choice["optimizer"], choice.get("config", "")


def _candidate(settings: Mapping[str, Any], row: Mapping[Any, Any], key: str) -> dict[str, Any]:
    means = {name: row[f"{name}:mean"] for name in (f"val_{key}", "val_loss")}
    return {
        "settings": dict(settings),
        "planned": int(row["planned"]),
        "n": int(row["done"]),
        "diverged": int(row["diverged"]),
        "failed": int(row["failed"]),
        # NaN, which is unequal to itself, is null in JSON.
        **{f"{name}_mean": None if value != value else float(value) for name, value in means.items()},
    }


def _why(group: pd.DataFrame, best: pd.Series, metric: MetricMeta) -> str:
    """Return the reason for a choice in a sentence, with the runner-up."""
    column = f"val_{metric['key']}:mean"
    scored = group[f"val_{metric['key']}:count"]
    # As in `selection.choose`: incomplete configurations count only where none is complete.
    complete = group[scored == group["planned"]]
    among = complete if len(complete) else group[scored > 0]
    what = "complete configurations" if len(complete) else "configurations, of which none is complete"
    said = f"best mean validation {metric['name']} ({_shown(best[column], metric)}) of {len(among)} {what}"
    others = among.drop(index=best.name)[column]
    if others.empty:
        return said
    second = others.max() if metric["higher_is_better"] else others.min()
    tie = "; the tie was broken by the lower validation loss, then by order" if second == best[column] else ""
    return f"{said}; the next best has {_shown(second, metric)}{tie}"


def _shown(value: float, metric: MetricMeta) -> str:
    return f"{value * metric['scale']:.2f} {metric['unit']}".rstrip()
