"""nn.Linear, and transformers' `Conv1D`, which is a linear layer that stores its weight transposed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraloom.adapters.functional import Gate, fused_linear, gated, plain_linear, routed_linear
from loraloom.adapters.layers.base import Additive, slot_of
from loraloom.adapters.quantized import is_quantized, quantized_linear
from loraloom.adapters.site import Shape


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether this is transformers' `Conv1D`, told by its class so that transformers need not be imported."""
    return any(cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers.") for cls in type(module).__mro__)


def fusible(module: nn.Module, weight: Tensor) -> bool:
    """Whether one fused function may take the place of base product and update.

    Not while compiling (the compiler fuses the plain form), not under torch.func's transforms (they need
    per-sample rules), not where the base weight itself trains.
    """
    slot = slot_of(module)
    return (
        slot is not None
        and slot.mixture.fused
        and not weight.requires_grad
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def linear_with_update(
    module: nn.Module, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, gate: Gate
) -> Tensor:
    """The adapted product in the fastest form that holds here; weight (O, D)."""
    slot = slot_of(module)
    if slot is None or not fusible(module, weight):
        return plain_linear(x, weight, bias, a, b, gate)
    routed = isinstance(gate, Tensor) and gate.dim() == 2 and not torch.is_grad_enabled()
    choice = slot.mixture.choice(slot.active().signature, a.device) if routed else None
    if choice is not None:
        return routed_linear(x, weight, bias, a, b, *choice)
    return fused_linear(x, weight, bias, a, b, gate)


class AdaptedLinear(Additive):
    """y = x Wᵀ + b + gate·(x Aᵀ) Bᵀ; x (…, D), W (O, D), A (R, D), B (O, R)."""

    @classmethod
    def shapes(cls, weight: Tensor, module: nn.Module, rank: int) -> tuple[Shape, Shape]:
        # A quantised weight is packed, so the layer's own words count, not the tensor's shape.
        features = (
            getattr(module, "in_features", weight.shape[-1]),
            getattr(module, "out_features", weight.shape[0]),
        )
        return (rank, int(features[0])), (int(features[1]), rank)

    @classmethod
    def delta(cls, a: Tensor, b: Tensor, module: nn.Module, shape: Shape) -> Tensor:
        return b @ a

    def base_forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._own_forward:
            return self._with_bias(self._own_product(x), bias)
        return F.linear(x, self.weight, bias)

    def update(self, x: Tensor, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
        return F.linear(gated(F.linear(x, a.to(x.dtype)), gate), b.to(x.dtype))

    def joined(self, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
        if not self._own_forward:
            return linear_with_update(self, x, self.weight, a, b, bias, gate)
        if torch.is_grad_enabled() and is_quantized(self.weight) and fusible(self, self.weight):
            return self._with_bias(quantized_linear(self, self._own_product, x, a, b, gate), bias)
        return self.base_forward(x, bias) + self.update(x, a, b, gate)

    def _own_product(self, x: Tensor) -> Tensor:
        y: Tensor = super(Additive, self).forward(x)
        return y

    def _with_bias(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """y, which holds the layer's own bias, with this one instead."""
        return y if bias is self.bias or bias is None or self.bias is None else y + (bias - self.bias)

    @property
    def _own_forward(self) -> bool:
        """Whether the layer multiplies in a way of its own: by its class, or by that of its quantised weight."""
        slot = slot_of(self)
        return slot is not None and (slot.base_class.forward is not nn.Linear.forward or is_quantized(self.weight))

    weight: Tensor
    bias: Tensor | None


class AdaptedTransposedLinear(Additive):
    """y = x W + b + gate·(x Aᵀ) Bᵀ with W (D, O): ΔW is (B A)ᵀ."""

    turned = True

    @classmethod
    def shapes(cls, weight: Tensor, module: nn.Module, rank: int) -> tuple[Shape, Shape]:
        return (rank, weight.shape[0]), (weight.shape[1], rank)

    @classmethod
    def delta(cls, a: Tensor, b: Tensor, module: nn.Module, shape: Shape) -> Tensor:
        return (b @ a).t()

    def base_forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight.t(), bias)

    def update(self, x: Tensor, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
        return F.linear(gated(F.linear(x, a.to(x.dtype)), gate), b.to(x.dtype))

    def joined(self, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
        return linear_with_update(self, x, self.weight.t(), a, b, bias, gate)

    weight: Tensor
    bias: Tensor | None
