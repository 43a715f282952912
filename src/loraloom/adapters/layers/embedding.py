"""nn.Embedding: columns of A are looked up by token, then mapped by B."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from loraloom.adapters.functional import Gate, gated
from loraloom.adapters.layers.base import Additive
from loraloom.adapters.site import Shape


class AdaptedEmbedding(Additive):
    """y = W[ids] + gate·Aᵀ[ids] Bᵀ; W (V, D), A (R, V), B (D, R), so ΔW is (B A)ᵀ."""

    lookup = True
    turned = True

    @classmethod
    def shapes(cls, weight: Tensor, module: nn.Module, rank: int) -> tuple[Shape, Shape]:
        return (rank, weight.shape[0]), (weight.shape[1], rank)

    @classmethod
    def delta(cls, a: Tensor, b: Tensor, module: nn.Module, shape: Shape) -> Tensor:
        return (b @ a).t()

    def base_forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = super(Additive, self).forward(x)
        return y

    def update(self, x: Tensor, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
        module = cast(Any, self)
        # padding_idx keeps the padding token's column of A from training, as the layer does with its own row.
        h = F.embedding(x, a.t(), module.padding_idx, scale_grad_by_freq=module.scale_grad_by_freq)
        y = F.linear(gated(h, gate), b.to(h.dtype))
        scale = getattr(module, "embed_scale", None)  # some layers scale what they look up, ΔW included
        return y if scale is None else y * scale

    def joined(self, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
        y = self.base_forward(x, bias)
        return y + self.update(x, a, b, gate).to(y.dtype)
