"""README's block of results, from the committed table: `python -m tests.pages.readme_block` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(<!-- results:begin \(from (?P<path>\S+)\) -->\n).*?(<!-- results:end -->)", flags=re.S)


def with_results(readme: str) -> str:
    """The README with its block as the table that it names has it."""
    named = BLOCK.search(readme)
    assert named is not None, "README has no block of results"
    table = (ROOT / named["path"]).read_text(encoding="utf-8").strip()
    return BLOCK.sub(lambda found: f"{found[1]}{table}\n{found[3]}", readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_results(path.read_text(encoding="utf-8")), encoding="utf-8")
