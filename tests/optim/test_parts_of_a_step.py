"""What a step is made of, where it is written to be fast: it must do the same as what is slow and plain."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.optim.base.forward_state import _modules
from bench.optim.base.tensors import found_inf

from .helpers import same_bits, snapshot


def test_walking_the_modules_finds_those_that_torch_finds() -> None:
    shared = nn.BatchNorm1d(3)
    model = nn.Sequential(shared, nn.Sequential(nn.Linear(3, 3), shared), nn.ModuleDict({"a": nn.BatchNorm1d(3)}))
    model.register_module("nothing", None)
    shared.add_module("parent", model)  # a circle
    found = list(_modules(model))
    assert len(found) == len(set(found))
    assert set(found) == set(model.modules())
    assert list(_modules(None)) == []


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_one_number_that_is_not_finite_is_found_in_tensors_of_any_dtype(dtype: torch.dtype, value: float) -> None:
    tensors = [torch.zeros(()), torch.randn(3, 4).to(dtype), torch.randn(5)]
    assert found_inf(tensors).item() == 0
    tensors[1][2, 3] = value
    assert found_inf(tensors).item() == 1


def test_looking_for_it_changes_no_bit() -> None:
    tensors = [torch.tensor([0.0, -0.0, 1e-45, -1e-42, 3.4e38, 0.1]), torch.randn(4, 3).t(), torch.zeros(0)]
    before = snapshot(tensors)
    assert found_inf(tensors).item() == 0
    assert same_bits(tensors, before)


def test_of_no_tensors_nothing_is_found() -> None:
    assert found_inf([]).item() == 0
