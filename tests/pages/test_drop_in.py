"""SAM in other trainers: the code of docs/sam-in-trainers.md, run as written, does there what SAM does here."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from bench import SAM

PAGE = (Path(__file__).parents[2] / "docs/sam-in-trainers.md").read_text()
pytestmark = [
    pytest.mark.filterwarnings("default:::(?!bench).*"),  # what other libraries deprecate is theirs
    pytest.mark.filterwarnings("ignore:.*(pin_memory|does not have many workers|LeafSpec|logging interval|log_every)"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def example(word: str, folder: Path) -> dict[str, Any]:
    """Return what is defined after the page's block with this word in it has run."""
    (code,) = (block for block in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S) if word in block)
    names: dict[str, Any] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, f"sam-in-trainers.md: {word}", "exec"), names)
    return names


def hand_step(parameters: list[nn.Parameter], loss_at: Callable[[], Tensor], rho: float) -> Tensor:
    """SAM's gradient of one (micro-)batch by the formula, with plain tensors; added to `.grad`. The loss at w."""
    before = [p.detach().clone() for p in parameters]
    loss = loss_at()
    g = torch.autograd.grad(loss, parameters)
    scale = rho / (torch.stack([torch.linalg.vector_norm(one) for one in g]).norm() + 1e-12)
    with torch.no_grad():
        for p, one in zip(parameters, g, strict=True):
            p.add_(one * scale)
    g = torch.autograd.grad(loss_at(), parameters)
    with torch.no_grad():
        for p, w, one in zip(parameters, before, g, strict=True):
            p.copy_(w)
            p.grad = one if p.grad is None else p.grad + one
    return loss.detach()


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# ---- Hugging Face's Trainer --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return example("SAMTrainer", tmp_path_factory.mktemp("hugging_face"))


class Seen:
    """What goes into a model that is trained, with the random numbers it is about to draw and whether weights moved."""

    def __init__(self, model: nn.Module) -> None:
        self.inputs: list[dict[str, Tensor]] = []
        self.random: list[Tensor] = []
        self.weights: list[Tensor] = []
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.inputs.append({key: value.clone() for key, value in kwargs.items() if isinstance(value, Tensor)})
        self.random.append(torch.get_rng_state())
        self.weights.append(next(model.parameters()).detach().clone())


def trainer_of(names: dict[str, Any], folder: Path, **arguments: Any) -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    model = names["BertForSequenceClassification"](names["config"])
    twin = copy.deepcopy(model)
    optimizer = SAM(AdamW(model.parameters(), lr=1e-2), rho=0.05, model=model)
    defaults = {"max_steps": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "logging_steps": 1}
    given = names["TrainingArguments"](
        str(folder), report_to="none", disable_tqdm=True, use_cpu=True, **(defaults | arguments)
    )
    trainer = names["SAMTrainer"](model, given, train_dataset=names["examples"], optimizers=(optimizer, None))
    trainer.model_accepts_loss_kwargs = False  # BERT's class says so and does not: micro-batches would be summed
    return trainer, twin


def test_the_trainer_does_sam(hugging_face: dict[str, Any], tmp_path: Path) -> None:
    """Against a loop by hand over what it was given: its micro-batches, dropout, clipping and schedule."""
    trainer, twin = trainer_of(hugging_face, tmp_path, save_strategy="no")
    seen = Seen(trainer.model)
    trainer.train()
    assert len(seen.inputs) == 3 * 2 * 2  # steps, micro-batches, passes

    base = AdamW(twin.parameters(), lr=1e-2)
    schedule = LambdaLR(base, lambda step: 1 - step / 3)
    parameters, losses = list(twin.parameters()), []
    twin.train()
    for step in range(3):
        for micro in (4 * step, 4 * step + 2):
            inputs, random = seen.inputs[micro], seen.random[micro]
            assert all(torch.equal(inputs[key], seen.inputs[micro + 1][key]) for key in inputs)
            assert torch.equal(random, seen.random[micro + 1])
            assert not torch.equal(seen.weights[micro], seen.weights[micro + 1])

            def loss(inputs: dict[str, Tensor] = inputs, random: Tensor = random) -> Tensor:
                torch.set_rng_state(random)
                return twin(**inputs).loss / 2  # type: ignore[no-any-return]

            losses.append(hand_step(parameters, loss, 0.05))
        clip_grad_norm_(parameters, 0.1)
        base.step()
        schedule.step()
        base.zero_grad()
    assert same(trainer.model, twin)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([float(a + b) for a, b in zip(losses[::2], losses[1::2], strict=True)], abs=1e-4)


def test_the_trainer_goes_on_from_its_checkpoint(hugging_face: dict[str, Any], tmp_path: Path) -> None:
    straight, _ = trainer_of(hugging_face, tmp_path / "straight", max_steps=4, save_steps=2)
    straight.train()
    resumed, _ = trainer_of(hugging_face, tmp_path / "resumed", max_steps=4, save_steps=2)
    with torch.no_grad():
        for p in resumed.model.parameters():
            p.fill_(0.1)  # without drawing: the Trainer's batches come from the global seed it has set
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert same(straight.model, resumed.model)
    assert straight.optimizer.param_groups[0]["lr"] == resumed.optimizer.param_groups[0]["lr"]


def test_the_trainer_in_bf16_with_label_smoothing(hugging_face: dict[str, Any], tmp_path: Path) -> None:
    """Label smoothing takes labels out of the batch: they are there again in the second pass."""
    trainer, _ = trainer_of(hugging_face, tmp_path, save_strategy="no", bf16=True, label_smoothing_factor=0.1)
    seen = Seen(trainer.model)
    trainer.train()
    assert len(seen.inputs) == 12
    assert not torch.equal(seen.weights[0], seen.weights[1])
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_accelerate_alone_takes_a_closure(hugging_face: dict[str, Any]) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    twin, x = copy.deepcopy(model), torch.randn(16, 4)
    ours = SAM(SGD(model.parameters(), lr=0.1), rho=0.1, model=model)
    plain = SAM(SGD(twin.parameters(), lr=0.1), rho=0.1, model=twin)
    AcceleratorState._reset_state(reset_partial_state=True)  # it is one for the whole process
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, ours)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = prepared(x).square().mean()
        accelerator.backward(loss)
        return loss

    def twins() -> Tensor:
        plain.zero_grad()
        loss: Tensor = twin(x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for _ in range(3):
        optimizer.step(closure)
        plain.step(twins)
    assert same(model, twin)


# ---- Lightning ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lightning(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return example("LightningModule", tmp_path_factory.mktemp("lightning"))


def fit(names: dict[str, Any], net: Any, folder: Path, checkpoint: str | None = None, **settings: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    defaults = {"max_epochs": 2, "enable_checkpointing": False, "default_root_dir": folder}
    trainer = names["lightning"].Trainer(**(quiet | defaults | settings))
    trainer.fit(net, loader(), ckpt_path=checkpoint)
    return trainer


def loader() -> Any:
    random = torch.Generator().manual_seed(3)
    data = torch.utils.data.TensorDataset(
        torch.randn(32, 8, generator=random), torch.randint(2, (32,), generator=random)
    )
    return torch.utils.data.DataLoader(data, batch_size=8)


def a_net(names: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return names["Net"]()


def test_lightning_does_sam(lightning: dict[str, Any], tmp_path: Path) -> None:
    net = a_net(lightning)
    twin = copy.deepcopy(net.net)
    trainer = fit(lightning, net, tmp_path, gradient_clip_val=0.1)

    optimizer = SAM(SGD(twin.parameters(), lr=0.1, momentum=0.9), rho=0.05, model=twin, clip_norm=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
    for _ in range(2):
        losses = []
        for x, y in loader():

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(twin(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            losses.append(optimizer.step(closure))
        schedule.step()
    assert int(net.net[1].num_batches_tracked) == 8
    for ours, by_hand in zip(net.net.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, by_hand)  # Lightning clips before the ascent too: a rounding of e
    assert trainer.optimizers[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(losses[-1].item(), rel=1e-5)


def test_lightning_in_bf16_ascends(lightning: dict[str, Any], tmp_path: Path) -> None:
    net = a_net(lightning)
    seen = Seen(net.net)
    fit(lightning, net, tmp_path, precision="bf16-mixed", max_epochs=1)
    assert len(seen.weights) == 4 * 2
    assert all(not torch.equal(a, b) for a, b in zip(seen.weights[::2], seen.weights[1::2], strict=True))


def test_lightning_goes_on_from_its_checkpoint(lightning: dict[str, Any], tmp_path: Path) -> None:
    straight = a_net(lightning)
    fit(lightning, straight, tmp_path)
    half = a_net(lightning)
    fit(lightning, half, tmp_path, max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    resumed = lightning["Net"]()
    fit(lightning, resumed, tmp_path, checkpoint=str(tmp_path / "half.ckpt"))
    assert not same(straight, half)
    assert same(straight, resumed)


def test_lightnings_automatic_accumulation_is_refused(lightning: dict[str, Any], tmp_path: Path) -> None:
    """It would hand SAM one micro-batch to go on with, after the ascent of all of them."""
    with pytest.raises(RuntimeError, match=r"To accumulate over micro-batches: optimizer\.backward\(closure\)"):
        fit(lightning, a_net(lightning), tmp_path, accumulate_grad_batches=2)


def test_lightnings_manual_optimization_accumulates(lightning: dict[str, Any], tmp_path: Path) -> None:
    Net: Any = lightning["Net"]

    class Manual(Net):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()

            def closure() -> Tensor:
                loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1]) / 2
                self.manual_backward(loss)
                return loss

            optimizer.optimizer.backward(closure)
            if batch_idx % 2:
                optimizer.step()
                optimizer.zero_grad()

    torch.manual_seed(0)
    net = Manual()
    twin = copy.deepcopy(net.net)
    trainer = fit(lightning, net, tmp_path, max_epochs=1)
    assert trainer.global_step == 2

    optimizer = SAM(SGD(twin.parameters(), lr=0.1, momentum=0.9), rho=0.05, model=twin)
    batches = list(loader())
    for pair in (batches[:2], batches[2:]):

        def part(x: Tensor, y: Tensor) -> Callable[[], Tensor]:
            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(twin(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            return closure

        optimizer.step([part(x, y) for x, y in pair])
    for ours, by_hand in zip(net.net.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, by_hand)


# ---- timm --------------------------------------------------------------------------------------------------------


def test_timms_training_loop_with_its_own_pieces(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = example("NativeScaler", tmp_path)
    optimizer, model = names["optimizer"], names["model"]
    assert optimizer.param_groups[0]["lr"] == optimizer.base.param_groups[0]["lr"] < 0.1  # timm's schedule went on
    steps = [int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert set(steps) == {8}  # once a micro-batch: 2 epochs of 4
    assert optimizer.skipped_steps == 0
    assert all(p.isfinite().all() for p in model.parameters())
    assert {state["momentum_buffer"].dtype for state in optimizer.state.values()} == {torch.float32}


def test_timms_checkpoints_keep_it(tmp_path: Path) -> None:
    import timm
    from timm.models import resume_checkpoint
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
    from timm.utils import CheckpointSaver  # type: ignore[attr-defined]

    x, y = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4)

    def objects(seed: int) -> tuple[nn.Module, SAM]:
        torch.manual_seed(seed)
        model = timm.create_model("test_resnet", num_classes=10)
        return model, SAM(create_optimizer_v2(model, opt="momentum", lr=0.1, weight_decay=1e-4), rho=0.05, model=model)

    def step(model: nn.Module, optimizer: SAM) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)

    straight = objects(0)
    step(*straight)
    saver: Any = CheckpointSaver(*straight, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))  # type: ignore[no-untyped-call]
    saver.save_checkpoint(0)
    step(*straight)
    resumed = objects(1)
    resume_checkpoint(resumed[0], str(tmp_path / "last.pth.tar"), resumed[1], log_info=False)
    step(*resumed)
    assert same(straight[0], resumed[0])
