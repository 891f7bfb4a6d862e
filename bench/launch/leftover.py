"""Runs on disk that no longer belong to their experiment, since its file, a plug-in or the package has changed."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bench.core.errors import BenchError, counted
from bench.core.experiment import Experiment, PlannedRun
from bench.core.spec import PROTOCOL, RunSpec
from bench.store.collecting import Held, is_finished
from bench.store.run_folder import FINISHED, RunFolder, RunLocked, Status, Store, read_json, storage_error

# Other names in runs/ are no runs: the lock, and ".<run_id>.removed" (see `remove`).
RUN_ID = re.compile("[0-9a-f]{12}")
TOLD = 3
"""Most changed settings that are listed; with more, the run counts as unlike every planned run."""

OTHERWISE = "by a version of this package with other measuring rules"

Settings = Mapping[str, Any]
"""All settings of a spec except the seed and paths, by dotted key."""


@dataclass(frozen=True)
class Leftover:
    """A run on disk that the experiment does not plan, or no longer plans.

    Attributes:
        why: what is not as in the planned run that is nearest to it: "sgd: lr was 0.1, is 0.2".
        only_held: the records alone have it; its folder is not here.
    """

    run_id: str
    status: Status
    why: str
    only_held: bool = False

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED


def leftovers(experiment: Experiment, store: Store, ids: Collection[str]) -> list[Leftover]:
    """Return the runs in a store that the experiment does not plan and cannot plan after tuning.

    Those that another number of seeds would count again are no leftovers, nor are those that someone works on.

    Args:
        ids: the run_ids of the experiment's runs.
    """
    beside = {name for name in store.present() if RUN_ID.fullmatch(name)}.difference(ids)
    # Nothing unknown: spare the run_ids of every run that tuning could lead to.
    if not beside:
        return []
    # Wider than `ids`: with the final runs of every configuration, chosen or not.
    planned = list(_planned(experiment))
    beside -= {run.spec.run_id for run in planned}
    # Through JSON, as the specs on disk have been: a tuple is a list in both then.
    known = [(run.label, _settings(json.loads(run.spec.model_dump_json()))) for run in _one_of_each_seed(planned)]
    leftovers = []
    explained: dict[str, str | None] = {}
    for run_id in sorted(beside):
        try:
            content, status = read_json(store.run(run_id).path / "spec.json", missing=None), store.run(run_id).status()
        except BenchError:  # damaged, which is for `bench run` to tell
            continue
        if not isinstance(content, dict) or status == "running":
            continue
        settings = _settings(content)
        version = _is_of_this_version(content, run_id)
        # Settings have no seed in them, so one comparison serves all seeds of a configuration.
        key = json.dumps([version, settings], sort_keys=True)
        if key not in explained:
            explained[key] = _why(settings, known, None if version else OTHERWISE)
        # None: only the seed differs, and a launch with more seeds would count the run again.
        if (why := explained[key]) is not None:
            leftovers.append(Leftover(run_id, status, why))
    return leftovers


def strangers(experiment: Experiment, store: Store, ids: Collection[str], held: Held) -> list[Leftover]:
    """Return finished runs that exist only in the records and that the experiment cannot plan, even after tuning.

    Args:
        ids: the run_ids of the experiment's runs.
    """
    there = store.present()
    alone = {run_id for run_id in {*held.rows}.difference(ids) if not is_finished(store.run(run_id), there)}
    if not alone:
        return []
    planned = list(_planned(experiment))
    alone -= {run.spec.run_id for run in planned}
    known = []
    for run in _one_of_each_seed(planned):
        # `or None`: an empty phase is an empty cell in the records, and `_columns` drops both.
        about = {"task": run.spec.task.name, "model": run.spec.model.name, "phase": run.phase or None}
        known.append((run.label, _columns({**about, **run.spec.hyperparameters()})))
    protocol, leftovers = held.meta["protocol"], []
    for run_id in sorted(alone):
        row = held.rows[run_id]
        settings = _columns({name: row.get(name) for name in ("task", "model", "phase", *held.settings)})
        # Under another protocol the numbers do not compare, whatever the settings are.
        why = f"measured under protocol {protocol}; this version of the package has protocol {PROTOCOL}"
        if protocol == PROTOCOL:
            # Records hold no hashes of plug-ins and data files, so a change there can only be guessed.
            why = _why(settings, known, "with another plug-in, data file, seed of tuning or version") or ""
        leftovers.append(Leftover(run_id, row["status"], why, only_held=True))
    return leftovers


def _columns(row: Mapping[str, Any]) -> Settings:
    """Return the settings in a row of records, renamed from columns to the keys of a spec."""
    names = {"task": "task.name", "model": "model.name", "method": "optimizer.name", "base": "optimizer.base.name"}
    text = {name: value if isinstance(value, str | int | float) else str(value) for name, value in row.items()}
    return {names.get(name, name): value for name, value in text.items() if row[name] is not None}


def size(folder: RunFolder) -> int:
    """Return the bytes of all files of a run."""
    return sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())


def remove(folder: RunFolder) -> bool:
    """Remove a run with all its files; return False, with nothing removed, if a process works on the run.

    Raises:
        StorageError: the folder cannot be written.
    """
    # Renamed in one step, so that nobody ever sees half of a run; the claim keeps others off until then.
    away = folder.path.with_name(f".{folder.run_id}.removed")
    try:
        with folder.claim():
            folder.path.rename(away)
        shutil.rmtree(away)
    except RunLocked:
        return False
    except OSError as error:
        raise storage_error(folder.path, error) from error
    return True


def told(leftovers: Iterable[Leftover]) -> Iterator[str]:
    """Yield one line per reason, with the number of runs that have this reason."""
    for why, count in Counter(one.why for one in leftovers).items():
        yield f"{why} ({counted(count, 'run')})"


def _planned(experiment: Experiment) -> Iterator[PlannedRun]:
    """Yield every planned run, and every final run that another choice of tuning would plan."""
    yield from experiment.runs
    if experiment.phases:
        # One run per configuration: `final_runs` puts in the final seeds.
        for run in {(*run.place, run.config_text): run for run in experiment.tuning}.values():
            yield from experiment.phases.final_runs(run)


def _one_of_each_seed(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    return list({(*run.place, run.config_text, run.spec.phase): run for run in runs}.values())


def _settings(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in spec.items():
        if isinstance(value, dict):
            settings |= _settings(value, f"{prefix}{key}.")
        elif prefix + key == "plugins":
            # By the file's name and content: the folder it is in may differ per machine.
            settings |= {f"plug-in {plugin['path'].rpartition('/')[2]}": plugin["sha256"] for plugin in value}
        # The seed is no setting, and the path is none either: `files_sha256` stands for a user's own files.
        elif prefix + key not in ("seed", "task.params.path") and value is not None:
            settings[prefix + key] = value
    return settings


def _is_of_this_version(content: Mapping[str, Any], run_id: str) -> bool:
    """Return whether a stored spec still gives this run_id, so that neither protocol nor spec format has changed."""
    try:
        return RunSpec.model_validate_json(json.dumps(content)).run_id == run_id
    except ValidationError:
        return False


def _why(settings: Settings, known: Iterable[tuple[str, Settings]], otherwise: str | None) -> str | None:
    """Return the settings that differ from the nearest planned run; if none differ, a text made of `otherwise`."""
    label, changes = min(
        ((label, _changes(settings, planned)) for label, planned in known),
        key=lambda pair: len(pair[1]),
        default=("", []),
    )
    if not changes:
        return otherwise and f"{label}: made {otherwise}"
    if len(changes) > TOLD or not label:
        base = settings.get("optimizer.base.name")
        over = f" over {base}" if base else ""
        method, task = settings.get("optimizer.name"), settings.get("task.name")
        return f"{method}{over} on {task}: no run of the experiment is like it"
    return f"{label}: {', '.join(changes)}"


def _changes(old: Settings, new: Settings) -> list[str]:
    return [_change(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def _change(key: str, old: Any, new: Any) -> str:
    if key == "files_sha256":
        return "the data files have changed"
    if key.startswith("plug-in"):
        return f"{key} {'has changed' if old and new else 'is new' if new else 'is gone'}"
    short = key.removeprefix("optimizer.").removeprefix("base.").replace("params.", "")
    return f"{short} was {_text(old)}, is {_text(new)}"


def _text(value: Any) -> str:
    return "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
