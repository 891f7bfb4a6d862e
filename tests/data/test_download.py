"""Downloads from a server that does everything a bad one does: whole and right in the end, or one clear message."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from bench.data.download import RETRIES, Download, DownloadError, RetryPolicy, download
from bench.store.run_folder import StorageError

CONTENT = random.Random(0).randbytes(300_000)
QUICK = RetryPolicy(silence=5, waits=(0, 0, 0), unreachable=(0,))


class Handler(http.server.BaseHTTPRequestHandler):
    """One request; how it is answered is the server's next plan."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.headers.get("Range"))
        plan = self.server.plans.pop(0) if self.server.plans else self.server.usual
        plan(self)

    @property
    def start(self) -> int:
        """The first byte that is asked for."""
        return int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def body(self, data: bytes) -> None:
        self.server.sent += len(data)  # first: the client may be done, and looked at, before this thread goes on
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """It follows `plans`, one a request, then does as `usual`.

    Attributes:
        requests: the Range header of each request.
        sent: bytes of bodies.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plans: list[Plan] = []
        self.usual: Plan = well
        self.requests: list[str | None] = []
        self.sent = 0
        self.go_on = threading.Event()  # for plans that wait

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


Plan = Callable[[Handler], None]


def well(handler: Handler, stop: int | None = None) -> None:
    """As a good server; with `stop` the connection breaks before that byte of the file."""
    start = handler.start
    if start >= len(CONTENT):
        return handler.head(416, 0)
    if start:
        of = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        handler.head(206, len(CONTENT) - start, Content_Range=of)
    else:
        handler.head(200, len(CONTENT))
    handler.body(CONTENT[start:stop])
    return None


def breaks_at(stop: int) -> Plan:
    return lambda handler: well(handler, stop)


def says(status: int) -> Plan:
    return lambda handler: handler.head(status, 0)


def ignores_range(handler: Handler) -> None:
    handler.head(200, len(CONTENT))
    handler.body(CONTENT)


def gives(data: bytes) -> Plan:
    def plan(handler: Handler) -> None:
        handler.head(200, len(data))
        handler.body(data)

    return plan


def stalls_at(stop: int) -> Plan:
    def plan(handler: Handler) -> None:
        well(handler, stop)
        handler.wfile.flush()
        handler.server.go_on.wait(1200)

    return plan


def hangs_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def breaks_a_chunk(handler: Handler) -> None:
    """A body of unknown length that ends in the middle."""
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n" % 50_000 + CONTENT[:40_000])
    handler.close_connection = True


def gives_another_range(handler: Handler) -> None:
    handler.head(206, len(CONTENT), Content_Range=f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")
    handler.body(CONTENT)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.go_on.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def wanted(server: Server) -> Download:
    return Download("file.bin", hashlib.md5(CONTENT).hexdigest(), (server.url,))


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def refused() -> str:
    """A url at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/file.bin"


def is_whole(folder: Path) -> bool:
    """Whether the file is there, right, and alone."""
    return (folder / "file.bin").read_bytes() == CONTENT and os.listdir(folder) == ["file.bin"]


# ---- what comes ----------------------------------------------------------------------------------------------


def test_a_file_is_asked_for_once_and_nothing_else_is_left_or_said(
    server: Server, wanted: Download, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made" / "here"
    assert download(wanted, folder) == folder / "file.bin"
    assert is_whole(folder)
    assert server.requests == [None]
    assert capfd.readouterr() == ("", "")


def test_a_connection_that_breaks_again_and_again_loses_no_byte_and_no_patience(
    server: Server, wanted: Download, tmp_path: Path
) -> None:
    stops = [1, 50_000, 50_001, 120_000, 200_000, 280_000, 299_999]
    assert len(stops) > len(QUICK.waits)
    server.plans = [breaks_at(stop) for stop in stops]
    download(wanted, tmp_path, QUICK)
    assert is_whole(tmp_path)
    assert server.requests == [None, *(f"bytes={stop}-" for stop in stops)]
    assert server.sent == len(CONTENT)


@pytest.mark.parametrize(
    "trouble",
    [says(500), says(503), says(429), says(408), hangs_up, breaks_at(0)],
    ids=["500", "503", "429", "408", "hangs up", "breaks at 0"],
)
def test_a_server_that_fails_for_a_while_is_waited_for(
    server: Server, wanted: Download, tmp_path: Path, waited: list[float], trouble: Plan
) -> None:
    server.plans = [trouble] * len(RETRIES.waits)
    download(wanted, tmp_path)
    assert is_whole(tmp_path)
    assert waited == list(RETRIES.waits)


def test_waits_begin_anew_after_progress(server: Server, wanted: Download, tmp_path: Path, waited: list[float]) -> None:
    server.plans = [says(503), says(503), breaks_at(10), says(503), breaks_at(20)]
    download(wanted, tmp_path, RetryPolicy(waits=(1, 2, 3)))
    assert waited == [1, 2, 1, 2, 1]


def test_a_server_that_falls_silent_is_left_and_asked_for_the_rest(
    server: Server, wanted: Download, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.plans = [stalls_at(100_000)]
    download(wanted, tmp_path, RetryPolicy(silence=0.3, waits=(0,)))
    assert is_whole(tmp_path)
    assert server.requests == [None, "bytes=100000-"]
    assert f"{server.url}: timed out; trying again" in capfd.readouterr().err


def test_a_broken_body_of_unknown_length_is_no_whole_file(server: Server, wanted: Download, tmp_path: Path) -> None:
    server.plans = [breaks_a_chunk]
    download(wanted, tmp_path, QUICK)
    assert is_whole(tmp_path)
    assert len(server.requests) == 2


def test_what_another_process_left_is_not_asked_for_again(server: Server, wanted: Download, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:299_000])
    download(wanted, tmp_path, QUICK)
    assert is_whole(tmp_path)
    assert (server.requests, server.sent) == (["bytes=299000-"], 1000)


@pytest.mark.parametrize("plan", [ignores_range, gives_another_range])
def test_a_server_that_cannot_go_on_gives_the_whole_file(
    server: Server, wanted: Download, tmp_path: Path, plan: Plan
) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    server.usual = plan
    download(wanted, tmp_path, QUICK)
    assert is_whole(tmp_path)
    assert server.requests == ["bytes=1000-"]


def test_a_server_that_ignores_ranges_and_always_breaks_is_given_up(
    server: Server, wanted: Download, tmp_path: Path
) -> None:
    def plan(handler: Handler) -> None:
        handler.head(200, len(CONTENT))
        handler.body(CONTENT[:1000])

    server.usual = plan
    with pytest.raises(DownloadError, match="the connection broke with 299,000 bytes to come"):
        download(wanted, tmp_path, QUICK)
    assert len(server.requests) == 2 + len(QUICK.waits) - 1


def test_a_whole_part_is_taken_as_it_is(server: Server, wanted: Download, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    download(wanted, tmp_path, QUICK)
    assert is_whole(tmp_path)
    assert (server.requests, server.sent) == (["bytes=300000-"], 0)


@pytest.mark.parametrize("left", [CONTENT + b"more", b"<html>" * 100], ids=["too long", "something else"])
def test_a_part_of_something_else_is_begun_from_scratch(
    server: Server, wanted: Download, tmp_path: Path, left: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.bin.part").write_bytes(left)
    download(wanted, tmp_path, QUICK)
    assert is_whole(tmp_path)
    assert server.requests == [f"bytes={len(left)}-", None]
    assert f"not with the official {wanted.md5}; removed" in capfd.readouterr().err


def test_a_redirection_is_followed_with_the_range(server: Server, wanted: Download, tmp_path: Path) -> None:
    server.plans = [breaks_at(1000), lambda handler: handler.head(302, 0, Location=server.url)]
    download(wanted, tmp_path, QUICK)
    assert is_whole(tmp_path)
    assert server.requests == [None, "bytes=1000-", "bytes=1000-"]


# ---- what does not -------------------------------------------------------------------------------------------


def test_wrong_content_is_told_removed_and_tried_once_more(
    server: Server, wanted: Download, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = b"<html>please log in</html>"
    server.usual = gives(page)
    with pytest.raises(DownloadError) as error:
        download(wanted, tmp_path, QUICK)
    wrong = hashlib.md5(page).hexdigest()
    assert str(error.value) == (
        f"  file.bin came with md5 {wrong}, not with the official {wanted.md5}, twice\n  {server.url}"
    )
    assert capfd.readouterr().err.count(f"came with md5 {wrong}, not with the official {wanted.md5}; removed\n") == 2
    assert server.requests == [None, None]
    assert os.listdir(tmp_path) == []


def test_after_wrong_content_another_server_comes_first(server: Server, wanted: Download, tmp_path: Path) -> None:
    asked: list[str] = []

    def plan(handler: Handler) -> None:
        asked.append(handler.path)
        (gives(b"wrong") if handler.path == "/bad" else well)(handler)

    server.usual = plan
    base = server.url.removesuffix("/file.bin")
    download(Download("file.bin", wanted.md5, (f"{base}/bad", f"{base}/good")), tmp_path, QUICK)
    assert is_whole(tmp_path)
    assert asked == ["/bad", "/good"]


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_file_that_is_not_there_is_not_waited_for(
    server: Server, wanted: Download, tmp_path: Path, waited: list[float], status: int
) -> None:
    server.usual = says(status)
    with pytest.raises(DownloadError, match=f"{server.url}: HTTP {status} "):
        download(wanted, tmp_path)
    assert waited == []
    assert server.requests == [None]


def test_the_next_server_is_asked_at_once_and_one_without_the_file_no_more(
    server: Server, wanted: Download, tmp_path: Path, waited: list[float]
) -> None:
    server.plans = [says(404), says(503)]
    two = Download("file.bin", wanted.md5, (server.url, server.url + "?2"))
    download(two, tmp_path, RetryPolicy(waits=(7,)))
    assert is_whole(tmp_path)
    assert (len(server.requests), waited) == (3, [7])


def test_each_server_s_last_answer_and_what_is_kept_are_told(server: Server, wanted: Download, tmp_path: Path) -> None:
    server.plans = [breaks_at(1234)]
    server.usual = says(503)
    nobody = refused()
    with pytest.raises(DownloadError) as error:
        download(Download("file.bin", wanted.md5, (server.url, nobody)), tmp_path, QUICK)
    first, second, kept = str(error.value).splitlines()
    assert first == f"  {server.url}: HTTP 503 Service Unavailable"
    assert second.startswith(f"  {nobody}: [Errno ")
    assert kept == "  1,234 bytes are kept: the same command resumes there"
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:1234]


def test_without_a_network_it_is_told_soon(wanted: Download, tmp_path: Path, waited: list[float]) -> None:
    two = Download("file.bin", wanted.md5, (refused(), refused()))
    with pytest.raises(DownloadError, match="refused"):
        download(two, tmp_path)
    assert waited == list(RETRIES.unreachable)
    assert sum(RETRIES.unreachable) <= 10
    assert 3 * 60 <= sum(RETRIES.waits) <= 10 * 60, "several minutes for servers that fail"


def test_an_unknown_host_is_no_network(tmp_path: Path, waited: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DownloadError, match=r"https://www\.example\.org/x: .*Temporary failure in name resolution"):
        download(Download("x", "0" * 32, ("https://www.example.org/x",)), tmp_path)
    assert waited == list(RETRIES.unreachable)


def test_a_network_that_was_there_is_waited_for(
    server: Server, wanted: Download, tmp_path: Path, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(seconds: float) -> None:
        """The server is gone from the first wait on."""
        if not waited:
            server.shutdown()
            server.server_close()
        waited.append(seconds)

    monkeypatch.setattr(time, "sleep", wait)
    server.usual = says(503)
    with pytest.raises(DownloadError, match="refused"):
        download(wanted, tmp_path)
    assert waited == list(RETRIES.waits)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_not_tried_again(server: Server, wanted: Download, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"cannot write .*file\.bin\.part: No space left on device; free some space"):
        download(wanted, tmp_path, QUICK)
    assert len(server.requests) == 1


def test_a_place_that_cannot_be_written_is_told_with_the_way_out(wanted: Download, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        StorageError, match=r"cannot write .*; choose a data folder .* with --data-dir DIR .*BENCH_DATA"
    ):
        download(wanted, tmp_path / "file" / "folder", QUICK)


# ---- killed, and watched -------------------------------------------------------------------------------------


def test_a_killed_process_leaves_what_it_got(server: Server, wanted: Download, tmp_path: Path) -> None:
    server.plans = [stalls_at(250_000)]
    code = f"""
from pathlib import Path
from bench.data.download import Download, download
download({wanted!r}, Path({str(tmp_path)!r}))
"""
    part = tmp_path / "file.bin.part"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while not (part.exists() and part.stat().st_size == 250_000):
            assert process.poll() is None, "it should be waiting for the server"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) == ["file.bin.part"]
    download(wanted, tmp_path, QUICK)
    assert is_whole(tmp_path)
    assert server.requests == [None, "bytes=250000-"]


def test_a_terminal_shows_a_bar_and_what_goes_wrong_above_it(
    server: Server, wanted: Download, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    monkeypatch.setattr("bench.core.terminal.console", lambda **_: console)
    server.plans = [breaks_at(1000)]
    download(wanted, tmp_path, QUICK)
    assert "file.bin" in screen.getvalue()
    assert f"{server.url}: the connection broke with 299,000 bytes to come; trying again in 0 s" in screen.getvalue()
