"""What an archive packs of an experiment's own files."""

from __future__ import annotations

import tomllib
from pathlib import Path

from bench.evidence.export import _with_plugins


def test_plugins_from_elsewhere_are_packed_where_the_packed_file_names_them(tmp_path: Path) -> None:
    """So that `bench verify` of an unpacked archive finds them; two of one name do not overwrite each other."""
    for name in ("here/own.py", "a/mine.py", "b/mine.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    path = tmp_path / "here" / "x.toml"
    absolute = tmp_path / "b" / "mine.py"
    path.write_text(f"# ../a/mine.py\nplugins = ['own.py', \"../a/mine.py\", '{absolute}']\n")
    text, files = _with_plugins(path)
    named = tomllib.loads(text)["plugins"]
    assert named == ["own.py", "plugins/mine.py", "plugins/2/mine.py"]
    assert [files[name].decode() for name in named] == ["# here/own.py", "# a/mine.py", "# b/mine.py"]
    assert text.startswith("# ../a/mine.py"), "only what is quoted is a path"
