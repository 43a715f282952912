"""B·A as a matrix that is never formed: norms, inner products, and its best approximation of a lower rank.

An update of rank R costs R·(O + I) numbers where its ΔW costs O·I. With the thin QR decompositions B = Q₁R₁ and
Aᵀ = Q₂R₂ everything about ΔW = Q₁(R₁R₂ᵀ)Q₂ᵀ that does not change under rotations is that of the R × R matrix
R₁R₂ᵀ: its norm, its singular values, its best approximations. All of it is worked out in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Product:
    """The matrix B·A, (O, I)."""

    b: Tensor
    """(O, R), float64."""
    a: Tensor
    """(R, I), float64."""

    @classmethod
    def of(cls, b: Tensor, a: Tensor, scale: float = 1.0) -> Product:
        """scale · B·A of factors in any dtype; B (O, R, …) and A (R, …) count as matrices."""
        return cls(b.detach().double().flatten(1) * scale, a.detach().double().flatten(1))

    @classmethod
    def total(cls, products: Iterable[Product]) -> Product:
        """The sum of products of one shape: the factors end to end, of rank ΣR."""
        listed = list(products)
        return cls(torch.cat([one.b for one in listed], dim=1), torch.cat([one.a for one in listed]))

    @property
    def rank(self) -> int:
        """R: how many columns B has, which bounds the rank of the matrix."""
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return int(self.b.shape[0]), int(self.a.shape[1])

    def scaled(self, weight: float) -> Product:
        """weight · B·A."""
        return Product(self.b * weight, self.a)

    def dense(self) -> Tensor:
        """The matrix itself, (O, I)."""
        return self.b @ self.a

    def core(self) -> Tensor:
        """A small matrix with the singular values of B·A: R₁R₂ᵀ, or a factor itself where it is no taller than wide."""
        left = torch.linalg.qr(self.b, mode="r").R if self.shape[0] > self.rank else self.b
        right = torch.linalg.qr(self.a.t(), mode="r").R.t() if self.shape[1] > self.rank else self.a
        return left @ right

    def norm(self) -> float:
        """‖B A‖_F."""
        return float(torch.linalg.matrix_norm(self.core()))

    def inner(self, other: Product) -> float:
        """⟨B A, B'A'⟩_F, the sum of the products of all pairs of entries: that of (BᵀB') ∘ (A A'ᵀ)."""
        return float(((self.b.t() @ other.b) * (self.a @ other.a.t())).sum())

    def singular_values(self) -> Tensor:
        """Largest first, (min(O, I, R),)."""
        values: Tensor = torch.linalg.svdvals(self.core())
        return values

    def svd(self) -> Svd:
        """The thin singular value decomposition of B·A."""
        left, core_b = torch.linalg.qr(self.b)
        right, core_a = torch.linalg.qr(self.a.t())
        u, s, v = torch.linalg.svd(core_b @ core_a.t(), full_matrices=False)
        return Svd(left @ u, s, v @ right.t())


@dataclass(frozen=True)
class Svd:
    """U·diag(s)·V of an (O, I) matrix; float64."""

    u: Tensor
    """(O, K), orthonormal columns."""
    s: Tensor
    """(K,), largest first."""
    v: Tensor
    """(K, I), orthonormal rows."""

    def product(self, rank: int) -> Product:
        """The best approximation of at most this rank (Eckart & Young 1936), its size shared evenly by both factors."""
        keep = min(rank, len(self.s))
        root = self.s[:keep].sqrt()
        return Product(self.u[:, :keep] * root, root[:, None] * self.v[:keep])

    def left_out(self, rank: int) -> float:
        """‖what a cut to this rank leaves out‖_F / ‖the whole‖_F; 0 for a matrix of zeros."""
        whole = float(self.s.norm())
        return float(self.s[rank:].norm()) / whole if whole else 0.0
