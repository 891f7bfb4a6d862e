"""Columns of a split of a user's table: classes, images and texts, and the rows that have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.core.errors import BenchError, counted, shown
from bench.data.datasets import FileSignature
from bench.data.image_files import Encoded, Source
from bench.data.splits import Indices
from bench.data.tokens import Texts
from bench.data.user_files import label_text
from bench.data.user_tables import table

Files = Sequence[FileSignature]


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read: the label's, and that of the images or those of the texts."""

    label: str
    image: str | None = None
    text: str | None = None
    pair: str | None = None

    def inputs(self) -> list[str]:
        return [name for name in (self.image, self.text, self.pair) if name is not None]


@dataclass(frozen=True)
class Rows:
    """The rows of a split that are examples.

    Attributes:
        rows: (N,) their numbers.
        labels: names of their classes.
        order: all classes of a ClassLabel, in its order; [] for other columns.
        remark: a sentence on rows that are left out; "" if there are none.
    """

    rows: Indices
    labels: list[str]
    order: list[str]
    remark: str


def rows(files: Files, columns: Columns, split: str) -> Rows:
    """Return the rows of a split that have a label and an input.

    Raises:
        BenchError: a column is missing or of another type, or no row is left.
    """
    data = _read(files, [columns.label, *columns.inputs()])
    folder = files[0][0].parent
    for name in columns.inputs():
        _check_type(data, name, f"{folder}, split {split}", image=name == columns.image)
    labels, order = _labels(data, columns.label, f"{folder}, split {split}")
    unlabelled = np.array([label is None for label in labels], bool)
    empty = np.zeros(len(labels), bool)
    for name in columns.inputs():
        empty |= np.array(data.data.column(name).is_null())
    kept = np.flatnonzero(~unlabelled & ~empty)
    if not len(kept):
        raise BenchError(
            f'{folder}, split "{split}": none of its {counted(len(labels), "row")} has both a label (column '
            f'"{columns.label}") and an input; name another split (task.train_split, task.test_split)'
        )
    counts = {"label": int(unlabelled.sum()), columns.inputs()[0]: int((empty & ~unlabelled).sum())}
    left_out = [f"{counted(count, 'row')} without {what}" for what, count in counts.items() if count]
    remark = f'Left out of the split "{split}": {" and ".join(left_out)}.' if left_out else ""
    return Rows(kept, [str(labels[row]) for row in kept], order, remark)


def texts(files: Files, columns: Columns, chosen: Indices) -> Texts:
    """Return some rows' texts or pairs of texts."""
    data = _read(files, columns.inputs())
    of = [data.data.column(name).take(chosen).to_pylist() for name in columns.inputs()]
    return Texts(*of)


def sources(files: Files, columns: Columns, split: str, chosen: Indices) -> list[Source]:
    """Return some rows' images as files in memory; their bytes are read when they are asked for.

    Raises:
        BenchError: when they are: a row has only the place of an image.
    """
    column = _read(files, columns.inputs()).data.column(str(columns.image))
    folder = files[0][0].parent

    def source(row: int) -> Encoded:
        where = f'{folder}, split "{split}", row {row}, column "{columns.image}"'
        return Encoded(where, lambda: _content(column[row].as_py(), where))

    return [source(row) for row in chosen.tolist()]


def _read(files: Files, columns: Sequence[str]) -> Any:
    return table([path for path, _, _ in files], columns)


def _content(value: Any, where: str) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        raise BenchError(
            f"{where} has the place of an image ({shown(value.get('path'))}) and not the image itself; "
            "Dataset.save_to_disk writes images into its files"
        )
    return bytes(content)


def _check_type(data: Any, name: str, where: str, *, image: bool) -> None:
    """Raise BenchError if a column has no images, or no texts, by its type."""
    import pyarrow

    kind = data.data.schema.field(name).type
    if image:
        struct = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        good = struct or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
        wanted = "images (the feature datasets.Image, or the bytes of image files)"
    else:
        good = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
        wanted = "texts"
    if not good:
        raise BenchError(f'{where}: column "{name}" is of type {kind}, not of {wanted}')


def _labels(data: Any, name: str, where: str) -> tuple[list[str | None], list[str]]:
    """Return each row's class, None where it is missing, and the classes of a ClassLabel in order."""
    values = data.data.column(name).to_pylist()
    # Other features have no names; a sequence of ClassLabels is refused below.
    order = getattr(data.features[name], "names", None)
    if order is not None:
        # -1 is how `datasets` writes that a label is not given.
        return [None if value is None or value < 0 else order[value] for value in values], list(order)
    labels = []
    for row, value in enumerate(values):
        try:
            labels.append(label_text(value))
        except ValueError:
            raise BenchError(
                f'{where}, row {row}, column "{name}": {shown(value)} is no class; a label is a whole number, a word '
                "or a truth value, one per row"
            ) from None
    return labels, []
