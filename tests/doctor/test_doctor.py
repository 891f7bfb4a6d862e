"""`bench doctor` on machines that have something, lack it, or have it broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.core import allocator
from bench.doctor import files, finding, machine, software
from bench.doctor.finding import Finding
from tests import prefork

Bench = Callable[..., Any]
Program = Callable[[str, str], None]


def found(check: Callable[[], Any]) -> Finding:
    """Return the only finding of a check."""
    (one,) = check()
    assert isinstance(one, Finding)
    return one


def by_name(said: Any) -> dict[str, dict[str, Any]]:
    findings = json.loads(said.out)
    assert len({one["name"] for one in findings}) == len(findings)
    return {one["name"]: one for one in findings}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """program(name, script): a shell script on PATH, which has nothing but such scripts and the shell's own."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return write


# ---- the command -----------------------------------------------------------------------------------------------


def test_it_prints_a_line_per_check_leaves_nothing_and_ends_well(bench: Bench, tmp_path: Path) -> None:
    said = bench("doctor")
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "note", "lack", "→"}
    for name in ("Python", "torch", "processor", "memory", "allocator", "precision", "CIFAR-10", "SLURM", "results"):
        assert any(line[6:].startswith(name) for line in lines), name
    assert list((tmp_path / "cwd").iterdir()) == []


def test_json_has_the_same_findings(bench: Bench) -> None:
    said = bench("doctor", "--json")
    shown = bench("doctor")
    findings = json.loads(said.out)
    assert (said.status, said.err) == (0, "")
    assert all({*one} == {"status", "name", "found", "advice", "stops"} for one in findings)
    heads = [line for line in shown.out.splitlines() if not line.startswith(" ")]
    assert [(one["status"], one["name"]) for one in findings] == [
        (line[:4].strip(), line[6:24].strip()) for line in heads
    ]


@pytest.mark.parametrize("out", ["results", "results/of/mine"])
def test_results_that_cannot_be_written_are_status_1(bench: Bench, tmp_path: Path, out: str) -> None:
    (tmp_path / "cwd" / "results").write_text("a file of mine")
    said = bench("doctor", "--json", "--out", out)
    assert said.status == 1
    one = by_name(said)["results"]
    assert (one["status"], one["stops"]) == ("lack", True)
    assert one["found"] == f"cannot write {tmp_path / 'cwd' / 'results'}: File exists"
    assert one["advice"] == "a file is where a folder should be; choose another place with --out DIR"
    assert (tmp_path / "cwd" / "results").read_text() == "a file of mine"


def test_a_full_disk_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2.5e9))
    one = by_name(bench("doctor", "--json"))["results"]
    assert one["status"] == "note"
    assert one["found"].endswith("can be written, 2.5 GB free")
    assert one["advice"] == "free some, or name another disk: --out"


@pytest.mark.slow
def test_a_torch_that_cannot_be_imported_is_status_1_and_the_rest_is_told(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    command = [sys.executable, "-m", "bench", "doctor", "--json"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=prefork.HANGS, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    findings = {one["name"]: one for one in json.loads(done.stdout)}
    assert findings["torch"]["found"] == "cannot be imported: OSError: libcudart.so.13: cannot open shared object file"
    assert "make setup" in findings["torch"]["advice"]
    assert {*findings} == {"Python", "torch", "sam-bench", "devices, data, weights", "SLURM", "LaTeX", "results"}


# ---- data and weights ------------------------------------------------------------------------------------------


def test_data_that_are_not_there_are_told_with_where_and_what_to_do(bench: Bench) -> None:
    said = by_name(bench("doctor", "--json"))
    folder = os.environ["BENCH_DATA"]
    assert said["data folder"]["found"].startswith(f"{finding.shown(folder)} (BENCH_DATA)")
    assert said["digits, MNIST-1D"]["status"] == "ok"
    for name, unpacked, experiment in (
        ("CIFAR-10", "cifar-10-batches-py", "cifar10_smoke"),
        ("CIFAR-100", "cifar-100-python", "cifar100_smoke"),
        ("GLUE", "glue", "glue_smoke"),
    ):
        assert said[name]["status"] == "lack"
        assert finding.shown(Path(folder, unpacked)) in said[name]["found"]
        assert said[name]["advice"].startswith(f"`bench prepare {experiment}`, where there is a network")


@pytest.mark.usefixtures("data_folder")
def test_data_are_found_and_of_a_part_what_is_missing(bench: Bench, data_folder: Path) -> None:
    said = by_name(bench("doctor", "--json"))
    for name, folder in (("CIFAR-10", "cifar-10-batches-py"), ("Fashion-MNIST", "FashionMNIST/raw")):
        assert (said[name]["status"], said[name]["found"]) == ("ok", f"in {finding.shown(data_folder / folder)}")
    (data_folder / "cifar-10-batches-py" / "test_batch").unlink()
    one = by_name(bench("doctor", "--json"))["CIFAR-10"]
    assert one["status"] == "lack"
    assert one["found"] == f"{finding.shown(data_folder / 'cifar-10-batches-py')} is without test_batch"
    assert one["advice"] == "move the folder away; `bench prepare cifar10_smoke`"


def test_an_archive_and_the_option_for_the_folder_are_seen(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").touch()
    (tmp_path / "glue" / "RTE").mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "glue" / "RTE" / name).touch()
    said = by_name(bench("doctor", "--json", "--data-dir", tmp_path))
    assert said["data folder"]["found"].startswith(f"{finding.shown(tmp_path)} (--data-dir)")
    assert said["CIFAR-10"]["status"] == "note"
    assert said["CIFAR-10"]["found"] == f"packed, as {finding.shown(tmp_path / 'cifar-10-python.tar.gz')}"
    assert said["GLUE"]["status"] == "note"
    assert said["GLUE"]["found"].startswith("RTE; not there: CoLA, ")


def test_a_data_folder_that_is_a_file_is_a_lack_and_no_end(bench: Bench, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "file"))
    said = bench("doctor", "--json")
    assert said.status == 0
    assert "is to hold the data, but is not a folder" in by_name(said)["data folder"]["found"]


def test_weights_count_if_they_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    one = found(files.weights)
    assert one.status == "lack"
    assert "make offline" in one.advice
    # A checkpoint without its weights, and a repository of which only the tokenizer was fetched, are none.
    for path in (
        *("data/weights/vit_tiny.augreg.safetensors", "data/weights/bert-tiny/config.json"),
        *("hub/models--some--encoder/snapshots/1/model.safetensors", "hub/models--gpt2/snapshots/1/tokenizer.json"),
        *(f"data/weights/google/electra/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    one = found(files.weights)
    assert one.status == "ok"
    names = ["google/electra (data folder)", "vit_tiny.augreg (data folder)", "some/encoder (hub's cache)"]
    assert one.found == ", ".join(names)


# ---- the machine -----------------------------------------------------------------------------------------------


def test_an_allocator_that_is_off_or_unknown_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(allocator.VARIABLE, "off")
    one = by_name(bench("doctor", "--json"))["allocator"]
    assert (one["status"], one["found"]) == ("note", "runs use the system's, since BENCH_MALLOC=off")
    assert one["advice"].startswith("unset BENCH_MALLOC")
    monkeypatch.setenv(allocator.VARIABLE, "mimaloc")
    said = bench("doctor", "--json")
    assert said.status == 0
    assert 'no such allocator; did you mean "mimalloc"?' in by_name(said)["allocator"]["found"]
    monkeypatch.setenv(allocator.VARIABLE, "glibc")
    assert found(machine.allocator).status == "ok"


@pytest.mark.parametrize(("located", "status"), [("/usr/lib/libmimalloc.so", "ok"), (None, "note")])
def test_the_allocator_that_is_installed_is_named(located: str | None, status: str, monkeypatch: Any) -> None:
    for name in (allocator.VARIABLE, allocator.PRELOAD, allocator.TUNABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator, "locate", lambda name: located)
    one = found(machine.allocator)
    assert one.status == status
    assert "mimalloc" in one.found
    assert (status == "ok") != ("pip install cmeel-mimalloc" in one.advice)


def test_limits_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_of: Any) -> None:
    machine_of(8, 0)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert found(machine.processor).status == "ok"
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    one = found(machine.processor)
    assert one.status == "note"
    assert "8 of " in one.found
    assert "with the time of 2.5" in one.found
    assert one.advice.startswith("`bench run --jobs 2`")
    (tmp_path / "memory.max").write_text(f"{4 * 10**9}\n")
    (tmp_path / "memory.current").write_text(f"{2 * 10**9}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {10**9}\n")
    one = found(machine.memory)
    assert (one.status, one.found) == ("note", "3.0 GB free, for 8 runs at once of up to 1.0 GB each")
    assert one.advice.startswith("`bench run --jobs 3`")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert found(machine.processor).status == "ok"


@pytest.fixture
def machine_of(machine: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """The fixture `machine`, whose name is that of a module here."""
    return machine


def test_gpus_are_shown_with_their_memory_and_one_that_fails_is_a_lack(monkeypatch: Any, machine_of: Any) -> None:
    machine_of(8, 3)

    def memory(number: int) -> tuple[int, int]:
        if number == 2:
            raise RuntimeError("CUDA error: device unavailable\nmore")
        return ((70, 20)[number] * 10**9, 80 * 10**9)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(name="H100"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    one, two, three = machine.gpus()
    assert (one.status, one.name, one.found) == ("ok", "GPU 0", "H100, 70 GB of 80 GB free")
    assert (two.status, two.found) == ("note", "H100, 20 GB of 80 GB free")
    assert (three.status, three.found) == ("lack", "does not answer: CUDA error: device unavailable")
    assert found(machine.precision).found == "bf16 and tf32 pay on this GPU"


def test_a_driver_without_a_gpu_that_torch_sees_is_a_lack(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert found(machine.gpus).status == "note"
    program("nvidia-smi", "echo 580.1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "new enough for CUDA 13.0" in found(machine.gpus).advice
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "since CUDA_VISIBLE_DEVICES=" in found(machine.gpus).found
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "torch is built without CUDA" in found(machine.gpus).found


def test_apples_gpu_is_said_to_be_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert list(machine.mps()) == []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "sam-bench does not use it" in found(machine.mps).found


@pytest.mark.parametrize(("units", "words"), [(True, "fp32, and bf16"), (False, "fp32 alone")])
def test_bf16_pays_where_the_processor_has_matrix_units(units: bool, words: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(machine, "has_bf16_units", lambda: units)
    assert found(machine.precision).found.startswith(words)


# ---- SLURM and LaTeX -------------------------------------------------------------------------------------------

CONFIG = """cat <<END
Configuration data as of 2026-01-01T00:00:00
ClusterName             = alps
MaxArraySize            = 4001
END"""
PARTITIONS = """cat <<END
debug*|30:00|4|up
long|7-00:00:00|120|up
END"""


def test_without_slurm_and_latex_each_is_a_note(program: Program) -> None:
    assert found(software.slurm).status == found(software.latex).status == "note"
    assert "--on slurm" in found(software.slurm).advice
    program("pdflatex", "exit 1")
    assert found(software.latex).status == "ok"


def test_a_cluster_is_shown_with_its_limits(program: Program) -> None:
    for name in ("sbatch", "squeue", "scancel"):
        program(name, "exit 1")
    assert found(software.slurm).found == "no scontrol on PATH"
    program("scontrol", CONFIG.replace("cat", "/bin/cat"))
    assert found(software.slurm).found.endswith("partitions unknown (no sinfo on PATH)")
    program("sinfo", PARTITIONS.replace("cat", "/bin/cat"))
    one = found(software.slurm)
    assert one.status == "ok"
    assert one.found == (
        "cluster alps, arrays of up to 4,001 jobs (MaxArraySize); "
        "partitions: debug* (4 nodes, limit 30:00, up), long (120 nodes, limit 7-00:00:00, up)"
    )


@pytest.mark.parametrize(
    "script", ["/bin/sleep 600", "echo first >&2; echo 'scontrol: fatal: no controller' >&2; exit 1"]
)
def test_a_slurm_that_does_not_answer_is_a_lack(program: Program, script: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(software, "SECONDS", 0.5)
    for name in software.NEEDED:
        program(name, f"exec {script}" if "sleep" in script else script)
    one = found(software.slurm)
    assert one.status == "lack"
    assert one.found.startswith("commands are here, but no controller answers: ")
    assert one.found.endswith(("timed out after 0.5 seconds", "fatal: no controller"))


def test_the_users_home_is_not_in_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert finding.shown(tmp_path / "data") == "~/data"
    assert finding.shown("/elsewhere") == "/elsewhere"
