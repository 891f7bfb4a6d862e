"""Old names of public things, which users may have in files of their own: they work for one release, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that answers to old names.

    Args:
        module: the module's own name, `__name__`.
        names: the new names by the old ones.
    """

    def getattribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(f"{module}.{name}", f"{module}.{names[name]}")
        # Looked up only now: when `renamed` is called, its module is still being imported.
        return getattr(sys.modules[module], names[name])

    return getattribute


def warn(old: str, new: str) -> None:
    """Warn the caller that uses an old name; only a module's `__getattr__` may call this directly."""
    text = f"{old} is now called {new}; the old name will be gone after this release"
    # Level 1 is this line, 2 the module's `__getattr__`, 3 the line that uses the old name.
    warnings.warn(text, DeprecationWarning, stacklevel=3)
