"""GLUE's nine tasks as files: tables out of its zips, or the hub's copy, which `bench prepare` brings here.

The zips' tables are tab-separated and know no quoting. The hub's copy lies in `<data folder>/glue/hub/<task>`, with
one line of JSON per example, beside origin.json, which says where it came from. Where both are here, the tables count.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.core.errors import BenchError, nearest
from bench.data.datasets import Dataset, content, content_sha256, damaged, data_folder, locked, remembered
from bench.data.download import writing
from bench.data.hub import hub_splits
from bench.data.splits import Split
from bench.data.tokens import Texts
from bench.store.run_folder import to_json

REPOSITORY = "nyu-mll/glue"
"""GLUE on the hub."""

ZIPS = "https://dl.fbaipublicfiles.com/glue/data/"
ORIGIN = "origin.json"

HIGHEST = 5.0
"""Similarities of STS-B are 0 to 5."""

Row = tuple[int, Sequence[str], Any]
"""Number of its line, its texts, its label."""


@dataclass(frozen=True)
class Part:
    """One split as published: in the zip and on the hub.

    Attributes:
        name: of the table in the zip.
        md5: of that table.
        hub: what the hub calls the split.
        rows: its examples.
    """

    name: str
    md5: str
    hub: str
    rows: int


class _Wrong(Exception):
    """A fault in some rows; the caller, which knows the file, turns it into an error for the user."""


@dataclass(frozen=True)
class GlueFiles:
    """One task's files: their content, location and download.

    Attributes:
        name: the task's, as on the hub.
        title: the folder's in the zip, and what papers call the task.
        texts: columns of the tables with the text or the pair of texts.
        label: column with the label.
        classes: number of each class, by its name in the tables; None for similarities, 0 to `HIGHEST`.
        parts: training set, test set (GLUE's dev set), further test sets.
        zip: where the tables are given out; "" if nowhere.
        hub_texts: the hub's names of `texts`, where they differ; the label is always "label" there.
        header: the columns, where a table does not begin with them.
        ragged: whether the official tables have broken lines: short ones are left out and what is too much in a line is
            not read, as in the hub's copy.
    """

    name: str
    title: str
    texts: tuple[str, ...]
    label: str
    classes: Mapping[str, int] | None
    parts: tuple[Part, ...]
    zip: str = ""
    hub_texts: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    ragged: bool = False

    # ---- what is here ----------------------------------------------------------------------------------------

    @functools.cached_property
    def tables(self) -> Dataset:
        """Return the tables in the zip."""
        come_from = f"from {ZIPS}{self.zip}" if self.zip else "as GLUE's download script makes them (there is no zip)"
        return Dataset(
            title=f"GLUE's {self.title}",
            task=f"glue/{self.name}",
            folder=f"glue/{self.title}",
            elsewhere=(self.title, f"GLUE/{self.title}", f"glue_data/{self.title}"),
            files={part.name: part.md5 for part in self.parts},
            # Nothing is downloaded for the tables: `fetch` brings the hub's copy.
            downloads=(),
            by_hand=f"{come_from}; or run `bench prepare` where there is a network, and bring glue/hub/{self.name} "
            "out of that machine's data folder into this one's",
        )

    @property
    def copy(self) -> Path:
        """Return the folder of the hub's copy."""
        return data_folder() / "glue" / "hub" / self.name

    def is_there(self) -> bool:
        """Return whether tables or the hub's copy are on this machine, without checking their content."""
        return self.tables.is_there() or self.copy.is_dir()

    def verified(self) -> bool:
        """Return whether the files are the official ones: by md5 for tables; for the hub's copy, if it is whole.

        Raises:
            BenchError: neither is there, or a file cannot be read.
        """
        return self.tables.verified() if self._from_tables() else not self._unlike_the_hub()

    def check(self, *, allow_unverified: bool) -> None:
        """Refuse what is not verified, unless that is allowed.

        Raises:
            BenchError: names the files, what is wrong, and how to go on.
        """
        if self._from_tables():
            self.tables.check(allow_unverified=allow_unverified)
        elif not allow_unverified and (faults := self._unlike_the_hub()):
            raise self.tables.refused(self.copy, faults)

    def load(self, *, allow_unverified: bool) -> tuple[Split, ...]:
        """Return a split of `Texts` for each part, in order; the splits are cached and shared by all runs of a process.

        Raises:
            BenchError: files are missing, damaged, or not the official ones and not allowed to be others.
        """
        self.check(allow_unverified=allow_unverified)
        paths = self.tables.paths() if self._from_tables() else self._in_copy(self.copy)
        splits = remembered(self._read, paths)
        # Only of the official files is the number of examples known.
        if self.verified():
            for path, split, part in zip(paths, splits, self.parts, strict=True):
                if len(split) != part.rows:
                    raise damaged(path, f"it has {len(split)} examples, where GLUE's {self.title} has {part.rows}")
        return splits

    def _from_tables(self) -> bool:
        # Without any files the tables count as missing: their message says where to put what.
        return self.tables.is_there() or not self.copy.is_dir()

    # ---- reading ---------------------------------------------------------------------------------------------

    def _read(self, paths: list[Path]) -> tuple[Split, ...]:
        return tuple(map(self._read_file, paths))

    def _read_file(self, path: Path) -> Split:
        try:
            return self._split(self._rows_of_copy(path) if path.suffix == ".jsonl" else self._rows_of_table(path))
        except _Wrong as wrong:
            raise damaged(path, wrong) from None

    def _rows_of_table(self, path: Path) -> Iterator[Row]:
        lines = enumerate(_lines(path), 1)
        # Where the columns are known (CoLA), the first line is an example already.
        header = self.header or tuple(next(lines, (1, ""))[1].split("\t"))
        if header == ("",):
            raise _Wrong("line 1: there is no header")
        for column in (*self.texts, self.label):
            if column not in header:
                raise _Wrong(f'line 1: there is no column "{column}"; {nearest(column, header)}')
        texts, label = [header.index(column) for column in self.texts], header.index(self.label)
        last = max(*texts, label)
        for number, line in lines:
            cells = line.split("\t")
            # The hub's copy leaves these lines out, too.
            if self.ragged and len(cells) <= last:
                continue
            if not self.ragged and len(cells) != len(header):
                raise _Wrong(f"line {number}: it has {len(cells)} columns, not {len(header)}: {_short(line)}")
            yield number, [cells[place] for place in texts], cells[label]

    def _split(self, rows: Iterable[Row]) -> Split:
        """Return rows as texts and targets; raise _Wrong if there are none, or if a label is none of the task's."""
        texts: list[Sequence[str]] = []
        targets: list[float] = []
        for number, row, label in rows:
            if not all(isinstance(text, str) for text in row):
                raise _Wrong(f"line {number}: one of {_short(row)} is no text")
            texts.append(row)
            try:
                targets.append(self._target(label))
            except _Wrong as wrong:
                raise _Wrong(f"line {number}: {wrong}") from None
        if not texts:
            raise _Wrong("it has no examples")
        columns = [[row[place] for row in texts] for place in range(len(self.texts))]
        dtype = torch.float32 if self.classes is None else torch.int64
        return Split(Texts(*columns), torch.tensor(targets, dtype=dtype))

    def _target(self, label: Any) -> float:
        """Return a label as the model learns it: the text from tables, the number from the hub's copy."""
        if self.classes is None:
            try:
                similarity = float(label)
            except (TypeError, ValueError):
                similarity = math.nan
            if not 0 <= similarity <= HIGHEST:
                raise _Wrong(f"the score is {_short(label)}, not a number from 0 to {HIGHEST:g}")
            return similarity
        # type(), not isinstance, because true in a line of JSON would pass for class 1.
        if type(label) is int and label in self.classes.values():
            return label
        if isinstance(label, str) and label in self.classes:
            return self.classes[label]
        valid = self.classes if isinstance(label, str) else map(str, self.classes.values())
        raise _Wrong(f"the label is {_short(label)}; {nearest(str(label), valid)}")

    def _rows_of_copy(self, path: Path) -> Iterator[Row]:
        for number, line in enumerate(_lines(path), 1):
            try:
                row = json.loads(line)
                yield number, [row[column] for column in self.hub_texts or self.texts], row["label"]
            except (ValueError, KeyError, TypeError) as error:
                raise _Wrong(f"line {number}: it is not a row of the hub's {self.name}: {error!r}") from None

    # ---- the hub's copy --------------------------------------------------------------------------------------

    def _in_copy(self, folder: Path) -> list[Path]:
        return [folder / f"{part.hub}.jsonl" for part in self.parts]

    def _unlike_the_hub(self) -> list[str]:
        """Return one line for each file that differs from the downloaded original."""
        # A copy that lacks a file is damaged: there is nothing that could be allowed.
        for path in (self.copy / ORIGIN, *self._in_copy(self.copy)):
            if not path.is_file():
                raise damaged(self.copy, f"it lacks {path.name}")
        try:
            files = json.loads(content(self.copy / ORIGIN))["files"]
            known = [(files[path.name]["sha256"], files[path.name]["rows"]) for path in self._in_copy(self.copy)]
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(self.copy, f"{ORIGIN} does not say where it is from ({error!r})") from error
        faults = []
        for path, part, (official, rows) in zip(self._in_copy(self.copy), self.parts, known, strict=True):
            if (sha256 := content_sha256(path)) != official:
                faults.append(f"{path.name}: sha256 is {sha256}, that of what came from the hub {official}")
            elif rows != part.rows:
                faults.append(f"{path.name}: it has {rows} examples, the official one {part.rows}")
        return faults

    def fetch(self, *, allow_unverified: bool = False) -> None:
        """Ensure that tables or the hub's copy are present and correct; if neither is present, download the copy.

        Of several processes that fetch at once one works and the others wait for it. One that is killed leaves nothing
        that counts.

        Raises:
            BenchError: the files cannot be obtained, are not the official ones, or the disk refuses.
        """
        if not self.is_there():
            with locked(data_folder() / f".glue-{self.name}.lock"):
                if not self.is_there():  # another process may have been at it
                    self._bring_copy()
        self.check(allow_unverified=allow_unverified)

    def _bring_copy(self) -> None:
        try:
            splits, revision = _hub_splits(self.name)
        except Exception as error:  # of four libraries; whichever it is, there is no data
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise self.tables.absent(f"it could not be downloaded.\n  {REPOSITORY} on the hub: {reason}") from error
        temporary = self.copy.with_name(f".{self.name}.tmp")
        with writing(self.copy):
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            try:
                temporary.mkdir(parents=True)
                paths = zip(self._in_copy(temporary), self.parts, strict=True)
                files = {path.name: self._store(splits, part, path) for path, part in paths}
                origin = {"repository": REPOSITORY, "config": self.name, "revision": revision, "files": files}
                (temporary / ORIGIN).write_text(to_json(origin), encoding="utf-8")
                # The renaming comes last: a folder with this name is complete.
                os.rename(temporary, self.copy)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _store(self, splits: Mapping[str, Any], part: Part, path: Path) -> dict[str, Any]:
        """Write one of the hub's splits and return its rows and sha256; raise BenchError if it is not the task's."""
        columns = (*(self.hub_texts or self.texts), "label")
        try:
            if part.hub not in splits:
                raise _Wrong(f"it is not there; {nearest(part.hub, splits)}")
            table = splits[part.hub].to_dict()
            if missing := [column for column in columns if column not in table]:
                raise _Wrong(f'there is no column "{missing[0]}"; {nearest(missing[0], table)}')
            rows = list(zip(*(table[column] for column in columns), strict=True))
            # The rows are checked as `load` would check them; the split itself is not needed.
            self._split((number, row[:-1], row[-1]) for number, row in enumerate(rows, 1))
            if len(rows) != part.rows:
                raise _Wrong(f"it has {len(rows)} examples, where GLUE's {self.title} has {part.rows}")
        except _Wrong as wrong:
            raise BenchError(
                f"{REPOSITORY} on the hub is not GLUE as it was published: {self.name}, {part.hub}: {wrong}"
            ) from None
        lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows]
        path.write_bytes("".join(lines).encode())
        # These stand in origin.json: `_unlike_the_hub` finds later changes by them.
        return {"rows": len(rows), "sha256": content_sha256(path)}


def _hub_splits(name: str) -> tuple[Mapping[str, Any], str]:
    """Return the hub's splits of a task and their revision, or raise; offline, those that `datasets` has cached."""
    return hub_splits(REPOSITORY, name)


def _lines(path: Path) -> Iterator[str]:
    """Yield lines of UTF-8, split at "\\n" or "\\r\\n" only: texts have other separators in them."""
    # A byte order mark is no part of the first column's name.
    raw = content(path).removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
    for number, line in enumerate(raw.split(b"\n") if raw else (), 1):
        try:
            yield line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise _Wrong(f"line {number}: it is not UTF-8 ({error.reason} at byte {error.start + 1})") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."


def _parts(train: str, train_rows: int, dev: str, dev_rows: int) -> tuple[Part, ...]:
    """Return the parts as most tasks have them, from md5 and rows of each."""
    return Part("train.tsv", train, "train", train_rows), Part("dev.tsv", dev, "validation", dev_rows)


PARTS = {
    "cola": _parts("c79d4693b8681800338aa044bf9e797b", 8_551, "c5475ccefc9e7ca0917294b8bbda783c", 1_043),
    "sst2": _parts("da409a0a939379ed32a470bc0f7fe99a", 67_349, "268856b487b2a31a28c0a93daaff7288", 872),
    "mrpc": _parts("dc2dac669a113866a6480a0b10cd50bf", 3_668, "185958e46ba556b38c6a7cc63f3a2135", 408),
    "qqp": _parts("e003db73d277d38bbd83a2ef15beb442", 363_846, "cff6a448d1580132367c22fc449ec214", 40_430),
    "stsb": _parts("4f7a86dde15fe4832c18e5b970998672", 5_749, "5f4d6b0d2a5f268b1b56db773ab2f1fe", 1_500),
    "mnli": (
        Part("train.tsv", "220192295e23b6705f3545168272c740", "train", 392_702),
        Part("dev_matched.tsv", "c3fa2817007f4cdf1a03663611a8ad23", "validation_matched", 9_815),
        Part("dev_mismatched.tsv", "b219e6fe74e4aa779e2f417ffe713053", "validation_mismatched", 9_832),
    ),
    "qnli": _parts("5e6063f407b08d1f7c7074d049ace94a", 104_743, "1e81e211959605f144ba6c0ad7dc948b", 5_463),
    "rte": _parts("d2844f558d111a16503144bb37a8165f", 2_490, "973cb4178d4534cf745a01c309d4a66c", 277),
    "wnli": _parts("5cdc5a87b7be0c87a6363fa6a5481fc1", 635, "a79a6dd5d71287bcad6824c892e517ee", 71),
}
"""By task; md5s are of the tables in the zips, and of those that GLUE's script makes for MRPC, which has no zip."""

PAIR = ("sentence1", "sentence2")
BINARY = {"0": 0, "1": 1}
TWO_WAY = {"entailment": 0, "not_entailment": 1}
THREE_WAY = {"entailment": 0, "neutral": 1, "contradiction": 2}
COLA = ("source", "label", "star", "sentence")
NLI = ("premise", "hypothesis")
TASKS = {
    task.name: task
    for task in (
        GlueFiles("cola", "CoLA", ("sentence",), "label", BINARY, PARTS["cola"], "CoLA.zip", header=COLA),
        GlueFiles("sst2", "SST-2", ("sentence",), "label", BINARY, PARTS["sst2"], "SST-2.zip"),
        GlueFiles("mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", BINARY, PARTS["mrpc"], hub_texts=PAIR),
        GlueFiles(
            "qqp", "QQP", ("question1", "question2"), "is_duplicate", BINARY, PARTS["qqp"], "QQP-clean.zip", ragged=True
        ),
        GlueFiles("stsb", "STS-B", PAIR, "score", None, PARTS["stsb"], "STS-B.zip"),
        GlueFiles("mnli", "MNLI", PAIR, "gold_label", THREE_WAY, PARTS["mnli"], "MNLI.zip", NLI, ragged=True),
        GlueFiles("qnli", "QNLI", ("question", "sentence"), "label", TWO_WAY, PARTS["qnli"], "QNLIv2.zip", ragged=True),
        GlueFiles("rte", "RTE", PAIR, "label", TWO_WAY, PARTS["rte"], "RTE.zip"),
        GlueFiles("wnli", "WNLI", PAIR, "label", BINARY, PARTS["wnli"], "WNLI.zip"),
    )
}
"""The nine tasks, by name; numbers of classes are the hub's."""
