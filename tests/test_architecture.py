"""The rules of the code base that no single unit can keep: which way imports point, sizes, and their page."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "bench").rglob("*.py"))

FOLDERS = {
    "core": (),
    "store": ("core",),
    "sinks": ("core", "store"),
    "optim": ("core",),
    "data": ("core", "store"),
    "tasks": ("core", "data"),
    "models": ("core", "data", "tasks"),
    "training": ("core", "store", "optim", "data", "tasks"),
    "config": ("core", "store", "data", "tasks", "training"),
    "train": ("core", "store", "optim", "tasks", "training"),
    "distributed": ("core", "store", "training", "train"),
    "launch": ("core", "store", "data", "tasks", "config", "training", "train", "distributed", "sinks"),
    "analysis": ("core", "store"),
    "evidence": ("core", "store", "optim", "data", "tasks", "config", "training", "train", "launch", "analysis"),
    "doctor": ("core", "store", "data", "tasks", "models", "training", "config", "launch"),
    "cli": ("core", "store", "data", "config", "launch", "analysis", "evidence", "sinks", "doctor"),
    "__main__": ("cli",),
    "": ("core", "optim", "data", "tasks", "launch"),
}
"""What each folder of bench/ may import, itself aside; the modules beside the folders too, the package itself as "".

A folder imports none that stands after it here, save the package, whose public names are from everywhere.
"""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path, *, types_too: bool = True) -> set[str]:
    """The modules of bench that a file imports, inside functions and for type checkers too."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types_too:
            skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in inner}
    return {name for name in found if name.split(".")[0] == "bench"}


def folder(module: str) -> str:
    """The folder of bench/ that a module is in: optim for bench.optim.sam."""
    return module.split(".")[1] if "." in module else ""


# ---- imports -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_a_folder_imports_what_it_may(module: str) -> None:
    own = folder(module)
    against = {name for name in imports(MODULES[module]) if folder(name) not in (own, *FOLDERS[own])}
    assert not against, f"{module} imports {against}: see FOLDERS in tests/test_architecture.py"


def test_folders_stand_in_the_order_of_their_imports_and_each_has_its_line() -> None:
    order = list(FOLDERS)
    for number, (name, imported) in enumerate(FOLDERS.items()):
        assert {*imported} <= {*order[:number]}, name
    assert {folder(module) for module in MODULES} == {*order}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: imports(path, types_too=False) - {module} for module, path in MODULES.items()}
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    graph = {module: names - packages for module, names in graph.items() if module not in packages}
    while free := {module for module, names in graph.items() if not names & graph.keys()}:
        graph = {module: names for module, names in graph.items() if module not in free}
    assert not graph, f"each of these imports another of them: {sorted(graph)}"


def test_the_reader_of_imports_sees_them_all() -> None:
    assert {"bench.optim.sam", "bench.core.registry"} <= imports(MODULES["bench.optim.asam"])
    assert "bench.launch.run" in imports(MODULES["bench.cli"]), "inside a function"
    assert "bench.core.experiment" in imports(MODULES["bench.store.collecting"]), "for type checkers"
    assert "bench.core.experiment" not in imports(MODULES["bench.store.collecting"], types_too=False)


def test_of_those_who_do_runs_again_only_the_export_makes_tables() -> None:
    of_evidence = {name: path for name, path in MODULES.items() if folder(name) == "evidence"}
    made = {name for name, path in of_evidence.items() if any(folder(one) == "analysis" for one in imports(path))}
    assert made == {"bench.evidence.export"}


def test_tables_plots_records_and_store_work_without_torch() -> None:
    code = """
import sys
import bench.analysis.tables, bench.analysis.plots, bench.store.records, bench.store.run_folder
print(sorted({"torch", "sklearn", "pydantic"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# ---- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_enough_to_read_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)) or path.name == "__main__.py"


def test_tests_lie_where_the_code_lies_that_they_try() -> None:
    apart = {"loops", "pages", "perf"}  # other people's loops, README and docs, speed
    places = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    folders = {path.parent.relative_to(ROOT / "bench") for path in FILES}
    assert {str(place) for place in places - folders} <= apart


def test_no_docstring_opens_as_a_riddle() -> None:
    opening = re.compile(r"(what|whether|where|which|how|of|that)\b", flags=re.I)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                line = (ast.get_docstring(node) or "").partition("\n")[0]
                assert not opening.match(line), f"{path.relative_to(ROOT)}: {line}"


# ---- docs/architecture.md ------------------------------------------------------------------------------------

PAGE = (ROOT / "docs/architecture.md").read_text()


def test_the_page_shows_every_folder_in_its_order() -> None:
    table = PAGE.partition("## Folders")[2].partition("## Where to look")[0]
    shown = [
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([\w.]+?)(?:/|\.py)`", row.split("|")[1])
    ]
    assert shown == [name for name in FOLDERS if name.strip("_") not in ("", "main")]


def test_every_file_that_the_page_names_exists() -> None:
    known = [str(path.relative_to(ROOT)) for path in (ROOT / "bench").rglob("*") if path.is_file()]
    named = set(re.findall(r"`([\w./]+\.(?:py|csv|css|js|j2))`", PAGE))
    assert len(named) > 50
    missing = [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in known)]
    assert missing == ["tests/test_architecture.py"]
