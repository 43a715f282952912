"""The low-rank update of a linear layer: one fused autograd function, and its plain twin.

y = x Wᵀ + b + ((x Aᵀ) · gate) Bᵀ                                    (Hu et al. 2021, arXiv 2106.09685, eq. 3)

x (…, D), W (O, D), b (O), A (R, D), B (O, R), y (…, O). `gate` carries weight × scale: a number, a vector
(R) when several adapters are stacked along R, or (B, R) when every sample of the batch has its own mix.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Gate = float | Tensor


def gated(h: Tensor, gate: Gate) -> Tensor:
    """h (B, …, R) times the gate: a number, (R), or (B, R) with one row per sample."""
    if isinstance(gate, float):
        return h * gate
    return h * expand_gate(gate, h)


def expand_gate(gate: Tensor, h: Tensor) -> Tensor:
    """A gate (R) or (B, R) as a tensor that broadcasts over h (B, …, R), in h's dtype."""
    gate = gate.to(h.dtype)
    if gate.dim() == 1:
        return gate
    if gate.shape[0] != h.shape[0]:
        raise ValueError(f"{gate.shape[0]} samples are routed, but a layer got {h.shape[0]} rows (dimension 0)")
    return gate.view(gate.shape[0], *[1] * (h.dim() - 2), gate.shape[1])


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
    """The readable truth that `fused_linear` is held to; also serves torch.compile and torch.func."""
    h = gated(F.linear(x, a.to(x.dtype)), gate)
    return F.linear(x, weight, bias) + F.linear(h, b.to(x.dtype))


def fused_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
    """The same as `plain_linear` with no temporary of the size of x or y; weight (O, D) is frozen.

    Factors may be in another dtype than x: they are cast inside, and their gradients come back in their own.
    """
    dtype = compute_dtype(x)
    if not torch.is_grad_enabled():
        return _forward(x.to(dtype), weight.to(dtype), _to(bias, dtype), a.to(dtype), b.to(dtype).t(), gate)[0]
    out: Tensor = _FusedLinear.apply(x, weight, bias, a, b, gate, dtype)  # type: ignore[no-untyped-call]
    return out


def routed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, index: Tensor, scale: Tensor
) -> Tensor:
    """Each sample through one of n adapters of rank R, without gradients: the cost of one adapter, not of n.

    x (B, …, D), a (n·R, D), b (O, n·R), index (B) of each sample's adapter, scale (B, n) with its weight × scale
    in that adapter's column.
    """
    dtype, count = compute_dtype(x), scale.shape[1]
    if x.shape[0] != index.shape[0]:
        raise ValueError(f"{index.shape[0]} samples are routed, but a layer got {x.shape[0]} rows (dimension 0)")
    rows = x.to(dtype).reshape(x.shape[0], -1, x.shape[-1])
    own_a = a.to(dtype).view(count, -1, a.shape[1])[index]
    own_bt = b.to(dtype).t().reshape(count, -1, b.shape[0])[index]
    y = F.linear(rows, weight.to(dtype), _to(bias, dtype))
    h = torch.bmm(rows, own_a.transpose(1, 2)).mul_(scale.sum(1).to(dtype).view(-1, 1, 1))
    return y.baddbmm_(h, own_bt).view(*x.shape[:-1], y.shape[-1])


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product of x runs in: autocast's dtype where autocast is on, otherwise x's own."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


_unsafe_view = torch.ops.aten._unsafe_view.default
"""A view that autograd takes for a tensor of its own: into a plain one that was made in a function of ours it would
let no model write, as some encoders do."""


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, bt: Tensor, gate: Gate
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the rows of x (N, D), and their gated projections h (N, R); bt is Bᵀ (R, O); all of one dtype."""
    rows = x.reshape(-1, x.shape[-1])
    y = F.linear(rows, weight, bias)
    h = rows @ a.t()
    if isinstance(gate, float):
        h.mul_(gate)
    else:
        h.view(*x.shape[:-1], h.shape[1]).mul_(expand_gate(gate, x))
    y.addmm_(h, bt)
    return _unsafe_view(y, (*x.shape[:-1], y.shape[1])), rows, h


class _FusedLinear(torch.autograd.Function):
    """Saves the rows of x, which the layer before keeps anyway, and h (N, R)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        gate: Gate,
        dtype: torch.dtype,
    ) -> Tensor:
        a_c = a.to(dtype)
        # Products with a contiguous Bᵀ take a third of the time of those with B: rows of O, not columns of R.
        bt = torch.empty(b.shape[::-1], dtype=dtype, device=b.device).copy_(b.t())
        y, rows, h = _forward(x.to(dtype), weight.to(dtype), _to(bias, dtype), a_c, bt, gate)
        # Under autocast the frozen weight is saved as it is and cast again going back: a cast copy would live on.
        ctx.save_for_backward(rows, h, weight, a_c, bt, gate if isinstance(gate, Tensor) else None)
        ctx.gate = gate if isinstance(gate, float) else None
        ctx.input = (x.shape, x.dtype)
        ctx.dtypes = (a.dtype, b.dtype, None if bias is None else bias.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, h, weight, a, bt, gate = ctx.saved_tensors
        shape, dtype = ctx.input
        type_a, type_b, type_bias = ctx.dtypes
        dy = dy.reshape(-1, dy.shape[-1]).to(rows.dtype)
        dh = dy @ bt.t()
        if gate is None:
            dh.mul_(ctx.gate)
        else:
            by_sample = dh.view(*shape[:-1], dh.shape[1])
            by_sample.mul_(expand_gate(gate, by_sample))
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight.to(rows.dtype)).addmm_(dh, a).view(shape).to(dtype)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(0, dtype=type_bias)
        da = (dh.t() @ rows).to(type_a) if ctx.needs_input_grad[3] else None
        db = (h.t() @ dy).to(type_b).t() if ctx.needs_input_grad[4] else None
        return dx, None, dbias, da, db, None, None
