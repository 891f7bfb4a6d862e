"""From the runs of tuning to the final ones: what is chosen is chosen here, on validation, and written down.

results/<experiment>/chosen.json    every candidate with its validation numbers, what was chosen of them, and why
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench import records
from bench.spec import Experiment, Place, PlannedRun
from bench.store import Store, read_json, to_json, write_atomic

if TYPE_CHECKING:
    import pandas as pd

FILE = "chosen.json"


@dataclass(frozen=True)
class Choices:
    """What tuning has led to so far.

    Attributes:
        chosen: the text of the chosen configuration, where all runs of tuning are over and any of them is finished.
        content: of chosen.json, beside what was chosen before.
        history: every choice that final runs were ever planned for: condition, label, config, final (their run_ids).
    """

    chosen: dict[Place, str] = field(default_factory=dict)
    content: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def superseded(self, store: Store) -> list[dict[str, Any]]:
        """Choices that others have taken the place of, with their finished final runs, if there are any."""
        found = []
        for earlier in self.history:
            if self.chosen.get((earlier["condition"], earlier["label"])) == earlier["config"]:
                continue
            finished = sum(store.run(run_id).result() is not None for run_id in earlier["final"])
            if finished:
                named = {key: earlier[key] for key in ("condition", "label", "config")}
                found.append({**named, "finished": finished})
        return found

    def changed(self) -> Iterator[str]:
        """What has to be said of choices that are not those for which final runs were planned before."""
        for (condition, label), config in self.chosen.items():
            before = [one["config"] for one in self.history if (one["condition"], one["label"]) == (condition, label)]
            if before and config not in before:
                where = f"{condition} {label}".strip()
                yield (
                    f"{where}: {config} is chosen now, {before[-1]} was before: more or other runs of tuning are "
                    "there. Final runs of the earlier choice stay in runs/ and count nowhere."
                )


def choose(experiment: Experiment, store: Store) -> Choices:
    """Choose where tuning is over: wherever no run of it is left to do, failed ones counting as done.

    Nothing but the validation numbers of these runs is read.

    Raises:
        BenchError: a result or the file of earlier choices is damaged.
    """
    from bench.analysis import choice

    history = read_json(store.folder / FILE, missing={}).get("history", [])
    runs = experiment.tuning
    if not store.present():
        return Choices(history=history)
    frame = choice.candidates(_validation(runs, store, experiment.metric["key"]), experiment.metric)
    settings = {(*run.place, run.config_text): run.config for run in runs}
    chosen, content = {}, []
    for _, group in frame.groupby(level=["condition", "optimizer"], sort=False):
        ((condition, label, config),) = group.index[group["chosen"]]
        best = group[group["chosen"]].iloc[0]
        if group["unfinished"].any() or not best["done"]:
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
    """Write chosen.json, whole or not at all, before any final run starts; nothing where nothing is chosen."""
    if experiment.phases is None or not (choices.chosen or choices.history):
        return
    history = {(one["condition"], one["label"], one["config"]): one for one in choices.history}
    for run in experiment.runs:
        if run.phase == "final" and run.place in choices.chosen:
            key = (*run.place, run.config_text)
            new = {"condition": key[0], "label": key[1], "config": key[2], "final": []}
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


# ---- parts ---------------------------------------------------------------------------------------------------


def _validation(runs: Iterable[PlannedRun], store: Store, key: str) -> pd.DataFrame:
    """Where every run of tuning stands, with its validation numbers."""
    import pandas as pd

    there, rows = store.present(), []
    for run in runs:
        folder = store.run(run.spec.run_id)
        status, result = records.standing(folder) if folder.run_id in there else ("missing", None)
        metrics: Mapping[str, float] = (result or {}).get("metrics", {})
        of_val = {name: metrics.get(name, float("nan")) for name in (f"val_{key}", "val_loss")}
        condition, label = run.place
        rows.append({"condition": condition, "optimizer": label, "config": run.config_text, "status": status, **of_val})
    return pd.DataFrame(rows)


def _candidate(settings: Mapping[str, Any], row: Mapping[Any, Any], key: str) -> dict[str, Any]:
    means = {name: row[f"{name}:mean"] for name in (f"val_{key}", "val_loss")}
    return {
        "settings": dict(settings),
        "planned": int(row["planned"]),
        "n": int(row["done"]),
        "diverged": int(row["diverged"]),
        "failed": int(row["failed"]),
        **{f"{name}_mean": None if value != value else float(value) for name, value in means.items()},
    }


def _why(group: pd.DataFrame, best: pd.Series, metric: Mapping[str, Any]) -> str:
    """In a sentence, with the runner-up."""
    column = f"val_{metric['key']}:mean"
    complete = group[group["done"] == group["planned"]]
    among = complete if len(complete) else group[group["done"] > 0]
    what = "complete configurations" if len(complete) else "configurations, of which none is complete"
    said = f"best mean validation {metric['name']} ({_shown(best[column], metric)}) of {len(among)} {what}"
    others = among.drop(index=best.name)[column]
    if others.empty:
        return said
    second = others.max() if metric["higher_is_better"] else others.min()
    tie = "; the tie was broken by the lower validation loss, then by order" if second == best[column] else ""
    return f"{said}; the next best has {_shown(second, metric)}{tie}"


def _shown(value: float, metric: Mapping[str, Any]) -> str:
    return f"{value * metric['scale']:.2f} {metric['unit']}".rstrip()
