"""What is recorded of where a run was done, and what asking for it leaves alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bench.training import environment


def test_asking_for_the_commit_writes_nothing_into_the_repository(tmp_path: Path) -> None:
    """A worker may be killed while it asks; a lock of the index would stay."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("as committed")
    git("add", "file")
    git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-m", "first")
    os.utime(tmp_path / "file", (1e9, 1e9))  # a status that may lock would write into the index that it looked
    before = (tmp_path / ".git/index").read_bytes()
    assert environment._git(tmp_path, "status", "--porcelain") == ""
    assert (tmp_path / ".git/index").read_bytes() == before
