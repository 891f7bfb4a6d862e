"""Data sets on disk: found where they are said to be, refused when they are not the real ones, never half unpacked."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import BenchError
from bench.data.datasets import Dataset, content, content_md5, content_sha256, data_folder, extract
from bench.data.download import Download, RetryPolicy
from bench.store.run_folder import StorageError
from bench.tasks.cifar import CIFAR10, CIFAR100
from bench.tasks.fashion_mnist import FashionMNIST

NOBODY = 65534
FILES = {"one": b"first" * 50_000, "two": b"second" * 10}
QUICK = RetryPolicy(silence=5, waits=(0,), unreachable=(0,))


def md5(raw: bytes) -> str:
    return hashlib.md5(raw).hexdigest()


def packed(members: dict[str, bytes]) -> bytes:
    """A .tar.gz with these files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, raw in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return archive.getvalue()


ARCHIVE = packed({f"numbers/{name}": raw for name, raw in FILES.items()})
NUMBERS = Dataset(
    title="Numbers",
    task="numbers",
    folder="numbers",
    elsewhere=(".",),
    files={name: md5(raw) for name, raw in FILES.items()},
    downloads=(Download("numbers.tar.gz", md5(ARCHIVE), ("http://127.0.0.1:9/numbers.tar.gz",)),),
)
"""An archive with a folder of two files, as CIFAR has; nothing listens at its url."""

LETTERS = Dataset(
    title="Letters",
    task="letters",
    folder="Letters/raw",
    elsewhere=(".", "letters"),
    files=NUMBERS.files,
    downloads=tuple(
        Download(f"{name}.gz", md5(gzip.compress(raw, mtime=0)), (f"http://127.0.0.1:9/{name}.gz",))
        for name, raw in FILES.items()
    ),
)
"""Two files gzipped one by one, as Fashion-MNIST has."""

WORDS = replace(NUMBERS, title="Words", task="texts/words", folder="texts/words", downloads=(), by_hand="from a friend")
"""Two files which the task gets itself, as GLUE's do."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder."""
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setenv("BENCH_DATA", str(folder))
    monkeypatch.setenv("no_proxy", "*")
    return folder


def lay(folder: Path, **changes: bytes | None) -> Path:
    """The files of NUMBERS and LETTERS, with some changed, or left out for None."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in (FILES | changes).items():
        if raw is not None:
            (folder / name).write_bytes(raw)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of a user who is not root, with NUMBERS' archive in it; to be closed with chmod."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "numbers.tar.gz").write_bytes(ARCHIVE)
        monkeypatch.setenv("BENCH_DATA", name)
        root = os.geteuid() == 0
        if root:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o700)


# ---- the data folder -----------------------------------------------------------------------------------------


def test_the_data_folder_is_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "named"))
    assert data_folder() == tmp_path / "named"
    monkeypatch.setenv("BENCH_DATA", "~/mine")
    assert data_folder() == tmp_path / "mine"
    monkeypatch.setenv("BENCH_DATA", "here")
    assert data_folder() == Path.cwd() / "here"
    monkeypatch.setenv("BENCH_DATA", "")
    assert data_folder() == tmp_path / "cache" / "sam-bench"
    monkeypatch.delenv("BENCH_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert data_folder() == tmp_path / ".cache" / "sam-bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == tmp_path / ".cache" / "sam-bench"


def test_a_file_as_data_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("")
    monkeypatch.setenv("BENCH_DATA", str(path))
    with pytest.raises(BenchError, match=rf"^{path} is to hold the data, but is not a folder; .*BENCH_DATA$"):
        NUMBERS.fetch()


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DATA", "~nobody-of-that-name/data")
    with pytest.raises(BenchError, match=r"no home folder for the data .*; name another data folder with --data-dir"):
        data_folder()


# ---- finding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["Letters/raw", ".", "letters"])
@pytest.mark.parametrize("gzipped", [(), ("one",), ("one", "two")])
def test_files_are_found_in_every_place_gzipped_or_not(root: Path, place: str, gzipped: tuple[str, ...]) -> None:
    folder = lay(root / place)
    for name in gzipped:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes(), compresslevel=1))
        (folder / name).unlink()
    assert LETTERS.is_there()
    assert [content(path) for path in LETTERS.paths()] == list(FILES.values())
    assert LETTERS.verified()


def test_an_absolute_place_is_looked_in_last(root: Path, tmp_path: Path) -> None:
    system = lay(tmp_path / "system")
    dataset = replace(LETTERS, elsewhere=(*LETTERS.elsewhere, str(system)))
    assert [path.parent for path in dataset.paths()] == [system, system]
    for place in ("letters", ".", "Letters/raw"):
        folder = lay(root / place)
        assert [path.parent for path in dataset.paths()] == [folder, folder], "it comes before those so far"


def test_absent_data_is_one_message_with_all_one_needs(root: Path) -> None:
    assert not NUMBERS.is_there()
    for look in (NUMBERS.paths, NUMBERS.verified):
        with pytest.raises(BenchError) as error:
            look()
        assert str(error.value) == (
            f"Numbers is not in {root}: `bench prepare` downloads it.\n"
            "To get it in another way, put there\n"
            f"  {root}/numbers.tar.gz\n"
            "    from http://127.0.0.1:9/numbers.tar.gz\n"
            f"or that archive's folder, as {root}/numbers\n"
            "or name another data folder with --data-dir DIR or the environment variable BENCH_DATA."
        )
    with pytest.raises(BenchError, match=f"  {root}/Letters/raw/two.gz\n    from http://127.0.0.1:9/two.gz\nor name"):
        LETTERS.paths()


def test_files_that_are_missing_are_named(root: Path) -> None:
    lay(root / "numbers", two=None)
    assert not NUMBERS.is_there()
    again = f"move {root}/numbers away, and `bench prepare` makes it again"
    for use in (NUMBERS.paths, NUMBERS.fetch):
        with pytest.raises(BenchError, match=f"^Numbers is in {root}/numbers without two: {again}"):
            use()
    lay(root / "letters", one=None)
    with pytest.raises(BenchError, match=f"^Letters is in {root}/letters without one: `bench prepare` downloads it"):
        LETTERS.paths()


def test_of_data_without_downloads_the_message_says_what_the_task_knows(root: Path) -> None:
    for look in (WORDS.paths, WORDS.fetch):
        with pytest.raises(BenchError) as error:
            look()
        assert str(error.value) == (
            f"Words is not in {root}: `bench prepare` downloads it.\n"
            "To get it in another way, put there\n"
            f"  {root}/texts/words/one\n"
            f"  {root}/texts/words/two\n"
            "    from a friend\n"
            "or name another data folder with --data-dir DIR or the environment variable BENCH_DATA."
        )
    assert str(WORDS.absent("so it is")).startswith(f"Words is not in {root}: so it is\nTo get it in another way")
    assert sorted(tree(root)) == [".texts-words.lock"]
    lay(root / "texts/words", two=None)
    with pytest.raises(BenchError, match=f"^Words is in {root}/texts/words without two: "):
        WORDS.paths()
    lay(root / "texts/words")
    WORDS.fetch()
    assert WORDS.verified()


def test_a_folder_that_may_not_be_read_is_told(closed: Path) -> None:
    closed.chmod(0)
    with pytest.raises(BenchError, match=f"cannot read {closed}.*: Permission denied"):
        NUMBERS.paths()


def test_checksums_and_urls_are_those_torchvision_has() -> None:
    from torchvision import datasets

    for ours, theirs in ((CIFAR10.dataset, datasets.CIFAR10), (CIFAR100.dataset, datasets.CIFAR100)):
        meta = (theirs.meta["filename"], theirs.meta["md5"])
        assert list(ours.files.items()) == [*map(tuple, theirs.train_list + theirs.test_list), meta]
        assert ours.downloads == (Download(theirs.filename, theirs.tgz_md5, (theirs.url,)),)
        assert ours.folder == theirs.base_folder
    fashion = FashionMNIST.dataset.downloads
    assert [(wanted.name, wanted.md5) for wanted in fashion] == datasets.FashionMNIST.resources
    for wanted in fashion:
        assert {mirror + wanted.name for mirror in datasets.FashionMNIST.mirrors} <= set(wanted.urls)
        assert all(url.endswith(f"/{wanted.name}") for url in wanted.urls)


# ---- verifying -----------------------------------------------------------------------------------------------


def test_one_wrong_bit_is_refused_with_the_way_to_accept_it(root: Path) -> None:
    changed = FILES["two"][:-1] + bytes([FILES["two"][-1] ^ 1])
    folder = lay(root / "numbers", two=changed)
    assert not NUMBERS.verified()
    for refuse in (
        functools.partial(NUMBERS.check, allow_unverified=False),
        NUMBERS.fetch,
        functools.partial(NUMBERS.load, len, allow_unverified=False),
    ):
        with pytest.raises(BenchError) as error:
            refuse()
        assert str(error.value) == (
            f"{folder} is not the official Numbers:\n"
            f"  two: md5 is {md5(changed)}, that of the official file {md5(FILES['two'])}\n"
            "Move it away, and `bench prepare` downloads the official one; or accept it in the experiment's [task]:\n"
            '  task = {name = "numbers", allow_unverified_data = true}\n'
            "Records and tables then say that the data is not verified."
        )
    NUMBERS.check(allow_unverified=True)
    NUMBERS.fetch(allow_unverified=True)
    assert NUMBERS.load(len, allow_unverified=True) == 2
    assert not NUMBERS.verified()


def test_checksums_are_computed_once_unless_a_file_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay(root / "numbers")
    computed: list[str] = []
    digest = hashlib.file_digest

    def spy(file: Any, kind: Any) -> Any:
        computed.append(file.name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", spy)
    for _ in range(3):
        assert NUMBERS.verified()
    assert computed == [str(folder / name) for name in FILES]
    for _ in range(2):
        assert content_sha256(folder / "one") == hashlib.sha256(FILES["one"]).hexdigest()
    assert computed.pop() == str(folder / "one")
    status = (folder / "two").stat()
    (folder / "two").write_bytes(FILES["two"][::-1])
    os.utime(folder / "two", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not NUMBERS.verified()
    assert len(computed) == 3


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: b"no gzip", lambda raw: raw[:40] + b"?" + raw[41:]]
)
def test_a_damaged_gzip_is_told_even_if_any_data_is_allowed(root: Path, damage: Callable[[bytes], bytes]) -> None:
    folder = lay(root / "letters", one=None)
    (folder / "one.gz").write_bytes(damage(gzip.compress(os.urandom(1000))))
    for use in (content, content_md5):
        with pytest.raises(
            BenchError, match=r"one\.gz is damaged: .*; move it away, and `bench prepare` downloads it again"
        ):
            use(folder / "one.gz")
    with pytest.raises(BenchError, match=r"one\.gz is damaged"):
        LETTERS.load(len, allow_unverified=True)


# ---- loading -------------------------------------------------------------------------------------------------


def test_what_was_read_is_remembered_until_it_changes_or_something_else_is_read(root: Path) -> None:
    reads: list[list[Path]] = []

    def read(paths: list[Path]) -> list[bytes]:
        reads.append(paths)
        return [path.read_bytes() for path in paths]

    folder = lay(root / "numbers")
    load = functools.partial(NUMBERS.load, read, allow_unverified=True)
    first = load()
    assert first == list(FILES.values())
    assert load() is first
    assert reads == [[folder / name for name in FILES]]

    (folder / "two").write_bytes(b"changed")
    assert load() == [FILES["one"], b"changed"]

    lay(root / "letters")
    LETTERS.load(read, allow_unverified=True)
    assert len(reads) == 3
    load()
    assert len(reads) == 4, "only the last is kept"


# ---- fetching ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dataset", "place"), [(NUMBERS, "numbers"), (NUMBERS, "."), (LETTERS, "letters")])
def test_data_that_is_there_is_left_alone(root: Path, dataset: Dataset, place: str) -> None:
    lay(root / place)
    before = tree(root)
    dataset.fetch(retries=QUICK)
    assert tree(root) == before


def test_an_archive_in_the_data_folder_is_unpacked_without_a_network(root: Path) -> None:
    (root / "numbers.tar.gz").write_bytes(ARCHIVE)
    NUMBERS.fetch(retries=QUICK)
    expected = {f"numbers/{name}": raw for name, raw in FILES.items()} | {"numbers.tar.gz": ARCHIVE}
    assert tree(root) == expected | {".numbers.lock": b""}
    assert NUMBERS.verified()


def test_gzipped_files_that_are_missing_are_the_only_ones_downloaded(root: Path) -> None:
    lay(root / "Letters/raw", two=None)
    with pytest.raises(BenchError) as error:
        LETTERS.fetch(retries=QUICK)
    assert "/one.gz: " not in str(error.value)
    assert "  http://127.0.0.1:9/two.gz: [Errno" in str(error.value)


def test_without_data_and_network_there_is_one_message(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BenchError) as error:
        NUMBERS.fetch(retries=QUICK)
    first, second, *rest = str(error.value).splitlines()
    assert first == f"Numbers is not in {root}: it could not be downloaded."
    assert second.startswith("  http://127.0.0.1:9/numbers.tar.gz: [Errno")
    assert len(rest) == 5
    assert capfd.readouterr().err.count("\n") == len(QUICK.unreachable)


@pytest.mark.parametrize(
    "raw",
    [ARCHIVE[:-100], b"<html>", packed({"other/one": b"1"})],
    ids=["cut short", "a page", "other files"],  # not the bytes, which hold the time: workers must find equal names
)
def test_an_archive_that_is_not_the_real_one_is_refused_and_left(root: Path, raw: bytes) -> None:
    archive = root / "numbers.tar.gz"
    archive.write_bytes(raw)
    with pytest.raises(BenchError) as error:
        NUMBERS.fetch(retries=QUICK)
    assert str(error.value).startswith(f"{archive} is not the official Numbers:\n  md5 is {md5(raw)}, that of the off")
    with pytest.raises(BenchError, match=rf"^{archive} is damaged: .*`bench prepare` downloads it again$"):
        NUMBERS.fetch(allow_unverified=True, retries=QUICK)
    assert tree(root) == {"numbers.tar.gz": raw, ".numbers.lock": b""}
    assert not list(root.glob("*numbers*/"))


def test_an_unverified_archive_with_what_is_needed_is_unpacked_if_that_is_allowed(root: Path) -> None:
    (root / "numbers.tar.gz").write_bytes(packed({"numbers/one": b"1", "numbers/two": b"2"}))
    NUMBERS.fetch(allow_unverified=True)
    assert [content(path) for path in NUMBERS.paths()] == [b"1", b"2"]


def test_an_archive_cannot_write_outside_its_place(root: Path) -> None:
    (root / "numbers.tar.gz").write_bytes(packed({"numbers/one": b"1", "numbers/two": b"2", "../evil": b"3"}))
    with pytest.raises(BenchError, match=r"numbers\.tar\.gz is damaged: .*outside"):
        NUMBERS.fetch(allow_unverified=True)
    assert not list(root.parent.rglob("*evil*"))
    assert not (root / "numbers").exists()


@pytest.mark.parametrize("last", ["tarfile.TarFile.extractall", "os.rename"])
def test_unpacking_that_is_killed_leaves_nothing_that_counts(root: Path, last: str) -> None:
    (root / "numbers.tar.gz").write_bytes(ARCHIVE)
    half = root / ".numbers.tmp" / "numbers" / "half"
    killed_in_it = f"""
import os, signal, tarfile
def killed(*_, **__):
    os.makedirs({str(half.parent)!r}, exist_ok=True)
    open({str(half)!r}, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
{last} = killed
"""
    assert run(killed_in_it, NUMBERS).wait() == -9
    assert half.exists(), "it was half-way"
    assert not NUMBERS.is_there()
    NUMBERS.fetch(retries=QUICK)
    assert NUMBERS.verified()
    assert sorted(tree(root)) == [".numbers.lock", "numbers.tar.gz", "numbers/one", "numbers/two"]


def test_a_folder_that_may_not_be_written_is_told_once(closed: Path) -> None:
    closed.chmod(0o500)
    with pytest.raises(
        StorageError, match=f"cannot write {closed}/.*: Permission denied; choose a data folder you may"
    ):
        NUMBERS.fetch(retries=QUICK)


def test_unpacked_data_needs_no_writing(closed: Path) -> None:
    NUMBERS.fetch(retries=QUICK)
    (closed / ".numbers.lock").unlink()
    closed.chmod(0o500)
    NUMBERS.fetch(retries=QUICK)
    assert NUMBERS.verified()


def test_two_processes_that_fetch_at_once_download_once(root: Path, tmp_path: Path) -> None:
    both_are_there = threading.Event()
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(ARCHIVE)))
            self.end_headers()
            self.wfile.write(ARCHIVE[:100])
            both_are_there.wait(1200)
            self.wfile.write(ARCHIVE[100:])

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as url, open(tmp_path / "stderr", "w+") as said:
        dataset = replace(NUMBERS, downloads=(replace(NUMBERS.downloads[0], urls=(f"{url}/numbers.tar.gz",)),))
        processes = [run("", dataset, stderr=said.fileno()) for _ in range(2)]
        while "\n" not in (waiting := (tmp_path / "stderr").read_text()) and len(requests) < 2:
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.01)
        both_are_there.set()
        assert [process.wait() for process in processes] == [0, 0]
    assert waiting == f"waiting for another process that is getting the same data ({root}/.numbers.lock)\n"
    assert requests == ["/numbers.tar.gz"]
    assert dataset.verified()
    assert sorted(os.listdir(root)) == [".numbers.lock", "numbers", "numbers.tar.gz"]


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server's address, while it runs."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def run(before: str, dataset: Dataset, **options: Any) -> subprocess.Popen[bytes]:
    """A process that fetches a data set after some other code."""
    code = f"from bench.data.datasets import Dataset, Download\n{before}\n({dataset!r}).fetch()\n"
    return subprocess.Popen([sys.executable, "-c", code], **options)


def test_a_python_that_cannot_unpack_safely_says_how_to_do_it_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("tarfile.data_filter")
    with pytest.raises(BenchError, match=r"cannot unpack archives safely .*\n  tar -xzf .*a\.tar\.gz -C "):
        extract(tmp_path / "a.tar.gz", tmp_path / "a")
