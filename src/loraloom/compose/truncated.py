"""The leading singular triplets of a dense matrix, without the whole decomposition where that is large.

The right singular vectors of W (W the matrix or its transpose, whichever is tall) are sought in the block Krylov space
of WᵀW over a random block (Musco & Musco 2015, Algorithm 2; Halko, Martinsson & Tropp 2011 for why a random start with
a few columns too many serves). The space grows until the share of ‖W‖² that its best K directions carry stands still.
Products with W are in float32; what is small, and the last projection, in float64. A matrix of few singular values
that matter has a remainder too small for that: its directions are then refined in float64. Where the space would be
no small part of the matrix (small matrices, high ranks, a high share of a flat spectrum), WᵀW is decomposed whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.adapters.product import Svd
from loraloom.errors import ConfigError

EXCESS = 1e-6
"""How much longer than the best approximation's the remainder may be, as a share of it."""
_SAFETY = 0.1
_SMALL = 256
"""Smaller side up to which the whole decomposition costs nothing."""
_LARGEST_SPACE = 0.35
"""Share of the smaller side up to which a Krylov space pays."""
_LARGEST_SEARCH = 0.2
"""The same where the rank is not known beforehand."""
_STEP = 0.12
"""By how much of itself a space grows at least before it is looked at again, which costs the cube of its size."""
_OVERSAMPLING = 10
_FIRST_GUESS = 24
"""Rank to begin with where only the share to be kept is known."""
_FLOAT32_SEES = 1e-4
"""Share of ‖W‖² from which a remainder stands clear of the rounding of float32 products."""
_CANCELS = 1e-10
"""Share of ‖W‖² below which a remainder drowns in the rounding of WᵀW in float64."""
_ROWS = 128
"""Rows that are turned into float64 at a time: few enough to stay near the processor."""
_FEW = 8
"""The same for a sum of squares, which does nothing else with them."""


def truncated_svd(matrix: Tensor, *, rank: int | None = None, energy: float | None = None, seed: int = 0) -> Svd:
    """The best approximation of a matrix at a rank, or of the smallest rank that keeps a share of its squared norm.

    `matrix` is (O, I), of any floating-point dtype; `rank` at most so many triplets, `energy` in (0, 1] the share of
    ‖matrix‖_F² to keep; with both, the smaller rank of the two. The remainder is at most 1e-6 of itself (or 1e-9 of
    the matrix, where there is next to none) longer than the best one. The same seed gives the same bits.
    Raises ConfigError for a rank or share that cannot be, ValueError for values that are not finite.
    """
    wanted = _Wanted(rank, energy)
    if matrix.dim() != 2 or not matrix.is_floating_point():
        raise ValueError(f"expected a matrix of floating-point numbers, not {tuple(matrix.shape)} {matrix.dtype}")
    tall = _Tall(matrix.detach())
    if not math.isfinite(tall.total):
        raise ValueError("the matrix holds values that are not finite")
    right = _directions(tall, wanted, seed)
    svd = tall.svd_within(right)
    keep = wanted.count(svd.s.square(), tall.total)
    u, s, v = svd.u[:, :keep], svd.s[:keep], svd.v[:keep]
    return Svd(u, s, v) if tall.upright else Svd(v.t(), s, u.t())


@dataclass(frozen=True)
class _Wanted:
    """How many triplets are asked for."""

    rank: int | None
    energy: float | None

    def __post_init__(self) -> None:
        if self.rank is None and self.energy is None:
            raise ConfigError("say a rank, or the share of the update to keep")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank is {self.rank}, expected a whole number of at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"energy is {self.energy}, expected a share above 0 and up to 1")

    def count(self, squares: Tensor, total: float) -> int:
        """The rank, given the squares of the singular values, largest first; more than there are where these do not
        reach the share that is asked for."""
        if self.energy is None:
            assert self.rank is not None
            return self.rank
        missing = torch.cumsum(squares, 0) < (self.energy - 1e-12) * total
        reached = int(missing.sum()) + 1 if total else 0
        return reached if self.rank is None else min(reached, self.rank)

    def begin(self) -> int:
        """Columns of the first block."""
        known = self.rank if self.energy is None else min(self.rank or _FIRST_GUESS, _FIRST_GUESS)
        assert known is not None
        return known + max(_OVERSAMPLING, known // 8)


class _Tall:
    """W (L, N) with L ≥ N, a matrix or its transpose; its products in float32, or some rows at a time in float64."""

    def __init__(self, matrix: Tensor) -> None:
        self.exact = matrix.dtype == torch.float64
        self.stored = matrix if self.exact else matrix.float()
        self.upright = matrix.shape[0] >= matrix.shape[1]
        self.total = _squares(self.stored)

    @property
    def length(self) -> int:
        return int(max(self.stored.shape))

    @property
    def width(self) -> int:
        return int(min(self.stored.shape))

    def forward(self, right: Tensor) -> Tensor:
        """W·right, (L, K), in the dtype of `right` (N, K)."""
        return self._times(right) if self.upright else self._transposed_times(right)

    def backward(self, left: Tensor) -> Tensor:
        """Wᵀ·left, (N, K), in the dtype of `left` (L, K)."""
        return self._transposed_times(left) if self.upright else self._times(left)

    # The thin factor stands first in every product: so the wide one is read along its rows, half as long again faster.

    def _times(self, thin: Tensor) -> Tensor:
        if thin.dtype == self.stored.dtype:
            return (thin.t() @ self.stored.t()).t()
        return torch.cat([thin.t() @ rows.double().t() for rows in _some(self.stored)], dim=1).t()

    def _transposed_times(self, thin: Tensor) -> Tensor:
        if thin.dtype == self.stored.dtype:
            return (thin.t() @ self.stored).t()
        result = thin.new_zeros(thin.shape[1], self.stored.shape[1])
        for rows, own in zip(_some(self.stored), _some(thin), strict=True):
            result.addmm_(own.t(), rows.double())
        return result.t()

    def gram(self) -> Tensor:
        """WᵀW, (N, N), float64."""
        result = torch.zeros(self.width, self.width, dtype=torch.float64)
        for rows in torch.split(self.stored if self.upright else self.stored.t(), 4 * _ROWS):
            exact = rows.double()
            result.addmm_(exact.t(), exact)
        return result

    def upright_double(self) -> Tensor:
        """W itself, (L, N), float64."""
        return (self.stored if self.upright else self.stored.t()).double()

    def svd_within(self, right: Tensor) -> Svd:
        """The singular value decomposition of W·right·rightᵀ; `right` (N, K), orthonormal columns, float64."""
        left, core = torch.linalg.qr(self.forward(right))
        u, s, v = torch.linalg.svd(core, full_matrices=False)
        return Svd(left @ u, s, v @ right.t())


def _squares(matrix: Tensor) -> float:
    """‖matrix‖², summed in float64."""
    some = (rows.double().flatten() for rows in torch.split(matrix, _FEW))
    return math.fsum(float(torch.dot(rows, rows)) for rows in some)


def _some(matrix: Tensor) -> tuple[Tensor, ...]:
    """The rows in groups: a copy of all of them in float64 would be twice the matrix."""
    return torch.split(matrix, _ROWS)


def _directions(tall: _Tall, wanted: _Wanted, seed: int) -> Tensor:
    """Leading right singular vectors, at least as many as are wanted where there are, (N, K), float64."""
    if tall.width <= _SMALL or wanted.begin() * 3 > _LARGEST_SPACE * tall.width:
        return _whole(tall, wanted)
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if tall.exact else torch.float32
    start = torch.randn(tall.width, wanted.begin(), generator=generator, dtype=dtype)
    found = _leading(tall, wanted, start, generator)
    if found is not None and not tall.exact and tall.total - found.carried < _FLOAT32_SEES * tall.total:
        found = _leading(tall, wanted, found.vectors, generator)
    return _whole(tall, wanted) if found is None else found.vectors


def _whole(tall: _Tall, wanted: _Wanted) -> Tensor:
    """From the eigenvectors of WᵀW, which holds half the digits: where the remainder drowns in that, from W's own."""
    values, vectors = torch.linalg.eigh(tall.gram())
    values, right = values.flip(0).clamp(min=0), vectors.flip(1)
    keep = min(wanted.count(values, tall.total), tall.width)
    if float(values[keep:].sum()) < _CANCELS * tall.total and keep < tall.width:
        right = torch.linalg.svd(tall.upright_double(), full_matrices=False)[2].t()
        keep = tall.width if wanted.rank is None else keep
    kept: Tensor = right[:, :keep]
    return kept.contiguous()


@dataclass(frozen=True)
class _Found:
    vectors: Tensor
    """(N, K), orthonormal columns, float64."""
    carried: float
    """‖W·vectors‖²."""


def _leading(tall: _Tall, wanted: _Wanted, start: Tensor, generator: torch.Generator) -> _Found | None:
    """The best directions of a growing Krylov space; None where it would have to grow beyond what pays."""
    limit = (_LARGEST_SPACE if wanted.energy is None else _LARGEST_SEARCH) * tall.width
    space = _Space(tall, start, generator)
    progress = _Progress()
    while True:
        squares = space.squares()
        keep = wanted.count(squares, tall.total)
        enough = keep <= len(squares) - (0 if wanted.energy is None else 1)
        carried = float(squares[:keep].sum())
        if enough and progress.stands_still(keep, carried, tall.total - carried):
            return _Found(space.vectors(keep), carried)
        grown = space.size > space.block  # a random block by itself tells nothing of the spectrum
        beyond = grown and not enough and _hopeless(wanted, space, tall, limit)
        if beyond or space.size + space.block > limit:
            return None
        space.grow()


def _hopeless(wanted: _Wanted, space: _Space, tall: _Tall, limit: float) -> bool:
    """Whether the share asked for lies beyond what the space can grow to, going by the last directions it found."""
    squares = space.squares()
    missing = (wanted.energy or 0.0) * tall.total - float(squares.sum())
    return float(squares[space.block // 2]) * (limit - space.size) < missing


class _Progress:
    """Whether what the leading directions carry has stopped growing, as far as `EXCESS` can tell.

    The increments fall like a geometric series: what is still to come is told by the last two.
    """

    def __init__(self) -> None:
        self.keep, self.carried, self.step = -1, 0.0, math.inf

    def stands_still(self, keep: int, carried: float, remainder: float) -> bool:
        before, step = self.step, max(carried - self.carried, 0.0)
        fresh = keep != self.keep
        self.keep, self.carried, self.step = keep, carried, math.inf if fresh else step
        if fresh:
            return False
        limit = _SAFETY * 2 * EXCESS * max(remainder, 0.0)
        noise = 1e-14 * carried
        ratio = step / before if math.isfinite(before) and before > 0 else 1.0
        to_come = step * ratio / (1 - ratio) if ratio < 1 else math.inf
        return step <= noise or (max(step * ratio, to_come) <= limit and step <= 100 * limit)


class _Space:
    """Orthonormal V (N, D) that grows by W'W times its last block, with W·V (L, D) and its Gram matrix beside it."""

    def __init__(self, tall: _Tall, start: Tensor, generator: torch.Generator) -> None:
        self.tall, self.generator = tall, generator
        self.block = start.shape[1]
        self.right = torch.empty(tall.width, 0, dtype=start.dtype)
        self.left = torch.empty(tall.length, 0, dtype=start.dtype)
        self.core = torch.empty(0, 0, dtype=torch.float64)
        self._add(start)

    @property
    def size(self) -> int:
        """D, the dimensions so far."""
        return self.right.shape[1]

    def grow(self) -> None:
        """By a block, or as many as make it worth another look."""
        wanted = self.size * (1 + _STEP)
        while self.size < wanted:
            self._add(self.tall.backward(self.left[:, -self.block :]))

    def _add(self, block: Tensor) -> None:
        fresh = self._orthonormal(block)
        image = self.tall.forward(fresh)
        exact = image.double()
        beside, own = self.left.double().t() @ exact, exact.t() @ exact
        self.core = torch.cat([torch.cat([self.core, beside], 1), torch.cat([beside.t(), own], 1)])
        self.right, self.left = torch.cat([self.right, fresh], 1), torch.cat([self.left, image], 1)
        self._eigen: tuple[Tensor, Tensor] | None = None

    def _orthonormal(self, block: Tensor) -> Tensor:
        """The part of a block that is new; a column that brings nothing new gives way to a random one."""
        for _ in range(2):
            block = torch.linalg.qr(self._new_part(torch.nn.functional.normalize(block, dim=0)))[0]
        return block

    def _new_part(self, block: Tensor) -> Tensor:
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            block = block - self.right @ (self.right.t() @ block)
        spent = block.norm(dim=0) < 1e3 * torch.finfo(block.dtype).eps
        if bool(spent.any()):
            new = torch.randn(block.shape[0], int(spent.sum()), generator=self.generator, dtype=block.dtype)
            block[:, spent] = torch.nn.functional.normalize(new - self.right @ (self.right.t() @ new), dim=0)
        return block

    def squares(self) -> Tensor:
        """Ritz values of WᵀW, which approach the squares of W's singular values from below, largest first."""
        return self._decomposed()[0]

    def vectors(self, keep: int) -> Tensor:
        """The directions of the largest of them, (N, keep), float64."""
        exact: Tensor = torch.linalg.qr(self.right.double() @ self._decomposed()[1][:, :keep])[0]
        return exact

    def _decomposed(self) -> tuple[Tensor, Tensor]:
        if self._eigen is None:
            values, vectors = torch.linalg.eigh(self.core)
            self._eigen = values.flip(0).clamp(min=0), vectors.flip(1)
        return self._eigen


__all__ = ["EXCESS", "truncated_svd"]
