"""TensorBoard: event files in a folder per run, which `tensorboard --logdir` shows while they grow."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from bench.sinks.run import ENDED, LoggedRun, Point
from bench.sinks.sink import COMPLETE, Sink, check_writable
from bench.store.run_folder import FINISHED


class TensorBoard(Sink):
    """Folders EXPERIMENT/OPTIMIZER/RUN; tables and figures are texts and images in EXPERIMENT/results."""

    def __init__(self, where: str | None, folder: Path) -> None:
        self.folder = Path(where).expanduser() if where else folder / "tensorboard"
        check_writable(self.folder)
        self.address = f"tensorboard --logdir {self.folder}"
        self.files: dict[str, RecordWriter] = {}

    def begin(self, run: LoggedRun) -> float:
        parts = (run.about["experiment"], run.about["optimizer"], f"{run.name[:150]} {run.run_id}")
        folder = self.folder.joinpath(*(re.sub(r"[^\w.=+, -]", "_", part) for part in parts))
        reached = max(map(_reached, sorted(folder.glob("events.*"))), default=0.0)
        if reached < COMPLETE:
            self.files[run.run_id] = file = _new_file(folder)
            given = {**run.settings, **run.about}
            shown = {name: value if isinstance(value, int | float) else str(value) for name, value in given.items()}
            _write(file, hparams_pb(shown, run.run_id, run.seconds()), 0, run.seconds())
        return reached

    def add(self, run: LoggedRun, points: Sequence[Point]) -> None:
        for point in points:
            _write(self.files[run.run_id], _scalars(point), point["epoch"], run.seconds(point))

    def end(self, run: LoggedRun) -> None:
        file, last = self.files.pop(run.run_id), run.curve[-1]["epoch"] if run.curve else 0
        lines = [f"    {name}: {value}" for name, value in {"status": run.status, **run.environment}.items()]
        if run.status in FINISHED:
            _write(file, _scalars(run.final), last, run.seconds())
        if run.status in ENDED:
            _write(file, text_pb(run.status, "\n".join(lines)), last, run.seconds())
        file.close()

    def add_files(self, experiment: str, files: Mapping[str, Path]) -> None:
        folder = self.folder / experiment / "results"
        before, file = [*folder.glob("events.*")], _new_file(folder)
        for name, path in files.items():
            if path.suffix == ".md":
                _write(file, text_pb(name, path.read_text(encoding="utf-8")))
            elif path.suffix == ".png":
                width, height = struct.unpack(">II", (content := path.read_bytes())[16:24])  # of a PNG's header
                image = Summary.Image(encoded_image_string=content, width=width, height=height, colorspace=4)
                _write(file, Summary(value=[Summary.Value(tag=name, image=image)]))
        file.close()
        for old in before:
            old.unlink()


def _new_file(folder: Path) -> RecordWriter:
    """Begin an event file: without TensorBoard's own writer, whose thread hides a full disk from its caller."""
    folder.mkdir(parents=True, exist_ok=True)
    file = RecordWriter((folder / f"events.out.tfevents.{time.time_ns()}.sam-bench").open("xb"))
    file.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    return file


def _write(file: RecordWriter, summary: Summary, step: float = 0, seconds: float | None = None) -> None:
    file.write(Event(step=int(step), wall_time=seconds or time.time(), summary=summary).SerializeToString())
    file.flush()


def _scalars(row: Point) -> Summary:
    return Summary(value=[Summary.Value(tag=name, simple_value=row[name]) for name in row if name != "epoch"])


def _reached(path: Path) -> float:
    """Return the last epoch in an event file; `COMPLETE` if there is a text that tells how the run has finished."""
    events = [*EventFileLoader(str(path)).Load()]
    done = any(value.tag in FINISHED for event in events for value in event.summary.value)
    return COMPLETE if done else max((event.step for event in events), default=0)


SINK = TensorBoard
