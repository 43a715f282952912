"""One tensor of a checkpoint, changed block of rows by block of rows: W + left · right, rounded, and what that costs.

A tensor counts as a matrix (rows, all the rest). A block is read, raised to float32 (float64 stays), added to, rounded
to the dtype that is written, and compared with what it was before the rounding; only blocks are ever in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from loraloom.compose.merge.changes import Patch
from loraloom.errors import FormatError

BLOCK = 1 << 18
"""Numbers in a block: the few arrays of that size that one step works on stay in the processor's cache."""


@dataclass
class Rounding:
    """Squares of Frobenius norms, summed over blocks and tensors."""

    update: float = 0.0
    """‖ΔW‖²."""
    error: float = 0.0
    """‖W' − (W + ΔW)‖²."""
    weight: float = 0.0
    """‖W‖²."""

    def add(self, other: Rounding) -> None:
        """Count another tensor's in."""
        self.update += other.update
        self.error += other.error
        self.weight += other.weight

    @property
    def of_update(self) -> float:
        """Error over update: how much of it the rounding eats; 0 where nothing was added."""
        return math.sqrt(self.error / self.update) if self.update else 0.0

    @property
    def of_weight(self) -> float:
        """Error over weight."""
        return math.sqrt(self.error / self.weight) if self.weight else 0.0


class StoredRows:
    """The rows of a tensor in a file, read into one buffer again and again: a block is gone with the next."""

    def __init__(self, file: FileIO, begin: int, dtype: torch.dtype, rows: int, columns: int) -> None:
        self.dtype, self.rows, self.columns = dtype, rows, columns
        self._file, self._begin = file, begin
        self._buffer = torch.empty(min(rows, block_rows(columns)) * columns * dtype.itemsize, dtype=torch.uint8)

    def read(self, first: int, last: int) -> Tensor:
        """Rows (last − first, columns) in the file's dtype."""
        width = self.columns * self.dtype.itemsize
        size = (last - first) * width
        view, done = self._buffer.numpy().data, 0
        self._file.seek(self._begin + first * width)
        while done < size:
            count = self._file.readinto(view[done:size])
            if not count:
                raise FormatError(f"{self._file.name} has become shorter while it was read")
            done += count
        return self._buffer[:size].view(self.dtype).view(last - first, self.columns)


class HeldRows:
    """The rows of a tensor in memory."""

    def __init__(self, tensor: Tensor, patches: Sequence[Patch] = ()) -> None:
        self.rows, self.columns = matrix_shape(tuple(tensor.shape), patches)
        self.dtype = tensor.dtype
        self._matrix = tensor.reshape(self.rows, self.columns)

    def read(self, first: int, last: int) -> Tensor:
        """Rows (last − first, columns)."""
        return self._matrix[first:last]


Rows = StoredRows | HeldRows


@contextmanager
def stored_rows(place: tuple[Path, int, int], dtype: torch.dtype, matrix: tuple[int, int]) -> Iterator[StoredRows]:
    """The rows of the tensor at a place of a file; `matrix` is (rows, columns)."""
    file, begin, _ = place
    with file.open("rb", buffering=0) as opened:
        yield StoredRows(opened, begin, dtype, *matrix)


def matrix_shape(shape: tuple[int, ...], patches: Sequence[Patch] = ()) -> tuple[int, int]:
    """(rows, columns) as which a tensor counts: kernels flat, a vector upright, experts as their patches have them."""
    size = math.prod(shape)
    columns = int(patches[0].right.shape[1]) if patches else math.prod(shape[1:])
    return (size // columns, columns) if size else (0, 1)


def block_rows(columns: int) -> int:
    """How many rows are taken at once."""
    return max(1, BLOCK // max(columns, 1))


def blocks_of(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """First row of each block, and the one after its last."""
    step = block_rows(columns)
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


Watch = Callable[[Tensor, int, int], None]
"""Is shown the base's rows as they pass, (n, columns), with the first one's number and that after the last's."""


def changed_blocks(
    source: Rows,
    patches: Sequence[Patch],
    dense: Tensor | None,
    dtype: torch.dtype,
    rounding: Rounding,
    watch: Watch | None = None,
) -> Iterator[Tensor]:
    """The blocks of W + ΔW in `dtype`, each good until the next is asked for; counts into `rounding`."""
    work = torch.promote_types(source.dtype, torch.float32)
    rounding.update += sum(_product_square(patch) for patch in _joined(patches, torch.float64))
    size = (min(source.rows, block_rows(source.columns)), source.columns)
    base, update, total, rest = (torch.empty(size, dtype=work) for _ in range(4))
    written = total if dtype == work else torch.empty(size, dtype=dtype)
    joined = _joined(patches, work)
    whole = None if dense is None else dense.reshape(source.rows, source.columns)
    for first, last in blocks_of(source.rows, source.columns):
        n = last - first
        base[:n].copy_(source.read(first, last))
        if watch is not None:
            watch(base[:n], first, last)
        changed = _update(update[:n], joined, whole, first, last)
        torch.add(base[:n], update[:n], out=total[:n]) if changed else total[:n].copy_(base[:n])
        if written is not total:
            written[:n].copy_(total[:n])
        _measure(rounding, base[:n], update[:n] if changed else None, written[:n], rest[:n])
        rounding.update += 0.0 if whole is None else _square(update[:n])
        yield written[:n]


def _joined(patches: Sequence[Patch], dtype: torch.dtype) -> list[Patch]:
    """Patches of the same rows as one, their factors end to end."""
    together: dict[tuple[int, int], list[Patch]] = {}
    for patch in patches:
        together.setdefault((patch.begin, patch.left.shape[0]), []).append(patch)
    return [
        Patch(begin, torch.cat([one.left for one in own], 1).to(dtype), torch.cat([one.right for one in own]).to(dtype))
        for (begin, _), own in together.items()
    ]


def _update(out: Tensor, patches: Sequence[Patch], dense: Tensor | None, first: int, last: int) -> bool:
    """Fill `out` with ΔW of the rows; False where nothing changes them."""
    own = [patch for patch in patches if patch.begin < last and first < patch.begin + patch.left.shape[0]]
    if not own and dense is None:
        return False
    if len(own) == 1 and dense is None and own[0].begin <= first and own[0].begin + own[0].left.shape[0] >= last:
        begin = own[0].begin
        torch.mm(own[0].left[first - begin : last - begin], own[0].right, out=out)
        return True
    out.zero_() if dense is None else out.copy_(dense[first:last])
    for patch in own:
        low, high = max(first, patch.begin), min(last, patch.begin + patch.left.shape[0])
        left = patch.left[low - patch.begin : high - patch.begin]
        out[low - first : high - first].addmm_(left, patch.right)
    return True


def _measure(rounding: Rounding, base: Tensor, update: Tensor | None, written: Tensor, rest: Tensor) -> None:
    """(W' − W) − ΔW: in this order nearly exact, since W' and W are close."""
    rest.copy_(written)
    rest -= base
    if update is not None:
        rest -= update
    rounding.weight += _square(base)
    rounding.error += _square(rest)


def _product_square(patch: Patch) -> float:
    """‖left · right‖², which is the sum of (leftᵀ left) ∘ (right rightᵀ)."""
    return float(((patch.left.t() @ patch.left) * (patch.right @ patch.right.t())).sum())


def _square(block: Tensor) -> float:
    flat = block.reshape(-1)
    return float(torch.dot(flat, flat))
