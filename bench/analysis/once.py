"""A cache of what tables, figures and the page all compute from the same results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from bench.store.records import Results

T = TypeVar("T")


def once(compute: Callable[[Results], T]) -> Callable[[Results], T]:
    """Return the function, made to compute its answer once per `Results` object; it is forgotten with the object.

    So the frames of results must not be changed after the first question about them: use `dataclasses.replace`.
    """
    known: WeakKeyDictionary[Results, T] = WeakKeyDictionary()

    @functools.wraps(compute)
    def asked(results: Results) -> T:
        if results not in known:
            known[results] = compute(results)
        return known[results]

    return asked
