"""The difference of two checkpoints, one tensor at a time, and the low-rank factors of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.adapters.product import Product
from loraloom.compose.extract.pairing import Pair, Pairing
from loraloom.compose.truncated import truncated_svd
from loraloom.errors import FormatError

PROBES = 2
"""Random vectors per layer that the written file is held against."""
_NOTHING = 1e-9
"""Singular values below this share of the largest are rounding, not rank."""
_ROWS = 128


@dataclass(frozen=True)
class Change:
    """How one tensor differs from the base's."""

    norm: float
    """‖ΔW‖."""
    base_norm: float
    """‖W‖ of the base."""
    delta: Tensor
    """tuned − base in the tensor's shape, float32, or float64 where a checkpoint has that."""

    @property
    def relative(self) -> float:
        """‖ΔW‖ / ‖W‖; infinite over a base of zeros."""
        return self.norm / self.base_norm if self.base_norm else math.inf


def change_of(pair: Pair, pairing: Pairing) -> Change | None:
    """Read a tensor of both and subtract; None where they are the same, but for the rounding to another dtype.

    Raises FormatError for values that are not finite.
    """
    tuned, base = pairing.tuned.tensors[pair.tuned], pairing.base.tensors[pair.base]
    if _same(tuned, base):
        return None
    base_norm = norm_of(_numbers(base))
    delta = _numbers(tuned)
    delta = delta.double() if base.dtype == torch.float64 else delta
    del tuned
    for own, other in zip(_pieces(delta), _pieces(base), strict=True):
        own -= other.to(own.dtype)  # some at a time: to subtract one dtype from another in one go is slower
    norm = norm_of(delta)
    _check_finite(pairing, pair, norm + base_norm)
    return Change(norm, base_norm, delta)


def norm_of(tensor: Tensor) -> float:
    """‖tensor‖_F: of each row in its own dtype, which is fast, together in float64, which holds the digits."""
    rows = torch.linalg.vector_norm(tensor if tensor.dim() < 2 else tensor.flatten(1), dim=-1)
    return float(rows.double().norm())


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    return torch.split(tensor.reshape(-1), 1 << 20)


def _numbers(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _same(tuned: Tensor, base: Tensor) -> bool:
    """Whether one is the other, or the other rounded to its dtype."""
    if tuned.dtype == base.dtype:
        return torch.equal(tuned, base)
    if not (tuned.is_floating_point() and base.is_floating_point()):
        return False
    return torch.equal(tuned, base.to(tuned.dtype)) or torch.equal(tuned.to(base.dtype), base)


def _check_finite(pairing: Pairing, pair: Pair, norm: float) -> None:
    if math.isfinite(norm):
        return
    for checkpoint, key in ((pairing.tuned, pair.tuned), (pairing.base, pair.base)):
        if not bool(torch.isfinite(checkpoint.tensors[key]).all()):
            place = checkpoint.tensors.place(key)
            file = checkpoint.path if place is None else place[0]
            raise FormatError(f"{file}: tensor {pair.path!r} holds values that are not finite")


# -- factors ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Factors:
    """ΔW ≈ B·A of one layer, in the shapes of the layer's kind, with what it was cut from."""

    a: Tensor
    b: Tensor
    rank: int
    left_out: float
    """‖ΔW − B·A‖ / ‖ΔW‖, B and A as they are written."""
    seed: int
    probed: Tensor
    """ΔW times the probe vectors of this seed, float64."""


@dataclass(frozen=True)
class Cut:
    """How a difference is cut to low rank."""

    rank: int | None
    energy: float | None
    dtype: torch.dtype

    def rank_of(self, pair: Pair) -> int:
        """The rank that a layer gets at most; 0 where its groups leave none."""
        most = pair.full_rank if self.rank is None else min(self.rank, pair.full_rank)
        return most - most % pair.groups


def factors_of(pair: Pair, change: Change, cut: Cut, seed: int) -> Factors:
    """The best low-rank approximation of a layer's change. Raises FormatError where the dtype cannot hold it."""
    matrix = matrix_of(pair, change.delta)
    product = _grouped(matrix, pair, cut) if pair.groups > 1 else _cut(matrix, cut.rank_of(pair), cut, seed)
    b, a = product.b.to(cut.dtype), product.a.to(cut.dtype)
    if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
        name = str(cut.dtype).removeprefix("torch.")
        raise FormatError(f"the update of {pair.module!r} holds values beyond the range of {name}")
    left_out = _remainder(matrix, b, a, pair.groups) / change.norm
    probed = _probed(matrix, seed)
    inner = pair.shape[1:] if pair.kind not in ("embedding", "conv1d-transposed") else (matrix.shape[1],)
    ones = (1,) * (len(inner) - 1)
    return Factors(a.reshape(-1, *inner), b.reshape(*b.shape, *ones), a.shape[0], left_out, seed, probed)


def matrix_of(pair: Pair, delta: Tensor) -> Tensor:
    """ΔW as the matrix B·A approximates: (out, in·k…) of a layer, (dim, number) of an embedding."""
    return delta.t() if pair.kind in ("embedding", "conv1d-transposed") else delta.flatten(1)


def _cut(matrix: Tensor, rank: int, cut: Cut, seed: int) -> Product:
    svd = truncated_svd(matrix, rank=rank, energy=cut.energy, seed=seed)
    keep = int((svd.s > _NOTHING * svd.s[:1]).sum()) if len(svd.s) else 0
    return svd.product(max(keep, 1))


def _grouped(matrix: Tensor, pair: Pair, cut: Cut) -> Product:
    """Of a grouped convolution: every group has its own part of the rank. A (R, in/groups·k…), B (O, R/groups)."""
    blocks = matrix.double().reshape(pair.groups, -1, matrix.shape[1])
    u, s, v = torch.linalg.svd(blocks, full_matrices=False)
    keep = cut.rank_of(pair) // pair.groups
    if cut.energy is not None:
        shares = s.square().sum(0).cumsum(0)
        keep = min(keep, int((shares < (cut.energy - 1e-12) * shares[-1]).sum()) + 1)
    root = s[:, :keep].sqrt()
    return Product((u[:, :, :keep] * root[:, None]).flatten(0, 1), (root[..., None] * v[:, :keep]).flatten(0, 1))


def _remainder(matrix: Tensor, b: Tensor, a: Tensor, groups: int) -> float:
    """‖matrix − B·A‖, some rows at a time."""
    dtype = matrix.dtype
    per_group = a.to(dtype).reshape(groups, -1, a.shape[1])
    total = 0.0
    for group, own in enumerate(matrix.tensor_split(groups)):
        own_b = b[group * own.shape[0] : (group + 1) * own.shape[0]].to(dtype)
        for rows, some in zip(torch.split(own, _ROWS), torch.split(own_b, _ROWS), strict=True):
            rest = torch.addmm(rows, some, per_group[group], alpha=-1)
            total += norm_of(rest) ** 2
    return math.sqrt(total)


def probe(width: int, seed: int) -> Tensor:
    """The probe vectors of a layer, (width, PROBES), float64."""
    return torch.randn(width, PROBES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _probed(matrix: Tensor, seed: int) -> Tensor:
    x = probe(matrix.shape[1], seed)
    return torch.cat([x.t() @ rows.double().t() for rows in torch.split(matrix, _ROWS)], dim=1).t()
