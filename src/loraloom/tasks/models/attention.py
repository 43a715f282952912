"""Attention of a bf16 model on a CPU, computed in float32.

torch's CPU kernel for bf16 attention goes back up to nine times slower than its float32 one (sentences of 14
tokens; docs/lab-log.md), which would cost more than bf16 saves elsewhere. Casting the three inputs costs little.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

NAME = "sdpa_float32_on_cpu"


def use_float32_attention(model: Any) -> None:
    """Let a transformers model that attends through torch's kernel do so in float32 where it is bf16 on a CPU.

    Elsewhere (other devices, other dtypes, models with attention of their own) nothing changes.
    """
    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """transformers' own sdpa function around float32 inputs; query, key and value (B, heads, T, D)."""
    dtype = query.dtype
    if dtype != torch.bfloat16 or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    mask = _float32(attention_mask)
    # T5 and its kin hand a bias per pair of positions over beside the mask.
    others = {name: _float32(value) for name, value in settings.items()}
    found, weights = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **others)
    return found.to(dtype), weights


def _float32(value: Any) -> Any:
    """A tensor of floating-point numbers in float32; anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
