"""`bench merge`: what several machines did of one experiment, put together from their records.

Nothing but collected files is read, so folders of runs, the experiment's file and its plug-ins are not needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import pandas as pd

from bench.core.errors import BadValue
from bench.core.meta import Meta, PartMeta, Superseded
from bench.evidence.merge_meta import disagreements, merged_meta
from bench.evidence.verify import reproduction
from bench.store import selection
from bench.store.columns import COUNTS, PLACE, SECONDS, setting_columns
from bench.store.conditions import KEY, conditions, keyed
from bench.store.records import Results
from bench.store.run_folder import FINISHED

Part = tuple[str, Results]
"""Name of a part, and its results."""

NOWHERE = "-" * 12
"""Stand-in for the run_id of a run that no part has planned; `bench run` computes the real one."""

MEASURED_WITH = ("examples", "eigenvalues", "m", "rho", "line_points", "plane_points", "precision")
"""Columns of measures.csv that must have one value for all runs."""

SHOWN = 5
"""Faults of one kind that are listed; further ones are counted."""


@dataclass(frozen=True)
class Merged:
    """Results of all parts.

    Attributes:
        taken: how many finished runs are of each part.
        twice: how many finished runs stand in several parts, with the same numbers.
    """

    results: Results
    taken: dict[str, int]
    twice: int


class _ByRun:
    """Results indexed by run_id, since many single runs are looked up."""

    def __init__(self, results: Results) -> None:
        self.results = results

    @cached_property
    def rows(self) -> pd.DataFrame:
        done = self.results.records[self.results.records["status"].isin(FINISHED)]
        return done.drop_duplicates("run_id").set_index("run_id", drop=False)

    @cached_property
    def points(self) -> pd.DataFrame:
        return self.results.curves.drop_duplicates(["run_id", "epoch"]).set_index("epoch", drop=False)

    @cached_property
    def _places(self) -> Mapping[Any, Any]:
        return self.points.groupby("run_id").indices

    def record(self, run_id: str) -> pd.Series[Any]:
        rows: Any = self.rows.loc
        row: pd.Series[Any] = rows[run_id]
        return row

    def curve(self, run_id: str) -> pd.DataFrame:
        points: pd.DataFrame = self.points.iloc[self._places.get(run_id, [])]
        return points


def merge(parts: Sequence[Part]) -> Merged:
    """Merge results; of a run that several parts have, the numbers of the first count.

    Raises:
        BadValue: the parts belong to several experiments, or two parts differ in a run; the message lists all faults.
    """
    # 1. Refuse what does not fit. Runs are compared only if all parts are of one experiment.
    faults = list(disagreements([(name, results.meta) for name, results in parts]))
    if not faults:
        faults = [*_other_settings(parts), *_other_data(parts), *_other_numbers(parts), *_other_measures(parts)]
    if faults:
        raise BadValue("these results cannot be merged, and nothing was written", faults)
    # 2. All rows in one table; `part` says where each is from.
    frames = [
        keyed(results.records).assign(part=number, phase=_phase(results.records))
        for number, (_, results) in enumerate(parts)
    ]
    every = pd.concat(frames, ignore_index=True)[[*_columns([*frame.columns] for frame in frames)]]
    meta = merged_meta([results.meta for _, results in parts])
    # 3. The best row of each place: finished before failed before unfinished, then that of the earlier part.
    rank = every["status"].map(lambda status: 0 if status in FINISHED else 1 if status == "failed" else 2)
    best = every.assign(rank=rank).sort_values(["rank", "part"], kind="stable").drop_duplicates([*PLACE])
    # 4. Without final runs that the merged tuning does not choose, with rows for missing runs, and in order.
    records, superseded = _without_superseded(best.drop(columns="rank"), meta)
    records = _in_order(_whole(records, meta), meta)
    # 5. What belongs to the finished runs: where they are from, their curves and their measures.
    done = records[records["status"].isin(FINISHED)]
    counted = done.drop_duplicates("run_id")["part"].value_counts()
    taken = {name: int(counted.get(number, 0)) for number, (name, _) in enumerate(parts)}
    finished = every[every["status"].isin(FINISHED)]
    twice = int((finished.groupby("run_id")["part"].nunique() > 1).sum())
    curves = _curves(parts, done)
    measures, directions = _measures(parts, done)
    if superseded and (phases := meta.get("phases")):
        phases["superseded"] = superseded
    meta["parts"] = [*meta.get("parts", []), *_origins(parts, taken)]
    records = _as_written(records, meta)
    return Merged(Results(meta, records, curves, measures, directions), taken, twice)


def _phase(frame: pd.DataFrame) -> pd.Series[Any]:
    return frame["phase"].fillna("") if "phase" in frame else pd.Series("", frame.index)


def _columns(of_parts: Iterator[list[str]]) -> list[str]:
    """Return all columns, each after the one that it follows in the first part that has it."""
    names: list[str] = []
    for columns in of_parts:
        # Where the column before this one, in this part, stands among all columns.
        before = -1
        for name in columns:
            if name not in names:
                names.insert(before + 1, name)
            before = names.index(name)
    return names


# ---- what is refused -----------------------------------------------------------------------------------------


def _other_settings(parts: Sequence[Part]) -> Iterator[str]:
    """Yield the settings that differ between two parts for configurations of the same name."""
    seen: dict[Any, tuple[str, dict[str, Any]]] = {}
    ids: dict[Any, tuple[str, str]] = {}
    for name, results in parts:
        frame = keyed(results.records).assign(phase=_phase(results.records))
        names = ["task", "model", *setting_columns(map(str, results.records))]
        # One row per configuration will do: its settings are the same for all seeds.
        for row in frame.drop_duplicates([*KEY, "phase"]).to_dict("records"):
            key = tuple(row[column] for column in (*KEY, "phase"))
            here = {column: None if pd.isna(row[column]) else row[column] for column in names}
            first, there = seen.setdefault(key, (name, here))
            # A column that only one of the parts has is no difference.
            for column in [column for column in names if column in there and there[column] != here[column]]:
                where = " ".join(filter(None, map(str, key)))
                yield f"{where}: {column} is {there[column]} in {first}, {here[column]} in {name}"
        # The run_id of a run that no part planned is a stand-in, the same for all of them.
        planned = frame[frame["run_id"] != NOWHERE][[*KEY, "phase", "seed", "run_id"]]
        for *place, seed, here_id in planned.itertuples(index=False, name=None):
            first, run_id = ids.setdefault((*place, seed), (name, here_id))
            if run_id != here_id:
                where = " ".join(filter(None, map(str, place)))
                yield (
                    f"{where} seed {seed}: is run {run_id} in {first} and {here_id} in {name}: a setting, a plug-in or "
                    "a data file differs"
                )
                # One run_id per part will do: others most likely differ for the same reason.
                break


def _other_data(parts: Sequence[Part]) -> Iterator[str]:
    """Yield the tasks whose data differ between two parts."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for name, results in parts:
        frame = keyed(results.records)
        if "data_fingerprint" not in frame:
            continue
        there = frame[frame["status"].isin(FINISHED)][["task", "condition", "data_fingerprint"]].dropna()
        for task, condition, print_ in there.drop_duplicates().itertuples(index=False):
            first, known = seen.setdefault((task, condition), (name, print_))
            if known != print_:
                yield f"task {task}: the data differ: fingerprint {known} in {first}, {print_} in {name}"
                break


def _other_numbers(parts: Sequence[Part]) -> Iterator[str]:
    """Yield the runs whose numbers differ between two parts, by the rule of `bench verify`."""
    sides = [(name, _ByRun(results)) for name, results in parts]
    faults = []
    for number, (name, now) in enumerate(sides):
        left = set(now.rows.index)
        for first, then in sides[:number]:
            both = then.rows.index.intersection(list(left))
            # A run is compared with the first part that has it, and not again with later ones.
            left -= set(both)
            # Most runs have equal cells; only the others go through the slow comparison.
            for run_id in _not_identical(then, now, both):
                again = reproduction(run_id, then, now)
                if again.word == "differs":
                    row = then.record(run_id)
                    where = " ".join(str(row[column]) for column in ("optimizer", "config") if not pd.isna(row[column]))
                    faults.append(f"run {run_id} ({where}, seed {row['seed']}) differs between {first} and {name}")
                    faults += [f"  {fault} (recorded: {first}; here: {name})" for fault in again.faults]
    # A fault has a line that names the run and a line, or more, for its numbers.
    yield from faults[: 2 * SHOWN]
    if len(faults) > 2 * SHOWN:
        yield f"and {len(faults) - 2 * SHOWN} more lines"


def _not_identical(then: _ByRun, now: _ByRun, both: pd.Index[Any]) -> list[str]:
    """Return the runs with any differing cell; times, memory and hardware are not compared."""
    if both.empty:
        return []
    other = _differing(then.rows.loc[both], now.rows.loc[both], (*SECONDS, "peak_memory_mb", "finished_at"))
    sides = [
        side.points[side.points["run_id"].isin(both)].set_index(["run_id", "epoch"]).sort_index()
        for side in (then, now)
    ]
    if not sides[0].index.equals(sides[1].index):
        unlike = sides[0].index.symmetric_difference(sides[1].index)
        return list({*other, *unlike.get_level_values("run_id"), *_curves_differ(sides)})
    return list({*other, *_curves_differ(sides)})


def _curves_differ(sides: Sequence[pd.DataFrame]) -> set[str]:
    common = sides[0].index.intersection(sides[1].index)
    a, b = (side.loc[common] for side in sides)
    return {run_id for run_id, _ in _differing(a, b, ("train_seconds",))}


def _differing(a: pd.DataFrame, b: pd.DataFrame, aside: Sequence[str]) -> set[Any]:
    names = [name for name in a.columns.intersection(b.columns) if name not in (*PLACE, *aside, "experiment")]
    left, right = a[names], b[names]
    # Two missing cells are equal here; NaN and NaN are not by themselves.
    same = (left.eq(right) | (left.isna() & right.isna())).all(axis="columns")
    return set(same.index[~same])


def _other_measures(parts: Sequence[Part]) -> Iterator[str]:
    first: tuple[str, list[Any]] | None = None
    for name, results in parts:
        if results.measures is None or results.measures.empty:
            continue
        known = [column for column in MEASURED_WITH if column in results.measures]
        # `bench measure` drops runs of other settings, so the first row stands for all.
        settings = results.measures[known].iloc[0].to_list()
        first = first or (name, settings)
        if first[1] != settings:
            yield f"measures were taken with other settings in {first[0]} and {name}; repeat one of them"


# ---- all runs in one table -----------------------------------------------------------------------------------


def _without_superseded(records: pd.DataFrame, meta: Meta) -> tuple[pd.DataFrame, list[Superseded]]:
    """Return the records without final runs that the merged tuning does not choose, and the superseded choices."""
    phases = selection.phased(meta)
    if not phases:
        return records, []
    tune = records[(records["phase"] == "tune")]
    chosen = selection.candidates(tune, meta["metric"])["chosen"] if len(tune) else pd.Series(dtype=bool)
    best = set(chosen.index[chosen]) if len(chosen) else set()
    # Optimizers with a choice; a final run of any other optimizer, which is not tuned, stays.
    places = {key[:2] for key in best}
    keys = list(zip(*(records[column] for column in KEY), strict=True))
    gone = pd.Series([key[:2] in places and key not in best for key in keys], records.index)
    gone &= records["phase"] == "final"
    ended = records[gone & records["status"].isin(FINISHED)].groupby(KEY, sort=False).size()
    places_of: Any = ended.items()
    told: list[Superseded] = [
        {"condition": condition, "label": label, "config": config, "finished": int(count)}
        for (condition, label, config), count in places_of
    ]
    return records[~gone], [*phases.get("superseded", []), *told]


def _whole(records: pd.DataFrame, meta: Meta) -> pd.DataFrame:
    """Return the records with a row for every run that the parts together plan, including missing runs."""
    settings = ["experiment", "task", "model", *setting_columns(map(str, records))]
    known = set(records[[*PLACE]].itertuples(index=False, name=None))
    new = []
    for _, group in records.groupby([*KEY, "phase"], sort=False):
        phase = group["phase"].iloc[0]
        # Tuning runs have seeds of their own; the others have those that the parts have together.
        seeds = phases["tune"]["seeds"] if (phases := selection.phased(meta)) and phase == "tune" else meta["seeds"]
        first = group.iloc[0]
        for seed in seeds:
            key = (first["condition"], phase, first["optimizer"], first["config"], seed)
            if key not in known:
                blank = {name: first[name] for name in (*settings, *PLACE) if name in group}
                new.append({**blank, "seed": seed, "status": "missing", "run_id": NOWHERE, "part": -1})
    for condition in conditions(meta):
        for label in meta["labels"]:
            here = (records["condition"] == condition) & (records["optimizer"] == label)
            if not here.any():
                new += _planned_nowhere(records, condition, label, [*settings, *PLACE], meta)
    return pd.concat([records, pd.DataFrame(new, columns=records.columns)], ignore_index=True) if new else records


def _planned_nowhere(
    records: pd.DataFrame, condition: str, label: str, settings: list[str], meta: Meta
) -> Iterator[dict[str, Any]]:
    """Yield missing rows of an optimizer under a condition that no part planned, copied from another condition."""
    varied = list(meta.get("vary") or {})
    there = records[records["condition"] == condition].iloc[0]
    for row in records[records["optimizer"] == label].drop_duplicates(["phase", "config", "seed"]).to_dict("records"):
        blank = {name: row[name] for name in settings if name in row}
        place = {"condition": condition, "status": "missing", "run_id": NOWHERE, "part": -1}
        yield {**blank, **{name: there[name] for name in varied}, **place}


def _in_order(records: pd.DataFrame, meta: Meta) -> pd.DataFrame:
    """Return the rows in the order that `bench run` gives them."""
    untuned = selection.phased(meta).get("untuned", [])
    # `bench run` lists final runs of tuned optimizers last, since they are planned after the choice.
    later = (records["phase"] == "final") & ~records["optimizer"].isin(untuned)
    order = records.assign(
        _later=later,
        _condition=records["condition"].map({name: place for place, name in enumerate(conditions(meta))}),
        _label=records["optimizer"].map({name: place for place, name in enumerate(meta["labels"])}),
        # Configurations in the order in which they first come.
        _config=pd.factorize(pd.Series(list(zip(records["optimizer"], records["config"], strict=True))))[0],
    )
    order = order.sort_values(["_later", "_condition", "_label", "_config", "seed"], kind="stable")
    return order.drop(columns=[name for name in order if str(name).startswith("_")]).reset_index(drop=True)


def _as_written(records: pd.DataFrame, meta: Meta) -> pd.DataFrame:
    frame = records.drop(columns="part").assign(experiment=meta["name"])
    frame["seed"] = frame["seed"].astype(int)
    for name in frame.columns.intersection(list(COUNTS)):
        numbers = frame[name].astype(float)
        # A cell that was missing in one part had made floats of whole numbers.
        if numbers.notna().all() and (numbers % 1 == 0).all():
            frame[name] = numbers.astype("int64")
    return frame


def _curves(parts: Sequence[Part], done: pd.DataFrame) -> pd.DataFrame:
    frames = []
    for number, (_, results) in enumerate(parts):
        mine = done.loc[done["part"] == number, "run_id"]
        frames.append(results.curves[results.curves["run_id"].isin(mine)].drop_duplicates(["run_id", "epoch"]))
    columns = _columns([*frame.columns] for frame in (results.curves for _, results in parts))
    # pandas cannot join an empty list, and an empty part still has the columns.
    measured = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    places = done[["run_id", *PLACE]]
    # A run that stands at several places has its curve at each of them.
    merged = places.merge(measured.drop(columns=[*PLACE], errors="ignore"), on="run_id")
    return merged.reindex(columns=columns)


def _measures(parts: Sequence[Part], done: pd.DataFrame) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """Return the measures of runs whose recorded weights were measured, from the first part that has them."""
    weights = done.drop_duplicates("run_id").set_index("run_id").get("weights_sha256", pd.Series(dtype=str))
    measures, directions, known = [], [], set[str]()
    for _, results in parts:
        if results.measures is None or results.directions is None:
            continue
        mine = results.measures[results.measures["run_id"].map(weights) == results.measures["recorded_sha256"]]
        mine = mine[~mine["run_id"].isin(known)]
        known |= {*mine["run_id"]}
        measures.append(mine)
        directions.append(results.directions[results.directions["run_id"].isin(mine["run_id"])])
    if not measures:
        return None, None
    order = {run_id: place for place, run_id in enumerate(weights.index)}
    both = [pd.concat(frames, ignore_index=True) for frames in (measures, directions)]
    sorted_ = [
        frame.sort_values("run_id", key=lambda ids: ids.map(order), kind="stable", ignore_index=True) for frame in both
    ]
    return sorted_[0], sorted_[1]


def _origins(parts: Sequence[Part], taken: Mapping[str, int]) -> Iterator[PartMeta]:
    """Yield the entry in experiment.json of every part that contributed runs."""
    for name, results in parts:
        if not taken[name]:
            continue
        finished = results.records[results.records["status"].isin(FINISHED)]
        ids = "\n".join(sorted(set(finished["run_id"])))
        yield {
            "from": name,
            "runs": taken[name],
            "run_ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
            "devices": sorted({str(device) for device in finished["device"].dropna()}),
        }


def renamed(merged: Merged, name: str) -> Merged:
    """Return merged results under another name, that of the folder that they go to."""
    results = merged.results
    meta = cast(Meta, {**results.meta, "name": name})
    return replace(merged, results=replace(results, meta=meta, records=results.records.assign(experiment=name)))
