"""Small checkpoints of real classes, and adapters that PEFT made on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from loraloom.tasks.models.loading import silent

WORDS = 50
_LLAMA: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def bert() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=WORDS, **sizes))


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=WORDS, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**_LLAMA))


def mixtral() -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(**_LLAMA, num_local_experts=3))


def t5() -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=WORDS, decoder_start_token_id=0, **sizes))


MODELS = {"bert": bert, "gpt2": gpt2, "llama": llama, "mixtral": mixtral, "t5": t5}


@contextmanager
def quietly(seed: int = 0) -> Iterator[None]:
    """Without the libraries' bars, from a seed that is nobody else's."""
    with silent(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def save_model(name: str, folder: Path, *, dtype: torch.dtype = torch.float32, shard: str = "20KB") -> Path:
    """A model of one of MODELS with random weights, in several shards."""
    with quietly():
        MODELS[name]().to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_adapter(model: Any, folder: Path, *, size: float = 0.2, seed: int = 1, **config: Any) -> Any:
    """An adapter of PEFT's on a model, its factors filled with random numbers; returns PEFT's model."""
    with quietly(seed):
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **config}))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name or (parameter.requires_grad and "modules_to_save" in name):
                    parameter.copy_(torch.randn(parameter.shape) * size)
                elif parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape) * size)
        adapted.save_pretrained(folder)
    return adapted.eval()


def load(cls: Any, folder: Path, **settings: Any) -> Any:
    with quietly():
        return cls.from_pretrained(folder, **settings).eval()


def classifier(folder: Path, labels: int = 5) -> Any:
    """A classifier over a base without a head."""
    return load(AutoModelForSequenceClassification, folder, num_labels=labels)


def logits(model: nn.Module) -> Tensor:
    """What a model says of fixed words."""
    words = torch.arange(2 * 8).view(2, 8) + 3
    extra = {"decoder_input_ids": words} if getattr(model.config, "is_encoder_decoder", False) else {}
    with torch.no_grad():
        answer = model(input_ids=words, **extra)
    return (answer.logits if hasattr(answer, "logits") else answer.last_hidden_state).float()


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's weight files."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found
