"""The allocator of workers: found, put in place before they start, told in records, and without a bit of difference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.core import allocator
from bench.core.errors import BenchError

linux = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The allocators that a test says are installed, by name; none at first."""
    libraries: dict[str, str] = {}
    monkeypatch.setattr(allocator, "locate", libraries.get)
    return libraries


@linux
def test_the_first_of_the_preferred_allocators_that_is_there_is_taken(installed: dict[str, str]) -> None:
    installed |= {"tcmalloc": "/opt/libtcmalloc.so", "jemalloc": "/opt/libjemalloc.so"}
    assert allocator.variables({}) == {"LD_PRELOAD": "/opt/libtcmalloc.so"}
    installed["mimalloc"] = "/opt/libmimalloc.so"
    assert allocator.variables({}) == {"LD_PRELOAD": "/opt/libmimalloc.so"}


@linux
def test_what_a_user_has_set_is_kept(installed: dict[str, str]) -> None:
    installed |= {"jemalloc": "/opt/libjemalloc.so"}
    own = {"LD_PRELOAD": "/usr/lib/libtrace.so", "MALLOC_CONF": "narenas:1"}
    assert allocator.variables(own) == {"LD_PRELOAD": "/opt/libjemalloc.so:/usr/lib/libtrace.so"}
    assert allocator.variables({"LD_PRELOAD": "/usr/lib/libtcmalloc.so.4"}) == {}
    installed.clear()
    assert allocator.variables({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}) == {}


@linux
def test_without_a_library_glibc_is_tuned_and_off_leaves_all_as_it_is(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    assert allocator.variables({}) == {"GLIBC_TUNABLES": allocator.GLIBC}
    installed["mimalloc"] = "/opt/libmimalloc.so"
    assert allocator.variables({"BENCH_MALLOC": "glibc"}) == {"GLIBC_TUNABLES": allocator.GLIBC}
    assert allocator.variables({"BENCH_MALLOC": "off"}) == {}
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert allocator.variables({"BENCH_MALLOC": "glibc"}) == {}


@linux
def test_a_wrong_name_or_a_missing_library_is_told_before_anything_starts(installed: dict[str, str]) -> None:
    with pytest.raises(BenchError, match=r'^BENCH_MALLOC=jemaloc: no such allocator; did you mean "jemalloc"\?'):
        allocator.variables({"BENCH_MALLOC": "jemaloc"})
    with pytest.raises(BenchError, match=r"^BENCH_MALLOC=tcmalloc: libtcmalloc.so is not installed; install it, or"):
        allocator.variables({"BENCH_MALLOC": "tcmalloc"})


@linux
def test_variables_are_there_inside_of_the_context_alone(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed["mimalloc"] = "/opt/libmimalloc.so"
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("BENCH_MALLOC", raising=False)
    before = dict(os.environ)
    with allocator.preloaded():
        assert os.environ["LD_PRELOAD"] == "/opt/libmimalloc.so"
    assert dict(os.environ) == before


CODE = """
import json, sys
from bench.core import allocator
print(json.dumps({"in_use": allocator.in_use()}))
"""


@linux
@pytest.mark.parametrize("choice", ["auto", "glibc", "off"])
def test_a_process_tells_which_allocator_it_has(choice: str, tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "GLIBC_TUNABLES")}
    environment = plain | {"BENCH_MALLOC": choice}
    environment |= allocator.variables(environment)
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=1200)
    assert done.stderr == ""
    expected = {"auto": next((name for name in allocator.LIBRARIES if allocator.locate(name)), "tuned glibc")}
    assert json.loads(done.stdout)["in_use"] == {"glibc": "tuned glibc", "off": "glibc", **expected}[choice]
