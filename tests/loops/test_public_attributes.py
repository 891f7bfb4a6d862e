"""What is public of a base is there: its own zero_grad, groups, weights for evaluation, and whatever else it has."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import pytorch_optimizer
import schedulefree
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from bench.optim.gsam import GSAM
from bench.optim.looksam import LookSAM
from bench.optim.sam import SAM
from bench.optim.sampa import SAMPa
from bench.optim.wsam import WSAM
from bench.optim.xsam import XSAM

from .bases import timm

pytestmark = pytest.mark.filterwarnings("default:::(?!bench).*")  # what other libraries deprecate is theirs


def two_losses(model: nn.Module, x: Tensor) -> list[Tensor]:
    y: Tensor = model(x)
    return [y[:, 0].square().mean(), (y[:, 1] - y[:, 0]).square().mean()]


def test_a_closure_goes_backward_by_the_bases_own_way() -> None:
    """PCGrad's: gradients of several losses, with what conflicts taken away, in an order that Python's random draws."""
    import random

    torch.manual_seed(0)
    model, x = nn.Linear(4, 2).double(), torch.randn(8, 4, dtype=torch.float64)
    twin = copy.deepcopy(model)
    optimizer: Any = SAM(pytorch_optimizer.PCGrad(SGD(model.parameters(), lr=0.1)), rho=0.1)

    def closure() -> None:
        optimizer.zero_grad()
        optimizer.pc_backward(two_losses(model, x))

    random.seed(3)
    optimizer.step(closure)

    plain: Any = pytorch_optimizer.PCGrad(SGD(twin.parameters(), lr=0.1))
    before = [p.detach().clone() for p in twin.parameters()]
    random.seed(3)
    plain.pc_backward(two_losses(twin, x))
    gradients = [p.grad for p in twin.parameters() if p.grad is not None]
    length = torch.stack([g.norm() for g in gradients]).norm()
    with torch.no_grad():
        for p, g in zip(twin.parameters(), gradients, strict=True):
            p.add_(0.1 * g / length)
    random.seed(3)
    plain.pc_backward(two_losses(twin, x))
    with torch.no_grad():
        for p, w in zip(twin.parameters(), before, strict=True):
            p.copy_(w)
    plain.step()
    for ours, by_hand in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-10)


def test_methods_and_values_of_the_base_are_found() -> None:
    p = nn.Parameter(torch.ones(2))
    lookahead: Any = SAM(timm.Lookahead(SGD([p], lr=0.1)))
    p.grad = torch.ones(2)
    lookahead.sync_lookahead()
    assert lookahead.is_second_order is False
    evaluated: Any = SAM(pytorch_optimizer.Lookahead(SGD([nn.Parameter(torch.ones(2))], lr=0.1)))
    evaluated.backup_and_load_cache()
    evaluated.clear_and_load_backup()


def test_a_name_of_the_methods_own_is_the_methods() -> None:
    optimizer: Any = GSAM(pytorch_optimizer.Lookahead(SGD([nn.Parameter(torch.ones(2))], lr=0.1), alpha=0.5), alpha=0.2)
    assert optimizer.alpha == 0.2
    assert optimizer.base.alpha == 0.5
    assert optimizer.k == 5


def test_what_neither_has_is_an_attribute_error_that_names_both() -> None:
    optimizer: Any = SAM(SGD([nn.Parameter(torch.ones(2))], lr=0.1))
    with pytest.raises(AttributeError, match="SAM and its base SGD have no attribute 'consolidate_state_dict'"):
        optimizer.consolidate_state_dict()
    assert not hasattr(optimizer, "_step_supports_amp_scaling")
    assert pickle.loads(pickle.dumps(optimizer)).param_groups[0]["lr"] == 0.1


def test_opacus_zeroes_gradients_of_single_examples_between_the_passes() -> None:
    torch.manual_seed(0)
    model: Any = GradSampleModule(nn.Linear(4, 2))
    base = DPOptimizer(SGD(model.parameters(), lr=0.1), noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=8)
    optimizer: Any = SAM(base, rho=0.1, model=model)
    x, noted = torch.randn(8, 4), []
    optimizer.attach_step_hook(lambda _: noted.append([p.grad_sample for p in model.parameters()]))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    assert [type(sample) for sample in noted[0]] == [Tensor, Tensor], "a list would hold both passes"
    assert all(len(sample) == 8 for sample in noted[0])


@pytest.mark.parametrize("method", [GSAM, LookSAM, SAMPa, WSAM, XSAM])
def test_opacus_is_refused_where_it_would_not_see_the_gradient_that_a_method_makes(method: Any) -> None:
    model: Any = GradSampleModule(nn.Linear(4, 2))
    base = DPOptimizer(SGD(model.parameters(), lr=0.1), noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=8)
    with pytest.raises(TypeError, match=f"^{method.__name__} makes a gradient of .* DPOptimizer follows .*: use SAM"):
        method(base)


@pytest.mark.parametrize("set_to_none", [None, True, False])
def test_zero_grad_is_the_bases_with_its_own_default(set_to_none: bool | None) -> None:
    class Zeroing(SGD):
        said: Any = "nothing"

        def zero_grad(self, set_to_none: bool = False) -> None:
            self.said = set_to_none
            super().zero_grad(set_to_none=set_to_none)

    base = Zeroing([nn.Parameter(torch.ones(2))], lr=0.1)
    optimizer = SAM(base)
    if set_to_none is None:
        optimizer.zero_grad()
    else:
        optimizer.zero_grad(set_to_none=set_to_none)
    assert base.said is bool(set_to_none)


def test_a_group_added_later_is_known_to_the_base_and_perturbed() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    base = pytorch_optimizer.Lookahead(AdamW([first], lr=0.1))
    optimizer = SAM(base, rho=0.1)
    optimizer.add_param_group({"params": [second]})
    assert "slow_params" in base.state[second], "Lookahead's own add_param_group has been called"
    assert optimizer.param_groups[1]["rho"] == 0.1


def test_train_and_eval_are_the_bases_and_of_others_nothing() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = SAM(schedulefree.SGDScheduleFree([p], lr=0.1))
    optimizer.train()
    assert optimizer.param_groups[0]["train_mode"]
    optimizer.eval()
    assert not optimizer.param_groups[0]["train_mode"]
    plain = SAM(SGD([p], lr=0.1))
    plain.train()
    plain.eval()
