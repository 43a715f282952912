"""Relative error of the fused linear layer's gradients against the plain twin's, worst over shapes and gates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from loraloom.adapters.functional import Gate, fused_linear, plain_linear

SHAPES = ((32, 16, 384, 384, 8), (32, 16, 384, 1536, 16), (8, 64, 768, 3072, 64), (4, 7, 5, 3, 2))
"""B, T, D, O, R."""


def measure() -> dict[str, float]:
    """The largest relative error (Frobenius) of dx, dA, dB, db and y, by dtype."""
    return {
        f"fused against plain, {str(dtype).removeprefix('torch.')}": max(
            error for shape in SHAPES for gate in _gates(shape, dtype) for error in _errors(shape, gate, dtype)
        )
        for dtype in (torch.float64, torch.float32)
    }


def _gates(shape: tuple[int, ...], dtype: torch.dtype) -> list[Gate]:
    return [2.0, torch.randn(shape[4], dtype=dtype), torch.randn(shape[0], shape[4], dtype=dtype)]


def _errors(shape: tuple[int, ...], gate: Gate, dtype: torch.dtype) -> list[float]:
    batch, positions, inputs, outputs, rank = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, dtype=dtype, generator=generator)

    weight, upstream = draw(outputs, inputs), draw(batch, positions, outputs)
    leaves = [draw(batch, positions, inputs), draw(outputs), draw(rank, inputs), draw(outputs, rank)]

    def results(linear: Callable[..., Tensor]) -> list[Tensor]:
        x, bias, a, b = (leaf.clone().requires_grad_() for leaf in leaves)
        y = linear(x, weight, bias, a, b, gate)
        return [y.detach(), *torch.autograd.grad(y, [x, bias, a, b], upstream)]

    pairs = zip(results(fused_linear), results(plain_linear), strict=True)
    return [float(torch.linalg.vector_norm(one - two) / torch.linalg.vector_norm(two)) for one, two in pairs]


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{value:.1e}  {name}")
