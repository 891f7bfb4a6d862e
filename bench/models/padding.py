"""Adaptations of transformers' architectures that keep a text's logits independent of its batch.

Attention leaves padding out by itself. What does not: heads that read the last position, convolutions, and pooling
along the text. Architectures that need something else are found by `bench.launch.trial` and refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

READ_LAST = ("xlnet",)
"""Architectures whose head reads the last position, whatever is there: their padding stands before the text."""

SEE_NEIGHBOURS = {"convbert": ("key_conv_attn_layer", "conv_out_layer"), "nystromformer": ("value",)}
"""Architectures that convolve along the text, and the layers next to those convolutions. ConvBERT's
key_conv_attn_layer is itself a convolution, over (B, C, W); the others are linear layers before one."""


class Padding(nn.Module):
    """Lay out the tokens of a batch as an architecture wants them, and keep its convolutions off the padding.

    Args:
        config: of the architecture.
        net: the classifier, whose convolutions are to see zeros in place of padding from now on.
    """

    def __init__(self, config: PreTrainedConfig, net: nn.Module) -> None:
        super().__init__()
        self.is_before = config.model_type in READ_LAST
        # Funnel pools pairs of positions, block by block, and loses the last one: that must never be a text's.
        self.spare = 2 ** len(config.block_sizes) if config.model_type == "funnel" else 0
        self.is_there_BW: Tensor | None = None
        layers = SEE_NEIGHBOURS.get(config.model_type, ())
        for name, module in net.named_modules():
            kind = name.rpartition(".")[2]
            if kind in layers and kind == "key_conv_attn_layer":
                module.register_forward_pre_hook(self._clear_input)
            elif kind in layers:
                module.register_forward_hook(self._clear_output)

    def forward(self, tokens_B2W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return token ids (B, W'; -1 is padding), segment ids (B, W') and the text mask (B, W'), from `Tokens.ids`."""
        if self.spare:
            width = tokens_B2W.shape[-1]
            # `F.pad` fills with 0, which is a valid token id, so row 0 is set to -1. It has made a copy to write into.
            tokens_B2W = F.pad(tokens_B2W, (0, self.spare))
            tokens_B2W[:, 0, width:] = -1
        if self.is_before:
            width = tokens_B2W.shape[-1]
            lengths_B = (tokens_B2W[:, 0] >= 0).sum(dim=1)
            # Each text is turned by its own length: its padding then comes first, and the text last.
            places_BW = (torch.arange(width, device=tokens_B2W.device) + lengths_B[:, None]) % width
            tokens_B2W = tokens_B2W.gather(2, places_BW[:, None].expand_as(tokens_B2W))
        ids_BW, segments_BW = tokens_B2W.long().unbind(dim=1)
        self.is_there_BW = ids_BW >= 0
        return ids_BW, segments_BW, self.is_there_BW

    def _clear_input(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        assert self.is_there_BW is not None
        return (inputs[0] * self.is_there_BW[:, None],)

    def _clear_output(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        assert self.is_there_BW is not None
        return output * self.is_there_BW[..., None]
