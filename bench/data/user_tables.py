"""Tables of examples on disk as Hugging Face's `datasets` and others write them: Arrow and Parquet files by split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, nearest
from bench.data.datasets import content

STATE = "state.json"
"""Lies in each folder that `Dataset.save_to_disk` has written."""

WANTED = "a folder that Dataset.save_to_disk wrote, a folder of .parquet files, or one such file"


def splits(path: Path) -> dict[str, list[Path]]:
    """Return the files of each split, in their order.

    Splits of Parquet files are told by the names of files and folders, as the hub tells them (train-00000-of-00002,
    test.parquet, train/, ...). Files that belong to one split alone are the split "train".

    Raises:
        BenchError: there is nothing of that kind at `path`.
    """
    if path.is_file():
        if path.suffix != ".parquet":
            raise BenchError(f"{path} is no .parquet file; wanted is {WANTED}")
        return {"train": [path]}
    if not path.is_dir():
        raise BenchError(f"{path} is neither a file nor a folder; wanted is {WANTED}")
    if (path / STATE).is_file():
        return {"train": _saved(path)}
    folders = sorted(folder for folder in path.iterdir() if (folder / STATE).is_file())
    return {folder.name: _saved(folder) for folder in folders} or _parquet(path)


def _saved(folder: Path) -> list[Path]:
    # Beside its files `datasets` caches results of `map` in others, which are no part of the data set.
    try:
        names = [entry["filename"] for entry in json.loads(content(folder / STATE))["_data_files"]]
        files = [folder / name for name in names]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{folder / STATE} does not list the files of a data set ({error!r}); save it anew") from error
    if missing := [file.name for file in files if not file.is_file()]:
        raise BenchError(f"{folder} lacks {missing[0]}, which its {STATE} lists; save the data set anew")
    return files


def _parquet(folder: Path) -> dict[str, list[Path]]:
    from datasets.data_files import DataFilesDict, get_data_patterns

    there = sorted(file for file in folder.rglob("*.parquet") if file.is_file())
    if not there:
        raise BenchError(f"{folder} has no .parquet files in it, and no {STATE}; wanted is {WANTED}")
    named = DataFilesDict.from_patterns(
        get_data_patterns(str(folder)), base_path=str(folder), allowed_extensions=[".parquet"]
    )
    found = {str(name): sorted(map(Path, files)) for name, files in named.items() if files}
    lost = {*there} - {file for files in found.values() for file in files}
    if lost and found:
        raise BenchError(
            f"{folder}: {sorted(lost)[0].relative_to(folder)} belongs to none of the splits {', '.join(found)} by its "
            "name; rename it, or move it away"
        )
    return found or {"train": there}


def table(files: Sequence[Path], columns: Sequence[str]) -> Any:
    """Return a `datasets.Dataset` of some columns of one split; Arrow files stay on disk until rows are read.

    Raises:
        BenchError: a file is damaged or lacks a column, or files differ in their columns.
    """
    import datasets
    import pyarrow
    from pyarrow import parquet

    parts = []
    for file in files:
        try:
            there = _names(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise BenchError(f"{file} cannot be read: {error}") from error
        for column in columns:
            if column not in there:
                raise BenchError(f'{file} has no column "{column}"; {nearest(column, there)}')
        if file.suffix == ".parquet":
            read = parquet.read_table(file, columns=[*dict.fromkeys(columns)], partitioning=None)
            parts.append(datasets.Dataset(datasets.table.InMemoryTable(read)))
        else:
            parts.append(datasets.Dataset.from_file(str(file)).select_columns([*dict.fromkeys(columns)]))
    try:
        return datasets.concatenate_datasets(parts)
    except ValueError as error:
        raise BenchError(f"{files[0].parent}: the files of a split differ in their columns: {error}") from error


def _names(file: Path) -> list[str]:
    import datasets
    from pyarrow import parquet

    if file.suffix == ".parquet":
        return list(parquet.read_schema(file).names)
    return list(datasets.Dataset.from_file(str(file)).column_names)
