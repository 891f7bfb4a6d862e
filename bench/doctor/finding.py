"""One line of `bench doctor`, and how its texts are written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "note", "lack"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        status: "ok"; "note" for what is worth knowing; "lack" for what something of the suite cannot do without.
        name: what was looked at.
        found: what is there, or where it was looked for.
        advice: what to do; "" where nothing needs to be done.
        stops: no run at all is possible before this is mended.
    """

    status: Status
    name: str
    found: str
    advice: str = ""
    stops: bool = False


def shown(path: Path | str) -> str:
    """Return a path with `~` for the user's home folder: shorter, and a bug report does not need the user's name."""
    try:
        home = Path.home()
    except RuntimeError:  # no home folder
        return str(path)
    path = Path(path)
    inside = home != Path("/") and path.is_relative_to(home)
    return str(Path("~", path.relative_to(home))) if inside else str(path)


def gigabytes(size: float) -> str:
    """Return bytes as text: "0.4 GB", "128 GB"; 1 GB is 10**9 bytes."""
    value = size / 1e9
    return f"{value:.1f} GB" if value < 10 else f"{value:,.0f} GB"
