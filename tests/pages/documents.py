"""README, CONTRIBUTING and the pages of docs/, as the tests read them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]


def text(document: str) -> str:
    """Return the text of a document."""
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    """Return the fenced blocks of a language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(document), flags=re.M | re.S)


def commands(document: str, program: str) -> list[str]:
    """Return every line of a code block that calls a program, without comment and pipe."""
    lines = re.findall(rf"^(?: {{4}}|\$ )?(?:\.venv/bin/)?({program} .+)$", text(document), flags=re.M)
    return list(dict.fromkeys(re.split(r" [|&>]| {2,}#", line)[0].strip() for line in lines))


def files(document: str) -> dict[str, str]:
    """Return the files that a document shows, by name: blocks whose first line is a comment with the name."""
    shown = re.findall(r"^```(?:python|toml)\n(# (\S+)\n.*?)^```", text(document), flags=re.M | re.S)
    return {name: content for content, name in shown}
