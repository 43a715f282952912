"""Products with a quantised weight: the layer's own going forward, one with the weight it stands for going back.

A layer's own product, left to autograd, keeps a copy of its weight in full precision for the way back, and
so loses what quantising saved. Here nothing is kept but the rows of x and h; the weight is written out for
as long as one layer's backward pass takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loraloom.adapters.functional import Gate, expand_gate


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight's numbers stand for others: whole numbers, or a tensor class that is written out."""
    return not weight.is_floating_point() or type(weight).dequantize is not Tensor.dequantize


def dense_weight(module: nn.Module, parameter: str = "weight") -> Tensor:
    """The weight (O, D) of a layer as floating-point numbers: what a quantised one stands for, or itself."""
    weight = module.get_parameter(parameter).detach()
    if not is_quantized(weight):
        return weight
    held: Any = module._parameters.get(parameter)
    # detach() drops what bitsandbytes hangs on its parameters, so these are read from the parameter itself.
    four_bits = getattr(held, "quant_state", None) or getattr(module, "quant_state", None)
    if four_bits is not None:
        # The library is loaded, or there were no such layer: it is not imported for those who have none.
        library: Any = sys.modules["bitsandbytes"]
        return cast(Tensor, library.functional.dequantize_4bit(held.data, four_bits))
    if weight.dtype == torch.int8:
        largest = getattr(held, "SCB", None)
        if largest is None:
            largest = cast(Any, module).state.SCB
        return weight.float() * cast(Tensor, largest.float() / 127).unsqueeze(1)
    written: Tensor = weight.dequantize()
    return written


def quantized_linear(
    module: nn.Module, own: Callable[[Tensor], Tensor], x: Tensor, a: Tensor, b: Tensor, gate: Gate
) -> Tensor:
    """own(x) + gate·(x Aᵀ) Bᵀ; `own` is the layer's own product with its quantised weight, bias included.

    x (…, D), A (R, D), B (O, R), result (…, O). Gradients reach x, A and B.
    """
    out: Tensor = _QuantizedLinear.apply(x, a, b, gate, module, own)  # type: ignore[no-untyped-call]
    return out


class _QuantizedLinear(torch.autograd.Function):
    """Saves the rows of x, which the layer before keeps anyway, and h (N, R)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, gate: Gate, module: nn.Module, own: Callable[[Tensor], Tensor]
    ) -> Tensor:
        y = own(x)
        a_c, bt = a.to(y.dtype), b.to(y.dtype).t().contiguous()
        rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
        h = rows @ a_c.t()
        ctx.save_for_backward(rows, _gated(h, gate, x), a_c, bt, gate if isinstance(gate, Tensor) else None)
        ctx.gate = gate if isinstance(gate, float) else None
        ctx.module, ctx.input, ctx.dtypes = module, (x.shape, x.dtype), (a.dtype, b.dtype)
        return torch.addmm(y.reshape(-1, y.shape[-1]), h, bt).view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, h, a, bt, gate = ctx.saved_tensors
        shape, dtype = ctx.input
        dy = dy.reshape(-1, dy.shape[-1]).to(rows.dtype)
        dh = dy @ bt.t()
        _gated(dh, ctx.gate if gate is None else gate, rows.view(shape))
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ dense_weight(ctx.module).to(rows.dtype)).addmm_(dh, a).view(shape).to(dtype)
        da = (dh.t() @ rows).to(ctx.dtypes[0]) if ctx.needs_input_grad[1] else None
        db = (h.t() @ dy).to(ctx.dtypes[1]).t() if ctx.needs_input_grad[2] else None
        return dx, da, db, None, None, None


def _gated(h: Tensor, gate: Gate, x: Tensor) -> Tensor:
    """h (N, R) times the gate, in place; x (B, …, D) tells which of the N rows are whose."""
    if isinstance(gate, float):
        return h.mul_(gate)
    h.view(*x.shape[:-1], h.shape[1]).mul_(expand_gate(gate, x))
    return h
