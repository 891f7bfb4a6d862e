"""Checks of other software: Python, torch, SLURM and LaTeX. None of them needs torch."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import tarfile
from collections.abc import Iterator

from bench.core.errors import BenchError
from bench.doctor.finding import Finding, shown
from bench.launch.slurm import queue

SECONDS = 5.0
"""Seconds that a command of SLURM may take to answer."""

NEEDED = ("sbatch", "squeue", "scontrol", "scancel")
"""Commands of SLURM that `--on slurm` calls."""

PARTITIONS = 5
"""Partitions that are shown."""


def python() -> Iterator[Finding]:
    """Yield the version of Python."""
    version = f"{platform.python_version()} on {platform.platform()}"
    if not hasattr(tarfile, "data_filter"):
        advice = "3.11.4 or newer; until then unpack archives of data by hand"
        yield Finding("lack", "Python", f"{version}: it cannot unpack archives safely", advice)
        return
    yield Finding("ok", "Python", version)


def torch() -> Iterator[Finding]:
    """Yield the version of torch, or why it cannot be imported."""
    try:
        import torch
    except Exception as error:  # a broken installation raises anything: ImportError, OSError of a library, ...
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        advice = "`make setup` installs what requirements.lock pins; or pip install --force-reinstall torch"
        yield Finding("lack", "torch", f"cannot be imported: {reason}", advice, stops=True)
        return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}" * bool(torch.version.hip)
    yield Finding("ok", "torch", f"{torch.__version__} ({f'built for {built}' if built else 'CPU only'})")


def package() -> Iterator[Finding]:
    """Yield the version of this package, where torch cannot be asked for more."""
    yield Finding("ok", "sam-bench", importlib.metadata.version("sam-bench"))


def slurm() -> Iterator[Finding]:
    """Yield SLURM's commands, the limit of its arrays and its partitions."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing == list(NEEDED):
        found = f"none of {', '.join(NEEDED)} on PATH"
        yield Finding("note", "SLURM", found, "only `--on slurm` needs them; run it on a login node of a cluster")
        return
    if missing:
        yield Finding("lack", "SLURM", f"no {', '.join(missing)} on PATH", "`--on slurm` needs them; complete PATH")
        return
    try:
        cluster = queue.cluster(SECONDS)
    except BenchError as error:
        # SLURM writes a line for each attempt; the last one says why it gave up.
        reason = str(error).splitlines()[-1].strip()
        found = f"commands are here, but no controller answers: {reason}"
        yield Finding("lack", "SLURM", found, "only `--on slurm` needs it; try a login node of a cluster")
        return
    arrays = f"arrays of up to {cluster.max_array_size:,} jobs (MaxArraySize)"
    yield Finding("ok", "SLURM", f"cluster {cluster.name or 'without a name'}, {arrays}; {_partitions()}")


def _partitions() -> str:
    if shutil.which("sinfo") is None:
        return "partitions unknown (no sinfo on PATH)"
    try:
        # Name (with a star if it is the default), time limit, nodes, and whether it takes jobs.
        text = queue.call(["sinfo", "--noheader", "--summarize", "--format=%P|%l|%D|%a"], SECONDS)
    except BenchError as error:
        return f"partitions unknown ({str(error).splitlines()[-1].strip()})"
    rows = [row for line in text.splitlines() if len(row := line.strip().split("|")) == 4]
    told = [f"{name} ({nodes} nodes, limit {limit}, {state})" for name, limit, nodes, state in rows[:PARTITIONS]]
    told += [f"and {len(rows) - PARTITIONS} more"] if len(rows) > PARTITIONS else []
    return f"partitions: {', '.join(told)}" if told else "no partitions"


def latex() -> Iterator[Finding]:
    """Yield the LaTeX that figures as PGF need."""
    program = shutil.which("pdflatex")
    if program is None:
        advice = (
            "only `bench plot --format pgf` needs it: install TeX Live (texlive-latex-recommended, texlive-pictures)"
        )
        yield Finding("note", "LaTeX", "no pdflatex on PATH", advice)
        return
    yield Finding("ok", "LaTeX", f"pdflatex ({shown(program)}), for figures as PGF")
