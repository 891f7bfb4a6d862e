"""The three kinds of nets that people train, tiny: convolutions with batch norm, a vision transformer, BERT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

EXAMPLES = 6


def convolutions(dropout: float) -> nn.Module:
    first = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(dropout)]
    second = [nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*first, *second, nn.Linear(32, 3))


def vision_transformer(dropout: float) -> nn.Module:
    net: nn.Module = VisionTransformer(
        img_size=8,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=3,
        proj_drop_rate=dropout,
        attn_drop_rate=dropout,
        drop_path_rate=dropout,
    )
    return net


def bert_config(dropout: float) -> BertConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 8,
        "num_labels": 3,
    }
    return BertConfig(**sizes, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)


class Bert(nn.Module):
    """Logits of a class, or with tied embeddings, of each word."""

    def __init__(self, dropout: float, *, tied: bool = False) -> None:
        super().__init__()
        kind: Any = BertForMaskedLM if tied else BertForSequenceClassification
        self.net = kind(bert_config(dropout))

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.net(words, attention_mask=torch.ones_like(words)).logits
        return logits if logits.ndim == 2 else logits.mean(1)


NETS: dict[str, Callable[[float], nn.Module]] = {
    "convolutions": convolutions,
    "vit": vision_transformer,
    "bert": Bert,
    "tied bert": lambda dropout: Bert(dropout, tied=True),
}


@dataclass(frozen=True)
class Setting:
    """Where and in which precision a net is trained.

    Attributes:
        dtype: of the weights.
        autocast: whether passes go through bf16 although the weights do not.
    """

    net: str
    device: str
    dtype: torch.dtype
    autocast: bool

    def build(self, dropout: float = 0.2, seed: int = 0) -> tuple[nn.Module, Callable[..., Tensor]]:
        """A net in training mode, and its loss on a batch: of all examples, or of those of a slice."""
        torch.manual_seed(seed)
        model = NETS[self.net](dropout).to(self.device, self.dtype).train()
        y = torch.arange(EXAMPLES, device=self.device) % 3
        if "bert" in self.net:
            x = torch.randint(20, (EXAMPLES, 5), generator=torch.Generator().manual_seed(1)).to(self.device)
        else:
            x = torch.randn(EXAMPLES, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(self.device, self.dtype)

        def loss(examples: slice = slice(None)) -> Tensor:
            # The math kernel: it is the one whose backward pass is the same twice, on a GPU too.
            with sdpa_kernel(SDPBackend.MATH), torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
                logits = model(x[examples])
            return nn.functional.cross_entropy(logits.float(), y[examples])

        return model, loss


PRECISIONS = {"fp32": (torch.float32, False), "bf16": (torch.bfloat16, False), "bf16 autocast": (torch.float32, True)}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
    ),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The CPU, and a GPU with kernels that give the same bits twice."""
    if request.param == "cuda":
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=NETS)
def any_net(request: pytest.FixtureRequest, device: str) -> Setting:
    return Setting(request.param, device, torch.float32, autocast=False)


@pytest.fixture(params=[(net, precision) for net in NETS for precision in PRECISIONS], ids=" in ".join)
def setting(request: pytest.FixtureRequest, device: str) -> Setting:
    net, precision = request.param
    return Setting(net, device, *PRECISIONS[precision])
