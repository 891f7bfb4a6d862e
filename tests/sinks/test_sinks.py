"""Every sink, by what its own tool reads back: live, going on after a kill, final numbers, failures, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.core.errors import BadValue, BenchError
from bench.sinks import sink as sinks
from bench.sinks.following import Feeder
from bench.sinks.sink import COMPLETE, Sink, checked, opened, usual
from tests.sinks.conftest import logged
from tests.sinks.read_back import Shown

Launch = Callable[[], Sink]
Read = Callable[[], dict[str, Shown]]


def feeder(sink: Sink) -> Feeder:
    def failed(sink: Sink, error: Exception) -> None:
        raise error

    return Feeder([sink], failed)


def near(points: list[tuple[int, float]]) -> Any:
    return [(epoch, pytest.approx(value, abs=1e-6)) for epoch, value in points]


# ---- runs ----------------------------------------------------------------------------------------------------


def test_a_run_is_shown_with_settings_and_curve_while_it_goes_on(launch: Launch, shown: Read) -> None:
    feed = feeder(launch())
    feed.send(logged(1), over=False)
    feed.send(logged(2), over=False)
    run = shown()["0123456789ab"]
    assert run.status == "going"
    assert run.points["val_acc"] == near([(1, 0.2), (2, 0.4)])
    assert run.group in ("sam/m", "sam_m")
    settings = {name: str(value) for name, value in run.settings.items()}
    assert (settings["rho"], settings["method"], settings["deterministic"]) == ("0.05", "sam", "False")


def test_the_same_run_goes_on_after_a_kill_without_gap_or_repetition(launch: Launch, shown: Read) -> None:
    before = feeder(launch())
    before.send(logged(2), over=False)
    # Nothing is closed: the launcher was killed. The run itself resumes from its checkpoint after epoch 1.
    after = feeder(launch())
    after.send(logged(1), over=False)
    after.send(logged(3), over=False)
    after.send(logged(4, "done"), over=True)
    assert [*shown()] == ["0123456789ab"]
    run = shown()["0123456789ab"]
    assert run.status == "done"
    assert [epoch for epoch, _ in dict.fromkeys(run.points["val_acc"])] == [1, 2, 3, 4]
    assert len(run.points["lr"]) == 4
    assert run.points["selected_epoch"][-1][1] == 2
    assert (run.environment["device"], run.environment["torch"]) == ("a CPU", "2.13.0")


def test_a_finished_run_is_not_sent_twice(launch: Launch, shown: Read) -> None:
    feeder(launch()).send(logged(3, "diverged"), over=True)
    before = shown()["0123456789ab"]
    again = launch()
    assert again.begin(logged(3, "diverged")) == COMPLETE
    feeder(again).send(logged(3, "diverged"), over=True)
    assert shown()["0123456789ab"] == before
    assert before.status == "done"


def test_a_failed_run_is_marked_and_may_go_on(launch: Launch, shown: Read) -> None:
    feeder(launch()).send(logged(1, "failed"), over=True)
    assert shown()["0123456789ab"].status == "failed"
    feeder(launch()).send(logged(2, "done"), over=True)
    run = shown()["0123456789ab"]
    assert run.status == "done"
    assert len(run.points["lr"]) == 2


def test_tables_and_figures_are_there_once_and_replaced(launch: Launch, shown: Read, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "main.md").write_text("| a |\n|---|\n| 1 |\n")
    Image.new("RGBA", (6, 4)).save(tmp_path / "curves.png")
    files = {"tables/main.md": tmp_path / "tables" / "main.md", "figures/curves.png": tmp_path / "curves.png"}
    launch().add_files("tiny", files)
    launch().add_files("tiny", files)
    assert {*files} <= shown()["results"].files


# ---- what is asked for ---------------------------------------------------------------------------------------


def test_sinks_are_named_with_a_place_or_without() -> None:
    assert checked(["mlflow=http://127.0.0.1:5000", "tensorboard"]) == ("mlflow=http://127.0.0.1:5000", "tensorboard")
    assert checked(["none"]) == ()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["mlfow"], '"mlfow": no such sink; did you mean "mlflow"? (valid: mlflow, none, tensorboard, wandb)'),
        (["wandb", "wandb=team/project"], '"wandb": given twice'),
    ],
)
def test_another_name_is_refused_with_the_nearest(wanted: list[str], said: str) -> None:
    with pytest.raises(BadValue) as error:
        checked(wanted)
    assert error.value.problems == [said]


def test_the_users_own_choice_is_in_log_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert usual() == ()
    path = tmp_path / "sam-bench" / "log.toml"
    path.parent.mkdir()
    path.write_text('log = ["tensorboard", "mlflow=http://127.0.0.1:5000"]\n')
    assert usual() == ("tensorboard", "mlflow=http://127.0.0.1:5000")
    for content in ('log = "tensorboard"', 'log = ["tensorboard"]\nlgo = 1', "log = [1]"):
        path.write_text(content)
        with pytest.raises(BadValue, match="must be one list called log"):
            usual()
    path.write_text('log = ["tensorbord"]')
    with pytest.raises(BadValue, match=f'{path}: 1 problem\n.*did you mean "tensorboard"'):
        usual()


def test_a_missing_package_is_told_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'mlflow'")

    monkeypatch.setattr(sinks, "import_module", missing)
    with pytest.raises(BenchError) as error:
        opened(["mlflow"], tmp_path)
    assert str(error.value) == (
        "mlflow: No module named 'mlflow'; pip install 'sam-bench[mlflow]' installs what it needs"
    )


def test_a_place_that_cannot_be_used_is_one_line(tool: str, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no folder")
    with pytest.raises(BenchError) as error:
        opened([tool], tmp_path)
    assert str(error.value).startswith(f"{tool}: ")
    assert "\n" not in str(error.value)
