"""Malformed input of every kind either works or is one clear error: no traceback, no hang, nothing ignored."""

from __future__ import annotations

import io
import math
import multiprocessing.connection
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click
import pytest

from bench import cli
from bench.config.file import find, load
from bench.config.resolve import MOST_RUNS
from bench.core import terminal
from bench.core.errors import BadValue, BenchError
from bench.launch.local.pool import _Pool
from bench.launch.progress import ProgressDisplay
from bench.launch.slurm import profile
from bench.store.files import read_bytes, read_toml
from bench.store.run_folder import Store
from tests.run_folders import finish

Tiny = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
Bench = Callable[..., Any]

DIGITS = "9" * 400


def says(call: Callable[[], object]) -> str:
    """What an error says, in lines that a screen has room for."""
    with pytest.raises(BenchError) as error:
        call()
    message = str(error.value)
    assert len(message) < 20_000, "a message that nobody reads"
    return message


# ---- experiment files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 10**9}, "seeds: 1,000,000,000 seeds; an experiment has at most"),
        ({"seeds": 10**18}, "seeds: 1,000,000,000,000,000,000 seeds"),
        ({"optimizers.sgd.sweep": {"lr": [1 + i / 1e6 for i in range(MOST_RUNS)]}, "optimizers.sgd.lr": ...}, "runs: "),
        ({"optimizers.sgd.sweep": {"lr": [0.1] * 20_000}, "optimizers.sgd.lr": ...}, "the same value twice"),
        ({"optimizers.sgd.sweep": {"lr": ["x"] * 20_000}, "optimizers.sgd.lr": ...}, "the same value twice"),
        ({"optimizers.sgd.sweep": {"lr": [[1], [1]]}, "optimizers.sgd.lr": ...}, "the same value twice"),
        ({"optimizers.sgd.sweep": {"lr": [str(i) for i in range(5000)]}, "optimizers.sgd.lr": ...}, "and 4950 more"),
        (
            {
                "optimizers.sam.sweep": {
                    key: [i / 1e4 for i in range(1, 2001)] for key in ("rho", "lr", "momentum", "weight_decay")
                },
                "optimizers.sam.lr": ...,
            },
            "16,000,000,000,001 configurations of all optimizers",
        ),
        ({"vary": {"data": {"label_noise": [i / 1e6 for i in range(60_000)]}}}, "60,000 conditions"),
        ({"task": math.inf}, "task: must be a name, or a table of a name and its settings, got inf"),
        ({"task": math.inf, "vary": {"task": ["digits"]}}, "task: must be a name"),
        ({"task": [], "vary": {"task": {"name": ["digits"]}}}, "task: must be a name"),
        ({"model": True}, "model: must be a name"),
        ({"model": {"name": ["mlp"]}}, 'unknown model "'),
        ({"task": {"name": "csv", "path": "~nosuchuser/x.csv", "target": "y"}}, "task.path: ~nosuchuser/x.csv: "),
        ({"task": {"name": "csv", "path": "x" * 5000, "target": "y"}}, "task.path: "),
        ({"task": {"name": "csv", "path": "/dev/zero", "target": "y"}}, "/dev/zero is not a file"),
        ({"plugins": ["x" * 5000]}, "plug-in"),
        ({"plugins": ["/dev/zero"]}, "plug-in /dev/zero does not exist"),
        ({"baseline": "x" * 100_000}, "baseline: no optimizer"),
        ({"title": "x", "x" * 100_000: 1}, "unknown key"),
        ({"optimizers.sgd.base": {"a": 1}}, "optimizers.sgd.base"),
        ({"optimizers.sam.base": ["sgd"]}, "is not a plain optimizer"),
        ({"optimizers.sgd.lr": math.nan}, "optimizers.sgd.lr"),
        ({"train.epochs": 2**62, "optimizers.sgd.lr": "x" * 10**6}, "[...]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_sizes_and_types_in_an_experiment_file_are_told(
    write_experiment: Write, tiny: Tiny, changes: dict[str, Any], said: str
) -> None:
    assert said in says(lambda: load(write_experiment(tiny(changes))))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"seeds = " + b"[" * 20_000, "nested deeper than 32 levels"),
        (b"seeds = " + b"[" * 100 + b"]" * 100, "seeds: nested deeper than 32 levels"),
        (b"a" + b".a" * 2000 + b" = 1", "nested deeper than 32 levels"),
        (b"[" + b"a." * 2000 + b"a]\nx = 1", "nested deeper than 32 levels"),
        (f"seeds = {DIGITS}".encode(), "seeds: 9999"),
        (b"seeds = " + b"9" * 5000, "an integer has more than 64 bits"),
        (b'title = "a\\u0000b"', "title: has a NUL character in it"),
        (b'"a\\u0000" = 1', "has a NUL character in it"),
        (b"title = \x00", "broken TOML"),
        (b"\xff\xfet\x00", "not UTF-8 text"),
        (b"title = 'x" + b"x" * 100_000, "broken TOML"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_documents_that_no_parser_is_made_for_are_refused(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(text)
    message = says(lambda: load(path))
    assert said in message
    assert len(message.splitlines()) == 2


def test_a_byte_order_mark_is_no_part_of_the_first_key(write_experiment: Write, tiny: Tiny, tmp_path: Path) -> None:
    path = write_experiment(tiny())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load(path).title == "Tiny"
    site = tmp_path / "slurm.toml"
    site.write_bytes(b"\xef\xbb\xbf[slurm]\ntime = 5\n")
    assert profile.load(site).time == 5


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".toml", "a\0b", "a\0b/c.toml", "/dev/zero", "fifo.toml"])
def test_a_name_that_is_no_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.toml")
    says(lambda: load(find(name)))


def test_only_regular_files_are_read_and_none_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path, Path("a\0b")):
        with pytest.raises(OSError, match=r"regular file|directory|null byte"):
            read_bytes(path)
    assert "not a regular file" in says(lambda: read_toml(tmp_path / "fifo"))


@pytest.mark.parametrize("text", ["vary = 3", "data = []", "title = {}", "title = '{task}'", "vary = {data = 1}"])
def test_a_list_of_experiments_goes_on_past_any_document(bench: Bench, text: str) -> None:
    Path("experiments").mkdir()
    Path("experiments/x.toml").write_text(text)
    said = bench("list", "experiments")
    assert said.status == 0
    assert "  x  " in said.out


# ---- --set ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs=3\noptimizers.sgd.lr=9", "has a line break"),
        ("train.epochs=[3,\n4]\nseeds=1", "has a line break"),
        ("train.epochs=3\rx", "has a line break"),
        ("train\n.epochs=3", "the key has a line break"),
        ("title=a\0b", "control character"),
        ("seeds=" + "[" * 20_000, "nested deeper than 32 levels"),
        ("a" + ".a" * 20_000 + "=1", "20001 parts between dots"),
        (f"seeds={DIGITS}", "more than 64 bits"),
        ("seeds=" + "9" * 5000, "more than 64 bits"),
        ('optimizers."sgd.lr=1', "is not a valid key"),
        ('optimizers."sgd".lr.x=1', "optimizers.sgd.lr is a value, not a table"),
        ("=1", "expected KEY=VALUE"),
        ("x" * 100_000, "expected KEY=VALUE"),
    ],
    ids=lambda value: value[:30],
)
def test_a_set_that_cannot_be_meant_is_told(write_experiment: Write, tiny: Tiny, override: str, said: str) -> None:
    assert said in says(lambda: load(write_experiment(tiny()), [override]))


@pytest.mark.parametrize("key", ["optimizers.sam-0.05.lr", 'optimizers."sam-0.05".lr', "optimizers.'sam-0.05'.lr"])
def test_set_reaches_a_label_with_dots_in_it(write_experiment: Write, tiny: Tiny, key: str) -> None:
    other = {"optimizers.sam-0": {"use": "sgd", "lr": 0.3}}
    document = tiny(other)
    document["optimizers"]["sam-0.05"] = {"use": "sam", "base": "sgd", "lr": 0.1, "rho": 0.05}
    found = load(write_experiment(document), [f"{key}=0.7"])
    lr = {run.label: run.spec.hyperparameters()["lr"] for run in found.runs}
    assert lr == {"sgd": 0.1, "sam": 0.1, "sam-0": 0.3, "sam-0.05": 0.7}


def test_many_sets_make_one_folder_of_a_name_that_a_file_system_takes(write_experiment: Write, tiny: Tiny) -> None:
    path = write_experiment(tiny())
    long = [f"optimizers.sam.sweep.rho={[round(0.01 * i, 2) for i in range(1, n)]}" for n in (98, 99)]
    names = [load(path, [override]).name for override in long]
    assert len(set(names)) == 2
    assert all(len(name.encode()) <= 200 and name.startswith("tiny+optimizers.sam") for name in names)
    assert load(path, [long[0]]).name == names[0]
    assert load(path, ["train.epochs=1"]).name == "tiny+train.epochs=1"


# ---- options -------------------------------------------------------------------------------------------------


def numbers() -> Iterator[tuple[str, str]]:
    """Every option of every command that takes a number."""
    for name, command in cli.cli.commands.items():
        for option in command.params:
            if isinstance(option.type, click.types.FloatParamType | click.types.IntParamType):
                yield name, option.opts[0]


@pytest.mark.parametrize(("command", "option"), [*numbers(), ("run", "--gpus"), ("run", "--time")])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", DIGITS, "9" * 5000, "", "\x00"])
def test_no_option_takes_a_number_that_is_none(bench: Bench, command: str, option: str, value: str) -> None:
    said = bench(command, "digits_noise", option, value)
    assert said.status == 2
    assert "Traceback" not in said.err
    assert "Error" in said.err


def test_a_time_between_checkpoints_that_never_comes_is_refused() -> None:
    import bench as package

    for minutes in (math.nan, math.inf, -1.0):
        assert "must be a finite number >= 0" in says(
            lambda minutes=minutes: package.run("digits_noise", checkpoint_minutes=minutes)  # type: ignore[misc]
        )


# ---- SLURM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        *({name: "gpu\n#SBATCH --uid=0"} for name in ("partition", "account", "qos", "constraint")),
        {"sbatch": {"comment": "a\nrm -rf ~"}},
        {"sbatch": {"comment\n#SBATCH --uid": "0"}},
        {"sbatch": {"comment": "a\r"}},
        {"partition": "a\0b"},
        *({name: 10**30} for name in ("nodes", "mem_gb", "gpus", "cpus", "jobs", "time", "max_jobs", "grace_seconds")),
        {"mem_gb": 1e308},
        {"time": "9" * 400},
    ],
    ids=lambda value: str(value)[:50],
)
def test_no_value_of_slurm_adds_a_line_to_a_jobs_script(tmp_path: Path, flags: dict[str, Any]) -> None:
    site = tmp_path / "slurm.toml"
    site.write_text("")
    assert "1 problem" in says(lambda: profile.load(site, flags))


# ---- sockets -------------------------------------------------------------------------------------------------


def test_a_long_tmpdir_leaves_room_for_the_path_of_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.delitem(multiprocessing.process.current_process()._config, "tempdir", raising=False)  # type: ignore[attr-defined]
    _Pool([], Store(tmp_path), ProgressDisplay({}, cast(Any, {}), terminal.console()))
    with multiprocessing.connection.Listener(family="AF_UNIX") as listener:
        assert len(str(listener.address)) < 108
    assert tempfile.gettempdir() == str(long)
    monkeypatch.delitem(multiprocessing.process.current_process()._config, "tempdir")  # type: ignore[attr-defined]


# ---- the terminal --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_report")
def test_brackets_and_colons_in_names_are_printed_as_they_are(
    bench: Bench, write_experiment: Write, tiny: Tiny
) -> None:
    out = "r[bold]x[/nosuch] :smile:"
    path = write_experiment(tiny(), "[red]e")
    finish(Store(Path(out, "[red]e")), load(path).runs)
    said = bench("run", path, "--out", out)
    assert said.status == 0, said.err
    assert f"{out}/[red]e/report.html" in said.err
    assert "[red]e: 6 done, 0 to do" in said.err
    assert Path(out, "[red]e", "records.csv").exists()


def test_an_encoding_without_our_signs_gets_them_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    terminal.print_in_any_encoding()
    print("97.9 ± 0.1 – ρ → † ✓ ─")
    sys.stdout.flush()
    assert written.getvalue() == b"97.9 +- 0.1 - rho -> + ? -\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("list",), ("status", "digits_noise")])
def test_a_standard_output_that_is_full_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
    assert capsys.readouterr().err == "Error: cannot print any more: No space left on device\n"


def test_messages_show_the_ends_of_a_long_value() -> None:
    error = BadValue("x.toml", [f"key {number}: wrong" for number in range(200)])
    assert len(str(error).splitlines()) == 52
    assert str(error).endswith("key 49: wrong\n  and 150 more")
    assert len(error.problems) == 200


# ---- plug-ins ------------------------------------------------------------------------------------------------

PLUGIN = """
import torch
from bench import register_optimizer

@register_optimizer("mine")
def mine(params, *, NAME: int = 1, other: str = ""):
    return torch.optim.SGD(params, lr=0.1)
"""


@pytest.mark.parametrize(
    "name", ["seed", "model", "epochs", "status", "run_id", "label_noise", "test_acc", "gap_loss", "passes", "device"]
)
def test_a_hyperparameter_called_as_a_column_is_told_before_anything_starts(
    registries: Callable[[], None], write_experiment: Write, write_plugin: Write, tiny: Tiny, name: str
) -> None:
    write_plugin(PLUGIN.replace("NAME", name))
    path = write_experiment(tiny({"plugins": ["mine.py"], "optimizers.mine": {name: 2}}))
    assert f'optimizers.mine: "mine" has a hyperparameter "{name}", which is a column' in says(lambda: load(path))


def test_a_swept_text_of_two_lines_is_told(
    registries: Callable[[], None], write_experiment: Write, write_plugin: Write, tiny: Tiny
) -> None:
    write_plugin(PLUGIN.replace("NAME", "count"))
    swept = {"plugins": ["mine.py"], "optimizers.mine": {"sweep": {"other": ["a\nb", "a b"]}}}
    assert "a value has a line break" in says(lambda: load(write_experiment(tiny(swept))))
