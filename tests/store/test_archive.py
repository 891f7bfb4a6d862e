"""Archives: the same bytes for the same files, whatever was done to one is named, and none gets out of its folder."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.core.errors import BadValue, BenchError
from bench.core.spec import PROTOCOL
from bench.store import archive

ROOT = Path(__file__).parents[2]
FILES = {"records.csv": b"a,b\n1,2\n", "tables/results.md": b"**x**\n"}


def members(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def packed(files: list[tuple[tarfile.TarInfo | str, bytes]], path: Path) -> Path:
    """An archive of just these members."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for what, content in files:
            member = tarfile.TarInfo(what) if isinstance(what, str) else what
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    path.write_bytes(gzip.compress(plain.getvalue()))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tar.gz"


def test_files_come_back_as_they_went_in_and_make_the_same_bytes_in_any_order(path: Path) -> None:
    content = archive.pack("digits", FILES)
    assert content == archive.pack("digits", dict(reversed(FILES.items())))
    path.write_bytes(content)
    assert archive.unpack(path) == ("digits", FILES)
    assert set(members(content)) == {"digits/MANIFEST.json", *(f"digits/{name}" for name in FILES)}


def test_whatever_was_done_to_a_file_is_named(path: Path) -> None:
    there = members(archive.pack("digits", FILES))
    there["digits/records.csv"] = b"a,b\n1,3\n"
    there["digits/new.txt"] = b""
    del there["digits/tables/results.md"]
    packed(list(there.items()), path)
    with pytest.raises(BadValue) as raised:
        archive.unpack(path)
    new, changed, missing = raised.value.problems
    assert new == "new.txt: not in MANIFEST.json: added later"
    assert changed.startswith("records.csv: changed since the export")
    assert missing == "tables/results.md: missing"


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("../evil", "outside"),
        ("digits/../../evil", "outside"),
        ("/etc/evil", "outside"),
        ("digits\\..\\evil", "outside"),
        ("evil", "outside"),
        (link("digits/evil", tarfile.SYMTYPE), "no plain file"),
        (link("digits/evil", tarfile.LNKTYPE), "no plain file"),
        (link("digits/evil", tarfile.FIFOTYPE), "no plain file"),
        ("digits/records.csv", "is there twice"),
        ("digits/./records.csv", "is no plain name"),
        ("digits//records.csv", "is no plain name"),
    ],
)
def test_unsafe_members_are_refused(path: Path, member: tarfile.TarInfo | str, said: str) -> None:
    packed([*members(archive.pack("digits", FILES)).items(), (member, b"")], path)
    with pytest.raises(BadValue, match=said):
        archive.unpack(path)


def test_a_small_file_cannot_fill_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(archive.pack("digits", {"zeros": bytes(5000)}))
    monkeypatch.setattr(archive, "LARGEST", 5000)
    with pytest.raises(BadValue, match="more than 5,000 bytes when unpacked"):
        archive.unpack(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no archive", "cannot read"),
        (gzip.compress(b"no tar" * 200), "cannot read"),
        (archive.pack("digits", FILES)[:-200], "cannot read"),
        (gzip.compress(bytes(10240)), "no archive of `bench export`"),
    ],
    ids=["text", "gzip", "cut", "empty"],
)
def test_what_is_no_archive_is_said_to_be_none(path: Path, content: bytes, said: str) -> None:
    path.write_bytes(content)
    with pytest.raises(BenchError, match=said):
        archive.unpack(path)


def test_foreign_archives_have_no_manifest(path: Path) -> None:
    packed([("a/x", b""), ("b/y", b"")], path)
    with pytest.raises(BenchError, match="2 folders instead of one"):
        archive.unpack(path)
    packed([("a/x", b"")], path)
    with pytest.raises(BenchError, match=r"no readable MANIFEST\.json"):
        archive.unpack(path)
    packed([("a/MANIFEST.json", b"[]")], path)
    with pytest.raises(BenchError, match=r"no readable MANIFEST\.json"):
        archive.unpack(path)


# ---- the commands --------------------------------------------------------------------------------------------


@pytest.fixture
def exported(bench: Callable[..., Any], tmp_path: Path) -> Path:
    path = tmp_path / "digits.tar.gz"
    about = json.loads((ROOT / "results/digits_noise/experiment.json").read_text())
    if about["protocol"] != PROTOCOL:
        pytest.skip(f"results/digits_noise is of protocol {about['protocol']}: its own version exports it")
    said = bench("export", ROOT / "experiments/digits_noise.toml", "--out", ROOT / "results", "--file", path)
    assert said.status == 0, said.err
    return path


def test_a_committed_result_set_is_exported_checked_tabulated_and_unpacked(
    bench: Callable[..., Any], exported: Path, tmp_path: Path
) -> None:
    files = {name.removeprefix("digits_noise/") for name in members(exported.read_bytes())}
    assert files >= {"MANIFEST.json", "README.md", "experiment.json", "records.csv", "curves.csv", "resolved.json"}
    assert files >= {"digits_noise.toml", "environment.json", "requirements.lock", "tables/results.md"}
    said = bench("check", exported, "--unpack", tmp_path / "there")
    assert said.status == 0, said.err
    assert "asam (rho=2)" in said.out
    assert "; the same, byte for byte: " in said.out
    folder = tmp_path / "there" / "digits_noise"
    assert (folder / "records.csv").read_bytes() == (ROOT / "results/digits_noise/records.csv").read_bytes()
    assert bench("table", "digits_noise", "--out", tmp_path / "there").status == 0
    again = bench("check", exported, "--unpack", tmp_path / "there")
    assert (again.status, "is not empty" in again.err) == (2, True)
    verify = "bench verify unpacked/digits_noise/digits_noise.toml --out unpacked"
    assert verify in (folder / "README.md").read_text()
    said = bench("diff", exported, ROOT / "results/digits_noise", "--format", "md")
    assert said.status == 0
    runs = len(pd.read_csv(folder / "records.csv"))
    (row,) = (line for line in said.out.splitlines() if line.startswith("| all "))
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["all", *[str(runs)] * 5]


def test_a_table_that_does_not_follow_from_the_records_is_found(
    bench: Callable[..., Any], exported: Path, tmp_path: Path
) -> None:
    name, files = archive.unpack(exported)
    (accuracy,) = re.findall(rb"\n\| sam .*? (\d\d\.\d\d) \xc2\xb1", files["tables/results.md"])
    files["tables/results.md"] = files["tables/results.md"].replace(accuracy, b"99.92")
    forged = tmp_path / "forged.tar.gz"
    forged.write_bytes(archive.pack(name, files))
    said = bench("check", forged)
    assert said.status == 1
    assert said.out.splitlines()[-1].endswith("(another version of sam-bench?): tables/results.md")


# ---- limits --------------------------------------------------------------------------------------------------


def header(kind: bytes, size: int = 0, name: str = "digits/x") -> bytes:
    """A header of a tar file, whatever it says."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def block(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


PAX = b"22 comment=0123456789\n"
NUL = b"19 path=digits/a\0b\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(b"x", 60_000_000) + bytes(60_000_000), "a header is larger than any"),
        (header(b"g", 60_000_000) + bytes(60_000_000), "a header is larger than any"),
        (header(b"L", 60_000_000) + bytes(60_000_000), "a header is larger than any"),
        (header(b"x", 2**40), "a header is larger than any"),
        ((header(b"x", len(PAX)) + block(PAX)) * 40_000, "cannot read"),
        (header(b"x", len(NUL)) + block(NUL) + header(b"0"), "is no plain name"),
        (header(b"L", 4) + block(b"abc\0") + header(b"x", 2**33), "cannot read"),
        (header(b"0", 2**40), "bytes when unpacked"),
        (header(b"0", -1), "cannot read|is no plain file"),
        (header(b"S", 5) + block(b"hello"), "cannot read|is no plain file"),
        (header(b"0", 50_000) + bytes(512), "cut short"),
        (header(b"3"), "is no plain file"),
        (header(b"6"), "is no plain file"),
        (header(b"5", 2**40) + header(b"0"), "no readable"),
        (header(b"0", name="digits/" + "x" * 90) * 10_001, "is there twice"),
        (b"".join(header(b"0", name=f"digits/{n}") for n in range(10_002)), "more than 10,000 files"),
        (header(b"0", len(DEEP := b"[" * 20_000), "digits/MANIFEST.json") + block(DEEP), "no readable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_archive_takes_more_than_one_of_ours(path: Path, content: bytes, said: str) -> None:
    path.write_bytes(gzip.compress(content + bytes(1024), compresslevel=1))
    del content
    tracemalloc.start()
    try:
        with pytest.raises(BenchError, match=said):
            archive.unpack(path)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
