"""Whether a written weight acts as the base's and the adapters' together, on vectors drawn from a seed.

(W' − W)x is held against Σ w·s·B(Ax), the products in float64, with W and W' read anew from their files: what was
written is looked at, not what was meant. x (columns,) has normal entries, so that ‖(W' − W − ΔW)x‖ is about the
Frobenius norm of the error, and a single wrong row shows.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.compose.merge.changes import Patch
from loraloom.compose.merge.rows import Rows, block_rows, blocks_of

_ROOM = 4.0
"""The error of one draw of x may be this many times what is expected of the roundings."""


@dataclass(frozen=True)
class Probe:
    """What one tensor's probe came to."""

    difference: float
    """‖W'x − (Wx + ΔWx)‖."""
    limit: float
    """What the roundings of the dtype allow."""
    moved: float
    """‖W'x − Wx‖: 0 where the written tensor is the base's."""

    @property
    def holds(self) -> bool:
        """Whether the written weight is the base's and the update, as nearly as its dtype can hold them."""
        return self.difference <= self.limit  # not of NaN


def probe(
    name: str, source: Rows, written: Rows, size: float, patches: Sequence[Patch], dense: Tensor | None = None
) -> Probe:
    """Hold a written tensor against its source and the updates; the vector is drawn from the tensor's name.

    `size` is ‖W + ΔW‖, from which what roundings allow is worked out.
    """
    x = torch.randn(source.columns, generator=_generator(name), dtype=torch.float64)
    expected = _update(patches, dense, source, x)
    work = torch.promote_types(torch.promote_types(source.dtype, written.dtype), torch.float32)
    shape = (min(source.rows, block_rows(source.columns)), source.columns)
    now, base = (torch.empty(shape, dtype=work) for _ in range(2))
    exact = torch.empty(shape, dtype=torch.float64)
    difference = moved = 0.0
    for first, last in blocks_of(source.rows, source.columns):
        n = last - first
        now[:n].copy_(written.read(first, last))
        now[:n] -= base[:n].copy_(source.read(first, last))  # of numbers as close as these nearly exact
        change = exact[:n].copy_(now[:n]) @ x
        difference += float(torch.linalg.vector_norm(change - expected[first:last])) ** 2
        moved += float(torch.linalg.vector_norm(change)) ** 2
    limit = _ROOM * (_rounding(written, size) + _arithmetic(patches, dense))
    return Probe(math.sqrt(difference), limit, math.sqrt(moved))


def _rounding(written: Rows, norm: float) -> float:
    """What the dtype may lose: half its unit times the size; of numbers near 0, half the smallest that it has."""
    numbers = torch.finfo(written.dtype)
    smallest = numbers.tiny * numbers.eps / 2
    return numbers.eps / 2 * norm + smallest * math.sqrt(written.rows * written.columns)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode("utf-8")))


def _update(patches: Sequence[Patch], dense: Tensor | None, source: Rows, x: Tensor) -> Tensor:
    """Σ w·s·B(Ax) (rows,)."""
    if dense is not None:
        return dense.reshape(source.rows, source.columns).double() @ x
    total = torch.zeros(source.rows, dtype=torch.float64)
    for patch in patches:
        own = slice(patch.begin, patch.begin + patch.left.shape[0])
        total[own] += patch.left.double() @ (patch.right.double() @ x)
    return total


def _arithmetic(patches: Sequence[Patch], dense: Tensor | None) -> float:
    """What float32 products may lose: its unit, times the size of the products' terms."""
    terms = sum(float(patch.left.norm()) * float(patch.right.norm()) for patch in patches)
    terms += 0.0 if dense is None else float(dense.norm())
    return torch.finfo(torch.float32).eps * terms


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all outputs; infinite where they do not match at all."""
    if len(ours) != len(theirs) or any(one.shape != other.shape for one, other in zip(ours, theirs, strict=False)):
        return math.inf
    apart = math.sqrt(sum(float((one - other).double().norm()) ** 2 for one, other in zip(ours, theirs, strict=True)))
    size = math.sqrt(sum(float(other.double().norm()) ** 2 for other in theirs))
    return apart / size if size else (math.inf if apart else 0.0)
