"""A run over two real processes: the numbers of one, the same decisions in both, and nobody left behind."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bench.config.file import load
from bench.core.errors import BadValue, BenchError
from bench.core.process_group import ProcessGroup
from bench.core.registry import optimizers
from bench.core.spec import ComponentSpec, OptimizerSpec, PluginFile, RunSpec, TrainSettings
from bench.data.splits import Split
from bench.distributed import launcher as distributed
from bench.distributed.launcher import ProcessFailed, _cause, run_distributed
from bench.distributed.messages import MessageServer
from bench.distributed.process import place_of
from bench.launch.local.slots import Slot, slots
from bench.optim.sam import SAM
from bench.store.run_folder import RunFolder, StorageError, Store
from bench.train import Stopped, train
from bench.training import checkpoint
from bench.training.step import set_up, share_out
from tests import prefork
from tests.distributed import two_processes as two
from tests.distributed.ranks import in_two_processes
from tests.prefork import HANGS, Popen
from tests.test_train import make_spec

CPU = torch.device("cpu")
TIMES = {
    *("setup_seconds", "train_seconds", "train_cpu_seconds", "eval_seconds", "finished_at", "peak_memory_mb"),
    *("resumes", "curve_sha256"),
}
ROOT = Path(__file__).parents[2]
PLUGIN = '''
"""A net with batch norm and dropout that misbehaves when a file in its folder says so: "<rank> <call> <what>"."""
import itertools, os, signal
from pathlib import Path
from torch import nn
from bench import register_model

class Touchy(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)
        )
        self.order, self.calls = order, itertools.count(1)
    def forward(self, x):
        try:
            order = self.order.read_text() if self.training else ""
        except FileNotFoundError:  # there is none, or another process has just carried it out
            order = ""
        if order:
            rank, call, what = order.split()
            if next(self.calls) == int(call) and rank == os.environ.get("RANK"):
                self.order.unlink()
                if what == "raise":
                    raise ValueError("no good")
                if what == "exit":
                    os._exit(0)
                os.kill(os.getpid(), getattr(signal, what))
        return self.net(x)

@register_model("touchy")
def touchy(task):
    """See above."""
    return Touchy(Path(__file__).with_name("order"))
'''


def spec_with(
    model: ComponentSpec, plugins: tuple[PluginFile, ...] = (), m: int | None = None, **train: Any
) -> RunSpec:
    base = ComponentSpec(name="sgd", params=optimizers["sgd"].schema.model_validate({"lr": 0.05}).model_dump())
    params = optimizers["sam"].schema.model_validate({"rho": 0.1, "m": m}).model_dump()
    return RunSpec(
        task=ComponentSpec(name="digits", params={"augment": "shift"}),
        model=model,
        optimizer=OptimizerSpec(name="sam", params=params, base=base),
        data={"validation": 0.25},  # type: ignore[arg-type]
        train=TrainSettings(**({"epochs": 3, "batch_size": 100, "processes": 2} | train)),
        seed=0,
        plugins=plugins,
    )


# ---- planning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.processes": 3}, r"optimizers\.sgd\.train\.processes: must divide batch_size \(256\), got 3"),
        ({"train.processes": 0}, r"train\.processes"),
        (
            {"train.processes": 4, "optimizers.sam.m": 128},
            r"optimizers\.sam\.m: must divide the per-process batch \(256 / 4 = 64\) or equal batch_size "
            r"\(256\), got 128",
        ),
    ],
)
def test_a_batch_that_cannot_be_shared_is_told_at_planning(
    tiny: Any, write_experiment: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadValue, match=message):
        load(write_experiment(tiny(changes)))


@pytest.mark.parametrize("m", [None, 256, 64, 16])
def test_a_batch_that_can_be_shared_is_planned_and_has_ids_of_its_own(tiny: Any, write_experiment: Any, m: Any) -> None:
    changes = {"optimizers.sam.m": m} if m else {}
    path = write_experiment(tiny(changes | {"train.processes": 4}))
    shared = load(path)
    assert {run.spec.train.processes for run in shared.runs} == {4}
    alone = load(write_experiment(tiny(changes), name="alone"))
    assert not {run.spec.run_id for run in shared.runs} & {run.spec.run_id for run in alone.runs}


def test_a_run_of_two_is_not_done_by_one() -> None:
    with pytest.raises(BenchError, match=r"train\.processes = 2, but this run has 1"):
        set_up(spec_with(ComponentSpec(name="mlp", params={"width": 8})), CPU)


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("{", (), "spec.json is no spec.json of a run: "),
        ('{"task": 3}', (), "spec.json is no spec.json of a run: "),
        (None, (), "cannot read "),
        ("a run", ("--checkpoint-minutes", "nan"), "checkpoint_minutes: must be a finite number >= 0, got nan"),
        ("a run", ("--checkpoint-minutes", "inf"), "checkpoint_minutes: must be a finite number >= 0, got inf"),
    ],
)
def test_what_is_no_run_is_told_where_processes_are_started_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, options: tuple[str, ...], said: str
) -> None:
    path = tmp_path / "spec.json"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(make_spec().model_dump_json() if content == "a run" else content)
    assert distributed.main([str(path), str(tmp_path / "folder"), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert said in error
    assert not (tmp_path / "folder").exists()


def test_a_small_training_set_that_cannot_be_shared_is_told() -> None:
    model = torch.nn.Linear(2, 2)
    sgd = torch.optim.SGD(model.parameters())
    with pytest.raises(BenchError, match=r"train\.processes = 2 does not divide the batch of 899"):
        share_out(sgd, 899, ProcessGroup(0, 2))
    with pytest.raises(
        BenchError, match=r"m = 75 does not divide the per-process .* \(900 / 4 = 225\)|m = 450 does not"
    ):
        share_out(SAM(sgd, m=450), 900, ProcessGroup(0, 4))
    sgd.m = 10  # type: ignore[attr-defined]
    with pytest.raises(BenchError, match="SGD has m, but is no"):
        share_out(sgd, 100, ProcessGroup(0, 2))
    assert share_out(SAM(sgd, m=50), 100, ProcessGroup(0, 2)) == (50, False)
    assert share_out(SAM(sgd), 100, ProcessGroup(0, 2)) == (50, True)


@pytest.mark.parametrize("m", [None, 25])
def test_each_process_has_its_slice_of_the_batch_that_one_process_has(m: int | None) -> None:
    """Augmented as in one process: what is drawn is drawn for the whole batch."""
    model = ComponentSpec(name="mlp", params={"width": 8})
    seen: dict[tuple[int, int], list[torch.Tensor]] = {}
    for rank, size in ((0, 1), (0, 2), (1, 2)):
        run = set_up(spec_with(model, m=m, processes=size), CPU, ProcessGroup(rank, size))
        augment = np.random.RandomState(3)
        parts: list[torch.Tensor] = []
        run._closure = lambda inputs, targets, parts=parts: parts.append(inputs)  # type: ignore[method-assign, misc]
        for batch in run.batches(1)[:2]:
            run._closures(batch, augment)
        seen[rank, size] = parts
    first, second, whole = seen[0, 2], seen[1, 2], seen[0, 1]
    assert [len(part) for part in first] == ([50, 50] if m is None else [25] * 4)
    each = len(first) // 2
    ours = [part for n in (0, each) for part in first[n : n + each] + second[n : n + each]]
    assert torch.equal(torch.cat(ours), torch.cat(whole))


def test_texts_of_all_processes_are_as_wide_as_the_longest_of_the_whole_batch() -> None:
    lengths = np.random.RandomState(0).randint(1, 60, size=900)
    split = Split(torch.zeros(900, 64, dtype=torch.long), torch.zeros(900, dtype=torch.long), lengths=lengths)
    widths, tokens = [], []
    for rank in range(2):
        run = set_up(spec_with(ComponentSpec(name="mlp", params={"width": 8})), CPU, ProcessGroup(rank, 2))
        run.data = replace(run.data, train=split)
        run.task.training_batch = lambda inputs, targets, random: (inputs, targets)  # type: ignore[method-assign]
        run._closure = lambda inputs, targets: inputs.shape  # type: ignore[method-assign, assignment, return-value]
        batches = run.batches(0)
        widths.append([run._closures(batch, np.random.RandomState(0)) for batch in batches])
        tokens.append(sum(batch.tokens for batch in batches))
    assert widths[0] == widths[1]
    assert {shape[0] for shape in widths[0]} == {50}  # type: ignore[index]
    assert tokens[0] == tokens[1] == lengths.sum()  # of all processes together


# ---- places and slots ----------------------------------------------------------------------------------------


def test_where_a_process_belongs_is_what_srun_or_torchrun_says() -> None:
    assert place_of({}) is None
    assert place_of({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) is None  # a job of one task, as submitit's
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert place_of({**torchrun, "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == torchrun
    slurm = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1"}
    found = place_of(slurm)
    assert found is not None
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("1", "2", "1")
    assert found["MASTER_ADDR"] == "127.0.0.1"
    assert found["MASTER_PORT"] == place_of({**slurm, "SLURM_PROCID": "0"})["MASTER_PORT"]  # type: ignore[index]
    with pytest.raises(BenchError, match="export MASTER_ADDR"):
        place_of({**slurm, "SLURM_NNODES": "2"})
    assert place_of({**slurm, "SLURM_NNODES": "2", "MASTER_ADDR": "n1"})["MASTER_ADDR"] == "n1"  # type: ignore[index]


def test_runs_of_several_processes_get_as_many_gpus_each(machine: Callable[[int, int], None]) -> None:
    machine(8, 5)
    found = slots(None, processes={2})
    assert [[str(device) for device in slot.devices(2)] for slot in found] == [
        ["cuda:0", "cuda:1"],
        ["cuda:2", "cuda:3"],
    ]
    assert [slot.cores for slot in found] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert len(slots(1, processes={2})) == 1
    assert [slot.devices(2) for slot in slots(None, gpus=[4, 1], processes={2})] == [
        [torch.device("cuda:4"), torch.device("cuda:1")]
    ]
    for arguments, message in (
        ((None, 1, None, {1, 2}), "all must have as many"),
        ((None, 1, None, {8}), "needs one GPU per process, and 5 can be used"),
        ((3, 1, None, {2}), "do 2 at once"),
        ((None, 2, None, {2}), "do 2 at once"),
    ):
        with pytest.raises(BadValue, match=message):
            slots(*arguments)


def test_on_a_cpu_the_processes_of_a_run_share_its_cores(machine: Callable[[int, int], None]) -> None:
    machine(8, 0)
    assert [len(slot.cores) for slot in slots(None, processes={1, 4})] == [4, 4]
    assert Slot("cpu", (0, 1), 2).devices(3) == [CPU] * 3
    assert Slot("cuda:1", (0,), 1).devices(1) == [torch.device("cuda:1")]


# ---- steps ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found in all cases of two_processes.py."""
    return in_two_processes("tests.distributed.two_processes", tmp_path_factory.mktemp("both"))


@pytest.fixture
def one(registries: Any) -> None:
    two.register()
    torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.usefixtures("one")
@pytest.mark.parametrize("name", two.CASES)
def test_two_processes_do_what_one_does(both: list[dict[str, Any]], name: str) -> None:
    first, second = (found[name] for found in both)
    assert torch.equal(first["weights"], second["weights"])
    assert torch.equal(first["losses"], second["losses"])
    alone = two.steps(two.CASES[name])
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-6, atol=0.0)
    optimizer = two.spec_of(two.CASES[name], 1).optimizer
    expected = two.STEPS * optimizers[optimizer.name].passes(optimizer.params)
    assert first["passes"] == second["passes"] == alone["passes"]
    if optimizer.name == "ae-sam":  # what is registered is its upper bound
        assert two.STEPS < first["passes"] <= expected
    else:
        assert first["passes"] == round(expected)


@pytest.mark.slow
def test_m_decides_what_is_computed_and_not_the_number_of_processes(both: list[dict[str, Any]]) -> None:
    weights = {name: both[0][name]["weights"] for name in two.CASES}
    assert torch.equal(weights["sam"], weights["sam, m = B"])
    for one, other in (("sam", "sam, m = B / N"), ("sam, m = B / N", "sam, m = B / 2N"), ("sgd", "sgd, clipped")):
        assert (weights[one] - weights[other]).abs().max() > 1e-4, (one, other)


@pytest.mark.slow
def test_one_perturbation_for_all_or_one_for_each(both: list[dict[str, Any]]) -> None:
    together, apart = ([found[f"ascents, {how}"] for found in both] for how in ("together", "apart"))
    assert torch.equal(together[0]["e"], together[1]["e"])
    assert (apart[0]["e"] - apart[1]["e"]).norm() > 0.1 * apart[0]["e"].norm()
    for found in (together, apart):
        assert torch.equal(found[0]["weights"], found[1]["weights"])
        assert all(math.isclose(process["e"].norm().item(), 0.3, rel_tol=1e-6) for process in found)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["together", "apart"])
def test_what_is_not_finite_in_one_process_is_skipped_by_both(both: list[dict[str, Any]], how: str) -> None:
    first, second = (found[f"spoilt, {how}"] for found in both)
    assert first["unmoved"]
    assert second["unmoved"]
    assert first["skipped"] == second["skipped"] == 1
    assert torch.equal(first["weights"], second["weights"])
    assert first["weights"].isfinite().all()


@pytest.mark.slow
def test_a_norm_on_the_way_counts_in_all_processes(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["told apart"] == {"unmoved": True, "skipped": 1}


@pytest.mark.slow
def test_gradients_that_are_missing_count_as_zero_and_stay_missing_where_nobody_has_them(
    both: list[dict[str, Any]],
) -> None:
    for found in both:
        assert found["partly missing"]["mean"] == 0.5
        everywhere, somewhere, nowhere = found["partly missing"]["gradients"]
        assert torch.equal(everywhere, torch.full((3,), 1.5))
        assert torch.equal(somewhere, torch.full((3,), 2.0, dtype=torch.float64))
        assert nowhere is None


@pytest.mark.slow
def test_processes_agree(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["largest"] == 7
        assert found["from_first"]["rank"] == 0
        assert found["gathered"] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "m"), [("user", 32), ("user, local", 16), ("user, buckets", 32), ("user, local, buckets", 16)]
)
def test_sam_in_a_users_own_loop_with_ddp(both: list[dict[str, Any]], name: str, m: int) -> None:
    first, second = (found[name] for found in both)
    assert torch.equal(first["weights"], second["weights"])
    model = two.users_model()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), rho=0.2)
    inputs, targets = two.users_data()

    def closure(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for x in inputs:
        parts = zip(torch.split(x, m), torch.split(targets, m), strict=True)
        optimizer.step([partial(closure, *part) for part in parts])
    torch.testing.assert_close(first["weights"], two.flat(model), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_users_local_gradient_that_is_not_finite_is_skipped_by_all(both: list[dict[str, Any]]) -> None:
    first, second = (found["user, spoilt"] for found in both)
    assert first["skipped"] == second["skipped"] == 1
    assert torch.equal(first["weights"], second["weights"])
    assert first["weights"].isfinite().all()


@pytest.mark.slow
def test_a_users_micro_batches_are_those_of_one_process(both: list[dict[str, Any]]) -> None:
    """Each averaged over the processes, with a perturbation of its own."""
    first, second = (found["user, fp16, accumulating"] for found in both)
    assert torch.equal(first["weights"], second["weights"])
    model = two.users_model()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), rho=0.2)
    inputs, targets = two.users_data()
    for x in inputs:
        optimizer.zero_grad()
        for start in (0, 8):
            here = [*range(start, start + 8), *range(16 + start, 24 + start)]

            def closure(x: torch.Tensor = x, here: list[int] = here) -> torch.Tensor:
                loss = F.cross_entropy(model(x[here]), targets[here]) / 2
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimizer.backward(closure)
        optimizer.step()
    torch.testing.assert_close(first["weights"], two.flat(model), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_scalers_of_all_processes_back_off_when_one_of_them_meets_inf(both: list[dict[str, Any]]) -> None:
    first, second = (found["user, fp16, spoilt"] for found in both)
    assert first["scale"] == second["scale"] == 2.0**9
    assert torch.equal(first["weights"], second["weights"])
    assert first["weights"].isfinite().all()


# ---- whose error it was --------------------------------------------------------------------------------------


class Heard:
    """What a starter has heard."""

    processes = 2
    nodes = 1

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)

    def read(self) -> list[dict[str, Any]]:
        return []


def told(kind: str, rank: int, at: float) -> dict[str, Any]:
    return {"kind": kind, "rank": rank, "text": f"{kind} at {at}", "time": at}


def died(rank: int, code: int) -> dict[str, Any]:
    return {"kind": "died", "rank": rank, "code": code, "words": "last words"}


@pytest.mark.parametrize(
    ("messages", "error", "words"),
    [
        ([told("bug", 0, 2.0), died(0, 1), told("told", 1, 1.0), died(1, 1)], BenchError, "told at 1.0"),
        ([told("disk", 1, 1.0), told("bug", 0, 2.0)], StorageError, "disk at 1.0"),
        ([told("bug", 1, 1.0), died(1, 1)], ProcessFailed, "in process 1 of 2:\nbug at 1.0"),
        ([told("bug", 0, 1.0), died(1, -9)], BenchError, r"signal 9 \(SIGKILL\), possibly out of memory\nlast words"),
        ([died(1, 7)], BenchError, "process 1 of the 2 of this run ended with exit status 7"),
    ],
)
def test_the_error_of_a_run_is_its_cause(messages: Any, error: type[Exception], words: str) -> None:
    found = _cause(Heard(*messages), [])  # type: ignore[arg-type]
    assert type(found) is error
    assert re.search(words, str(found))


def test_a_death_on_another_node_is_waited_for() -> None:
    """This node's process meets a broken connection at once; who looks after the other one tells a little later."""

    class Late(Heard):
        nodes = 2
        looks = 0

        def read(self) -> list[dict[str, Any]]:
            self.looks += 1
            if self.looks == 5:
                self.messages.append(died(1, -9))
            return []

    found = _cause(Late(told("bug", 0, 1.0)), [])  # type: ignore[arg-type]
    assert "process 1 of the 2 of this run was killed by signal 9 (SIGKILL)" in str(found)


def test_another_node_that_stays_silent_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "AWAY_SECONDS", 0.1)
    heard = Heard(told("bug", 0, 1.0))
    heard.nodes = 2
    assert "in process 0 of 2:\nbug at 1.0" in str(_cause(heard, []))  # type: ignore[arg-type]


# ---- whole runs ----------------------------------------------------------------------------------------------


class Site:
    """A folder with the plug-in, and runs of two processes in it."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.plugin = path / "touchy.py"
        self.plugin.write_text(PLUGIN)
        digest = hashlib.sha256(self.plugin.read_bytes()).hexdigest()
        self.spec = spec_with(
            ComponentSpec(name="touchy"), (PluginFile(path=str(self.plugin), sha256=digest),), **settings
        )
        self.folder = Store(path / "results").run(self.spec.run_id)

    def order(self, rank: int, call: int, what: str) -> None:
        (self.path / "order").write_text(f"{rank} {call} {what}")

    def do(self, **options: Any) -> dict[str, Any]:
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            with self.folder.claim():
                return run_distributed(self.spec, self.folder, [CPU, CPU], **options)
        finally:
            torch.set_num_threads(threads)

    def by_hand(self) -> subprocess.Popen[str]:
        self.folder.path.mkdir(parents=True, exist_ok=True)
        path = self.path / "asked.json"
        path.write_text(self.spec.model_dump_json())
        command = [sys.executable, "-m", "bench.distributed", str(path), str(self.folder.path), "--threads", "1"]
        return Popen([*command, "--checkpoint-minutes", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def numbers(folder: RunFolder) -> tuple[Any, Any]:
    """Everything a run measured, without what the clock and the memory say."""
    result = folder.result()
    assert result is not None
    curve = [{k: v for k, v in point.items() if k not in TIMES} for point in folder.curve()]
    return {k: v for k, v in result.items() if k not in TIMES}, curve


def processes_of(folder: Path) -> list[int]:
    """Ids of all processes that have the folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    """Runs that start their processes from here have them without torch's import."""
    here = SimpleNamespace(Popen=Popen, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "subprocess", here)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    site = Site(tmp_path_factory.mktemp("undisturbed"), m=25)
    told: list[Any] = []
    result = site.do(report=lambda done, epochs, measured: told.append((done, epochs, measured["val_acc"])))
    assert [done for done, *_ in told] == [1, 2, 3]
    assert (result["passes"], result["examples"]) == (3 * 9 * 2, 3 * 900)
    (environment,) = site.folder.environments()
    assert (environment["processes"], environment["threads"]) == (2, 1)
    return site.folder


@pytest.mark.slow
def test_a_process_asked_to_stop_stops_both_and_the_run_ends_with_the_same_bits(
    undisturbed: RunFolder, tmp_path: Path
) -> None:
    """Inside an epoch, with dropout masks and batch-norm statistics that are each process's own."""
    site = Site(tmp_path, m=25)
    site.order(1, 13 * 4 + 1, "SIGTERM")  # in the fourteenth step: two parts and two passes each
    with pytest.raises(Stopped):
        site.do()
    state = checkpoint.load(site.folder.checkpoint, site.spec.run_id)
    assert (state["place"]["epoch"], state["place"]["step"]) == (1, 5)
    (other,) = state["others"]
    assert not torch.equal(other["random"]["host"], state["random"]["host"])
    mean = "net.2.running_mean"
    assert not torch.equal(other["buffers"][mean], state["model"][mean])
    assert site.folder.result() is None
    with pytest.raises(Stopped):
        site.do(stop=lambda: True)  # as a worker is asked, and asks them
    state = checkpoint.load(site.folder.checkpoint, site.spec.run_id)
    assert (state["place"]["epoch"], state["place"]["step"]) == (1, 6)
    result = site.do()
    assert result["resumes"] == 2
    assert numbers(site.folder) == _renamed(undisturbed, site.spec.run_id)
    assert not site.folder.checkpoint.exists()


def _renamed(folder: RunFolder, run_id: str) -> tuple[Any, Any]:
    result, curve = numbers(folder)
    return {**result, "run_id": run_id}, curve


@pytest.mark.slow
def test_processes_told_to_end_before_they_are_ready_stop_and_do_not_fail(tmp_path: Path) -> None:
    """As all of a SLURM job's are, together with whoever started them."""
    site = Site(tmp_path)
    told: list[int] = []

    def stop() -> bool:
        found = processes_of(site.folder.path)
        if not told and len(found) == 2:
            told.extend(found)
            for pid in found:
                os.kill(pid, signal.SIGTERM)
        return False

    with pytest.raises(Stopped):
        site.do(stop=stop)
    assert told
    state = checkpoint.load(site.folder.checkpoint, site.spec.run_id)
    assert (state["place"]["epoch"], state["place"]["step"]) == (0, 1)


@pytest.mark.slow
def test_a_run_on_one_machine_listens_on_loopback_only(tmp_path: Path) -> None:
    """Its starter and its processes, while they take steps."""
    site, seen = Site(tmp_path), set[str]()
    site.order(1, 7, "SIGTERM")

    def stop() -> bool:
        for pid in (os.getpid(), *processes_of(site.folder.path)):
            seen.update(listening_of(pid))
        return False

    with pytest.raises(Stopped):
        site.do(stop=stop)
    assert seen == {"0100007F"}  # 127.0.0.1


def listening_of(pid: int) -> set[str]:
    """The addresses on which a process listens, as the kernel writes them."""
    own = set()
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):  # it has ended, or has just closed this
            own.add(os.readlink(path))
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


@pytest.mark.slow
def test_one_that_dies_ends_both_and_is_named(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.order(1, 7, "SIGKILL")
    with pytest.raises(BenchError, match=r"process 1 of the 2 of this run was killed by signal 9 \(SIGKILL\)"):
        site.do()
    assert processes_of(site.folder.path) == []
    assert site.folder.result() is None


@pytest.mark.slow
def test_one_that_is_frozen_is_noticed_and_everybody_s_place_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path)
    site.order(1, 7, "SIGSTOP")

    last: dict[int, str] = {}
    places = MessageServer.places

    def note(news: MessageServer) -> dict[int, str]:
        last.update(now := places(news))
        return now

    def stop() -> bool:  # a busy machine may take its time until one is frozen and the other one waits for it
        waits = not (tmp_path / "order").exists() and len(last) == 2 and "process_group.py" in last[0]
        monkeypatch.setattr(distributed, "STUCK_MINUTES", 0.02 if waits else 30.0)
        return False

    monkeypatch.setattr(MessageServer, "places", note)
    told = r"process 0 is at process_group\.py:\d+ in .*process 1 is at"
    with pytest.raises(BenchError, match=rf"moved for 0\.02 minutes; {told}"):
        site.do(stop=stop)
    assert processes_of(site.folder.path) == []


@pytest.mark.slow
def test_killed_by_force_it_leaves_nobody_behind_and_goes_on_with_the_same_bits(
    undisturbed: RunFolder, tmp_path: Path
) -> None:
    site = Site(tmp_path, m=25)
    site.order(1, 60, "SIGSTOP")  # so that the run is not over before it is killed
    process = site.by_hand()
    deadline = time.monotonic() + HANGS
    while (site.path / "order").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = processes_of(site.folder.path)
    assert len(started) == 3
    process.kill()
    process.communicate()
    for child in set(processes_of(site.folder.path)):
        os.kill(child, signal.SIGCONT)  # one that is stopped could not see that its starter is dead
    assert site.folder.result() is None
    while processes_of(site.folder.path):
        assert time.monotonic() < deadline, "processes outlived the one that started them"
        time.sleep(0.05)
    again = site.by_hand()
    assert again.communicate(timeout=HANGS)[0].count("epoch") >= 1
    assert again.returncode == 0
    assert numbers(site.folder) == _renamed(undisturbed, site.spec.run_id)


@pytest.mark.slow
def test_started_by_torchrun_it_joins_and_measures_what_one_process_does(tmp_path: Path) -> None:
    model = ComponentSpec(name="mlp", params={"width": 16, "depth": 1, "dropout": 0.0})
    spec, alone = (spec_with(model, epochs=2, processes=n) for n in (2, 1))
    (tmp_path / "asked.json").write_text(spec.model_dump_json())
    folder = Store(tmp_path).run(spec.run_id)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "bench.distributed", str(tmp_path / "asked.json"), str(folder.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"kind": "done"}
    reference = Store(tmp_path).run(alone.run_id)
    with reference.claim():
        train(alone, reference, CPU)
    (result, curve), (expected, expected_curve) = numbers(folder), numbers(reference)
    assert result["metrics"] == pytest.approx(expected["metrics"], rel=1e-4, abs=1e-5)
    assert (result["passes"], result["examples"]) == (expected["passes"], expected["examples"])
    for point, other in zip(curve, expected_curve, strict=True):
        assert point == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert folder.status() == "done"


@pytest.mark.slow
def test_a_launch_does_runs_of_two_processes_and_records_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "touchy.toml").write_text(
        'task = "digits"\nmodel = "touchy"\nplugins = ["touchy.py"]\nbaseline = "sam"\nseeds = [0, 1]\n'
        "[train]\nepochs = 2\nbatch_size = 100\nprocesses = 2\n"
        '[optimizers.sam]\nbase = "sgd"\nlr = 0.05\n'
    )
    site.order(1, 5, "raise")
    command = [sys.executable, "-m", "bench", "run", "touchy.toml", "--jobs", "1"]
    done = prefork.run(command, cwd=tmp_path, env=os.environ | {prefork.WITHOUT_REPORT: "yes"})
    output = done.stdout + done.stderr
    assert output.count("FAILED: ValueError: no good") == 1, output
    assert "Estimated time on this machine" in output
    records = (tmp_path / "results" / "touchy" / "records.csv").read_text()
    header, *rows = (line.split(",") for line in records.splitlines())
    place = header.index("processes")
    assert sorted(row[header.index("status")] for row in rows) == ["done", "failed"]
    assert {row[place] for row in rows} == {"2"}
    (error,) = (tmp_path / "results").rglob("error.txt")
    assert re.search(r"in process 1 of 2:\n(?s:.*)Traceback(?s:.*)ValueError: no good\n$", error.read_text())
    assert processes_of(tmp_path) == []
