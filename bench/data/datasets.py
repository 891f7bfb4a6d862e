"""Published data sets on disk: their location, verification and download.

There is one data folder (`bench.core.data_folder`). The name of a file proves nothing: whatever is read has been
compared with the publisher's checksum.
"""

from __future__ import annotations

import fcntl
import functools
import gzip
import hashlib
import os
import platform
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from bench.core.data_folder import ANOTHER_FOLDER
from bench.core.data_folder import data_folder as data_folder
from bench.core.errors import BenchError, NotPrepared
from bench.data.download import RETRIES, Download, DownloadError, RetryPolicy, download, tell, writing

T = TypeVar("T")
FileSignature = tuple[Path, int, int]  # a file, its size and when it was last changed (ns)

DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)


@dataclass(frozen=True)
class Dataset:
    """A published data set: some files in one folder.

    Attributes:
        title: its name in words.
        task: its name in experiment files.
        folder: where it is put, below the data folder.
        elsewhere: folders where it is looked for after that, below the data folder or absolute.
        files: md5 of each file, by name. A file may also lie there gzipped, as "<name>.gz"; the md5 is that of the
            content, which can be packed in many ways.
        downloads: one archive (.tar.gz) of `folder`, or each file gzipped; () where the task itself gets the data.
        by_hand: where there are no downloads: from where, or how else, one gets the files.
    """

    title: str
    task: str
    folder: str
    elsewhere: tuple[str, ...]
    files: Mapping[str, str]
    downloads: tuple[Download, ...]
    by_hand: str = ""

    def folders(self) -> list[Path]:
        """Return the folders in which it is looked for, in this order."""
        return [data_folder() / folder for folder in (self.folder, *self.elsewhere)]

    def missing(self, folder: Path) -> list[str]:
        """Return the names of the files that are not in a folder.

        Raises:
            BenchError: the folder cannot be read.
        """
        with _reading(folder):
            return [name for name in self.files if not _on_disk(folder / name).is_file()]

    def is_there(self) -> bool:
        """Return whether all files are on this machine, without checking their content."""
        return any(not self.missing(folder) for folder in self.folders())

    def paths(self) -> list[Path]:
        """Return the files in the order of `files`, from the first folder that has them all.

        Raises:
            BenchError: no folder has all files; the message says what to put where.
        """
        for folder in self.folders():
            if not self.missing(folder):
                return [_on_disk(folder / name) for name in self.files]
        raise self.absent(self._remedy())

    def verified(self) -> bool:
        """Return whether every file's content is the official one.

        Raises:
            BenchError: a file is missing or cannot be read.
        """
        return not self._unofficial()

    def check(self, *, allow_unverified: bool) -> None:
        """Refuse files that are not the official ones, unless that is allowed.

        Raises:
            BenchError: names the files, what they are, what they should be, and how to go on.
        """
        faults = self._unofficial()
        if faults and not allow_unverified:
            raise self.refused(self.paths()[0].parent, faults)

    def load(self, read: Callable[[list[Path]], T], *, allow_unverified: bool) -> T:
        """Return `read` of the files, in their order, cached until something else is read: a worker does many runs.

        Raises:
            BenchError: as `paths`, as `check`, or as `read`.
        """
        self.check(allow_unverified=allow_unverified)
        return remembered(read, self.paths())

    def fetch(self, *, allow_unverified: bool = False, retries: RetryPolicy = RETRIES) -> None:
        """Ensure that the files are present, from an archive in the data folder or from the network, and correct.

        Of several processes that fetch at once one works and the others wait for it. A killed one leaves what it has
        downloaded, and the next goes on from there.

        Raises:
            BenchError: the files cannot be obtained, are not the official ones, or the disk refuses.
        """
        if not self.is_there():
            # A task's name may have a slash (glue/cola), the name of a file may not.
            with locked(data_folder() / f".{self.task.replace('/', '-')}.lock"):
                if not self.is_there():  # another process may have been at it
                    for wanted in self.downloads:
                        self._obtain(wanted, allow_unverified, retries)
        # Files that were here before are checked too: nobody has compared them with the official ones yet.
        self.check(allow_unverified=allow_unverified)

    @property
    def _is_archive(self) -> bool:
        return bool(self.downloads) and self.downloads[0].name.endswith(".tar.gz")

    def _unofficial(self) -> list[str]:
        """Return one line for each file that is not the official one."""
        digests = [(path, content_md5(path)) for path in self.paths()]
        return [
            f"{path.name}: md5 is {md5}, that of the official file {official}"
            for (path, md5), official in zip(digests, self.files.values(), strict=True)
            if md5 != official
        ]

    def _obtain(self, wanted: Download, allow_unverified: bool, retries: RetryPolicy) -> None:
        folder = data_folder() / self.folder
        if not self._is_archive:
            # A data set may be here in part; only files that are missing are downloaded.
            if not _on_disk(folder / wanted.name.removesuffix(".gz")).is_file():
                self._download(wanted, folder, retries)
            return
        # The folder is there and lacks files: unpacking over it could mix two data sets.
        if folder.exists():
            raise self.absent(self._remedy())
        # The user may have put the archive there, so it is checked like a download.
        archive = data_folder() / wanted.name
        if not archive.is_file():
            self._download(wanted, archive.parent, retries)
        elif not allow_unverified and (md5 := _digest("md5", archive, open)) != wanted.md5:
            raise self.refused(archive, [f"md5 is {md5}, that of the official file {wanted.md5}"])
        extract(archive, folder)

    def _download(self, wanted: Download, folder: Path, retries: RetryPolicy) -> None:
        try:
            download(wanted, folder, retries)
        except DownloadError as error:
            raise self.absent(f"it could not be downloaded.\n{error}") from error

    # ---- messages --------------------------------------------------------------------------------------------

    def refused(self, place: Path, faults: list[str]) -> BenchError:
        """Return the error that says that the data in a place are not the official data, one line per fault."""
        return BenchError(
            f"{place} is not the official {self.title}:\n{_indented(faults)}\n"
            "Move it away, and `bench prepare` downloads the official one; or accept it in the experiment's [task]:\n"
            f'  task = {{name = "{self.task}", allow_unverified_data = true}}\n'
            "Records and tables then say that the data is not verified."
        )

    def _remedy(self) -> str:
        folder = data_folder() / self.folder
        if self._is_archive and folder.exists():
            return f"move {folder} away, and `bench prepare` makes it again."
        return "`bench prepare` downloads it."

    def absent(self, reason: str) -> NotPrepared:
        """Return the error that says that files are missing: where, why, and what to put where."""
        root = data_folder()
        partly = [folder for folder in self.folders() if 0 < len(self.missing(folder)) < len(self.files)]
        where = f"in {partly[0]} without {', '.join(self.missing(partly[0]))}" if partly else f"not in {root}"
        folder = root if self._is_archive else root / self.folder
        files = [f"{folder / wanted.name}\n    from {wanted.urls[0]}" for wanted in self.downloads]
        if not files:
            files = [*(str(folder / name) for name in self.files), f"  {self.by_hand}"]
        unpacked = f"or that archive's folder, as {root / self.folder}\n" if self._is_archive else ""
        return NotPrepared(
            f"{self.title} is {where}: {reason}\n"
            f"To get it in another way, put there\n{_indented(files)}\n{unpacked}or name {ANOTHER_FOLDER}."
        )


# ---- files ---------------------------------------------------------------------------------------------------


def remembered(read: Callable[[list[Path]], T], paths: Sequence[Path]) -> T:
    """Return `read(paths)`, cached until a file changes or something else is read."""
    # The signatures are a part of the cache's key, so that a changed file is read again.
    return cast(T, _read(read, tuple(map(signature, paths))))


@functools.lru_cache(maxsize=1)
def _read(read: Callable[[list[Path]], Any], signatures: tuple[FileSignature, ...]) -> Any:
    return read([path for path, _, _ in signatures])


def content(path: Path) -> bytes:
    """Return the content of a file, unpacked if the file is gzipped.

    Raises:
        BenchError: the file cannot be read, or is damaged.
    """
    with _reading(path), _opener(path)(path, "rb") as file:
        return cast(bytes, file.read())


def content_md5(path: Path) -> str:
    """Return the md5 of `content(path)`, computed once per process unless the file changes.

    Raises:
        BenchError: it cannot be read, or is damaged.
    """
    return _content_digest("md5", signature(path))


def content_sha256(path: Path) -> str:
    """Return the sha256 of `content(path)`, cached as `content_md5` is."""
    return _content_digest("sha256", signature(path))


def user_files_sha256(factory: Callable[..., Any], params: Mapping[str, Any]) -> str | None:
    """Return the sha256 over the user's own files that a task reads (see `Task`), or None if it reads none.

    It is over their contents and their names below `path`, and computed once in a process unless one of them changes.

    Args:
        factory: the task's class.
        params: its settings.

    Raises:
        BenchError: there is nothing at `path`, or a file cannot be read.
    """
    # Only tasks with a user's own files have the class method `files`; theirs may be data of the hub instead.
    files = getattr(factory, "files", None)
    if files is None or params["path"] is None:
        return None
    root = Path(params["path"])
    return _files_digest(root, tuple(map(signature, files(root))))


@functools.lru_cache(maxsize=8)
def _files_digest(root: Path, signatures: tuple[FileSignature, ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in signatures:
        # With "/" on every system, so that the hash is the same everywhere.
        digest.update(f"{path.relative_to(root).as_posix()}\n{_digest('sha256', path, open)}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _content_digest(algorithm: str, file: FileSignature) -> str:
    return _digest(algorithm, file[0], _opener(file[0]))


def _digest(algorithm: str, path: Path, opener: Callable[..., Any]) -> str:
    with _reading(path), opener(path, "rb") as file:
        # Without the flag, Python on a system in FIPS mode refuses md5.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _opener(path: Path) -> Callable[..., Any]:
    return gzip.open if path.suffix == ".gz" else open


def signature(path: Path) -> FileSignature:
    """Return path, size and time of change, by which a changed file is recognised without reading the file."""
    with _reading(path):
        status = path.stat()
    return path, status.st_size, status.st_mtime_ns


def _on_disk(path: Path) -> Path:
    """Return the file, or its gzipped form if only that exists."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn any error of reading a file into one clear message."""
    try:
        yield
    except DAMAGE as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror or error}") from error


def damaged(path: Path, what: object) -> BenchError:
    """Return the error that says that a data file is damaged."""
    return BenchError(f"{path} is damaged: {what}; move it away, and `bench prepare` downloads it again")


def extract(archive: Path, folder: Path) -> None:
    """Unpack the folder of the same name from an archive to `folder`, completely or not at all.

    Raises:
        BenchError: the archive is damaged or of something else, or the disk refuses.
    """
    if not hasattr(tarfile, "data_filter"):  # Python before 3.11.4
        raise BenchError(
            f"Python {platform.python_version()} cannot unpack archives safely (3.11.4 can); unpack it yourself:\n"
            f"  tar -xzf {archive} -C {folder.parent}"
        )
    temporary = folder.with_name(f".{folder.name}.tmp")
    with writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        try:
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(temporary, filter="data")  # which lets nothing out of the folder
            if not (temporary / folder.name).is_dir():
                raise damaged(archive, f"it holds no folder {folder.name}")
            # The renaming comes last: a folder with this name is complete.
            os.rename(temporary / folder.name, folder)
        except DAMAGE as error:
            raise damaged(archive, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that one process at a time can have; the system releases the lock if the process dies."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "w")  # noqa: SIM115 - closed by the `with` below
    with lock:
        # First without waiting, so that whoever has to wait is told what for.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"waiting for another process that is getting the same data ({path})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
