"""Contents of a page that can be mailed alone: files as links, figures, and a policy that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from bench.analysis import render
from bench.analysis.plots.rendering import Rendered
from bench.analysis.render.table import Table

FORMS = {"csv": "text/csv", "md": "text/markdown", "tex": "text/x-tex"}
LARGEST = 200_000  # bytes: a larger file is named in the page, but not put into it


@dataclass(frozen=True)
class File:
    """A file that can be saved from the page; `link` is empty if the file is too large to embed."""

    name: str
    link: str


def templates(folder: Path) -> jinja2.Environment:
    """Return the templates of a folder; every value is escaped, and a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        # Names of labels, tasks and metrics are users' own: none of them may become markup.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def figure_on_page(experiment: str, name: str, figure: Rendered) -> dict[str, Any]:
    """Return a figure with its caption, its drawing as a data link, its size in pixels, and its numbers as a file."""
    width, height = figure.size
    return {
        "name": name,
        "caption": figure.caption,
        "source": f"data:image/svg+xml;base64,{base64.b64encode(figure.content['svg']).decode()}",
        # A CSS pixel is 1/96 inch.
        "width": f"{96 * width:.0f}",
        "height": f"{96 * height:.0f}",
        "file": _file(f"{experiment}-figure-{name}.csv", figure.content["csv"].decode()),
    }


def embedded(table: Table) -> list[File]:
    """Return a table in every format, as files that the page contains."""
    stem = f"{table.experiment}-table-{table.name}"
    return [_file(f"{stem}.{form}", render.render(table, form)) for form in FORMS]


def _file(name: str, content: str) -> File:
    """Return a file as a link that contains its content, so that the page can be mailed alone."""
    raw = content.encode()
    if len(raw) > LARGEST:
        return File(name, "")
    return File(name, f"data:{FORMS[name.rpartition('.')[2]]};base64,{base64.b64encode(raw).decode()}")


def policy(css: str, script: str) -> str:
    """Return a content security policy that loads nothing and allows only our own style sheet and script."""
    # By their hashes: other styles or scripts do not run, even if a text should become markup.
    style, code = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, script))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{code}'; "
        "base-uri 'none'; form-action 'none'"
    )
