"""SAM over ZeroRedundancyOptimizer, in two processes: each keeps the base's state of its own parameters alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.ranks import in_two_processes

from .in_two import METHODS

pytestmark = pytest.mark.slow
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two_processes("tests.loops.in_two", tmp_path_factory.mktemp("zero"))


@every_method
def test_a_consolidated_state_goes_on_to_the_bit(both: list[dict[str, Any]], name: str) -> None:
    for found in both:
        assert torch.equal(found[f"{name}, resumed"], found[f"{name}, straight"])
    assert torch.equal(both[0][f"{name}, resumed"], both[1][f"{name}, resumed"])


@every_method
def test_it_is_what_it_is_over_the_base_in_one_piece(both: list[dict[str, Any]], name: str) -> None:
    for found in both:
        torch.testing.assert_close(found[f"{name}, straight"], found[f"{name}, whole"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "looksam"])
def test_at_a_vanishing_rho_it_is_the_bare_base(both: list[dict[str, Any]], name: str) -> None:
    for found in both:
        torch.testing.assert_close(found[f"{name}, vanishing"], found["bare"], rtol=0, atol=1e-8)
        assert (found[f"{name}, straight"] - found["bare"]).abs().max() > 1e-5


def test_momentum_sam_refuses_momentum_that_is_in_pieces(both: list[dict[str, Any]]) -> None:
    """Each process would move the weights whose momentum it has, and no other."""
    for found in both:
        assert "MomentumSAM: ZeroRedundancyOptimizer keeps no momentum_buffer or exp_avg" in found["momentum-sam"]
