"""The singular values of an adapter's updates, from the factors alone: ΔW is never formed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.adapters.adapterset import AdapterSet
from loraloom.adapters.product import Product
from loraloom.adapters.site import Site


def singular_values(a: Tensor, b: Tensor, scale: float) -> list[float]:
    """Singular values of scale · B·A, largest first; A (R, …) and B (O, R, …) as matrices, float64 inside."""
    values: list[float] = (Product.of(b.cpu(), a.cpu()).singular_values() * abs(scale)).tolist()
    return values


def site_values(adapters: AdapterSet, name: str, site: Site, tensors: Mapping[str, Tensor]) -> list[float]:
    """Singular values of one site's ΔW, as many as its rank.

    Where a weight is not one matrix (grouped convolutions, experts) or has no factors of its own (tied),
    the values are those of its blocks together: the root of the sum of their squares, by rank.
    """
    a, b = tensors.get(f"{site.path}|A"), tensors.get(f"{site.path}|B")
    if a is not None and b is not None and a.shape[0] == b[0].numel() == site.rank:
        return singular_values(a, b, site.scale)
    delta = adapters.delta(name, site.path).detach().cpu().double()
    blocks = delta if site.kind == "experts" else delta.reshape(1, delta.shape[0], -1)
    values: list[float] = torch.linalg.svdvals(blocks).square().sum(0).sqrt()[: site.rank].tolist()
    return values


@dataclass(frozen=True)
class Spectrum:
    """What the singular values of one ΔW say."""

    values: tuple[float, ...]
    """Largest first; as many as the rank."""

    @property
    def norm(self) -> float:
        """Frobenius norm of ΔW."""
        return math.sqrt(math.fsum(value * value for value in self.values))

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the values as shares of their sum (Roy & Vetterli 2007); 0 for ΔW = 0."""
        total = math.fsum(self.values)
        shares = [value / total for value in self.values if value > 0] if total > 0 else []
        return math.exp(-math.fsum(share * math.log(share) for share in shares)) if shares else 0.0

    def rank_for(self, energy: float) -> int:
        """How many of the largest values hold `energy` (a share, 0 to 1) of ‖ΔW‖²; 0 for ΔW = 0."""
        squares = [value * value for value in self.values]
        # Relative room for rounding: a sum that falls short in its last digits is the whole.
        wanted, held = energy * math.fsum(squares) * (1 - 1e-12), 0.0
        for count, square in enumerate(squares if wanted > 0 else ()):
            if held >= wanted:
                return count
            held += square
        return len(squares) if wanted > 0 else 0
