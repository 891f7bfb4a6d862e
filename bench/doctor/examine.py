"""All checks, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bench.core.errors import BenchError
from bench.doctor import results, software
from bench.doctor.finding import Finding

Check = Callable[[], Iterable[Finding]]


def examine(out: Path) -> Iterator[Finding]:
    """Yield the findings of every check, each as soon as it is known.

    Args:
        out: the folder of all results.
    """
    yield from _made(software.python)
    torch = [*_made(software.torch)]
    yield from torch
    # What imports torch comes after the check that says why it cannot be imported.
    works = not any(finding.stops for finding in torch)
    yield from _on_torch() if works else [*_made(software.package), _UNKNOWN]
    yield from _made(software.slurm)
    yield from _made(software.latex)
    yield from _made(lambda: results.results(out))


_UNKNOWN = Finding("note", "devices, data, weights", "not examined, since torch cannot be imported")


def _on_torch() -> Iterator[Finding]:
    from bench.doctor import files, machine

    checks: tuple[Check, ...] = (
        *(files.bench, machine.processor, machine.memory, machine.allocator, machine.gpus, machine.mps),
        *(machine.precision, files.data_folder, files.images, files.glue, files.weights),
    )
    for check in checks:
        yield from _made(check)


def _made(check: Check) -> Iterator[Finding]:
    """Yield the findings of a check; a mistake of the user that it meets is one of them."""
    try:
        yield from check()
    except BenchError as error:
        # The first line alone says what is wrong; commands that need it say the rest.
        name = check.__name__.replace("_", " ")
        yield Finding("lack", name, str(error).partition("\n")[0])
