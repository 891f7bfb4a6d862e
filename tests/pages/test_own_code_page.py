"""docs/sam-in-your-own-code.md: each row of its tables names a test that exists, and its code is what is run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests import prefork

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sam-in-your-own-code.md").read_text()
TABLES = [
    [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, flags=re.M)
]
ROWS = [row for head, _, *rows in TABLES if head[-1] == "test" for row in rows]
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
LOOPS = {
    "your own", "Trainer", "TRL", "Lightning, automatic", "Lightning, manual", "Fabric", "timm", "accelerate",
    "accumulate()", "skorch", "PEFT", "MAML", "torch.compile", "Opacus", "DistributedDataParallel", "no_sync",
    "ZeroRedundancyOptimizer", "FSDP1", "FSDP2", "tensor parallel", "pipeline", "Muon", "loss with weights", "MoCo",
    "codebook", "hidden state", "generator", "parametrize.cached", "quantisation",
}  # fmt: skip


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


BEFORE_THE_PAIR = """
def make_model():
    return torch.nn.Linear(4, 2)

"""
AFTER_THE_PAIR = """
before = model.weight.detach().clone()

def closure():
    optimizer.zero_grad()
    loss = model(torch.ones(3, 4)).square().mean()
    loss.backward()
    return loss

optimizer.step(closure)
assert not torch.equal(model.weight, before)
both = [torch.empty_like(before) for _ in range(2)]
torch.distributed.all_gather(both, model.weight.detach())
assert torch.equal(*both)
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_row_is_whole_and_names_a_test_that_exists(row: list[str]) -> None:
    loop, write, exact, _, test = row
    assert all((loop, write, exact))
    named = re.fullmatch(r'\[run\]\((\S+\.py) "(test_\w+)"\)', test)
    assert named, f"{loop}: {test}"
    assert named[2] in functions((ROOT / "docs" / named[1]).resolve())


def test_the_tables_have_every_loop() -> None:
    named = [row[0] for row in ROWS]
    assert not [loop for loop in LOOPS if not any(loop in name for name in named)]


def test_the_safe_form_is_the_one_that_is_run() -> None:
    (shown,) = [code for code in BLOCKS if "SAMGRPOTrainer" in code]
    tree = ast.parse((ROOT / "tests" / "loops" / "trl_loops.py").read_text())
    (run,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "SAMGRPOTrainer"]
    assert _plain(ast.parse(textwrap.dedent(shown)).body[0]) == _plain(run)


def test_the_loop_runs_as_written() -> None:
    (code,) = [code for code in BLOCKS if "loss = optimizer.step(closure)" in code]
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=prefork.HANGS)


@pytest.mark.slow
def test_the_pair_runs_as_written(tmp_path: Path) -> None:
    (code,) = [code for code in BLOCKS if "pair=" in code]
    script = tmp_path / "train.py"
    script.write_text(BEFORE_THE_PAIR + code + AFTER_THE_PAIR)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run(command, check=True, timeout=prefork.HANGS, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_no_other_code_is_shown() -> None:
    assert len(BLOCKS) == 3


def _plain(node: ast.AST) -> str:
    """Return code without types, docstrings, and locals that are there for their types alone."""

    class Untyped(ast.NodeTransformer):
        def visit_arg(self, node: ast.arg) -> ast.arg:
            node.annotation = None
            return node

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
            node.returns = None
            self.generic_visit(node)
            return node

        def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
            assert node.value is not None
            return ast.Assign([node.target], node.value)

        def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
            return None if isinstance(node.value, ast.Constant) else node

    text = ast.unparse(ast.fix_missing_locations(Untyped().visit(node)))
    text = re.sub(r"loss = (.+)\n(\s+)return loss", r"return \1", text)
    text = re.sub(r"\n\s+optimizer = self\.optimizer(?=\n)", "", text)
    return re.sub(r"return optimizer\.optimizer\.", "return self.optimizer.optimizer.", text)
