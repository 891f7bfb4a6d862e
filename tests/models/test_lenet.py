"""LeNet-5: the paper's sizes, and images that are too small."""

from __future__ import annotations

import pytest
import torch

from bench.core.errors import BenchError
from tests.models.helpers import Images, build


def test_it_has_the_weights_of_the_paper_on_28x28() -> None:
    model = build("lenet", Images(1, 28, 28))
    # 6 and 16 kernels of 5x5, then 400-120-84-10; the paper's third convolution is the first of the dense layers.
    sizes = (6 * 25 + 6, 16 * 6 * 25 + 16, 400 * 120 + 120, 120 * 84 + 84, 84 * 10 + 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(sizes) == 61_706


@pytest.mark.parametrize("side", [12, 13, 15, 32])
def test_any_image_from_12x12_on_fits(side: int) -> None:
    task = Images(3, side, side)
    assert build("lenet", task, width=3)(task.batch(2)[0]).shape == (2, task.num_outputs)


def test_smaller_images_are_refused_with_what_to_take() -> None:
    with pytest.raises(BenchError, match="at least 12x12; the task gives 11x28; take the model resnet8"):
        build("lenet", Images(1, 11, 28))


def test_its_hidden_layers_are_rectified() -> None:
    task = Images(1, 28, 28)
    model = build("lenet", task)
    seen: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_hook(lambda _, __, output: seen.append(output))
    model(task.batch(4)[0])
    assert len(seen) == 4
    assert all((output >= 0).all() and (output == 0).any() for output in seen)
