"""Whole runs of text encoders on GLUE: a tiny checkpoint, small tables in GLUE's forms, the real code."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.config.file import load
from bench.core.errors import BenchError
from bench.core.registry import load_builtins, tasks
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.evidence.measures.measure import MeasureSettings, measure, prepared
from bench.launch import run as launch
from bench.models.pretrained import Checkpoint
from bench.store import records
from bench.store.run_folder import Store
from bench.tasks.base import prepare_data
from bench.train import Stopped, train
from bench.training.evaluate import outputs
from bench.training.step import set_up
from tests import prefork

from .architecture_files import write_architecture
from .encoder_files import SENTENCES, write

load_builtins()
CPU, GPU = torch.device("cpu"), torch.device("cuda")
WORDS = sorted(set(" ".join(SENTENCES).split()))
LABELS = {"rte": ("entailment", "not_entailment"), "mnli": ("entailment", "neutral", "contradiction")}


def sentence(random: np.random.RandomState) -> str:
    return " ".join(random.choice(WORDS, size=random.randint(1, 30)))


def write_tables(folder: Path, name: str, train: int = 60, dev: int = 24) -> None:
    """Tables of one of a few tasks, of random words."""
    random = np.random.RandomState(sum(name.encode()))
    files = {"train": train, **({"dev_matched": dev, "dev_mismatched": dev} if name == "mnli" else {"dev": dev})}
    folder.mkdir(parents=True)
    for file, count in files.items():
        lines = []
        for number in range(count):
            pair = [sentence(random), sentence(random)]
            if name == "cola":
                lines.append(f"gj04\t{number % 2}\t\t{pair[0]}")
            elif name == "stsb":
                lines.append("\t".join([str(number), *"abcdef", *pair, f"{5 * random.rand():.3f}"]))
            else:
                lines.append("\t".join([str(number), *pair, LABELS[name][number % len(LABELS[name])]]))
        header = {
            "cola": [],
            "stsb": ["index", *"abcdef", "sentence1", "sentence2", "score"],
            "rte": ["index", "sentence1", "sentence2", "label"],
            "mnli": ["index", "sentence1", "sentence2", "gold_label"],
        }[name]
        text = "\n".join(["\t".join(header), *lines] if header else lines)
        (folder / f"{file}.tsv").write_text(text + "\n")


FOLDERS = {"cola": "CoLA", "stsb": "STS-B", "rte": "RTE", "mnli": "MNLI"}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with tables of four tasks and a checkpoint, "tiny"."""
    folder = tmp_path / "data"
    for name, place in FOLDERS.items():
        write_tables(folder / "glue" / place, name)
    write(folder / "weights" / "tiny", "bert")
    monkeypatch.setenv("BENCH_DATA", str(folder))
    return folder


def make_spec(task: str = "rte", method: dict[str, Any] | None = None, **train: Any) -> RunSpec:
    base = ComponentSpec(
        name="adamw", params={"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    )
    optimizer = OptimizerSpec(name="adamw", params=base.params)
    if method is not None:
        optimizer = OptimizerSpec(name="sam", params={"m": None, **method}, base=base)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "schedule": "linear", "warmup_ratio": 0.1, **train}
    return RunSpec(
        task=ComponentSpec(name=f"glue/{task}", params={"max_length": 48, "allow_unverified_data": True}),
        model=ComponentSpec(name="encoder", params={"checkpoint": "tiny", "from_scratch": False}),
        optimizer=optimizer,
        data=DataSettings(validation=0.2),
        train=TrainSettings(**settings),
        seed=0,
    )


def do(spec: RunSpec, root: Path, device: torch.device = CPU, **options: Any) -> dict[str, Any]:
    folder = Store(root).run(spec.run_id)
    with folder.claim():
        return train(spec, folder, device, **options)


TINY = {
    "task": {"name": "glue/rte", "allow_unverified_data": True, "max_length": 48},
    "model": {"name": "encoder", "checkpoint": "tiny"},
    "baseline": "adamw",
    "seeds": 2,
    "vary": {"task.name": ["glue/cola", "glue/stsb", "glue/rte", "glue/mnli"]},
    "train": {"epochs": 2, "batch_size": 8, "clip_norm": 1.0, "weight_decay_on": "matrices", "schedule": "linear"},
    "optimizers": {
        "adamw": {"lr": 1e-3},
        "sam": {"base": "adamw", "lr": 1e-3, "sweep": {"rho": [0.01, 0.05]}},
    },
}


# ---- from the file to the table ------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_experiment_over_tasks_ends_in_a_table_by_task(
    data: Path, tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write_experiment(TINY)
    launched = launch.run(str(path), out=tmp_path / "results", jobs=2)
    found: Any = launched.results.records
    assert found.status.eq("done").all()
    assert len(found) == 4 * 3 * 2
    by_task = found.groupby("task").first()
    for task, columns in {
        "glue/cola": ["test_mcc"],
        "glue/stsb": ["test_pearson", "test_spearman"],
        "glue/rte": ["test_acc"],
        "glue/mnli": ["test_acc", "mismatched_acc"],
    }.items():
        assert by_task.loc[task, columns].notna().all(), task
        official = by_task.loc[task, [column for column in columns if column.startswith("test_")]]
        assert by_task.loc[task, "test_score"] == pytest.approx(official.mean())
    assert by_task.loc["glue/mnli", "mismatched_loss"] > 0
    assert math.isnan(by_task.loc["glue/rte", "mismatched_loss"])
    assert (found.tokens > 0).all()
    assert not found.data_verified.any()

    again = records.read(launched.folder)
    assert again.meta["tasks"]["glue/mnli"]["suite"] == {"name": "GLUE", "tasks": 9}
    assert any("no labels" in note for note in again.meta["notes"])
    command = [sys.executable, "-m", "bench", "table", path.stem, "--out", str(tmp_path / "results"), "--format", "md"]
    table = prefork.run(command).stdout
    assert "| GLUE average" in table
    assert "over 4 of" in table
    assert "no labels" in table


def test_preparing_tokenises_everything_and_runs_then_need_no_tokenizer(
    data: Path, write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_experiment({**TINY, "seeds": 1})
    launch.prepare(str(path))
    assert len(list((data / "tokens").glob("*.safetensors"))) == 3 * 2 + 3  # MNLI has two dev sets
    monkeypatch.setattr("bench.data.tokens._tokenise", None)
    for task in FOLDERS:
        assert len(set_up(make_spec(task), CPU).data.val) == 12


# ---- a run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["rte", "stsb"])
@pytest.mark.parametrize("method", [None, {"rho": 0.05}, {"rho": 0.05, "m": 4}])
def test_a_stopped_run_goes_on_to_the_same_bits(
    data: Path, tmp_path: Path, task: str, method: dict[str, Any] | None
) -> None:
    spec = make_spec(task, method, epochs=3, clip_norm=1.0)
    straight = do(spec, tmp_path / "straight")
    with pytest.raises(Stopped):
        do(spec, tmp_path / "stopped", stop=lambda: True)
    resumed = do(spec, tmp_path / "stopped")
    for name in ("weights_sha256", "metrics", "tokens", "passes"):
        assert resumed[name] == straight[name], name
    assert resumed["resumes"] == 1


def test_the_seed_s_tokens_are_the_same_for_every_optimizer_and_counted_once_a_step(data: Path, tmp_path: Path) -> None:
    plain, sam = do(make_spec(), tmp_path), do(make_spec(method={"rho": 0.05}), tmp_path)
    assert plain["tokens"] == sam["tokens"]
    assert sam["passes"] == 2 * plain["passes"] == 2 * 2 * 6
    run = set_up(make_spec(), CPU)
    assert run.data.train.lengths is not None
    lengths = np.minimum(run.data.train.lengths, 48)
    used = [batch.examples for epoch in range(2) for batch in run.batches(epoch)]
    assert plain["tokens"] == sum(int(lengths[examples.numpy()].sum()) for examples in used)


def test_what_was_too_long_is_cut_and_counted(data: Path, tmp_path: Path) -> None:
    spec = make_spec()
    do(spec, tmp_path)
    (environment,) = Store(tmp_path).run(spec.run_id).environments()
    task = tasks["glue/rte"].build(**spec.task.params)
    texts = [split.inputs for split in task.load()]
    lengths = [len(f"{a} {b}".split()) + 3 for text in texts for a, b in zip(text.first, text.second, strict=True)]
    long = sum(length > 48 for length in lengths)
    assert 0 < long < len(lengths)
    assert (environment["sequences"], environment["truncated"], environment["max_tokens"]) == (len(lengths), long, 48)


def test_evaluation_in_order_of_length_gives_outputs_in_the_order_of_the_split(data: Path) -> None:
    run = set_up(make_spec(), CPU)
    run.model.eval()
    split = run.data.train
    with torch.no_grad():
        one_by_one = torch.cat([run.model(split.inputs[number : number + 1]) for number in range(len(split))])
    assert torch.allclose(outputs(run.model, run.task, split, run.autocast), one_by_one, atol=1e-4)


def test_wrong_labels_and_shares_of_the_training_set_are_as_for_images(data: Path) -> None:
    task = tasks["glue/rte"].build(allow_unverified_data=True)
    whole = prepare_data(task, DataSettings(validation=0.2), seed=0)
    part = prepare_data(task, DataSettings(validation=0.2, train_share=0.25, label_noise=0.5), seed=0)
    assert len(whole.train) == 48
    assert len(part.train) == 12
    assert part.train.inputs.first == whole.train.inputs.first[:12]
    assert part.train.noisy is not None
    assert part.train.noisy.sum() == 6
    assert (part.train.targets != whole.train.targets[:12]).sum() == 6


# ---- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model": "mlp"},
            '"mlp" does not read text, which "glue/rte" is; these do: byte_decoder, decoder, encoder, minilm',
        ),
        ({"task": "digits", "vary": {}}, '"encoder" reads text, which "digits" is not'),
        ({"vary": {"task.name": ["glue/rte", "glue/mprc"]}}, "glue/mrpc"),
        ({"task": "digits", "vary": {"task.name": ["glue/rte", "digits"]}}, "reads text, which"),
        ({"task": {"name": "glue/rte", "max_length": 1000}}, "less than or equal to 512"),
        ({"data": {"train_share": 0.0}}, "data.train_share: must be greater than 0"),
        ({"data": {"train_share": 0.5, "train_size": 3}}, "train_size sets the same thing"),
        ({"train": {"epochs": 1, "warmup_epochs": 1, "warmup_ratio": 0.1}}, "warmup_epochs sets the same thing"),
    ],
)
def test_what_cannot_go_together_is_told_before_anything_runs(
    write_experiment: Callable[..., Path], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BenchError) as caught:
        load(write_experiment({**TINY, **changes}))
    assert words in str(caught.value)


def test_cuda_graphs_are_not_for_batches_of_many_widths(data: Path) -> None:
    with pytest.raises(BenchError, match="cuda_graphs needs batches of one shape"):
        set_up(make_spec(compile=True, cuda_graphs=True), CPU)


def test_a_missing_checkpoint_stops_the_launch(
    data: Path, tmp_path: Path, write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "fetch", lambda self: (_ for _ in ()).throw(BenchError(self.name)))
    path = write_experiment({**TINY, "model": {"name": "encoder", "checkpoint": "nobody/nothing"}})
    with pytest.raises(BenchError, match="nobody/nothing"):
        launch.run(str(path), out=tmp_path / "results")
    assert not list((tmp_path / "results").rglob("result.json"))


@pytest.mark.parametrize(
    ("architecture", "train", "words"),
    [
        ("deberta", {"precision": "bf16"}, 'cannot compute in train.precision = "bf16"'),
        ("fnet", {}, "gives a text other outputs when its batch is padded"),
    ],
)
def test_an_architecture_that_cannot_be_trained_stops_the_launch(
    data: Path, tmp_path: Path, write_experiment: Callable[..., Path], architecture: str, train: Any, words: str
) -> None:
    write_architecture(data / "weights" / architecture, architecture)
    model = {"name": "encoder", "checkpoint": architecture}
    path = write_experiment({**TINY, "model": model, "train": {"epochs": 1, **train}})
    with pytest.raises(BenchError, match=rf'model "encoder" \(checkpoint = {architecture}.* {words}'):
        launch.run(str(path), out=tmp_path / "results")
    assert not list((tmp_path / "results").rglob("runs/*"))


def test_a_run_tells_the_texts_of_a_pair_apart_by_segments_that_must_be_asked_for(data: Path, tmp_path: Path) -> None:
    write_architecture(data / "weights" / "albert", "albert")
    spec = make_spec().model_copy(
        update={"model": ComponentSpec(name="encoder", params={"checkpoint": "albert", "from_scratch": False})}
    )
    assert set(set_up(spec, CPU).data.train.inputs[:, 1].flatten().tolist()) == {0, 1}


@pytest.mark.slow
def test_compiled_and_uncompiled_losses_of_texts_are_equal_within_rounding(data: Path) -> None:
    losses = []
    for compile_ in (False, True):
        run = set_up(make_spec(compile=compile_), CPU)
        torch.manual_seed(0)
        run.network.eval()  # dropout of compiled code draws other numbers
        losses.append([run.step(batch, np.random.RandomState(0)).item() for batch in run.batches(0)])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


# ---- on a GPU ------------------------------------------------------------------------------------------------

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"precision": "bf16"}, marks=gpu),
        pytest.param({"precision": "bf16", "compile": True}, marks=[*gpu, pytest.mark.slow]),
    ],
)
def test_losses_on_a_gpu_are_those_on_the_host(data: Path, settings: dict[str, Any]) -> None:
    method = {"rho": 0.05}
    host, device = set_up(make_spec(method=method), CPU), set_up(make_spec(method=method, **settings), GPU)
    losses = []
    for run in (host, device):
        run.network.eval()  # dropout draws other numbers there
        losses.append([run.step(batch, np.random.RandomState(0)).item() for batch in run.batches(0)])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_stopped_run_goes_on_to_the_same_bits_on_a_gpu(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    spec = make_spec(method={"rho": 0.05}, epochs=3, deterministic=True, precision="bf16")
    straight = do(spec, tmp_path / "straight", device=GPU)
    with pytest.raises(Stopped):
        do(spec, tmp_path / "stopped", device=GPU, stop=lambda: True)
    assert do(spec, tmp_path / "stopped", device=GPU)["weights_sha256"] == straight["weights_sha256"]


# ---- sharpness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_an_encoder_is_measured_attention_and_all(data: Path, task: str) -> None:
    spec = make_spec(task)
    settings = MeasureSettings(examples=24, eigenvalues=1, m=8, line_points=3, plane_points=3)
    row, points = measure(prepared(spec, CPU), spec, settings, with_plane=True)
    again, points_again = measure(prepared(spec, CPU), spec, settings, with_plane=True)
    assert math.isfinite(row["eigenvalue_1"])
    assert row["m_sharpness_batches"] == 3
    assert ("ece" in row) == (task == "rte"), "a regression has no calibration"
    assert len(points) == 3 + 9
    assert points == points_again
    exact = {name: value for name, value in row.items() if not name.endswith("_seconds")}
    assert exact == {name: again[name] for name in exact}
