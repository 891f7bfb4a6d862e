"""Downloading one file of known checksum over bad connections: retried for minutes, and resumed where it stopped.

torch.hub and torchvision begin anew after every break, and huggingface_hub's way of going on is not public.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bench.core import terminal
from bench.core.errors import BenchError
from bench.store.run_folder import StorageError

BLOCK = 1 << 18  # bytes written at a time
BUSY = (408, 425, 429)  # answers in the 400s which another try may change
NO_NETWORK = (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError)
NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH)


class DownloadError(BenchError):
    """No server gave the file; the message says what each of them answered."""


@dataclass(frozen=True)
class Download:
    """A file as its publisher gives it out.

    Attributes:
        name: what it is called on disk.
        md5: of its bytes.
        urls: of this one file, tried in turn.
    """

    name: str
    md5: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class RetryPolicy:
    """Number and spacing of attempts at a download.

    Attributes:
        silence: seconds without a single byte after which a connection is given up.
        waits: seconds before each further attempt; they begin anew when an attempt has brought something.
        unreachable: seconds before each further attempt while every host was unknown or refused the connection: most
            likely there is no network, and the user should know soon.
    """

    silence: float = 30
    waits: Sequence[float] = (2, 5, 10, 20, 30, 60, 60, 60)
    unreachable: Sequence[float] = (2, 3, 5)


RETRIES = RetryPolicy()


def download(wanted: Download, folder: Path, retries: RetryPolicy = RETRIES) -> Path:
    """Put a file into `folder`, made if need be. It has its name only when it is whole and right.

    Until then it is `<name>.part`; what is in there, from whichever process, is not asked for again. The caller sees to
    it that no two processes do this at once.

    Raises:
        DownloadError: no server could be reached or had it in time, or all gave something else.
        StorageError: the disk refuses.
    """
    path, part = folder / wanted.name, folder / f"{wanted.name}.part"
    with writing(part):
        folder.mkdir(parents=True, exist_ok=True)
    with _progress(wanted.name) as progress:
        for urls in (wanted.urls, wanted.urls[1:] + wanted.urls[:1]):  # the second time another server comes first
            _complete(part, urls, retries, progress)
            with writing(part), open(part, "rb") as file:
                md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if md5 == wanted.md5:
                with writing(path):
                    os.replace(part, path)
                return path
            wrong = f"{wanted.name} came with md5 {md5}, not with the official {wanted.md5}"
            tell(f"{wrong}; removed", progress.console)
            with writing(part):
                part.unlink()
    raise DownloadError(f"  {wrong}, twice\n" + "\n".join(f"  {url}" for url in wanted.urls))


def _complete(part: Path, urls: Sequence[str], retries: RetryPolicy, progress: Progress) -> None:
    """Try the servers in turn, and again, until one says that `part` is whole."""
    # The last answer of each server, for the message if all of them fail.
    answers = dict.fromkeys(urls, "")
    left, have, idle, network = list(urls), _size(part), 0, False
    while True:
        for url in list(left):
            try:
                return _transfer(url, part, retries.silence, progress)
            except (OSError, http.client.HTTPException) as error:
                answers[url], kind = _reason(error), _kind(error)
            if kind == "final":
                left.remove(url)
            # Any other answer shows that there is a network, so that longer waits are worth while.
            network |= kind != "unreachable"
        waits = retries.waits if network else retries.unreachable
        if _size(part) > have:
            have, idle = _size(part), 0
        # `left` is empty once every server has said that it does not have the file.
        if not left or idle >= len(waits):
            kept = f"\n  {_size(part):,} bytes are kept: the same command resumes there" if _size(part) else ""
            raise DownloadError("\n".join(f"  {url}: {answer}" for url, answer in answers.items()) + kept)
        tell(f"{left[-1]}: {answers[left[-1]]}; trying again in {waits[idle]:g} s", progress.console)
        time.sleep(waits[idle])
        idle += 1


def _transfer(url: str, part: Path, silence: float, progress: Progress) -> None:
    """Append the missing bytes to `part`.

    Raises:
        OSError, HTTPException: the connection failed, or the server has not got it; what came is in `part`.
    """
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "sam-bench"})
    # Range asks for the missing bytes alone; a server may ignore it.
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=silence)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            return  # nothing lies beyond what is there; whether that is the file, its checksum will tell
        raise
    with response, _appending(part) as file:
        if have and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            have = 0  # the server gives the whole file, whatever was asked for
            with writing(part):
                file.truncate(0)
        # `length` counts down while bytes come; None if the server has not said how many there are.
        total = None if response.length is None else have + response.length
        while block := response.read1(BLOCK):  # not `read`: what came before a break is not lost
            with writing(part):
                if file.write(block) < len(block):  # a file that is not buffered takes what there is room for
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            have += len(block)
            progress.update(progress.task_ids[0], completed=have, total=total)
        # A broken connection ends `read1` as a whole file does; only the count of missing bytes tells.
        if response.length:
            raise ConnectionError(f"the connection broke with {response.length:,} bytes to come")


def _kind(error: Exception) -> Literal["unreachable", "final", "passing"]:
    """Classify an error: no network, a server without the file, or a fault that may pass."""
    if isinstance(error, urllib.error.HTTPError):
        return "final" if 400 <= error.code < 500 and error.code not in BUSY else "passing"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, NO_NETWORK) or (isinstance(cause, OSError) and cause.errno in NO_ROUTE):
        return "unreachable"
    return "passing"


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(cause) or type(cause).__name__


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _appending(path: Path) -> Iterator[IO[bytes]]:
    """Open to append, unbuffered, so that a process that is killed has lost nothing."""
    with writing(path):
        file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by the `with` below
    with file:
        yield file


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors of writing to the disk into one clear message.

    Raises:
        StorageError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space, then run the same command again: it resumes where it stopped"
        else:
            hint = "choose a data folder you may write to with --data-dir DIR or the environment variable BENCH_DATA"
        raise StorageError(f"cannot write {path}: {error.strerror or error}; {hint}") from error


def tell(message: str, console: Console | None = None) -> None:
    """Print one line on standard error."""
    (console or terminal.console(stderr=True)).print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(name: str) -> Iterator[Progress]:
    """Show a progress bar on a terminal, nothing elsewhere; messages go through the bar's console, above the bar."""
    console = terminal.console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(name, total=None)
        yield progress
