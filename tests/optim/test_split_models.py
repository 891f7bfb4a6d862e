"""A model split over two processes does what it does in one: FSDP2, tensor parallelism, pipeline stages.

Each made a perturbation of a norm of its own before, or raised in torch's words at the first step.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from bench.optim.sam import SAM

from .split_models import METHODS, NOT_IN_STAGES, RIVALS, VARIANTS, Way, trained

Both = list[dict[str, Any]]
pytestmark = pytest.mark.slow


def check(in_two: Both, name: str, near: float = 1e-6) -> None:
    for found in in_two:
        for what, value in found[name].items():
            assert value > 1e-3 if what == "come" else value < near, (name, what)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("way", ["fsdp", "tensor parallel"])
def test_dtensors_need_nothing_said(in_two: Both, way: str, name: str) -> None:
    """12 steps with clip_norm; of averages also what is evaluated, and training after it."""
    check(in_two, f"{way}, {name}")


@pytest.mark.parametrize("name", sorted(METHODS.keys() - NOT_IN_STAGES))
def test_stages_of_a_pipeline_share_one_norm_where_their_group_is_named(in_two: Both, name: str) -> None:
    check(in_two, f"pipeline, {name}")


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(in_two: Both, name: str) -> None:
    check(in_two, f"fsdp, {name}")


def test_a_stage_may_have_nothing_that_is_perturbed(in_two: Both) -> None:
    """Normalisation layers are in the first stage only."""
    check(in_two, "pipeline, sam on norms")


def test_stages_remember_in_steps_that_perturb_only(in_two: Both) -> None:
    check(in_two, "pipeline, friendly-sam every 2nd step")


@pytest.mark.parametrize("name", sorted(METHODS.keys() - NOT_IN_STAGES))
def test_torchs_distributed_checkpoints_of_stages(in_two: Both, name: str) -> None:
    for found in in_two:
        assert found[f"pipeline, {name}, resumed"] == 0.0


@pytest.mark.parametrize("way", ["tensor parallel and fsdp", "replicated fsdp"])
@pytest.mark.parametrize("name", ["sam", "gsam", "random-direction"])
def test_what_is_replicated_counts_once(in_two: Both, way: str, name: str) -> None:
    check(in_two, f"{way}, {name}")


@pytest.mark.parametrize(("way", "base"), [("fsdp", "adamw"), ("fsdp", "adamw, fused"), ("tensor parallel", "adamw")])
def test_over_other_bases(in_two: Both, way: str, base: str) -> None:
    check(in_two, f"{way}, sam over {base}")


@pytest.mark.parametrize("way", ["fsdp", "tensor parallel"])
@pytest.mark.parametrize("base", RIVALS)
def test_over_rivals(in_two: Both, way: str, base: str) -> None:
    """Muon's iterations are in bf16, whose rounding depends on how a product is split."""
    check(in_two, f"{way}, sam over {base}", near=0.02 if base == "muon" else 1e-6)


def test_where_all_processes_have_the_batch_esam_chooses_as_one_does(in_two: Both) -> None:
    check(in_two, "tensor parallel, esam on half")


@pytest.mark.parametrize("way", ["fsdp", "tensor parallel"])
def test_micro_batches(in_two: Both, way: str) -> None:
    check(in_two, f"{way}, accumulated")


@pytest.mark.parametrize("reshards", [True, False])
def test_fsdp_that_has_whole_weights_as_a_step_begins_sees_them_move(in_two: Both, reshards: bool) -> None:
    """They stood for parameters in no group, and were written to after FSDP2 had freed their memory."""
    check(in_two, f"fsdp, evaluated first, reshards {reshards}")


def test_fsdp_of_the_first_kind_needs_its_group(in_two: Both) -> None:
    check(in_two, "fsdp of the first kind")


def test_buffers_that_are_dtensors_move_once(in_two: Both) -> None:
    for found in in_two:
        assert found["buffer"] == [1.0, 1.0, 1.0]


def test_fsdps_mixed_precision(in_two: Both) -> None:
    check(in_two, "fsdp, mixed precision")


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("way", ["fsdp", "tensor parallel", "pipeline", "pipeline, scaled"])
def test_a_gradient_that_is_not_finite_in_one_process_skips_the_step_in_all(in_two: Both, way: str, call: int) -> None:
    for found in in_two:
        result = found[f"{way}, skipped in pass {call}"]
        assert result["apart"] < 1e-6
        if way == "pipeline, scaled":
            assert result["scale"] == 0.5
        else:
            assert result["skipped"] == 1


@pytest.mark.parametrize("name", METHODS)
def test_torchs_distributed_checkpoints_load_into_new_objects(in_two: Both, name: str) -> None:
    for found in in_two:
        assert set(found[f"fsdp, {name}, resumed"].values()) == {0.0}


@pytest.mark.parametrize("base", ["adamw", "adamw, fused", *RIVALS])
def test_checkpoints_over_other_bases(in_two: Both, base: str) -> None:
    for found in in_two:
        assert found[f"fsdp, friendly-sam over {base}, resumed"] == {"apart": 0.0}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("without reduction", "FSDP2 has to reduce gradients in every pass"),
        ("without zeroing", "has added to existing gradients"),
        ("fused sgd", "torch has no fused SGD for DTensors"),
        ("soap", "soap makes its preconditioners of whole matrices"),
        ("esam in stages", "ESAM does not support norm_group"),
    ],
)
def test_what_cannot_be_is_said(in_two: Both, what: str, words: str) -> None:
    for found in in_two:
        assert words in found[what]


def test_a_whole_model_is_compared_with_something_that_moves() -> None:
    """The comparison itself: a model with another seed is far apart, one that stays where it was has not come far."""
    found = trained(Way(lambda model: model), METHODS["sam"])
    assert found["apart"] == 0.0
    other = trained(Way(lambda model: model, lambda batch: batch[:4]), METHODS["sam"])
    assert other["apart"] > 1e-2
    assert not math.isnan(other["apart"])


def test_a_step_without_anything_to_do_makes_the_state_and_moves_nothing() -> None:
    """torch.distributed.checkpoint's; any other without a closure stays an error."""
    model = nn.Linear(2, 1)
    optimizer = SAM(SGD(model.parameters(), lr=0.0, momentum=0.9))
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all("momentum_buffer" in optimizer.state[p] for p in model.parameters())
    assert all(map(torch.equal, before, model.parameters()))
    for lr, gradient in ((0.1, 0.0), (0.0, 1.0)):
        optimizer.param_groups[0]["lr"] = lr
        for p in model.parameters():
            p.grad = torch.full_like(p, gradient)
        with pytest.raises(TypeError, match="needs a closure"):
            optimizer.step()
