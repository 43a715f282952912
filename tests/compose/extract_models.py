"""Small full checkpoints in pairs: a base, and the same with a known change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D

LAYERS = (nn.Linear, nn.Conv2d, Conv1D)


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 60}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, "pad_token_id": 2, **changes})).eval()


def gpt2(seed: int = 0, **changes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **changes})).eval()


def bert(seed: int = 0, **changes: Any) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 60}
    more = {"num_attention_heads": 2, "max_position_embeddings": 16, "num_labels": 3}
    return BertForSequenceClassification(BertConfig(**{**sizes, **more, **changes})).eval()


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def change_layers(model: nn.Module, rank: int = 3, size: float = 0.05, skip: Iterable[str] = ()) -> dict[str, Tensor]:
    """Add a random update of this rank to every linear layer and convolution; path → ΔW in the weight's shape."""
    changes: dict[str, Tensor] = {}
    for number, (path, module) in enumerate(model.named_modules()):
        if not isinstance(module, LAYERS) or any(word in path for word in skip):
            continue
        weight = module.weight
        flat = weight.flatten(1).shape
        b, a = random(flat[0], rank, seed=number), random(rank, flat[1], seed=1000 + number)
        changes[path] = (b @ a).reshape(weight.shape) * size
        with torch.no_grad():
            weight += changes[path]
    return changes


def change(parameter: Tensor, seed: int = 5, size: float = 0.1) -> None:
    """Add noise to a parameter."""
    with torch.no_grad():
        parameter += random(*parameter.shape, seed=seed) * size


def save(model: Any, folder: Path, dtype: torch.dtype | None = None, shards: str | None = None) -> Path:
    """A checkpoint; in shards of this size where one is given."""
    kept = model.to(dtype) if dtype is not None else model
    kept.save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    return folder


def pair(
    folder: Path, make: Callable[..., Any], tune: Callable[[Any], Any], **saving: Any
) -> tuple[Path, Path, Any, Any]:
    """(tuned folder, base folder, tuned model, what `tune` returned)."""
    base = save(make(), folder / "base", saving.get("dtype"))
    model = make()
    told = tune(model)
    return save(model, folder / "tuned", **saving), base, model, told


def tokens(vocabulary: int = 50) -> Tensor:
    return torch.randint(3, vocabulary, (2, 9), generator=torch.Generator().manual_seed(3))
