"""Whether a written weight acts as the base's and the adapters' together, on vectors drawn from a seed.

W'x − Wx is held against Σ w·s·B(Ax), with W' read anew from its file: what was written is looked at, not what was
meant. x (columns,) has normal entries, so that ‖(W' − W − ΔW)x‖ is about the Frobenius norm of the error, and a single
wrong row shows. Of weights in 16 bits Wx is noted while W passes on its way into the new file, and the products are in
float32, whose rounding is a thousandth of theirs; of others W is read once more, and the products are in float64.
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


class Answers:
    """What the base answers to a tensor's vector: Wx (rows,), noted block by block."""

    def __init__(self, name: str, rows: int, columns: int) -> None:
        self._x = _vector(name, columns).float()
        self.values = torch.empty(rows)

    def note(self, block: Tensor, first: int, last: int) -> None:
        """Some of the base's rows (n, columns), float32."""
        torch.mv(block, self._x, out=self.values[first:last])


def may_note(*dtypes: torch.dtype) -> bool:
    """Whether float32 is so much finer than these dtypes that it tells what they round."""
    return all(dtype in (torch.float16, torch.bfloat16) for dtype in dtypes)


def probe(
    name: str,
    source: Rows,
    written: Rows,
    size: float,
    patches: Sequence[Patch],
    dense: Tensor | None = None,
    answers: Answers | None = None,
) -> Probe:
    """Hold a written tensor against its source and the updates; the vector is drawn from the tensor's name.

    `size` is ‖W + ΔW‖, from which what roundings allow is worked out. With the base's `answers` the source is not read.
    """
    x = _vector(name, source.columns)
    change = _change(source, written, x) if answers is None else _change_since(answers, name, written)
    expected = _update(patches, dense, source, x)
    difference = float(torch.linalg.vector_norm(change - expected))
    limit = _ROOM * (_rounding(written, size) + _arithmetic(patches, dense))
    return Probe(difference, limit, float(torch.linalg.vector_norm(change)))


def _change(source: Rows, written: Rows, x: Tensor) -> Tensor:
    """(W' − W)x (rows,), float64; of numbers as close as these the difference is nearly exact."""
    work = torch.promote_types(torch.promote_types(source.dtype, written.dtype), torch.float32)
    shape = (min(source.rows, block_rows(source.columns)), source.columns)
    now, base = (torch.empty(shape, dtype=work) for _ in range(2))
    exact, change = torch.empty(shape, dtype=torch.float64), torch.empty(source.rows, dtype=torch.float64)
    for first, last in blocks_of(source.rows, source.columns):
        n = last - first
        now[:n].copy_(written.read(first, last))
        now[:n] -= base[:n].copy_(source.read(first, last))
        torch.mv(exact[:n].copy_(now[:n]), x, out=change[first:last])
    return change


def _change_since(answers: Answers, name: str, written: Rows) -> Tensor:
    """W'x − Wx (rows,), float64. The same rows give the same answers to the bit, since blocks are the same."""
    now = Answers(name, written.rows, written.columns)
    block = torch.empty(min(written.rows, block_rows(written.columns)), written.columns)
    for first, last in blocks_of(written.rows, written.columns):
        now.note(block[: last - first].copy_(written.read(first, last)), first, last)
    return now.values.double() - answers.values.double()


def _rounding(written: Rows, norm: float) -> float:
    """What the dtype may lose: half its unit times the size; of numbers near 0, half the smallest that it has."""
    numbers = torch.finfo(written.dtype)
    smallest = numbers.tiny * numbers.eps / 2
    return numbers.eps / 2 * norm + smallest * math.sqrt(written.rows * written.columns)


def _vector(name: str, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode("utf-8")))
    return torch.randn(columns, generator=generator, dtype=torch.float64)


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
