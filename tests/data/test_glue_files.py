"""GLUE's files: tables read to the letter, broken ones told with the line; the hub's copy brought, kept and checked."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.core.errors import BenchError
from bench.data import glue_files
from bench.data.datasets import Dataset
from bench.data.glue_files import TASKS, GlueFiles
from tests.hub import NONE_LISTENS, Hub, repository

MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
)
MNLI_TRAIN = f"{MNLI}sentence1\tsentence2\tlabel1\tgold_label\n"
MNLI_DEV = f"{MNLI}sentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
RTE = "index\tsentence1\tsentence2\tlabel\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
QNLI = "index\tquestion\tsentence\tlabel\n"
TABLES: dict[str, tuple[str, list[str], list[str], list[float]]] = {
    "cola": ("a\t1\t\tOne.\nb\t0\t*\tTwo the.\n", ["One.", "Two the."], [], [1, 0]),
    "sst2": ("sentence\tlabel\none \t1\ntwo\t0\n", ["one ", "two"], [], [1, 0]),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\ta\tb\n1\t7\t8\tc\td\n",
        ["a", "c"],
        ["b", "d"],
        [0, 1],
    ),
    "qqp": (f"{QQP}1\t2\t3\ta?\tb?\t1\n1\t2\t3\tc?\t\t0\n", ["a?", "c?"], ["b?", ""], [1, 0]),
    "stsb": (
        f"{STSB}0\tg\tf\ty\t0001\tn\tn\ta\tb\t5.000\n1\tg\tf\ty\t1\tn\tn\tc\td\t0\n2\tg\tf\ty\t1\tn\tn\te\tf\t3.8\n",
        ["a", "c", "e"],
        ["b", "d", "f"],
        [5.0, 0.0, 3.8],
    ),
    "mnli": (
        MNLI_TRAIN
        + "".join(f"0\t1\t1\tg\tp\tp\tp\tp\ta{n}\tb{n}\tcontradiction\t{label}\n" for n, label in enumerate("enc"))
        .replace("\te\n", "\tentailment\n")
        .replace("\tn\n", "\tneutral\n")
        .replace("\tc\n", "\tcontradiction\n"),
        ["a0", "a1", "a2"],
        ["b0", "b1", "b2"],
        [0, 1, 2],
    ),
    "qnli": (f"{QNLI}0\tq?\ts.\tnot_entailment\n1\tr?\tt.\tentailment\n", ["q?", "r?"], ["s.", "t."], [1, 0]),
    "rte": (f"{RTE}0\ta\tb\tnot_entailment\n1\tc\td\tentailment\n", ["a", "c"], ["b", "d"], [1, 0]),
    "wnli": (f"{RTE}0\ta\tb\t0\n1\tc\td\t1\n", ["a", "c"], ["b", "d"], [0, 1]),
}
"""A small table of each task, with its texts, second texts and targets."""


NO_CHANGE: Mapping[str, str | bytes] = {}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder."""
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setenv("BENCH_DATA", str(folder))
    return folder


def lay(root: Path, name: str, place: str = "glue/{}", tables: Mapping[str, str | bytes] = NO_CHANGE) -> Path:
    """A small table as each of a task's files, other content for some by name ("train", "dev")."""
    folder = root / place.format(TASKS[name].title)
    folder.mkdir(parents=True, exist_ok=True)
    for part in TASKS[name].parts:
        table = tables.get(part.name.removesuffix(".tsv"), TABLES[name][0])
        (folder / part.name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return folder


def load(name: str) -> list[tuple[list[str], list[str] | None, list[float]]]:
    splits = TASKS[name].load(allow_unverified=True)
    return [(list(s.inputs.first), s.inputs.second and list(s.inputs.second), s.targets.tolist()) for s in splits]


def message(use: Callable[[], object]) -> str:
    with pytest.raises(BenchError) as error:
        use()
    return str(error.value)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_texts_and_targets_are_those_of_the_tables(root: Path, name: str) -> None:
    lay(root, name)
    _, first, second, targets = TABLES[name]
    expected = (first, second or None, torch.tensor(targets, dtype=torch.float32).tolist())
    assert load(name) == [expected] * len(TASKS[name].parts)
    dtype = torch.float32 if name == "stsb" else torch.int64
    assert {split.targets.dtype for split in TASKS[name].load(allow_unverified=True)} == {dtype}


def test_of_mnli_the_gold_label_counts_and_both_dev_sets_are_read(root: Path) -> None:
    row = "0\t1\t1\tg\tp\tp\tp\tp\t{}\tb\tneutral\tneutral\tneutral\tneutral\tneutral\tcontradiction\n"
    tables = {"dev_matched": MNLI_DEV + row.format("m"), "dev_mismatched": MNLI_DEV + row.format("mm")}
    lay(root, "mnli", tables=tables)
    assert load("mnli")[1:] == [(["m"], ["b"], [2]), (["mm"], ["b"], [2])]


def test_nothing_but_tabs_and_newlines_has_a_meaning(root: Path) -> None:
    odd = [
        '"quoted',
        "two\u2028lines\u0085here\x0b\x0c\x1c",
        'a ""b"" \\n',
        " spaces ",
        "'",
        "carriage\rreturn",
        "漢\U0001f600",
    ]
    lay(root, "sst2", tables={"train": "sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in odd)})
    assert load("sst2")[0] == (odd, None, [1] * len(odd))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw.removesuffix(b"\n"),
        lambda raw: b"\xef\xbb\xbf" + raw.removeprefix(b"\xef\xbb\xbf"),
    ],
    ids=["crlf", "no last newline", "bom"],
)
def test_the_same_is_read_of_other_forms(root: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    lay(root, name)
    before = load(name)
    changed = change(TABLES[name][0].encode())
    lay(root, name, tables={part.name.removesuffix(".tsv"): changed for part in TASKS[name].parts})
    assert load(name) == before


@pytest.mark.parametrize("place", ["glue/{}", "{}", "GLUE/{}", "glue_data/{}"])
@pytest.mark.parametrize("gzipped", [False, True])
def test_tables_are_found_where_others_have_them(root: Path, place: str, gzipped: bool) -> None:
    folder = lay(root, "stsb", place)
    if gzipped:
        for path in list(folder.iterdir()):
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    assert load("stsb")[0][0] == ["a", "c", "e"]


@pytest.mark.parametrize(
    ("name", "table", "what"),
    [
        ("rte", "", "line 1: there is no header"),
        ("cola", "", "it has no examples"),
        ("rte", RTE, "it has no examples"),
        ("qqp", f"{QQP}1\t2\n", "it has no examples"),
        ("rte", "index\tsentence1\tsentnce2\tlabel\n", 'line 1: there is no column "sentence2"; did you mean "sent'),
        (
            "mrpc",
            "Quality\t#1 ID\t#2 ID\t#1 String\n",
            'line 1: there is no column "#2 String"; did you mean "#1 String"',
        ),
        ("rte", f"{RTE}0\ta\tb\tentailment\n1\ta\tb\n", r"line 3: it has 3 columns, not 4: '1\\ta\\tb'"),
        ("rte", f"{RTE}0\ta\tb\tentailment\n\n", "line 3: it has 1 columns, not 4"),
        ("wnli", f"{RTE}0\ta\tb\t1\t1\n", "line 2: it has 5 columns, not 4"),
        ("cola", "a\t1\t\tOne.\na\t1\tTwo.\n", "line 2: it has 3 columns, not 4"),
        ("sst2", "sentence\tlabel\na\tb\t1\n", "line 2: it has 3 columns, not 2"),
        ("rte", f"{RTE}0\ta\tb\tentailmen\n", "line 2: the label is 'entailmen'; did you mean \"entailment\"?"),
        ("sst2", "sentence\tlabel\na\t1\nb\t2\n", "line 3: the label is '2'; valid: 0, 1"),
        ("cola", "a\t-1\t\tOne.\n", "line 1: the label is '-1'; .*valid: 0, 1"),
        (
            "mnli",
            f"{MNLI_TRAIN}{'0' * 1}{chr(9) * 11}-\n",
            "line 2: the label is '-'; valid: contradiction, ent.*, neu",
        ),
        ("qqp", f"{QQP}1\t2\t3\ta\tb\tc\t1\n", "line 2: the label is 'c'; valid: 0, 1"),
        ("stsb", f"{STSB}{chr(9) * 9}5.001\n", "line 2: the score is '5.001', not a number from 0 to 5"),
        ("stsb", f"{STSB}{chr(9) * 9}-0.1\n", "line 2: the score is '-0.1', not a number"),
        ("stsb", f"{STSB}{chr(9) * 9}nan\n", "line 2: the score is 'nan', not a number"),
        ("stsb", f"{STSB}{chr(9) * 9}inf\n", "line 2: the score is 'inf', not a number"),
        ("stsb", f"{STSB}{chr(9) * 9}\n", "line 2: the score is '', not a number"),
        ("rte", RTE.encode() + b"0\tcaf\xe9\tb\tentailment\n", "line 2: it is not UTF-8 .* at byte 6"),
        ("rte", RTE.encode("utf-16"), "line 1: it is not UTF-8"),
    ],
)
@pytest.mark.parametrize("part", ["train", "dev"])
def test_a_broken_table_is_told_with_the_line(root: Path, name: str, table: str | bytes, what: str, part: str) -> None:
    if name == "mnli" and part == "dev":
        part = "dev_mismatched"
    folder = lay(root, name, tables={part: table})
    with pytest.raises(
        BenchError,
        match=f"^{folder}/{part}.tsv is damaged: {what}.*; move .*, and `bench prepare` downloads it again$",
    ):
        load(name)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("qqp", f"{QQP}1\t2\t3\ta\tb\t1\n1\t2\t3\ta\n4\t5\t6\tc\td\n1\t2\t3\te\tf\t0\t\n"),
        ("qnli", f"{QNLI}0\ta\tb\tnot_entailment\n1\tq\n\n2\te\tf\tentailment\n"),
        ("mnli", f"{MNLI_TRAIN}{'x' + chr(9) * 8}a\tb\tz\tneutral\nshort\n{'x' + chr(9) * 8}e\tf\tz\tentailment\n"),
    ],
)
def test_lines_the_official_tables_lack_an_end_of_are_left_out(root: Path, name: str, table: str) -> None:
    lay(root, name, tables={"train": table})
    assert load(name)[0] == (["a", "e"], ["b", "f"], [1, 0])


def test_tables_that_are_not_the_official_ones_need_the_setting(root: Path) -> None:
    folder = lay(root, "rte")
    assert not TASKS["rte"].verified()
    for refuse in (TASKS["rte"].load, TASKS["rte"].fetch):
        text = message(lambda refuse=refuse: refuse(allow_unverified=False))  # type: ignore[misc]
        assert text.startswith(f"{folder} is not the official GLUE's RTE:\n  train.tsv: md5 is ")
        assert f"that of the official file {TASKS['rte'].parts[0].md5}\n  dev.tsv: md5 is " in text
        assert '\n  task = {name = "glue/rte", allow_unverified_data = true}\n' in text
    TASKS["rte"].fetch(allow_unverified=True)


def test_what_was_read_is_remembered(root: Path) -> None:
    folder = lay(root, "rte")
    first = TASKS["rte"].load(allow_unverified=True)
    assert TASKS["rte"].load(allow_unverified=True) is first
    (folder / "dev.tsv").write_text(f"{RTE}0\tnew\tb\tentailment\n")
    assert load("rte")[1] == (["new"], ["b"], [0])


def test_verified_tables_have_the_published_rows(root: Path) -> None:
    folder = lay(root, "qqp")
    md5 = hashlib.md5(TABLES["qqp"][0].encode()).hexdigest()
    train, dev = (replace(part, md5=md5, rows=2) for part in TASKS["qqp"].parts)
    assert len(replace(TASKS["qqp"], parts=(train, dev)).load(allow_unverified=False)) == 2
    other = replace(TASKS["qqp"], parts=(train, replace(dev, rows=3)))
    with pytest.raises(BenchError, match=f"^{folder}/dev.tsv is damaged: it has 2 examples, where GLUE's QQP has 3; "):
        other.load(allow_unverified=False)


def test_missing_tables_are_told_with_where_they_are_from(root: Path) -> None:
    assert message(lambda: TASKS["mnli"].load(allow_unverified=False)) == (
        f"GLUE's MNLI is not in {root}: `bench prepare` downloads it.\n"
        "To get it in another way, put there\n"
        f"  {root}/glue/MNLI/train.tsv\n"
        f"  {root}/glue/MNLI/dev_matched.tsv\n"
        f"  {root}/glue/MNLI/dev_mismatched.tsv\n"
        "    from https://dl.fbaipublicfiles.com/glue/data/MNLI.zip; or run `bench prepare` where there is a network, "
        "and bring glue/hub/mnli out of that machine's data folder into this one's\n"
        "or name another data folder with --data-dir DIR or the environment variable BENCH_DATA."
    )
    lay(root, "rte", "RTE")
    (root / "RTE" / "dev.tsv").unlink()
    with pytest.raises(BenchError, match=f"^GLUE's RTE is in {root}/RTE without dev.tsv: "):
        TASKS["rte"].verified()
    assert "(there is no zip); or run `bench prepare`" in message(TASKS["mrpc"].verified)


# ---- the hub's copy ------------------------------------------------------------------------------------------


@pytest.fixture
def here(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., GlueFiles]:
    """here(name, train=rows, ...): a folder laid out as the hub's repository is taken for it; what is wanted of it."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def lay_out(name: str, **splits: list[dict[str, Any]]) -> GlueFiles:
        repository(tmp_path / "glue", {name: splits})
        monkeypatch.setattr(glue_files, "REPOSITORY", str(tmp_path / "glue"))
        task = TASKS[name]
        return replace(task, parts=tuple(replace(part, rows=2) for part in task.parts))

    return lay_out


def pairs(first: str, second: str, labels: list[Any]) -> list[dict[str, Any]]:
    return [{first: f'a"{n}\u2028', second: f"b{n}\n", "label": label, "idx": n} for n, label in enumerate(labels)]


def test_the_hub_s_copy_is_brought_once_and_read_without_the_hub(
    here: Callable[..., GlueFiles], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"train": [0, 1], "validation_matched": [2, 0], "validation_mismatched": [1, 1]}
    task = here("mnli", **{name: pairs("premise", "hypothesis", labels) for name, labels in splits.items()})
    task.fetch()
    names = [f"glue/hub/mnli/{name}" for name in ("origin.json", *(f"{split}.jsonl" for split in sorted(splits)))]
    assert tree(root) == [".glue-mnli.lock", *names]
    origin = json.loads((task.copy / "origin.json").read_text())
    assert (origin["repository"], origin["config"]) == (glue_files.REPOSITORY, "mnli")
    assert origin["revision"]
    for name in splits:
        sha256 = hashlib.sha256((task.copy / f"{name}.jsonl").read_bytes()).hexdigest()
        assert origin["files"][f"{name}.jsonl"] == {"rows": 2, "sha256": sha256}

    monkeypatch.setattr(glue_files, "_hub_splits", None)  # nobody asks the hub again
    task.fetch()
    assert task.verified()
    loaded = task.load(allow_unverified=False)
    assert [split.targets.tolist() for split in loaded] == list(splits.values())
    assert loaded[2].inputs.first == ['a"0\u2028', 'a"1\u2028']
    assert loaded[2].inputs.second == ["b0\n", "b1\n"]
    assert task.load(allow_unverified=False) is loaded


@pytest.mark.parametrize(
    ("name", "columns", "labels"),
    [
        ("cola", ("sentence",), [1, 0]),
        ("mrpc", ("sentence1", "sentence2"), [1, 0]),
        ("stsb", ("sentence1", "sentence2"), [5.0, 0.25]),
        ("qnli", ("question", "sentence"), [1, 0]),
    ],
)
def test_the_hub_s_columns_are_known(
    here: Callable[..., GlueFiles], name: str, columns: tuple[str, ...], labels: list[Any]
) -> None:
    rows = [{**{column: f"{column} {n}" for column in columns}, "label": label} for n, label in enumerate(labels)]
    task = here(name, train=rows, validation=rows)
    task.fetch()
    train, dev = task.load(allow_unverified=False)
    texts = [train.inputs.first, *([train.inputs.second] if len(columns) == 2 else [])]
    assert texts == [[f"{column} 0", f"{column} 1"] for column in columns]
    assert train.inputs.second is not None or len(columns) == 1
    assert train.targets.tolist() == dev.targets.tolist() == labels
    assert train.targets.dtype == (torch.float32 if name == "stsb" else torch.int64)


@pytest.mark.parametrize(
    ("dev", "what"),
    [
        (pairs("sentence1", "sentence2", [0, -1]), "line 2: the label is -1; .*valid: 0, 1"),
        (pairs("sentence1", "sentence2", [2, 0]), "line 1: the label is 2; valid: 0, 1"),
        (pairs("sentence1", "sentence2", [1, None]), "line 2: the label is None; valid: 0, 1"),
        (pairs("sentence1", "sentence2", [0, 1, 0]), "it has 3 examples, where GLUE's RTE has 2"),
        (None, "it is not there; .*valid: train"),
        ([{"sentence1": "a", "sentence2": None, "label": 0}] * 2, "line 1: one of .* is no text"),
    ],
)
def test_what_is_not_glue_on_the_hub_is_refused_and_nothing_is_left(
    here: Callable[..., GlueFiles], root: Path, dev: list[dict[str, Any]] | None, what: str
) -> None:
    good = pairs("sentence1", "sentence2", [0, 1])
    task = here("rte", train=good, **({} if dev is None else {"validation": dev}))
    with pytest.raises(BenchError, match=f"/glue on the hub is not GLUE as it was published: rte, validation: {what}"):
        task.fetch(allow_unverified=True)
    assert tree(root) == [".glue-rte.lock"]
    assert not task.is_there()
    assert not list((root / "glue" / "hub").iterdir())


def test_a_column_that_the_hub_has_not_got_is_told(here: Callable[..., GlueFiles]) -> None:
    rows = pairs("premise", "sentence2", [0, 1])
    with pytest.raises(BenchError, match='rte, train: there is no column "sentence1"; did you mean "sentence2"'):
        here("rte", train=rows, validation=rows).fetch()


def test_a_copy_that_was_changed_needs_the_setting(here: Callable[..., GlueFiles]) -> None:
    good = pairs("sentence1", "sentence2", [0, 1])
    task = here("rte", train=good, validation=good)
    task.fetch()
    train = task.copy / "train.jsonl"
    train.write_text(train.read_text().replace('"label": 0', '"label": 1'))
    assert not task.verified()
    for refuse in (task.load, task.fetch):
        text = message(lambda refuse=refuse: refuse(allow_unverified=False))  # type: ignore[misc]
        assert text.startswith(f"{task.copy} is not the official GLUE's RTE:\n  train.jsonl: sha256 is ")
        assert '{name = "glue/rte", allow_unverified_data = true}' in text
        assert "validation" not in text
    assert task.load(allow_unverified=True)[0].targets.tolist() == [1, 1]

    train.write_text('{"sentence1": "a", "sentence2": "b", "label": 0}\n{"sentence1": "a", "label": 0}\n')
    with pytest.raises(BenchError, match=f"^{train} is damaged: line 2: it is not a row of the hub's rte: KeyError"):
        task.load(allow_unverified=True)
    train.write_text("{\n")
    with pytest.raises(BenchError, match=f"^{train} is damaged: line 1: it is not a row of the hub's rte: JSON"):
        task.load(allow_unverified=True)


def test_a_copy_that_does_not_say_where_it_is_from_is_told(here: Callable[..., GlueFiles]) -> None:
    good = pairs("sentence1", "sentence2", [0, 1])
    task = here("rte", train=good, validation=good)
    task.fetch()
    origin = task.copy / "origin.json"
    whole = origin.read_text()
    origin.write_text(whole.replace('"rows": 2', '"rows": 9'))
    assert "\n  train.jsonl: it has 9 examples, the official one 2\n" in message(task.fetch)
    for damage in (whole[:50], "[]", "{}", whole.replace("train", "trial")):
        origin.write_text(damage)
        assert f"{task.copy} is damaged: origin.json does not say where it is from" in message(task.verified)
    for missing in (task.copy / "validation.jsonl", origin):
        missing.unlink()
        assert message(task.fetch).startswith(f"{task.copy} is damaged: it lacks {missing.name}; move it away, and ")


def test_tables_come_before_the_hub_s_copy(here: Callable[..., GlueFiles], root: Path) -> None:
    good = pairs("sentence1", "sentence2", [0, 1])
    task = here("rte", train=good, validation=good)
    task.fetch()
    lay(root, "rte")
    assert task.load(allow_unverified=True)[0].inputs.first == ["a", "c"]
    assert not task.verified()


# ---- the hub itself, in processes of their own ---------------------------------------------------------------


def fetch(endpoint: str, home: Path, name: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """What a process says that fetches a task from a hub at that address."""
    code = f"{before}\nfrom bench.data.glue_files import TASKS\nTASKS[{name!r}].fetch()\n"
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "no_proxy": "*", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | hub, capture_output=True, text=True, timeout=1200, check=False
    )


def test_without_network_the_message_comes_at_once(root: Path, tmp_path: Path) -> None:
    done = fetch(NONE_LISTENS, tmp_path / "home", "rte")
    assert done.returncode == 1
    assert "Retrying" not in done.stderr, "the hub's library alone goes on for half a minute"
    said = done.stderr[done.stderr.rindex("NotPrepared: ") :].removeprefix("NotPrepared: ").splitlines()
    assert said == [
        f"GLUE's RTE is not in {root}: it could not be downloaded.",
        "  nyu-mll/glue on the hub: [Errno 111] Connection refused",
        "To get it in another way, put there",
        f"  {root}/glue/RTE/train.tsv",
        f"  {root}/glue/RTE/dev.tsv",
        "    from https://dl.fbaipublicfiles.com/glue/data/RTE.zip; or run `bench prepare` where there is a network, "
        "and bring glue/hub/rte out of that machine's data folder into this one's",
        "or name another data folder with --data-dir DIR or the environment variable BENCH_DATA.",
    ]
    assert tree(root) == [".glue-rte.lock"]


@pytest.mark.slow
def test_a_task_comes_from_the_hub_and_then_from_what_datasets_has_kept(root: Path, tmp_path: Path) -> None:
    counts = {part.hub: part.rows for part in TASKS["wnli"].parts}
    splits = {split: pairs("sentence1", "sentence2", [n % 2 for n in range(rows)]) for split, rows in counts.items()}
    copy = TASKS["wnli"].copy
    with Hub(repository(tmp_path / "glue", {"wnli": splits}), "nyu-mll/glue") as hub:
        done = fetch(hub.address, tmp_path / "home", "wnli")
    assert done.returncode == 0, done.stderr
    assert json.loads((copy / "origin.json").read_text())["revision"] == hub.revision
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    train, dev = TASKS["wnli"].load(allow_unverified=False)
    assert (len(train), len(dev)) == (635, 71)
    assert TASKS["wnli"].verified()
    for path in copy.iterdir():
        path.unlink()
    copy.rmdir()
    done = fetch(NONE_LISTENS, tmp_path / "home", "wnli")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.slow
def test_a_fetch_that_is_killed_leaves_nothing_that_counts(root: Path, tmp_path: Path) -> None:
    counts = {part.hub: part.rows for part in TASKS["wnli"].parts}
    splits = {split: pairs("sentence1", "sentence2", [1] * rows) for split, rows in counts.items()}
    folder = repository(tmp_path / "glue", {"wnli": splits})
    from_here = f"from bench.data import glue_files\nglue_files.REPOSITORY = {str(folder)!r}\n"
    killed = f"""{from_here}
import os, signal
rename = os.rename
def killed(source, target):
    if str(target) == {str(TASKS["wnli"].copy)!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.rename = killed
"""
    assert fetch(NONE_LISTENS, tmp_path / "home", "wnli", killed).returncode == -9
    assert "glue/hub/.wnli.tmp/train.jsonl" in tree(root), "it was half-way"
    assert not TASKS["wnli"].is_there()
    done = fetch(NONE_LISTENS, tmp_path / "home", "wnli", from_here)
    assert done.returncode == 0, done.stderr
    files = ("origin.json", "train.jsonl", "validation.jsonl")
    assert tree(root) == [".glue-wnli.lock", *(f"glue/hub/wnli/{name}" for name in files)]
    assert TASKS["wnli"].verified()


# ---- the real ones -------------------------------------------------------------------------------------------


REAL: dict[str, list[tuple[dict[int, int], int, int, int]]] = {
    "cola": [({0: 2528, 1: 6023}, 1, 1, 2), ({0: 322, 1: 721}, 1, 1, 0)],
    "sst2": [({0: 29780, 1: 37569}, 0, 0, 0), ({0: 428, 1: 444}, 1, 1, 0)],
    "mrpc": [({0: 1194, 1: 2474}, 1, 0, 769), ({0: 129, 1: 279}, 1, 1, 85)],
    "rte": [({0: 1249, 1: 1241}, 1, 1, 454), ({0: 146, 1: 131}, 1, 1, 48)],
    "wnli": [({0: 323, 1: 312}, 1, 1, 16), ({0: 40, 1: 31}, 0, 0, 1)],
}
"""Of each split: examples of each class, the first and the last label, and examples with a quotation mark, counted with
Python's csv module without quoting."""


def quotes(texts: Any) -> int:
    return sum('"' in first + second for first, second in zip(texts.first, texts.second or texts.first, strict=True))


@pytest.mark.parametrize("name", REAL)
def test_the_real_tables_have_the_published_labels(real_data: Callable[[Dataset], None], name: str) -> None:
    real_data(TASKS[name].tables)
    assert TASKS[name].verified()
    splits = TASKS[name].load(allow_unverified=False)
    assert [len(split) for split in splits] == [part.rows for part in TASKS[name].parts]
    for split, (classes, first, last, quoted) in zip(splits, REAL[name], strict=True):
        assert Counter(split.targets.tolist()) == classes
        assert split.targets[[0, -1]].tolist() == [first, last]
        assert quotes(split.inputs) == quoted


def test_the_real_similarities_are_read(real_data: Callable[[Dataset], None]) -> None:
    real_data(TASKS["stsb"].tables)
    assert TASKS["stsb"].verified()
    train, dev = TASKS["stsb"].load(allow_unverified=False)
    assert (len(train), len(dev)) == (5749, 1500)
    assert (quotes(train.inputs), quotes(dev.inputs)) == (252, 110)
    assert train.targets.double().mean().item() == pytest.approx(2.7009990253653395, abs=1e-6)
    assert dev.targets.double().mean().item() == pytest.approx(2.363907555555555, abs=1e-6)
    assert train.targets[[0, -1]].tolist() == dev.targets[[0, -1]].tolist() == [5, 0]


def test_real_texts_are_read_to_the_letter(real_data: Callable[[Dataset], None]) -> None:
    for name, (first, second) in {
        "cola": ("Our friends won't buy this analysis, let alone the next one we propose.", None),
        "sst2": ("hide new secretions from the parental units ", None),
        "mrpc": (
            'Amrozi accused his brother , whom he called " the witness " , of deliberately distorting his evidence .',
            'Referring to him as only " the witness " , Amrozi accused his brother of deliberately distorting his '
            "evidence .",
        ),
        "stsb": ("A plane is taking off.", "An air plane is taking off."),
        "rte": (
            "No Weapons of Mass Destruction Found in Iraq Yet.",
            "Weapons of Mass Destruction Found in Iraq.",
        ),
        "wnli": (
            "I stuck a pin through a carrot. When I pulled the pin out, it had a hole.",
            "The carrot had a hole.",
        ),
    }.items():
        real_data(TASKS[name].tables)
        texts = TASKS[name].load(allow_unverified=False)[0].inputs
        assert (texts.first[0], texts.second and texts.second[0]) == (first, second)
        assert not any("\ufeff" in text for text in [*texts.first, *(texts.second or ())])
