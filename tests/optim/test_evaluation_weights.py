"""Optimizers that keep other weights for evaluation than for training: what is measured, recorded, kept and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_optimizer import ScheduleFreeAdamW, ScheduleFreeSGD
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from bench.core.run_options import RunOptions
from bench.core.spec import RunSpec
from bench.evidence.measures.measure import MeasureSettings, measure, prepared
from bench.optim.base.averaging import evaluation_weights
from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.gsam import GSAM
from bench.optim.sam import SAM
from bench.store.run_folder import Store
from bench.train import Stopped, train, weights_sha256
from bench.training import passes
from bench.training.checkpoint import load_weights
from bench.training.evaluate import evaluate
from tests.test_train import CPU, do, make_spec, numbers, optimizer_choice, stop_after

from .helpers import Watch, problem, same_bits, snapshot


class Trailing(SGD):
    """SGD, evaluated a third of the way back to where it began, which a line back and forth does not give to the bit.

    It is in neither mode until it is told, and the mode is in no checkpoint.
    """

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        self.training: bool | None = None
        self.told: list[str] = []

    @torch.no_grad()
    def _turn(self, training: bool, weight: float) -> None:
        self.told.append("train" if training else "eval")
        if self.training is not None and self.training != training:
            for group in self.param_groups:
                for p in group["params"]:
                    if "begin" in self.state[p]:
                        p.lerp_(self.state[p]["begin"], weight)
        self.training = training

    def train(self) -> None:
        self._turn(True, -0.5)

    def eval(self) -> None:
        self._turn(False, 1 / 3)

    def step(self, closure: Any = None) -> Any:
        assert self.training, "stepped at the weights for evaluation"
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("begin", p.detach().clone())
        return super().step(closure)


BASES: dict[str, Callable[[Any], Optimizer]] = {
    "trailing": Trailing,
    "schedule-free SGD": lambda params: ScheduleFreeSGD(params, lr=0.1),
    "schedule-free AdamW": lambda params: ScheduleFreeAdamW(params, lr=0.01),
}
METHODS: dict[str, Callable[..., Optimizer]] = {
    "bare": lambda base, model: base,
    "clipped": lambda base, model: OptimizerWrapper(base, clip_norm=1.0),
    "sam": lambda base, model: SAM(base, rho=0.1, model=model),
    "gsam": lambda base, model: GSAM(base, rho=0.1, model=model),
}
over_bases = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
over_methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.fixture
def built(
    base: Callable[[Any], Optimizer], method: Callable[..., Optimizer], monkeypatch: pytest.MonkeyPatch
) -> list[Optimizer]:
    """Has every run trained by this optimizer, and lists them."""
    optimizers: list[Optimizer] = []

    def build(spec: RunSpec, model: nn.Module) -> Optimizer:
        optimizers.append(method(base(model.parameters()), model))
        return optimizers[-1]

    monkeypatch.setattr("bench.training.step.build_optimizer", build)
    return optimizers


# ---- a method passes it on ---------------------------------------------------------------------------------------


def test_a_method_passes_on_train_and_eval_and_others_are_left_alone() -> None:
    model, _ = problem()
    base = Trailing(model.parameters())
    optimizer = SAM(base)
    optimizer.train()
    optimizer.eval()
    assert base.told == ["train", "eval"]
    assert optimizer.keeps_evaluation_weights
    plain = SAM(SGD(model.parameters(), lr=0.1))
    plain.train()
    plain.eval()
    assert not plain.keeps_evaluation_weights


@over_bases
@over_methods
def test_weights_for_evaluation_are_the_bases_and_all_is_back_to_the_bit(
    base: Callable[[Any], Optimizer], method: Callable[..., Optimizer]
) -> None:
    """Batch norm has statistics of these weights meanwhile, as of averages."""

    def trained() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1))
        optimizer: Any = method(base(model.parameters()), model)
        optimizer.train()
        for step in range(4):
            torch.manual_seed(step)
            optimizer.step(Watch(optimizer, lambda: model(x).square().mean()))
        return model, optimizer

    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    (model, optimizer), (twin, other) = trained(), trained()
    other.eval()
    before, state, random = snapshot(model.state_dict().values()), optimizer.state_dict(), torch.get_rng_state()
    groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
    with evaluation_weights(optimizer, model, [x]):
        assert same_bits(model.parameters(), twin.parameters())
        assert not same_bits(model.parameters(), before[: len(list(model.parameters()))])
        mean = model[1].running_mean  # type: ignore[index]
        torch.testing.assert_close(mean, model[0](x).mean(0))  # type: ignore[index]
    assert same_bits(model.state_dict().values(), before)
    assert torch.equal(torch.get_rng_state(), random)
    now = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.state_dict()["param_groups"]]
    assert now == groups, "in training mode again"


# ---- a run -------------------------------------------------------------------------------------------------------


@over_bases
@pytest.mark.parametrize("method", [METHODS["bare"], METHODS["sam"]], ids=["bare", "sam"])
def test_a_run_is_measured_recorded_kept_and_measured_again_at_the_weights_for_evaluation(
    built: list[Optimizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def watching(model: nn.Module, *rest: Any) -> dict[str, float]:
        seen.append(weights_sha256(model))
        return evaluate(model, *rest)

    monkeypatch.setattr("bench.train.evaluate", watching)
    spec = make_spec()
    result = do(spec, tmp_path, options=RunOptions(keep_weights=True))
    assert result["weights_sha256"] == seen[-1], "what was measured last"
    _kept_weights_are_the_measured_ones(spec, tmp_path, result)


@pytest.mark.parametrize(("name", "settings"), [("ema", {"ema_decay": 0.9}), ("swa", {"swa_from": 0.5})])
def test_of_an_average_too_the_weights_that_are_measured_are_recorded_and_kept(
    name: str, settings: dict[str, float], tmp_path: Path
) -> None:
    spec = make_spec(optimizer_choice(name, "sgd", **settings))
    result = do(spec, tmp_path, options=RunOptions(keep_weights=True))
    plain = do(make_spec(optimizer_choice("sgd")), tmp_path)
    assert result["weights_sha256"] != plain["weights_sha256"], "the average, not where its base has come to"
    _kept_weights_are_the_measured_ones(spec, tmp_path, result)


def _kept_weights_are_the_measured_ones(spec: RunSpec, root: Path, result: dict[str, Any]) -> None:
    """As `bench measure` loads them: the loss there is that of the run's last evaluation."""
    ready = prepared(spec, CPU)
    load_weights(Store(root).run(spec.run_id).weights, ready.model)
    assert weights_sha256(ready.model) == result["weights_sha256"]
    settings = MeasureSettings(examples=10_000, eigenvalues=1, line_points=3)
    row, _ = measure(ready, spec, settings, with_plane=False)
    assert row["loss"] == pytest.approx(result["metrics"]["train_loss"], rel=1e-4)


@over_bases
@pytest.mark.parametrize("method", [METHODS["bare"], METHODS["sam"]], ids=["bare", "sam"])
def test_neither_evaluations_nor_stops_change_the_end(built: list[Optimizer], tmp_path: Path) -> None:
    straight = do(make_spec(eval_every=3), tmp_path / "seldom")
    often = do(make_spec(eval_every=1), tmp_path / "often")
    assert often["weights_sha256"] == straight["weights_sha256"]
    spec, root = make_spec(eval_every=1), tmp_path / "stopped"
    folder = Store(root).run(spec.run_id)
    for asked in (4, 10, 7):
        with folder.claim(), pytest.raises(Stopped):
            train(spec, folder, CPU, stop=stop_after(asked))
    do(spec, root)
    assert numbers(folder) == numbers(Store(tmp_path / "often").run(spec.run_id))


@pytest.mark.parametrize("base", [Trailing])
@pytest.mark.parametrize("method", [METHODS["bare"]])
def test_an_optimizer_is_told_to_train_before_its_first_step(built: list[Optimizer], tmp_path: Path) -> None:
    do(make_spec(eval_every=2), tmp_path)
    (optimizer,) = built
    assert isinstance(optimizer, Trailing)
    assert optimizer.told == ["train", "eval", "train", "eval", "train"]


def test_passes_of_one_that_wants_to_be_told_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.training.passes.chosen_optimizer", lambda choice, weights, model: SAM(Trailing(weights)))
    assert passes._count(optimizer_choice()) == 2.0


def test_an_optimizer_with_only_one_of_the_two_is_not_asked() -> None:
    class Odd(SGD):
        def train(self) -> Tensor:
            raise AssertionError("asked")

    model, _ = problem()
    optimizer = Odd(model.parameters(), lr=0.1)
    with evaluation_weights(optimizer, model, []):
        pass
    SAM(optimizer).train()
