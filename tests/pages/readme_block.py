"""README's blocks of results, from the committed tables: `python -m tests.pages.readme_block` writes them anew."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(<!-- results:begin \(from (?P<path>\S+)\) -->\n).*?(<!-- results:end -->)", flags=re.S)
ATLAS = re.compile(r"(<!-- atlas:begin \(from (?P<path>\S+)\) -->\n).*?(<!-- atlas:end -->)", flags=re.S)
WIDTH = 128  # letters per line of README
HEADS = {
    "optimizer": "optimizer",
    "test accuracy (%)": "test accuracy (%)",
    "difference to sgd (points)": "difference to SGD (points)",
    "passes ratio": "passes",
    "gap (points)": "gap (points)",
}
"""The columns shown, with what README calls them. p values are left to the table itself."""


def rows(table: str) -> list[dict[str, str]]:
    """Return the rows of the first Markdown table in a text, by the heads of its columns."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    heads, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(heads, cells, strict=True)) for cells in body]


def block(path: Path) -> str:
    """Return the block for the table at `path` and the table of costs beside it."""
    text = path.read_text(encoding="utf-8")
    title = text.partition("\n")[0].strip("*").removesuffix(": results")
    results, costs = rows(text), rows(path.with_name("cost.md").read_text(encoding="utf-8"))
    (seeds,) = {row["n"] for row in results}
    lines = ["| " + " | ".join(HEADS.values()) + " |", "|:--|" + "--:|" * (len(HEADS) - 1)]
    for result, cost in zip(results, costs, strict=True):
        assert result["optimizer"] == cost["optimizer"]
        lines.append("| " + " | ".join((result | cost)[head] for head in HEADS) + " |")
    return "\n".join(
        [
            *(f"**{title}**", "", *lines, ""),
            f"Mean over {seeds} seeds ± half-width of the 95 % Student-t interval. Difference: paired by seed, with",
            "its 95 % interval. Passes: gradient passes relative to SGD's. Gap: train accuracy on true labels minus",
            "test accuracy. sgd-2x: SGD for twice the epochs, with as many passes as SAM.",
        ]
    )


def atlas_answer(path: Path) -> str:
    """Return the answer of the atlas: the paragraph below the table at `path`."""
    _, _, answer, *_ = path.read_text(encoding="utf-8").split("\n\n")
    return "\n".join(textwrap.wrap(answer, WIDTH, break_on_hyphens=False))


def with_results(readme: str) -> str:
    """Return the README with its blocks as the tables that they name have them."""
    for pattern, made in ((BLOCK, block), (ATLAS, atlas_answer)):
        assert pattern.search(readme) is not None, "README lacks a block of results"
        readme = pattern.sub(lambda found, made=made: f"{found[1]}{made(ROOT / found['path'])}\n{found[3]}", readme)  # type: ignore[misc]
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_results(path.read_text(encoding="utf-8")), encoding="utf-8")
