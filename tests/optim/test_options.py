"""Where and when the family perturbs: schedules of rho, periods, shares of training, layers, weight decay."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from bench.config.file import load
from bench.core.errors import BenchError
from bench.optim.base.options import AscentOptions, share_perturbed
from bench.optim.base.perturbation import normalisation_parameters
from bench.optim.sam import SAM

from .helpers import Watch, flat, problem, same_bits, snapshot


def radii(steps: int, lr: float = 0.01, schedule: Any = None, **options: Any) -> list[float]:
    """How far the weights were moved in each step; 0 where there was one pass."""
    model, loss = problem(torch.float64)
    optimizer = SAM(SGD(model.parameters(), lr=lr), model=model, **options)
    scheduler = schedule(optimizer) if schedule else None
    found = []
    for _ in range(steps):
        optimizer.step(watch := Watch(optimizer, loss))
        found.append(flat(watch.e).norm().item() if watch.calls == 2 else 0.0)
        if scheduler:
            scheduler.step()
    return found


# ---- how far -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rho_schedule": "constant"}, [0.4, 0.4, 0.4, 0.4]),
        ({"rho_schedule": "linear"}, [0.4, 0.3, 0.2, 0.1]),
        ({"rho_schedule": "linear", "rho_end": 0.2}, [0.4, 0.35, 0.3, 0.25]),
        ({"rho_schedule": "linear", "rho_end": 0.8}, [0.4, 0.5, 0.6, 0.7]),
        ({"rho_schedule": "cosine"}, [0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5))]),
    ],
)
def test_rho_goes_from_rho_to_rho_end_over_the_training(options: dict[str, Any], expected: list[float]) -> None:
    assert radii(4, rho=0.4, total_steps=4, **options) == pytest.approx(expected, rel=1e-9)


def test_rho_after_the_end_of_training_is_rho_end() -> None:
    assert radii(6, rho=0.4, total_steps=3, rho_schedule="linear", rho_end=0.1)[3:] == pytest.approx([0.1] * 3)


def test_rho_tied_to_lr_goes_as_lr_does_in_each_step() -> None:
    """GSAM: rho_end + (rho - rho_end) * (lr - lr_min) / (largest lr - lr_min): warm-up and decay are those of lr."""
    factors = [0.5, 1.0, 0.5, 0.25]
    tied: dict[str, Any] = {"rho": 0.4, "rho_schedule": "lr", "rho_end": 0.2}
    found = radii(4, schedule=lambda optimizer: LambdaLR(optimizer, lambda step: factors[min(step, 3)]), **tied)
    assert found == pytest.approx([0.2 + 0.2 * factor for factor in factors], rel=1e-9)
    cycle = radii(2, schedule=lambda o: OneCycleLR(o, max_lr=0.1, total_steps=8, div_factor=4), **tied)
    lowest = 0.1 / 4 / 1e4  # where OneCycleLR ends
    assert cycle[0] == pytest.approx(0.2 + 0.2 * (0.1 / 4 - lowest) / (0.1 - lowest), rel=1e-9)
    assert radii(2, **tied) == pytest.approx([0.4, 0.4]), "nobody schedules lr"


def test_each_groups_own_rho_is_scheduled() -> None:
    model, loss = problem(torch.float64)
    first, *rest = model.parameters()
    groups: list[dict[str, Any]] = [{"params": [first], "rho": 0.8}, {"params": rest}]
    base = SGD(groups, lr=0.01)
    optimizer = SAM(base, rho=0.2, rho_schedule="linear", total_steps=2)
    for factor in (1.0, 0.5):
        optimizer.step(watch := Watch(optimizer, loss))
        norm = flat(watch.gradients[0]).norm()
        for e, g, rho in zip(watch.e, watch.gradients[0], [0.8, 0.2, 0.2, 0.2], strict=True):
            torch.testing.assert_close(e, factor * rho * g / norm, rtol=1e-8, atol=1e-12)
    assert [group["rho"] for group in optimizer.param_groups] == [0.8, 0.2], "what was asked for stays as it was"


# ---- when --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "perturbed"),
    [
        ({"perturb_every": 3}, "x..x..x..x"),
        ({"perturb_from": 0.5}, ".....xxxxx"),
        ({"perturb_until": 0.3}, "xxx......."),
        ({"perturb_from": 0.2, "perturb_until": 0.8, "perturb_every": 2}, "..x.x.x..."),
        ({"perturb_from": 0.25}, "...xxxxxxx"),
    ],
)
def test_steps_that_perturb_and_steps_that_are_the_bases(options: dict[str, Any], perturbed: str) -> None:
    assert "".join("x" if r else "." for r in radii(10, rho=0.1, total_steps=10, **options)) == perturbed
    assert share_perturbed({"rho": 0.1, **options}) * 10 == pytest.approx(perturbed.count("x"), abs=1)


def test_perturbing_that_never_ends_goes_on_in_a_loop_that_is_longer_than_said() -> None:
    assert [bool(r) for r in radii(4, rho=0.1, total_steps=2, perturb_from=0.5)] == [False, True, True, True]


def test_a_step_between_is_the_base_optimizers_bit_for_bit() -> None:
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer = SAM(AdamW(model.parameters(), lr=0.01), rho=0.1, perturb_from=0.9, total_steps=10)
    plain = AdamW(twin.parameters(), lr=0.01)
    for _ in range(9):
        optimizer.step(Watch(optimizer, loss))
        plain.step(Watch(plain, twin_loss))
    assert same_bits(model.parameters(), twin.parameters())
    optimizer.step(Watch(optimizer, loss))
    plain.step(Watch(plain, twin_loss))
    assert not same_bits(model.parameters(), twin.parameters())


OPTIONS: dict[str, Any] = {"perturb_every": 2, "perturb_from": 0.2, "rho_schedule": "linear", "total_steps": 10}


def net_and_loss(seed: int) -> tuple[nn.Module, SAM]:
    torch.manual_seed(seed)
    model = nn.Linear(4, 1)
    return model, SAM(SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5, model=model, **OPTIONS)


def took(optimizer: SAM, steps: int) -> list[int]:
    """Passes of each of some steps."""
    x = torch.linspace(-1, 1, 20).reshape(5, 4)
    watches = [Watch(optimizer, lambda: optimizer.model(x).square().mean()) for _ in range(steps)]  # type: ignore[misc]
    for watch in watches:
        optimizer.step(watch)
    return [watch.calls for watch in watches]


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_the_count_of_steps_comes_along(way: str, tmp_path: Path) -> None:
    """7 steps == 3 + save and load + 4, bitwise: where in its schedule and its period it is, is in the groups."""
    model, optimizer = net_and_loss(seed=0)
    assert took(optimizer, 3) == [1, 1, 2]
    if way == "state_dict":
        torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
        other, another = net_and_loss(seed=1)
        weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
        other.load_state_dict(weights)
        another.load_state_dict(state)
    else:
        another = pickle.loads(pickle.dumps(optimizer)) if way == "pickle" else copy.deepcopy(optimizer)
        assert another.model is not None
        other = another.model
    assert took(optimizer, 4) == took(another, 4) == [1, 2, 1, 2]
    assert same_bits(model.parameters(), other.parameters())
    assert other is not model


def test_a_skipped_step_is_a_step_of_the_schedule() -> None:
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, perturb_every=2)

    def spoil(call: int) -> None:
        next(model.parameters()).grad[0, 0] = math.nan  # type: ignore[index]

    optimizer.step(Watch(optimizer, loss, spoil))
    assert (optimizer.skipped_steps, optimizer.steps_done) == (1, 1)
    optimizer.step(watch := Watch(optimizer, loss))
    assert watch.calls == 1


def test_plain_sam_keeps_no_count_and_its_groups_are_as_they_were() -> None:
    model, _ = problem()
    assert "steps_done" not in SAM(SGD(model.parameters(), lr=0.1)).param_groups[0]


def test_a_share_of_training_needs_to_know_how_long_that_is() -> None:
    model, loss = problem()
    for option in ({"perturb_from": 0.5}, {"perturb_until": 0.5}, {"rho_schedule": "cosine"}):
        optimizer = SAM(SGD(model.parameters(), lr=0.1), **option)
        before = snapshot(model.parameters())
        with pytest.raises(ValueError, match=r"SAM: .* total_steps=\.\.\."):
            optimizer.step(Watch(optimizer, loss))
        assert same_bits(before, model.parameters())


# ---- where -------------------------------------------------------------------------------------------------------


class RootMeanSquareNorm(nn.Module):
    """As transformers writes its own: no subclass of torch's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x / x.square().mean(-1, keepdim=True).sqrt()


def test_only_norm_moves_scales_and_shifts_of_normalisation_under_their_own_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(4 * 36),
        nn.Linear(4 * 36, 8), RootMeanSquareNorm(8), nn.Linear(8, 2),
    ).double()  # fmt: skip
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.3, model=model, perturb_only="norm")
    optimizer.step(watch := Watch(optimizer, lambda: model(x).square().sum()))
    names = [name for name, _ in model.named_parameters()]
    moved = {name for name, e in zip(names, watch.e, strict=True) if e.any()}
    assert moved == {"1.weight", "1.bias", "2.weight", "2.bias", "4.weight", "4.bias", "6.scale"}
    assert flat(watch.e).norm().item() == pytest.approx(0.3, rel=1e-9)
    for name, before, now in zip(names, watch.weights[0], model.parameters(), strict=True):
        assert name == "0.bias" or not torch.equal(before, now), "everything is trained"


def test_normalisation_is_known_by_its_kind_whatever_its_name() -> None:
    class BatchNormAct2d(nn.BatchNorm2d):
        """timm's layers are named so."""

    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.GroupNorm(2, 4))
    assert normalisation_parameters(model, "SAM") == {*model[1].parameters(), *model[2].parameters()}


def test_only_norm_of_a_model_without_is_told() -> None:
    model, _ = problem()
    with pytest.raises(ValueError, match='perturb_only="norm" needs normalisation layers, but Sequential has none'):
        SAM(SGD(model.parameters(), lr=0.1), model=model, perturb_only="norm")
    with pytest.raises(ValueError, match="needs model="):
        SAM(SGD(model.parameters(), lr=0.1), perturb_only="norm")


def test_ascent_decay_adds_each_groups_weight_decay_to_the_ascent_and_to_nothing_else() -> None:
    model, loss = problem(torch.float64)
    first, *rest = model.parameters()
    base = SGD([{"params": [first], "weight_decay": 3.0}, {"params": rest, "weight_decay": 0.0}], lr=0.0)
    optimizer = SAM(base, rho=0.3, ascent_decay=True)
    optimizer.step(watch := Watch(optimizer, loss))
    ascent = [g + decay * w for g, decay, w in zip(watch.gradients[0], [3.0, 0, 0, 0], watch.weights[0], strict=True)]
    torch.testing.assert_close(flat(watch.e), 0.3 * flat(ascent) / flat(ascent).norm(), rtol=1e-9, atol=1e-12)
    for parameter, g in zip(model.parameters(), watch.gradients[1], strict=True):
        assert torch.equal(parameter.grad, g)  # type: ignore[arg-type]


# ---- wrong options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"perturb_evry": 2}, TypeError, "SAM has no option 'perturb_evry'; did you mean \"perturb_every\""),
        ({"perturb_every": 0}, ValueError, "perturb_every must be >= 1, got 0"),
        ({"perturb_from": 1.0}, ValueError, "perturb_from must be less than 1"),
        ({"perturb_from": "epoch 5"}, ValueError, "perturb_from epochs can be used only in an experiment file"),
        ({"perturb_from": 0.5, "perturb_until": 0.5}, ValueError, r"perturb_until must be above perturb_from \(0.5\)"),
        ({"perturb_only": "bias"}, ValueError, "perturb_only must be 'norm', got 'bias'"),
        ({"rho_schedule": "step"}, ValueError, "rho_schedule must be 'constant', 'linear', 'cosine' or 'lr'"),
        ({"rho_end": 0.1}, ValueError, "rho_end needs rho_schedule too"),
        ({"rho_schedule": "linear", "rho_end": -0.1}, ValueError, "rho_end must be >= 0"),
        ({"ascent_decay": 1}, ValueError, "ascent_decay must be a valid boolean"),
    ],
)
def test_what_cannot_be_is_told_at_once(options: dict[str, Any], error: type[Exception], words: str) -> None:
    model, _ = problem()
    with pytest.raises(error, match=words):
        SAM(SGD(model.parameters(), lr=0.1), **options)


FILE = """
task = "digits"
model = "mlp"
baseline = "sam"
seeds = 1
[train]
epochs = 1
[optimizers.sam]
base = "sgd"
lr = 0.1
"""


def test_an_experiment_file_is_checked_against_the_same_options(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(FILE + "perturb_from = 0.5\nperturb_until = 0.4\nrho_end = 0.1\nperturb_evry = 3\n")
    with pytest.raises(BenchError) as caught:
        load(path)
    for words in (
        "optimizers.sam.perturb_until: must be above perturb_from (0.5), got 0.4",
        "optimizers.sam.rho_end: needs rho_schedule too",
        'optimizers.sam.perturb_evry: unknown hyperparameter of sam over sgd; did you mean "perturb_every"?',
    ):
        assert words in str(caught.value)


def test_a_moment_may_be_an_epoch_of_the_training_it_is_about(tmp_path: Path) -> None:
    path = tmp_path / "epochs.toml"
    text = FILE.replace("epochs = 1", "epochs = 20").replace('baseline = "sam"', 'baseline = "longer"')
    path.write_text(
        text
        + 'perturb_until = "epoch 20"\nsweep.perturb_from = ["epoch 0", "epoch 11"]\n'
        + '[optimizers.longer]\nuse = "sam"\nbase = "sgd"\nlr = 0.1\nperturb_from = "epoch 11"\ntrain.epochs = 40\n'
    )
    found = {run.spec.optimizer.params["perturb_from"]: run.spec for run in load(path).runs}
    assert sorted(found) == [0, 11 / 40, 11 / 20]
    share = {"perturb_from": 11 / 20, "perturb_until": 1.0}
    assert share.items() <= found[11 / 20].optimizer.params.items(), "and it is that share of it, under one run_id"
    perturbed = radii(110, rho=0.1, total_steps=20 * 10, **share), radii(120, rho=0.1, total_steps=200, **share)
    assert [sum(r > 0 for r in steps) for steps in perturbed] == [0, 10], "from the 111th step of ten an epoch"


def test_a_wrong_epoch_is_told_under_its_key(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(FILE + 'perturb_from = "epoch 2"\nperturb_until = "half"\n')
    with pytest.raises(BenchError) as caught:
        load(path)
    assert 'optimizers.sam.perturb_from: training ends at epoch 1, got "epoch 2"' in str(caught.value).replace("'", '"')
    assert "optimizers.sam.perturb_until: must be a share of training (0.5) or a number of epochs" in str(caught.value)


def test_options_are_recorded_and_those_left_out_leave_run_ids_alone(tmp_path: Path) -> None:
    plain, told = tmp_path / "plain.toml", tmp_path / "told.toml"
    plain.write_text(FILE)
    told.write_text(FILE + 'perturb_every = 2\nrho_schedule = "cosine"\nascent_decay = true\n')
    (first,), (second,) = (load(path).runs for path in (plain, told))
    assert first.spec.run_id == "1bc03415a9c5"
    assert second.spec.run_id != first.spec.run_id
    settings = second.spec.hyperparameters()
    assert {key: settings[key] for key in AscentOptions.__annotations__ if settings[key] is not None} == {
        "perturb_every": 2,
        "rho_schedule": "cosine",
        "ascent_decay": True,
    }
