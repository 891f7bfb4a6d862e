"""SAM in TRL's trainers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from torch import nn
from torch.optim import SGD

from bench.optim.sam import SAM

from . import harness
from .harness import Setting, weights
from .trl_loops import CarelessGRPOTrainer, language_model, rewarded, supervised

pytestmark = [
    pytest.mark.filterwarnings("default:::(?!bench).*"),  # what other libraries deprecate is theirs
    pytest.mark.usefixtures("one_thread", "accelerate_forgets"),
]


def distance(left: nn.Module, right: nn.Module) -> float:
    return harness.distance(weights(left), weights(right))


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(lambda p: SGD(p, lr=0.1, momentum=0.9), folder=tmp_path)


def test_supervised_fine_tuning_at_a_vanishing_rho_is_the_bare_bases(setting: Setting) -> None:
    bare = supervised(setting)
    assert distance(bare, language_model(setting.dtype)) > 1e-3
    assert distance(bare, supervised(replace(setting, method=partial(SAM, rho=1e-9)))) < 1e-8
    assert distance(bare, supervised(replace(setting, method=partial(SAM, rho=0.1)))) > 1e-5


@pytest.mark.parametrize("every", [1, 2])
def test_grpo_at_a_vanishing_rho_is_the_bare_bases(setting: Setting, every: int) -> None:
    bare, trainer = rewarded(setting, every=every)
    assert distance(bare, language_model(setting.dtype)) > 1e-4
    ours, ours_trainer = rewarded(replace(setting, method=partial(SAM, rho=1e-9)), every=every)
    assert distance(bare, ours) < 1e-8
    assert ours_trainer._step == trainer._step == 3 * every
    assert distance(bare, rewarded(replace(setting, method=partial(SAM, rho=0.1)), every=every)[0]) > 1e-6


@pytest.mark.parametrize("every", [1, 2])
def test_grpo_whose_passes_see_different_batches_is_told_in_its_first_steps(setting: Setting, every: int) -> None:
    with pytest.raises(
        RuntimeError, match=r"SAM\.step: the second pass of a step uses a different batch than the first"
    ):
        rewarded(replace(setting, method=partial(SAM, rho=0.5)), CarelessGRPOTrainer, every=every)
