"""Mixtures that are defined on the entries of ΔW: ties, dare and magnitude pruning, on one layer's matrices at a time.

Each takes (weight, ΔW) pairs and returns the mixed ΔW, which has no low rank any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Dense(NamedTuple):
    """One adapter's update of a layer, written out."""

    weight: float
    matrix: Tensor
    """(O, I), float64."""
    seed: int
    """Of what is drawn for it."""


Mixture = Callable[[Sequence[Dense], float], Tensor]


def kept_count(size: int, density: float) -> int:
    """How many of `size` entries a density keeps: rounded down as PEFT does, and one at least."""
    return max(1, int(density * size))


def trim(matrix: Tensor, density: float) -> Tensor:
    """The entries of largest magnitude, as large a share of them as `density` in (0, 1] says; the others are 0."""
    if density >= 1:
        return matrix
    sizes = matrix.abs().flatten()
    threshold = sizes.kthvalue(len(sizes) - kept_count(len(sizes), density) + 1).values
    return torch.where(matrix.abs() >= threshold, matrix, 0.0)


def ties(parts: Sequence[Dense], density: float) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708): trim, elect a sign, and take the mean of those that agree with it.

    The paper has no weights within the sum. Here they are multiplied in before the sign is elected, as mergekit does,
    so that a heavier adapter has the greater say and a negative weight votes for the opposite; the mean is over the
    number of adapters that agree, as in the paper (algorithm 1) and in PEFT. With equal positive weights all three
    readings are one.
    """
    weighted = [part.weight * trim(part.matrix, density) for part in parts]
    elected = torch.stack(weighted).sum(0).sign()
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for matrix in weighted:
        agrees = (matrix.sign() == elected) & (elected != 0)
        total += torch.where(agrees, matrix, 0.0)
        count += agrees
    return total / count.clamp(min=1)


def dare(parts: Sequence[Dense], density: float) -> Tensor:
    """DARE (Yu et al. 2023, arXiv 2311.03099): drop entries at random, and divide the others by the share that is kept.

    Each entry stays with probability `density`; the expectation of the result is the exact weighted sum.
    """
    total = torch.zeros_like(parts[0].matrix)
    for part in parts:
        generator = torch.Generator().manual_seed(part.seed)
        stays = torch.rand(part.matrix.shape, generator=generator) < density
        total += torch.where(stays, part.matrix, 0.0) * (part.weight / density)
    return total


def magnitude_prune(parts: Sequence[Dense], density: float) -> Tensor:
    """The weighted sum of what `trim` leaves of each adapter."""
    total = torch.zeros_like(parts[0].matrix)
    for part in parts:
        total += part.weight * trim(part.matrix, density)
    return total


MIXTURES: dict[str, Mixture] = {"ties": ties, "dare": dare, "magnitude-prune": magnitude_prune}
"""Method → what it does with the matrices."""


def seed_of(seed: int, site: str, *factors: Tensor) -> int:
    """What is drawn for an adapter's update of a layer: it hangs on the seed, the layer and the update alone, so that
    neither the order of the layers nor that of the adapters matters."""
    digest = hashlib.sha256(f"{seed} {site}".encode())
    for factor in factors:
        digest.update(factor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return int.from_bytes(digest.digest()[:8], "little") >> 1
