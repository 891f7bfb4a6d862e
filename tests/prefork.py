"""`python -m MODULE ...` without its imports: one process has made them, and forks for every command of the tests.

A command that a test starts spends most of its time on importing torch, twice: for itself and for its fork server. Here
one process per pytest session, the stem, imports what commands need and starts no thread. It forks for a command, and
the fork goes on as the command would: with its own arguments, environment, folder and files, as a child of the caller.
What depends on how Python starts (other programs, variables that are read by imports) is started the ordinary way.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import inspect
import io
import os
import pickle
import random
import runpy
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.analysis import report
from bench.core import allocator

ROOT = Path(__file__).parents[1]

IMPORTS = (
    *(
        "bench.cli",
        "bench.cli.run",
        "bench.launch.run",
        "bench.launch.local.worker",
        "bench.distributed.launcher",
        "torch._dynamo",
    ),
    *("bench.analysis.report.runs", "bench.analysis.plots.context", "matplotlib.backends.backend_agg"),
)
READ_BY_IMPORTS = (
    *("PYTHON", "LD_", "GLIBC", "MALLOC", "MIMALLOC", "BENCH_MALLOC", "OMP_", "MKL_", "OPENBLAS", "TORCH_", "PYTORCH"),
    *("CUDA", "CUBLAS", "NCCL", "HF_", "TRANSFORMERS", "MPL", "HOME", "LANG", "LC_"),
)
"""How the names of variables begin that may be read while modules are imported."""

HANGS = 1200.0
"""Seconds after which a command hangs, on however busy a machine."""

WITHOUT_REPORT = "TESTS_WITHOUT_REPORT"
"""The variable with which a fork of a command writes neither figures nor the page, for tests that look at neither."""

NO_REPORT = {
    "plots": SimpleNamespace(rendered=lambda results, forms: {}, write=lambda figures, folder: []),
    "page": lambda results, tables, figures: "",
}
"""By name, what of `bench.analysis.report` is replaced so that it writes tables alone, and an empty page."""

ARGUMENTS = 8192
"""Bytes for the command line that others see of a fork."""

SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of <linux/prctl.h>."""

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Command:
    """What a fork becomes; its files come beside, the first three of them as stdin, stdout and stderr."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    passed: tuple[int, ...]
    blocked: set[int]
    new_session: bool

    @property
    def module(self) -> str:
        return self.arguments[2]


# ---- in the tests --------------------------------------------------------------------------------------------


class Popen(subprocess.Popen[Any]):
    """subprocess.Popen, but a fork of the stem for `python -m MODULE ...` where that makes no difference."""

    def __init__(self, *arguments: Any, same_code: bool = False, **options: Any) -> None:
        """Start a command; `same_code` says that PYTHONPATH leads to a copy of the code that runs here."""
        self.same_code = same_code
        super().__init__(*arguments, **options)

    def _execute_child(self, *arguments: Any) -> None:
        ordinary = super()._execute_child  # type: ignore[misc]
        given = inspect.signature(ordinary).bind(*arguments).arguments
        environment = dict(os.environ if given["env"] is None else given["env"])
        ours = {"PYTHONPATH": STEM.environment.get("PYTHONPATH", "")} if self.same_code else {}
        if not _can_fork(given, environment | ours):
            ordinary(*arguments)
            return
        command = Command(
            list(map(os.fspath, given["args"])),
            os.path.abspath(given["cwd"] or os.getcwd()),
            environment,
            tuple(given["pass_fds"]),
            set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
            given["start_new_session"],
        )
        theirs = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        theirs = [number if fd == -1 else fd for number, fd in enumerate(theirs)]
        self.pid = STEM.fork(command, [*theirs, *command.passed])
        self._child_created = True
        names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in names))  # type: ignore[attr-defined]


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Return what a command that ends has printed."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            output, errors = process.communicate(timeout=HANGS)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _can_fork(given: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    arguments = given["args"]
    if (
        sys.platform != "linux"
        or isinstance(arguments, str | bytes)
        or given["preexec_fn"]
        or given["shell"]
        or not given["close_fds"]
    ):
        return False
    if list(arguments[:2]) != [sys.executable, "-m"] or arguments[2].partition(".")[0] not in ("bench", "tests"):
        return False
    return STEM.same_imports(environment)


class Stem:
    """The process that forks, started when it is first needed."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self.added = allocator.variables(self.environment)
        self.process: subprocess.Popen[bytes] | None = None
        self.line: socket.socket | None = None

    def same_imports(self, environment: Mapping[str, str]) -> bool:
        """Return whether imports would do under this environment what they have done in the stem."""
        return self._read(environment) == self._read(self.environment)

    def _read(self, environment: Mapping[str, str]) -> dict[str, str]:
        own = environment.items() - self.added.items()
        return {name: value for name, value in own if value and name.startswith(READ_BY_IMPORTS)}

    def fork(self, command: Command, files: list[int]) -> int:
        """Start a command; return its process id, of a child of this process."""
        if self.line is None:
            self._start()
        assert self.line is not None
        libc.prctl(SUBREAPER, 1)  # so that whoever is left alone by the parent that it had for a moment comes to us
        try:
            socket.send_fds(self.line, [pickle.dumps(command)], files)
            answer = self.line.recv(64)
        finally:
            libc.prctl(SUBREAPER, 0)
        assert answer, "the stem has died"
        return int(answer)

    def _start(self) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with theirs:
            command = [sys.executable, "-m", "tests.prefork", str(theirs.fileno()), " " * ARGUMENTS]
            environment = self.environment | self.added
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        atexit.register(self._end)

    def _end(self) -> None:
        assert self.line is not None
        assert self.process is not None
        self.line.close()
        self.process.wait()


STEM = Stem()


# ---- the stem ------------------------------------------------------------------------------------------------


def serve(line: socket.socket) -> Command | None:
    """Fork for every command that comes; return it in the fork, and None at the end."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    while True:
        message, files, *_ = socket.recv_fds(line, 1 << 20, 64)
        if not message:
            return None
        command: Command = pickle.loads(message)
        says, hears = os.pipe()
        parent = os.fork()
        if parent == 0:
            if child := os.fork():
                os.write(hears, str(child).encode())
                os._exit(0)
            for fd in (says, hears):
                os.close(fd)
            line.close()
            _become(command, files)
            return command
        os.close(hears)
        os.waitpid(parent, 0)
        line.send(os.read(says, 64))
        for fd in (says, *files):
            os.close(fd)


def _become(command: Command, files: list[int]) -> None:
    """Give this process what a command is started with."""
    above = [os.dup2(fd, 200 + number) for number, fd in enumerate(files)]  # out of each other's way
    for fd in files:
        os.close(fd)
    for fd, number in zip(above, (0, 1, 2, *command.passed), strict=True):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)
    if command.new_session:
        os.setsid()
    os.chdir(command.folder)
    os.environ.clear()
    os.environ.update(command.environment)
    signal.pthread_sigmask(signal.SIG_SETMASK, command.blocked)
    sys.stdin = _stream(0, sys.stdin)
    sys.stdout = _stream(1, sys.stdout)
    sys.stderr = _stream(2, sys.stderr)
    sys.argv = [command.module, *command.arguments[3:]]
    sys.path[0] = command.folder
    _show(command.arguments)


def _stream(number: int, like: Any) -> io.TextIOWrapper:
    file = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115 - as long as the process
    lines = number == 2 or file.isatty()
    return io.TextIOWrapper(file, encoding=like.encoding, errors=like.errors, line_buffering=lines)


def _show(arguments: list[str]) -> None:
    """Write a command line over the stem's, for those who look for it in /proc."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = map(int, fields[45:47])  # arg_start and arg_end, of proc(5)
    text = b"".join(os.fsencode(argument) + b"\0" for argument in arguments)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


# ---- a fork --------------------------------------------------------------------------------------------------


def _spawn(path: bytes, arguments: list[Any], passed: list[int]) -> int:
    """multiprocessing.util.spawnv_passfds, which forks for a fork server: it would import what is imported already."""
    code = os.fsdecode(arguments[-1])
    if "multiprocessing.forkserver" not in code or len(os.listdir("/proc/self/task")) > 1:
        return ordinary_spawn(path, arguments, passed)
    if pid := os.fork():
        return pid
    for number in signal.Signals:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    kept = sorted({0, 1, 2, *passed})
    for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)
    _show(list(map(os.fsdecode, arguments)))
    status = 1
    with contextlib.suppress(SystemExit):
        exec(code, {"__name__": "__main__"})
        status = 0
    os._exit(status)


ordinary_spawn = util.spawnv_passfds


def main() -> None:
    """Be the stem, and then whatever command a fork of it is for."""
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    if command is None:
        return
    util.spawnv_passfds = _spawn  # type: ignore[assignment]
    if os.environ.pop(WITHOUT_REPORT, None):
        for name, value in NO_REPORT.items():
            setattr(report, name, value)
    random.seed()
    np.random.seed()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
