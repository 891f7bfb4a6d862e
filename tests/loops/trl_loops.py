"""TRL: SFTTrainer, whose step may simply run twice, and GRPOTrainer, whose step generates and counts."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from .harness import Setting

WORDS = ["[PAD]", "[EOS]", *"abcdefghijkl"]
QUIET: dict[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "save_strategy": "no",
    "bf16": False,
    "gradient_checkpointing": False,
    "max_steps": 3,
    "logging_steps": 1,
}


class SAMTraining:
    """For trainers whose step has no state: it runs twice."""

    optimizer: Any

    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        plain = super().training_step  # type: ignore[misc]
        loss: Tensor = self.optimizer.optimizer.backward(lambda: plain(model, inputs, *args))
        return loss


class SAMSFTTrainer(SAMTraining, SFTTrainer):
    pass


class CarelessGRPOTrainer(SAMTraining, GRPOTrainer):
    """What must not be: the second pass is over the next slice, or over newly generated text."""


class SAMGRPOTrainer(GRPOTrainer):
    """For trainers whose step counts its calls, and takes or generates its batch: once a step, for both passes."""

    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        model.train()
        self._prepared, step = super()._prepare_inputs(inputs), self._step
        plain: Any = super().training_step
        optimizer: Any = self.optimizer

        def closure() -> Tensor:
            self._step = step
            loss: Tensor = plain(model, self._prepared, *args)
            return loss

        loss: Tensor = optimizer.optimizer.backward(closure)
        return loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs if inputs is getattr(self, "_prepared", None) else super()._prepare_inputs(inputs)


def language_model(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)  # type: ignore[arg-type]


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", eos_token="[EOS]", unk_token="a")  # type: ignore[no-untyped-call]


def prompts(number: int) -> list[str]:
    return [" ".join(WORDS[2 + (n * k) % 12] for k in range(1, 5)) for n in range(number)]


def supervised(setting: Setting) -> Any:
    model = language_model(setting.dtype)
    optimizer = setting.optimizer(model)
    kind = SFTTrainer if setting.method is None else SAMSFTTrainer
    config = SFTConfig(str(setting.folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, **QUIET)
    texts = Dataset.from_dict({"text": prompts(24)})
    kind(model, config, train_dataset=texts, processing_class=tokenizer(), optimizers=(optimizer, None)).train()
    return model


def reward(completions: list[str], **others: Any) -> list[float | None]:
    return [float(sum(ord(letter) for letter in text) % 7) for text in completions]


def rewarded(
    setting: Setting, kind: type[GRPOTrainer] | None = None, *, every: int = 2
) -> tuple[nn.Module, GRPOTrainer]:
    """Train by GRPO.

    Args:
        every: steps for which text is generated at once.
    """
    model = language_model(setting.dtype)
    optimizer: Optimizer = setting.optimizer(model)
    config = GRPOConfig(
        str(setting.folder), per_device_train_batch_size=4, gradient_accumulation_steps=every,
        steps_per_generation=every, num_generations=2, max_completion_length=4, **QUIET,
    )  # fmt: skip
    kind = kind or (GRPOTrainer if setting.method is None else SAMGRPOTrainer)
    texts = Dataset.from_dict({"prompt": prompts(24)})
    trainer = kind(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=texts,
        processing_class=tokenizer(),
        optimizers=(optimizer, None),
    )
    trainer.train()
    return model, trainer
