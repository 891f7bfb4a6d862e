"""Names that users may have in files of their own: the old ones work, and warn."""

from __future__ import annotations

import importlib
import warnings

import pytest

OLD = {
    "bench.Method": "bench.OptimizerWrapper",
    "bench.optim.base.wrapper.Method": "bench.optim.base.wrapper.OptimizerWrapper",
    "bench.optim.base.perturbation.Perturbing": "bench.optim.base.perturbation.PerturbedOptimizer",
    "bench.optim.base.perturbation.Movable": "bench.optim.base.perturbation.PerturbedGroup",
    "bench.optim.base.state.Remembering": "bench.optim.base.state.StatefulWrapper",
    "bench.optim.base.weight_swap.Moved": "bench.optim.base.weight_swap.WeightSwap",
}


@pytest.mark.parametrize(("old", "new"), OLD.items())
def test_an_old_name_is_the_new_thing_and_warns(old: str, new: str) -> None:
    module, _, name = old.rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"^{old} is now called {new}; the old name") as told:
        thing = getattr(importlib.import_module(module), name)
    assert told[0].filename == __file__, "where the old name is written"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert thing is getattr(importlib.import_module(module), new.rpartition(".")[2])


@pytest.mark.parametrize("module", sorted({name.rpartition(".")[0] for name in OLD}))
def test_a_name_that_never_was_is_told(module: str) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Metod'"):
        importlib.import_module(module).Metod  # noqa: B018
