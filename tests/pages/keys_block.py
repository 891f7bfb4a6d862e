"""The keys of an experiment file in docs/experiments.md: `python -m tests.pages.keys_block` writes them anew.

Names, values and defaults are those of the models that check a file; words are the docstrings beside their fields.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.config.document import Document, FinalSettings
from bench.config.resolve_optimizers import RESERVED, TuneSettings
from bench.core.spec import DataSettings, TrainSettings

PAGE = Path(__file__).parents[2] / "docs/experiments.md"
BLOCK = re.compile(r"(<!-- keys:begin -->\n).*?(<!-- keys:end -->)", flags=re.S)

TOP = {
    "title": "What tables and figures call the experiment. May hold `{task}`, `{model}` and `{label_noise}`.",
    "task": 'A name, or a table of a name and its settings: `{ name = "csv", path = "votes.csv", target = "vote" }`.',
    "model": 'A name, or a table of a name and its settings: `{ name = "resnet8", width = 8 }`.',
    "baseline": "The optimizer's entry that differences are taken against.",
    "seeds": "A number of seeds, counted from 0, or a list of them. Not beside `[tune]` and `[final]`.",
    "plugins": "Python files of yours, relative to this file.",
    "[data]": "What is done to the data: below.",
    "[train]": "How runs are trained: below.",
    "[optimizers.NAME]": "One entry per optimizer: below.",
    "[vary]": "Lists of values for keys of task, model and data; one condition per combination.",
    "[tune]": "The search: below.",
    "[final]": "The runs of what was chosen: below.",
    "published": "CSV files of published numbers, to be shown beside ours (tables-and-figures.md).",
    "[display]": "Names, order and colours of optimizers in tables and figures (tables-and-figures.md).",
}
ENTRY = {
    "use": "The registered optimizer. Default: NAME itself.",
    "base": "Of a method that wraps an optimizer: the plain optimizer inside of it.",
    "sweep": "Hyperparameters to search, each a list of values or a range `{ low = 1e-4, high = 1e-2, log = true }`.",
    "train": 'Keys of `[train]` for this entry. `epochs`, `warmup_epochs` and `eval_every` may be multiples: `"2x"`.',
    "tune": "With `[tune]` only: `false` runs the entry as it is, without a search.",
}
EPOCHS = {"epochs": "Passes over the training set."}
SEEDS = {
    "seeds": "A number of seeds or a list of them. `[final]` counts from the first seed that `[tune]` does not use."
}
SEARCH = {
    "search": "How to find configurations: all combinations of the lists, at random, or by a scrambled Sobol sequence.",
    "budget": "What is the same for every optimizer: the number of configurations, or the gradient passes.",
}
HEAD = ["| key | values | default | meaning |", "|:--|:--|:--|:--|"]


def block() -> str:
    """Return the tables of keys."""
    document = Document.model_fields
    assert {re.sub(r"\W|NAME", "", key) for key in TOP} == {*document}, "a key of the file is missing above"
    assert {*ENTRY} == {*RESERVED}
    required = {name for name, field in document.items() if field.is_required()}
    top = [
        f"| `{key}` | {'required' if re.sub(r'[^a-z]', '', key) in required else 'optional'} | {words} |"
        for key, words in TOP.items()
    ]
    entry = [f"| `{key}` | {words} |" for key, words in ENTRY.items()]
    return "\n".join(
        [
            *("At the top of the file:", "", "| key | | meaning |", "|:--|:--|:--|", *top, ""),
            *("`[data]`:", "", *_rows(DataSettings), "", "`[train]`:", "", *_rows(TrainSettings, EPOCHS), ""),
            *("`[optimizers.NAME]`, beside the optimizer's hyperparameters:", "", "| key | meaning |", "|:--|:--|"),
            *(*entry, "", "Hyperparameters of each optimizer: `bench list optimizers`.", ""),
            *("`[tune]`:", "", *_rows(TuneSettings, SEEDS | SEARCH), ""),
            *("`[final]`:", "", *_rows(FinalSettings, SEEDS)),
        ]
    )


def _rows(model: type[BaseModel], words: dict[str, str] | None = None) -> list[str]:
    said = _docstrings(model) | (words or {})
    schema = model.model_json_schema()["properties"]
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else "none" if field.default is None else _toml(field.default)
        rows.append(f"| `{name}` | {_values(schema[name])} | {default} | {said.get(name, '')} |")
    return [*HEAD, *rows]


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings under the fields of a model, each as one line."""
    (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for statement, after in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            assert isinstance(statement.target, ast.Name)
            text = " ".join(str(after.value.value).split())
            found[statement.target.id] = text.replace("|", r"\|")
    return found


def _values(schema: dict[str, Any]) -> str:
    """Return in words what a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(words for one in schema["anyOf"] if (words := _values(one)))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(_toml, schema.get("enum", [schema.get("const")])))
    if schema.get("type") not in ("integer", "number", "boolean"):
        return ""
    if schema["type"] == "boolean":
        return "true or false"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join(["whole number" if schema["type"] == "integer" else "number", ", ".join(bounds)]).strip()


def _toml(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def with_keys(page: str) -> str:
    """Return the page with its block as the code has it."""
    return BLOCK.sub(lambda found: f"{found[1]}{block()}\n{found[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(with_keys(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
