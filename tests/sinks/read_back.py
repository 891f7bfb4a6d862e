"""What other tools show of runs, read back by their own readers, in one form for all of them."""

from __future__ import annotations

import json
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

KILLED = 255
"""The exit code of wandb's runs that are cut off here."""


@dataclass
class Shown:
    """A run in a tool: each metric's values with their epochs, in the order in which they were written."""

    group: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    points: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    status: str = "going"
    files: set[str] = field(default_factory=set)


def needs(name: str) -> None:
    """Skip where the extra of a sink is not installed."""
    package = {"mlflow": "mlflow.store.tracking.sqlalchemy_store"}.get(name, name)
    with warnings.catch_warnings():
        # Of what these packages use themselves.
        warnings.simplefilter("ignore")
        pytest.importorskip(package, reason=f"needs the extra {name}: pip install 'sam-bench[{name}]'")


def read(name: str, logs: Path) -> dict[str, Shown]:
    """Return the runs in the logs of a sink, by run_id; "results" is that of tables and figures."""
    return {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}[name](logs)


def _tensorboard(logs: Path) -> dict[str, Shown]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    runs = {}
    for folder in sorted({path.parent for path in (logs / "tensorboard").rglob("events.*")}):
        reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
        run = Shown(group=folder.parent.name)
        for tag in reader.Tags()["scalars"]:
            run.points[tag] = [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["tensors"]:
            text = reader.Tensors(tag)[-1].tensor_proto.string_val
            if tag in ("done", "diverged", "failed") and run.status != "done":
                run.status = "failed" if tag == "failed" else "done"
                run.environment = dict(line.strip().split(": ", 1) for line in text[0].decode().split("\n"))
            elif text:
                run.files.add(tag)
        run.files |= {*reader.Tags()["images"]}
        about = reader.summary_metadata
        if metadata.SESSION_START_INFO_TAG in about:
            content = about[metadata.SESSION_START_INFO_TAG].plugin_data.content
            given = metadata.parse_session_start_info_plugin_data(content).hparams
            run.settings = {key: getattr(value, value.WhichOneof("kind")) for key, value in given.items()}
        runs["results" if folder.name == "results" else folder.name.rpartition(" ")[2]] = run
    return runs


def _mlflow(logs: Path) -> dict[str, Shown]:
    from mlflow.tracking import MlflowClient

    client, runs = MlflowClient(f"sqlite:///{logs}/mlflow.db"), {}
    for one in client.search_runs([place.experiment_id for place in client.search_experiments()]):
        tags = one.data.tags
        run = Shown(tags.get("optimizer", ""), dict(one.data.params), tags)
        for metric in one.data.metrics:
            history = client.get_metric_history(one.info.run_id, metric)
            run.points[metric] = sorted((point.step, point.value) for point in history)
        run.status = {"RUNNING": "going", "KILLED": "going", "FAILED": "failed"}.get(one.info.status, "done")
        run.files = {*_artifacts(client, one.info.run_id)}
        assert tags["run_id"] not in runs, "one run twice"
        runs[tags["run_id"]] = run
    return runs


def _artifacts(client: Any, run_id: str, path: str | None = None) -> Iterator[str]:
    for one in client.list_artifacts(run_id, path):
        if one.is_dir:
            yield from _artifacts(client, run_id, one.path)
        else:
            yield one.path


def _wandb(logs: Path) -> dict[str, Shown]:
    """Read every offline folder in its order: the folders of one run are parts of the same run."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    runs: dict[str, Shown] = defaultdict(Shown)
    for path in sorted(
        (logs / "wandb").glob("*/wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime
    ):
        run = runs[path.stem.removeprefix("run-")]
        run.status = "going"
        for content in transaction_log(path.read_bytes()):
            record = Record.FromString(content)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run.group = record.run.run_group
                run.settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "config":
                values = {item.key: json.loads(item.value_json) for item in record.config.update}
                run.environment |= values.pop("environment", {})
                run.settings |= values
            elif kind == "history":
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                numbers = {key: row[key] for key in row if not key.startswith("_") and not isinstance(row[key], dict)}
                for key, value in numbers.items():
                    run.points[key].append((numbers.get("epoch", 0), value))
                run.files |= {key for key in row if isinstance(row[key], dict)}
            elif kind == "summary":
                for item in record.summary.update:
                    value = json.loads(item.value_json)
                    if isinstance(value, int | float) and item.key in ("selected_epoch", "eval_seconds"):
                        run.points[item.key].append((0, value))
            elif kind == "artifact":
                run.files |= {entry.path for entry in record.artifact.manifest.contents}
            elif kind == "exit":
                run.status = {0: "done", KILLED: "going"}.get(record.exit.exit_code, "failed")
            elif kind == "preempting":
                run.environment["preempting"] = True
        if run.environment.pop("preempting", False):
            run.status = "going"
    return dict(runs)


def transaction_log(content: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: LevelDB's log format after a header of seven bytes, in blocks of 32 KiB.

    A record that was cut short by a kill ends the log.
    """
    assert content[:4] == b":W&B"
    place, parts, block = 7, b"", 32768
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        if kind == 0 or place + 7 + size > len(content):
            return
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # the whole record, or its last part
            yield parts
            parts = b""
