"""The command line: what it prints, what it leaves on disk, and its exit status."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from bench import cli
from bench.config.file import load
from bench.core import data_folder, registry
from bench.store.run_folder import Store
from tests import prefork

REPOSITORY = Path(__file__).parents[2]
Tiny = Callable[..., dict[str, Any]]
Write = Callable[..., Path]


Bench = Callable[..., Any]


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=prefork.HANGS)


def on_disk(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ---- mistakes: the nearest choice, exit status 2, no traceback, nothing on disk ------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["runn"], 'no command "runn"; did you mean "run"?'),
        (["zzz"], 'no command "zzz"; valid: atlas, cancel, check, clean, diff, doctor, export, list, '),
        (["run", "digits_noise", "--dryrun"], "--dry-run"),
        (["run", "digits_noise", "--jobs", "0"], "'--jobs': 0 is not in the range 1<=x<=10000"),
        (["run", "digits_noise", "--seeds", "0"], "'--seeds': 0 is not in the range 1<=x<="),
        (["run"], "Missing argument 'EXPERIMENT'"),
        (["table", "digits_noise", "--format", "html"], "'html' is not one of 'terminal', 'md', 'tex', 'csv'"),
        (["table", "digits_noise", "--bare"], "--bare: with --format terminal there is nothing to leave out"),
        (["plot", "digits_noise", "--width", "wide"], "must be page, column, or inches from 2 to 20, such as 5.5"),
        (["plot", "digits_noise", "--width", "1"], "must be page, column, or inches from 2 to 20, such as 5.5"),
        (["plot", "digits_noise", "--font-size", "1"], "1.0 is not in the range 4<=x<=20"),
        (["list", "optimisers"], "'optimizers'"),
        (["run", "digit_noise"], 'unknown experiment "digit_noise"; did you mean "digits_noise"?'),
        (["status", "digit_noise"], 'unknown experiment "digit_noise"; did you mean "digits_noise"?'),
        (["run", "nowhere/x.toml"], "experiment file nowhere/x.toml does not exist"),
        (["run", "digits_noise", "--only", "asm"], '--only asm: 1 problem\n  no such optimizer; did you mean "asam"?'),
        (["run", "digits_noise", "--set", "train.epoch=3"], 'train.epoch: unknown key; did you mean "epochs"?'),
        (["run", "digits_noise", "--set", "train.epochs"], "expected KEY=VALUE, for example train.epochs=10"),
        (["run", "digits_noise", "--set", "data.validation=1e-6"], "leaves 1200 to train on and 0 to validate on"),
        (["table", "digits_noise"], 'results holds no results of "digits_noise"'),
        (["plot", "digits_noise"], 'results holds no results of "digits_noise"'),
        (["table", "."], 'results holds no results of "."; there are none; `bench run` makes them'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message_and_status_2_and_leaves_nothing(
    bench: Bench, tmp_path: Path, command: list[str], said: str
) -> None:
    answer = bench(*command)
    assert answer.status == 2
    assert said in answer.err
    assert "Error: " in answer.err
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert on_disk(tmp_path / "cwd") == set()


def test_all_problems_of_an_experiment_are_printed_under_its_path(
    bench: Bench, write_experiment: Write, tiny: Tiny
) -> None:
    path = write_experiment(tiny({"train.epochs": 0, "baseline": "sdg"}))
    answer = bench("run", path)
    assert answer.status == 2
    assert answer.err.startswith(f"Error: {path}: 2 problems\n  ")
    assert len(answer.err.splitlines()) == 3


def test_a_plugin_that_fails_is_one_message_with_its_file(
    registries: Callable[[], None], bench: Bench, write_experiment: Write, write_plugin: Write, tiny: Tiny
) -> None:
    plugin = write_plugin("x = 1\n1 / 0\n")
    answer = bench("run", write_experiment(tiny({"plugins": ["mine.py"]})), "--dry-run")
    assert answer.status == 2
    assert answer.err == f"Error: plug-in {plugin} fails to import: ZeroDivisionError: division by zero (line 2)\n"


@pytest.mark.parametrize("command", [["run", "digits_noise"], ["table", "digits_noise"], ["list"]])
def test_ctrl_c_ends_any_command_with_one_line_and_status_130(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before anything of it has begun, and where nothing else waits for it."""

    def stopped(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli.cli.commands[command[0]], "callback", stopped)
    monkeypatch.setattr(sys, "argv", ["bench", *command])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "Stopped.\n")


@pytest.mark.parametrize("place", ["results", "results/tiny"])
def test_a_file_where_the_results_folder_should_be_stops_the_run_and_is_kept(
    bench: Bench, write_experiment: Write, tiny: Tiny, tmp_path: Path, place: str
) -> None:
    path = tmp_path / "cwd" / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    answer = bench("run", write_experiment(tiny()))
    assert answer.status == 2
    assert f"Error: cannot write {Path('results/tiny')}" in answer.err
    assert "choose another" in answer.err
    assert "--out DIR" in answer.err
    assert path.read_text() == "mine"


def test_the_nearest_results_are_offered_to_table_and_plot(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "cwd" / "results" / "digits_noise"
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text("{}")
    for command in ("table", "plot"):
        assert 'no results of "digit_noise"; did you mean "digits_noise"?' in bench(command, "digit_noise").err


# ---- what it tells without doing anything --------------------------------------------------------------------


def test_a_dry_run_lists_every_run_with_its_passes_and_creates_nothing(
    bench: Bench, write_experiment: Write, tiny: Tiny, tmp_path: Path
) -> None:
    answer = bench("run", write_experiment(tiny()), "--dry-run")
    assert answer.status == 0
    assert "tiny: 0 done, 6 to do (80 passes)" in answer.err
    # 1,080 training examples are 4 batches of 256: 2 epochs are 8 steps, of 2 passes each for sam
    listed = [line.partition("  ") for line in answer.out.splitlines()]
    assert sorted(rest for _, _, rest in listed) == [
        "sam rho=0.05 seed 0: 16 passes",
        "sam rho=0.05 seed 1: 16 passes",
        "sam rho=0.1 seed 0: 16 passes",
        "sam rho=0.1 seed 1: 16 passes",
        "sgd seed 0: 8 passes",
        "sgd seed 1: 8 passes",
    ]
    assert all(re.fullmatch("[0-9a-f]{12}", run_id) for run_id, _, _ in listed)
    assert on_disk(tmp_path / "cwd") == set()


def test_a_dry_run_shows_only_the_chosen_labels_seeds_and_settings(
    bench: Bench, write_experiment: Write, tiny: Tiny
) -> None:
    path = write_experiment(tiny())
    answer = bench("run", path, "--dry-run", "--only", "sgd", "--seeds", 3, "--set", "train.epochs=1")
    assert "tiny+train.epochs=1: 0 done, 3 to do (12 passes)" in answer.err
    assert [line.partition("  ")[2] for line in answer.out.splitlines()] == [
        f"sgd seed {seed}: 4 passes" for seed in range(3)
    ]


def test_list_shows_every_name_with_its_hyperparameters(bench: Bench) -> None:
    answer = bench("list")
    assert answer.status == 0
    assert "digits_noise" in answer.out
    registry.load_builtins()
    for kind in (registry.tasks, registry.models, registry.optimizers):
        for entry in kind:
            assert re.search(rf"^  {re.escape(entry.name)} +{re.escape(entry.description)}$", answer.out, re.M)
            for name in entry.schema.model_fields:
                assert re.search(rf"\b{name}\b", answer.out)


@pytest.mark.parametrize("what", ["tasks", "models", "optimizers", "experiments"])
def test_list_shows_one_kind_if_asked(bench: Bench, what: str) -> None:
    headings = {line for line in bench("list", what).out.splitlines() if not line.startswith(" ")}
    groups = {"optimizers": {"optimizers, each of which can be the base of a method", "methods around a base"}}
    assert headings == groups.get(what, {what})


def test_list_says_what_an_optimizer_needs_of_training(bench: Bench) -> None:
    out = bench("list", "optimizers").out
    assert re.search(r"schedule-free-sgd .*\n .*train\.schedule = 'constant'", out)
    assert out.index("\n  schedule-free-sgd") < out.index("methods around a base") < out.index("\n  sam ")


def test_list_goes_on_past_a_broken_experiment_and_names_it(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "cwd" / "experiments"
    folder.mkdir()
    (folder / "ajar.toml").write_text("title = \n")
    (folder / "fine.toml").write_text('title = "Größe"\n', encoding="utf-8")
    answer = bench("list", "experiments")
    assert answer.status == 0
    assert re.search(r"ajar +\(broken: .*line 1", answer.out)
    assert re.search(r"fine +Größe", answer.out)


def test_status_of_an_experiment_never_run_is_all_missing_and_creates_nothing(
    bench: Bench, write_experiment: Write, tiny: Tiny, tmp_path: Path
) -> None:
    answer = bench("status", write_experiment(tiny()))
    assert answer.status == 0
    assert [line.split() for line in answer.out.splitlines()] == [
        ["optimizer", "done", "running", "partial", "missing", "diverged", "failed"],
        ["sgd", "·", "·", "·", "2", "·", "·"],
        ["sam", "·", "·", "·", "4", "·", "·"],
    ]
    assert on_disk(tmp_path / "cwd") == set()


def test_status_shows_what_is_done_now_and_by_whom(
    bench: Bench, write_experiment: Write, tiny: Tiny, tmp_path: Path
) -> None:
    path = write_experiment(tiny())
    run = load(path).runs[1]
    folder = Store(tmp_path / "cwd" / "results" / "tiny").run(run.spec.run_id)
    with folder.claim("cuda:3"):
        who = f"on cuda:3 of {platform.node()} (process {os.getpid()}), for "
        assert f"running: {run.name}: setting up, {who}" in bench("status", path).out
        folder.write_start(run.spec.model_dump_json(), {})
        folder.append_curve({"epoch": 1, "val_acc": 0.8125})
        assert f"running: {run.name}: epoch 1 of 2, accuracy 81.2 % (validation), {who}" in bench("status", path).out
    assert "running:" not in bench("status", path).out


@pytest.mark.parametrize("command", sorted(cli.cli.commands))
def test_every_command_explains_itself(bench: Bench, command: str) -> None:
    answer = bench(command, "--help")
    assert answer.status == 0
    assert re.match(rf"Usage: \S.* {command} ", answer.out)
    assert (cli.cli.commands[command].help or "").partition("\n")[0][:40] in answer.out


# ---- as a process --------------------------------------------------------------------------------------------


def test_the_help_of_run_is_in_groups_and_short_before_slurms(bench: Bench) -> None:
    lines = bench("run", "--help").out.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["What to run:", "Where and how:", "With --on slurm:"]
    assert lines.index("With --on slurm:") <= 30
    listed = {word for line in lines for word in line.split()[:2] if word.startswith("--")}
    assert listed == {
        option.opts[-1] for option in cli.cli.commands["run"].params if isinstance(option, click.Option)
    } | {"--help"}


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from bench.cli import main
sys.argv = ["bench", "--help"]
try:
    main()
finally:
    heavy = {"torch", "pandas", "numpy", "scipy", "sklearn", "matplotlib", "pydantic", "rich"} & sys.modules.keys()
    print("heavy:", sorted(heavy), file=sys.stderr)
"""
    done = python("-c", code)
    assert done.returncode == 0
    assert "Usage: " in done.stdout
    assert done.stderr == "heavy: []\n"


def test_python_m_bench_is_the_command_and_a_mistake_is_no_traceback(tmp_path: Path) -> None:
    done = python("-m", "bench", "run", "digit_noise", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith('Error: unknown experiment "digit_noise"; did you mean "digits_noise"?')
    assert "Traceback" not in done.stderr
    assert on_disk(tmp_path) == set()


def test_the_version_is_told() -> None:
    done = python("-m", "bench", "--version")
    assert re.fullmatch(r"bench, version \d+\.\d+\.\d+\n", done.stdout)


def test_a_reader_that_hangs_up_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m bench list | head -1 > /dev/null"],
        capture_output=True,
        text=True,
        timeout=prefork.HANGS,
    )
    assert done.stderr == ""


# ---- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The tiny experiment, really run: its folder, and what the command said."""
    folder = tmp_path_factory.mktemp("first_run")
    (folder / "tiny.toml").write_text(
        """
        title = "Tiny"
        task = "digits"
        model = { name = "mlp", width = 8 }
        baseline = "sgd"
        seeds = 2
        train = { epochs = 2, batch_size = 256 }
        optimizers.sgd = { lr = 0.1 }
        optimizers.sam = { base = "sgd", lr = 0.1, sweep.rho = [0.05, 0.1] }
        """.replace("\n        ", "\n")
    )
    return folder, prefork.run([sys.executable, "-m", "bench", "run", "./tiny.toml", "--jobs", "2"], cwd=folder)


@pytest.fixture
def there(first_run: tuple[Path, object], bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the first run, as the working folder of `bench`."""
    monkeypatch.chdir(first_run[0])
    return first_run[0]


@pytest.mark.slow
def test_run_does_every_run_and_leaves_records_tables_and_figures(
    first_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = first_run
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "tiny: 0 done, 6 to do (80 passes)" in done.stderr
    assert "[6/6]" in done.stderr
    assert re.search(r"\bsgd\b", done.stdout)
    results = folder / "results" / "tiny"
    assert {"records.csv", "curves.csv", "experiment.json", "runs", "tables", "figures"} <= {
        path.name for path in results.iterdir()
    }
    runs = [path for path in (results / "runs").iterdir() if path.is_dir()]
    assert len(runs) == 6
    for run in runs:
        assert json.loads((run / "result.json").read_text())["status"] == "done"
        assert not (run / "checkpoint.pt").exists()
    assert on_disk(folder) - on_disk(results.parent) == {"tiny.toml", "results"} | {
        str(Path("results") / path) for path in on_disk(results.parent)
    }


@pytest.mark.slow
@pytest.mark.usefixtures("without_report")
def test_a_second_run_does_nothing_again(there: Path, bench: Bench) -> None:
    results = there / "results" / "tiny"
    before = {path: path.stat().st_mtime_ns for path in (results / "runs").rglob("*") if path.name != "lock"}
    records = (results / "records.csv").read_bytes()
    answer = bench("run", "./tiny.toml")
    assert answer.status == 0
    assert "tiny: 6 done, 0 to do (0 passes)" in answer.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (results / "records.csv").read_bytes() == records


@pytest.mark.slow
def test_status_counts_what_is_done(there: Path, bench: Bench) -> None:
    answer = bench("status", "./tiny.toml", "--seeds", "3")
    assert [line.split() for line in answer.out.splitlines()][1:] == [
        ["sgd", "2", "·", "·", "1", "·", "·"],
        ["sam", "4", "·", "·", "2", "·", "·"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("format_", "sign"), [("md", "|"), ("tex", r"\begin{tab"), ("csv", ","), ("terminal", "sgd")])
def test_table_prints_a_format_and_writes_all(there: Path, bench: Bench, format_: str, sign: str) -> None:
    tables = there / "results" / "tiny" / "tables"
    for path in tables.iterdir():
        path.unlink()
    answer = bench("table", "tiny", "--format", format_)
    assert answer.status == 0
    assert sign in answer.out
    assert "sam" in answer.out
    assert {path.suffix for path in tables.iterdir()} == {".md", ".tex", ".csv"}


@pytest.mark.slow
def test_table_takes_a_name_a_file_or_a_folder(there: Path, bench: Bench) -> None:
    printed = {bench("table", name, "--format", "csv").out for name in ("tiny", "./tiny.toml", "results/tiny")}
    assert len(printed) == 1
    assert bench("table", "tiny", "--out", there / "results", "--format", "csv").out in printed


@pytest.mark.slow
def test_plot_writes_the_figures_that_it_names(there: Path, bench: Bench) -> None:
    answer = bench("plot", "tiny")
    assert answer.status == 0
    paths = [there / line for line in answer.out.splitlines()]
    assert {path.suffix for path in paths} == {".png", ".pdf", ".csv"}
    assert all(path.stat().st_size > 100 for path in paths)
    assert {path.parent for path in paths} == {there / "results" / "tiny" / "figures"}


@pytest.mark.slow
def test_records_edited_by_hand_are_refused_and_told(there: Path, bench: Bench) -> None:
    records = there / "results" / "tiny" / "records.csv"
    whole = records.read_bytes()
    try:
        records.write_bytes(whole.replace(b",done,", b",dnoe,", 1))
        answer = bench("table", "tiny")
        assert answer.status == 2
        assert f"{Path('results/tiny/records.csv')} is not as it was written" in answer.err
        assert 'did you mean "done"?' in answer.err
    finally:
        records.write_bytes(whole)


FAILING = """
from bench import register_model
from torch import nn

@register_model("brittle")
def brittle(task, *, broken: bool = False):
    \"\"\"Breaks where asked to.\"\"\"
    if broken:
        raise RuntimeError("not today")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("without_report")
def test_a_plugin_works_in_worker_processes_and_a_failure_in_it_is_told(
    registries: Callable[[], None],
    bench: Bench,
    write_experiment: Write,
    write_plugin: Write,
    tiny: Tiny,
    tmp_path: Path,
) -> None:
    write_plugin(FAILING)
    path = write_experiment(
        tiny({"plugins": ["mine.py"], "model": "brittle", "seeds": 1, "optimizers": {"sgd": {"lr": 0.1}}})
    )
    answer = bench("run", path, "--set", "train.epochs=1", "--jobs", 1)
    assert answer.status == 0, answer.err
    results = tmp_path / "cwd" / "results"
    assert [folder.name for folder in results.iterdir()] == ["tiny+train.epochs=1"]
    assert len(list(results.glob("*/runs/*/result.json"))) == 1

    broken = {"plugins": ["mine.py"], "model": {"name": "brittle", "broken": True}}
    path = write_experiment(tiny(broken), "broken")
    answer = bench("run", path, "--only", "sgd", "--seeds", 1)
    assert answer.status == 1
    assert "RuntimeError: not today" in answer.err
    assert "error.txt" in answer.err
    answer = bench("run", path, "--only", "sgd", "--seeds", 1)
    assert answer.status == 1
    assert "0 to do (0 passes), 1 failed before (--retry-failed retries them)" in answer.err
    assert re.search("failed: sgd +seed 0: RuntimeError: not today", bench("status", path, "--seeds", 1).out)


# ---- the package's public names ------------------------------------------------------------------------------


def test_import_bench_is_light_and_every_public_name_is_there() -> None:
    code = """
import sys
import bench
assert not {"torch", "numpy", "pandas", "pydantic"} & sys.modules.keys()
assert set(bench.__all__) <= set(dir(bench))
for name in bench.__all__:
    assert callable(getattr(bench, name)), name
assert issubclass(bench.SAM, bench.OptimizerWrapper)
from bench.launch.run import run
assert bench.run is run
try:
    bench.SAMM
except AttributeError as error:
    assert "SAMM" in str(error) and "SAM, " in str(error)
else:
    raise AssertionError("bench.SAMM exists")
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


# ---- data ----------------------------------------------------------------------------------------------------

ON_CIFAR = {"task": "cifar10", "model": {"name": "resnet8", "width": 2}, "data.train_size": 40, "train.epochs": 1}
ALLOW = ("--set", "task.allow_unverified_data=true")


def test_prepare_refuses_files_that_are_not_the_official_ones_unless_told_otherwise(
    bench: Bench, tiny: Tiny, write_experiment: Write, data_folder: Path
) -> None:
    path = write_experiment(tiny(ON_CIFAR))
    refused = bench("prepare", path)
    assert refused.status == 2
    assert "data_batch_1: md5 is" in refused.err
    assert "allow_unverified_data = true" in refused.err
    taken = bench("prepare", path, *ALLOW)
    assert (taken.status, taken.err) == (0, "")
    assert f"ready in {data_folder}" in taken.out


def test_a_run_refuses_them_too_before_anything_starts(
    bench: Bench, tiny: Tiny, write_experiment: Write, data_folder: Path
) -> None:
    refused = bench("run", write_experiment(tiny(ON_CIFAR)))
    assert refused.status == 2
    assert "is not the official CIFAR-10" in refused.err
    assert not list(Path("results").rglob("spec.json"))


@pytest.mark.slow
@pytest.mark.usefixtures("without_report")
def test_data_dir_says_where_the_data_is(
    bench: Bench, tiny: Tiny, write_experiment: Write, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA", "/nowhere")
    path = write_experiment(tiny({**ON_CIFAR, "optimizers": {"sgd": {"lr": 0.1}}, "seeds": 1}))
    said = bench("run", path, *ALLOW, "--data-dir", tiny_data)
    assert said.status == 0, said.err
    assert "checksum" in said.out
    assert os.environ["BENCH_DATA"] == "/nowhere", "the command keeps it to itself"
    assert data_folder.data_folder() == Path("/nowhere"), "and only as long as it runs"


def test_a_dry_run_without_data_says_so_and_goes_on(
    bench: Bench, tiny: Tiny, write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "empty"))
    said = bench("run", write_experiment(tiny(ON_CIFAR)), "--dry-run")
    assert said.status == 0
    assert "No estimate of the time: CIFAR-10 is not in" in said.err


def test_a_data_dir_that_does_not_exist_is_told(bench: Bench, tmp_path: Path) -> None:
    said = bench("run", "digits_noise", "--data-dir", tmp_path / "nowhere")
    assert said.status == 2
    assert "does not exist" in said.err
