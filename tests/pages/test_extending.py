"""docs/extending.md does what it says: its files are written as they stand there, and its experiment is run."""

from __future__ import annotations

import ast
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from bench.core import registry
from tests import prefork
from tests.pages.documents import blocks, files

PAGE = "docs/extending.md"
FILES = files(PAGE)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write the files of the page into the reader's folder; what they register is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        Path(name).write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        registry.load_builtins()
        for kind in (registry.tasks, registry.models, registry.optimizers):
            patch.setattr(kind, "_entries", dict(kind._entries))
        patch.setattr(registry, "_loaded", {})
        yield tmp_path


def a_class(file: str) -> ast.ClassDef:
    (found,) = [node for node in ast.parse(FILES[file]).body if isinstance(node, ast.ClassDef)]
    return found


def test_every_block_is_a_file() -> None:
    assert len(blocks(PAGE, "python")) + len(blocks(PAGE, "toml")) == len(FILES)


@pytest.mark.parametrize(("file", "most"), [("sign_sgd.py", 10), ("fisher_sam.py", 20)])
def test_a_class_is_as_short_as_promised(file: str, most: int) -> None:
    lines = ast.unparse(a_class(file)).splitlines()
    code = [line for line in lines if line.strip() and not line.strip().startswith(("@", '"""'))]
    assert len(code) <= most


@pytest.mark.slow
def test_the_experiment_runs(mine: Path) -> None:
    (command,) = blocks(PAGE, "sh")
    done = prefork.run([sys.executable, "-m", *shlex.split(command)], cwd=mine)
    assert done.returncode == 0, done.stderr
    records = pd.read_csv("results/extended/records.csv")
    assert len(records) == 4 * 2
    assert {*records.status} == {"done"}
    assert records.groupby("optimizer").test_acc.max().min() > 0.8
    passes = records.groupby("optimizer").passes.max()
    assert passes["fisher-sam"] == 2 * passes["sign-sgd"]


@pytest.mark.slow
def test_the_metric_is_what_is_chosen_and_compared_by(mine: Path) -> None:
    experiment = FILES["extended.toml"].replace('"tumours.py"', '"tumours.py", "macro_f1.py"')
    Path("f1.toml").write_text(experiment.replace('task = "breast_cancer"', 'task = "digits-f1"'))
    command = [sys.executable, "-m", "bench", "run", "f1.toml", "--only", "rmsprop"]
    done = prefork.run(command, cwd=mine, env=os.environ | {prefork.WITHOUT_REPORT: "yes"})
    assert done.returncode == 0, done.stderr
    records = pd.read_csv("results/f1/records.csv")
    done_runs = records[records["status"] == "done"]
    assert done_runs["test_f1"].between(0.5, 1).all()
    assert done_runs["test_balanced"].between(0.5, 1).all()
    assert "test macro F1 (%)" in Path("results/f1/tables/results.md").read_text()


@pytest.mark.slow
def test_pixels_are_learned_and_scored(mine: Path) -> None:
    experiment = FILES["extended.toml"].replace('"tumours.py"', '"shapes.py"').replace("epochs = 3", "epochs = 4")
    Path("pixels.toml").write_text(experiment.replace("breast_cancer", "shapes").replace('"mlp"', '"fcn"'))
    command = [sys.executable, "-m", "bench", "run", "pixels.toml", "--only", "rmsprop", "--only", "sam"]
    done = prefork.run(command, cwd=mine, env=os.environ | {prefork.WITHOUT_REPORT: "yes"})
    assert done.returncode == 0, done.stderr
    records = pd.read_csv("results/pixels/records.csv")
    done_runs = records[records["status"] == "done"]
    assert len(done_runs) == 4
    assert done_runs["test_miou"].between(0.6, 1).all()
    assert "test mean IoU (%)" in Path("results/pixels/tables/results.md").read_text()


def test_the_variant_ascends_as_its_formula_says(mine: Path) -> None:
    registry.load_plugin(Path("fisher_sam.py"))
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 0.5)
    w, x = model.weight.detach().clone(), torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer: Any = registry.optimizers["fisher-sam"].build(base, model, rho=0.1, fisher_eta=2.0)
    seen = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        seen.append(model.weight.detach().clone())
        loss: Tensor = model(x).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    g = 2 * (w @ x.T) * x
    f_g = g / (1 + 2.0 * g.square())
    torch.testing.assert_close(seen[1] - seen[0], 0.1 * f_g / (g * f_g).sum().sqrt())
    assert torch.equal(model.weight.detach(), w)


def test_the_optimizer_follows_the_sign(mine: Path) -> None:
    registry.load_plugin(Path("sign_sgd.py"))
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer: Any = registry.optimizers["sign-sgd"].build([weight], lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert optimizer.step(closure) == 5
    assert weight.tolist() == [0.5, -1.5]
