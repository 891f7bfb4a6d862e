"""Text models tried on two texts before anything starts.

An architecture that cannot be trained as an experiment asks is then one error, instead of one error per run. It is also
an error if padding changes the outputs of a text: results would depend on which texts share a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.errors import BenchError
from bench.core.registry import models
from bench.core.spec import RunSpec
from bench.data.tokens import Tokens, first_line
from bench.tasks.base import Task

EXAMPLES = 64
"""Number of texts among which the two texts of a trial are selected."""

MORE_PADDING = 8
"""Positions of padding that are added even to the longer of the two texts, if the model has so many positions."""

TOLERANCE = 1e-3
"""Largest difference, as a share of the largest output, that is taken for rounding (1e-5 at most has been seen)."""


def try_texts(spec: RunSpec, task: Task, tokens: Tokens) -> None:
    """Raise BenchError if a run's model cannot read its texts, or reads one text differently in a padded batch.

    It is built as the run builds it, on the CPU, and tried in evaluation mode with the run's precision.

    Args:
        tokens: of the task's training set; a short and a long text of them are tried, alone and together.
    """
    params = (f"{key} = {value}" for key, value in spec.model.params.items() if value is not None)
    name = f'model "{spec.model.name}" ({", ".join(params)})'
    # `lengths` counts tokens before the cut; `ids` are cut.
    lengths = torch.from_numpy(tokens.lengths[:EXAMPLES]).clamp(max=tokens.ids.shape[-1])
    texts = [tokens.ids[index, :, : lengths[index]] for index in (int(lengths.argmin()), int(lengths.argmax()))]
    longest = int(lengths.max())
    # If the model has positions left, the longer text is padded too.
    batch = _batch(texts, max(longest, min(longest + MORE_PADDING, tokens.limit)))
    # Weights are drawn here; the process's random numbers stay as they are. No devices: that would start CUDA.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model: nn.Module = models[spec.model.name].build(task, **spec.model.params).eval()
        try:
            alone = torch.cat([model(task.model_inputs(text[None])) for text in texts])
            together = model(task.model_inputs(batch))
        except Exception as error:  # of a net that nobody here knows
            raise BenchError(f"{name} cannot read the texts of {spec.task.name}: {_told(error)}") from error
        if spec.train.precision == "bf16":
            try:
                with torch.autocast("cpu", torch.bfloat16):
                    model(task.model_inputs(batch))
            except Exception as error:
                raise BenchError(
                    f'{name} cannot compute in train.precision = "bf16": {_told(error)}; take "fp32" or "tf32"'
                ) from error
    apart = (alone - together).abs().max().item()
    # Not `apart > ...`: NaN fails here as well.
    if not apart <= TOLERANCE * alone.abs().max().item():
        raise BenchError(
            f"{name} gives a text other outputs when its batch is padded (they differ by {apart:.2g}): what is learned "
            "would depend on which texts share a batch; take another architecture (bert, roberta, deberta-v2, ...)"
        )


def _batch(texts: list[Tensor], width: int) -> Tensor:
    """Return (B, 2, width) of texts (2, W) each."""
    batch = torch.stack([F.pad(text, (0, width - text.shape[-1])) for text in texts])
    for row, text in zip(batch, texts, strict=True):
        # -1 is padding, as in `Tokens.ids`.
        row[0, text.shape[-1] :] = -1
    return batch


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
