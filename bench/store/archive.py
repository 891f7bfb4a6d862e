"""Results in one file that another machine can check: a .tar.gz with the sha256 of everything in it.

<experiment>/MANIFEST.json     what there is, with sha256
<experiment>/...               files of results, as in results/<experiment>, and what it takes to make them again

The same files give the same bytes (with the same zlib). A manifest guards against accidents and careless hands, not
against anyone who makes a new one: a reader who must be sure compares the sha256 of the archive itself.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from bench.core.errors import BadValue, BenchError, clipped, shown
from bench.store import records
from bench.store.files import open_regular
from bench.store.records import Results
from bench.store.run_folder import to_json, write_atomic

MANIFEST = "MANIFEST.json"
SUFFIX = ".tar.gz"
FORMAT = 1
LARGEST = 2**30
"""Bytes that the files of an archive may have together, so that a small file cannot fill memory or a disk."""
MEMBERS = 10_000
"""Files that an archive may have: those of `bench export` have some dozens."""
HEADER = 2**16
"""Bytes of the headers of one file, and of the padding before them: those of `bench export` take 2 kB at most."""


def pack(name: str, files: Mapping[str, bytes]) -> bytes:
    """Return the archive of these files.

    Args:
        name: of the experiment, and of the one folder in the archive.
        files: contents by path within that folder.
    """
    # Sorted, so that the order of `files` does not change the bytes.
    sha256 = {path: hashlib.sha256(content).hexdigest() for path, content in sorted(files.items())}
    manifest = to_json({"format": FORMAT, "experiment": name, "sha256": sha256}).encode()
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in [(MANIFEST, manifest), *sorted(files.items())]:
            member = tarfile.TarInfo(f"{name}/{path}")  # mtime 0, nobody's
            # A fixed mode: the umask of the one who packs must not change the bytes.
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    # gzip would write the present time into its header.
    return gzip.compress(plain.getvalue(), mtime=0)


def unpack(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return the experiment's name and its files, each checked against the manifest, without writing to the disk.

    Raises:
        BadValue: files were changed, added or removed since packing, or a member is no plain file of the one folder.
        BenchError: the file cannot be read, or is no such archive.
    """
    members = _members(path)
    name, files = _in_one_folder(path, members)
    try:
        manifest = json.loads(files.pop(MANIFEST))
        recorded, version, of = dict(manifest["sha256"]), manifest["format"], manifest["experiment"]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise BenchError(f"{path} has no readable {MANIFEST}: not written by `bench export`, or changed") from error
    if version != FORMAT or of != name:
        raise BenchError(
            f"{path}: its {MANIFEST} is of another format or experiment ({shown([version, of])}); export it again"
        )
    # All faults are gathered first, so that one check names them all.
    faults = [f"{file}: missing" for file in recorded if file not in files]
    for file, content in files.items():
        if file not in recorded:
            faults.append(f"{file}: not in {MANIFEST}: added later")
        elif hashlib.sha256(content).hexdigest() != recorded[file]:
            faults.append(f"{file}: changed since the export (its sha256 is not that in {MANIFEST})")
    if faults:
        raise BadValue(str(path), sorted(faults))
    return name, files


def results(files: Mapping[str, bytes]) -> Results:
    """Return the results among unpacked files.

    Raises:
        BenchError: there are no results, or they were changed after they were written.
    """
    # `records.read` works on a folder, and checks more than the manifest does: hashes of tables and their contract.
    with tempfile.TemporaryDirectory(prefix="bench-archive-") as folder:
        write_files(files, Path(folder))
        return records.read(Path(folder))


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write unpacked files into a folder.

    Raises:
        BenchError: the folder is there already and not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BenchError(f"{folder} is not empty; unpack to another place with --out DIR")
    for file, content in files.items():
        write_atomic(folder / file, content)


class _Metered(io.RawIOBase):
    """A file that refuses to read more than `room` bytes, so that no header can ask for gigabytes."""

    def __init__(self, file: gzip.GzipFile) -> None:
        super().__init__()
        self.file = file
        self.room = 0

    def read(self, size: int = -1, /) -> bytes:
        # A size of -1 would mean "read everything", which no header needs.
        if not 0 <= size <= self.room:
            raise tarfile.ReadError("a header is larger than any of `bench export`")
        self.room -= size
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        # Only forwards: what tarfile skips is unpacked as well, so it counts as read.
        if whence != io.SEEK_SET or not 0 <= offset - self.file.tell() <= self.room:
            raise tarfile.ReadError("its members are not in sequence")
        self.room -= offset - self.file.tell()
        return self.file.seek(offset)

    def tell(self) -> int:
        return self.file.tell()


def _members(path: Path) -> dict[str, bytes]:
    """Return every member of a tar file with its content; folders are left out.

    Raises: see `unpack`.
    """
    files: dict[str, bytes] = {}
    room = LARGEST
    try:
        with open(open_regular(path), "rb") as packed, gzip.open(packed) as plain:
            metered = _Metered(plain)
            metered.room = HEADER
            # "r:" is a tar without compression: `plain` has unpacked it, and `metered` limits it.
            tar = tarfile.open(fileobj=metered, mode="r:")  # noqa: SIM115 - `plain` is what has to be closed
            for count, member in enumerate(_headers(tar, metered)):
                if count >= MEMBERS:
                    raise BadValue(str(path), [f"more than {MEMBERS:,} files"])
                if member.isdir():
                    continue
                # A member is judged by its header, before any of its content is read.
                if fault := _fault(member, files):
                    raise BadValue(str(path), [f"{shown(member.name)}: {fault}"])
                room -= member.size
                if room < 0:
                    raise BadValue(str(path), [f"more than {LARGEST:,} bytes when unpacked"])
                # From here exactly its content may be read; `_headers` then allows the next header.
                metered.room = member.size
                files[member.name] = metered.read(member.size)
                if len(files[member.name]) < member.size:
                    raise EOFError("it is cut short")
    except (OSError, EOFError, ValueError, RecursionError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or clipped(str(error))
        raise BenchError(f"cannot read {path}: {reason}") from error
    return files


def _headers(tar: tarfile.TarFile, metered: _Metered) -> Iterator[tarfile.TarInfo]:
    """Yield the headers in a tar file, with room for each and none for what is between them."""
    while (member := tar.next()) is not None:
        yield member
        metered.room = HEADER


def _fault(member: tarfile.TarInfo, before: Mapping[str, bytes]) -> str:
    """Return why a member is refused; "" if it is not refused."""
    # A sparse file can claim any size with a few bytes.
    if not member.isreg() or member.issparse() or member.size < 0:
        return "is no plain file"
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts or "\\" in member.name or len(place.parts) < 2:
        return "would lie outside the archive's folder"
    # "a/./b" and "a//b" would be "a/b", and take the place of another file of that name.
    if str(place) != member.name or "\0" in member.name:
        return "is no plain name"
    return "is there twice" if member.name in before else ""


def _in_one_folder(path: Path, members: Mapping[str, bytes]) -> tuple[str, dict[str, bytes]]:
    names = {PurePosixPath(member).parts[0] for member in members}
    if len(names) != 1:
        raise BenchError(f"{path} is no archive of `bench export`: it has {len(names)} folders instead of one")
    (name,) = names
    return name, {str(PurePosixPath(member).relative_to(name)): content for member, content in members.items()}
