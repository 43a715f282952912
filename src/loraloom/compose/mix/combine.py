"""Several weighted updates of one layer made into one, with what that costs against their exact sum.

Everything is worked out on factors in float64; ΔW is written out only where a method is defined on its entries.
A grouped convolution is a matrix per group, each with its own share of the rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.adapters.product import Product
from loraloom.compose.mix.sparsify import MIXTURES, Dense, seed_of
from loraloom.compose.truncated import truncated_svd
from loraloom.errors import FormatError
from loraloom.formats.updates import Update

METHODS = ("exact", "svd", *MIXTURES)
"""Ways to mix."""
_NOTHING = 1e-13
"""Share of ‖·‖² below which the difference of two sums of squares is their rounding."""


@dataclass(frozen=True)
class Method:
    """How layers are mixed."""

    how: str
    """One of `METHODS`."""
    rank: int | None = None
    """Largest rank of the result; None for exact, which keeps the sum of the ranks."""
    density: float = 1.0
    """Share of the entries that ties, dare and magnitude-prune keep of each adapter."""
    seed: int = 0
    """Of dare."""


@dataclass(frozen=True)
class Combined:
    """One layer's mixed update and what there is to tell of it."""

    update: Update
    """As it is written; its scale is 1."""
    exact: float
    """‖Σ w ΔW‖_F of the exact sum."""
    parts: tuple[float, ...]
    """‖w ΔW‖_F of each update, in their order."""
    distance: float
    """‖what is written − the exact sum‖_F."""
    cut: float
    """‖what the cut to the rank left out of the method's own result‖_F."""
    own: float
    """‖the method's own result, before the cut‖_F."""
    size: float
    """‖what is written‖_F."""


@dataclass(frozen=True)
class _Group:
    """What there is of one group of a layer's outputs; of all but grouped convolutions, of the layer."""

    products: Sequence[Product]
    """Without their weights."""
    weights: Sequence[float]
    seeds: Sequence[int]

    def truth(self) -> Product:
        """The exact sum."""
        return Product.total(one.scaled(weight) for one, weight in zip(self.products, self.weights, strict=True))

    def dense(self) -> list[Dense]:
        rows = zip(self.weights, self.products, self.seeds, strict=True)
        return [Dense(weight, one.dense(), seed) for weight, one, seed in rows]


@dataclass(frozen=True)
class _Made:
    """One group's result before it is rounded."""

    product: Product
    own: float
    """‖the method's own result‖."""
    cut: float
    """‖what the cut left out of it‖."""
    exact: float
    """‖the exact sum‖."""
    truth: Product | None = None
    """The exact sum, where the method's own result is another."""


def combine(weighted: Sequence[tuple[float, Update]], method: Method, dtype: torch.dtype) -> Combined:
    """The updates of one layer as one. Raises FormatError where a value is beyond the range of `dtype`."""
    first = weighted[0][1]
    weights, blocks = [weight for weight, _ in weighted], [blocks_of(update) for _, update in weighted]
    seeds = [_seed(update, method) for _, update in weighted]
    made = [
        _mixed(_Group(group, weights, [seed + at for seed in seeds]), method, len(blocks[0]))
        for at, group in enumerate(zip(*blocks, strict=True))
    ]
    written = [_rounded(first.path, one.product, dtype) for one in made]
    wide = [Product.of(b, a) for b, a in written]
    return Combined(
        update=_joined(first, written, _bias(weighted, dtype)),
        exact=_root(one.exact for one in made),
        parts=tuple(abs(w) * _root(map(_norm, own)) for w, own in zip(weights, blocks, strict=True)),
        distance=_root(_distance(one, kept) for one, kept in zip(made, wide, strict=True)),
        cut=_root(one.cut for one in made),
        own=_root(one.own for one in made),
        size=_root(map(_norm, wide)),
    )


def mixed_rank(ranks: Sequence[int], shape: Sequence[int], groups: int, method: Method) -> int:
    """The rank that `combine` gives a layer, from ranks and the shape (out, in, k…) of the weight alone."""
    total = sum(ranks)
    if method.rank is None or (method.how == "svd" and total <= method.rank // groups * groups):
        return total
    room = min(shape[0] // groups, math.prod(shape[1:]))
    room = min(room, total // groups) if method.how == "svd" else room
    return groups * min(max(1, method.rank // groups), room)


def blocks_of(update: Update) -> list[Product]:
    """ΔW as products that do not meet: one for each group of a convolution, one for any other layer."""
    groups = update.groups
    if groups == 1:
        return [update.product()]
    rows = zip(update.b.chunk(groups), update.a.chunk(groups), strict=True)
    return [Product.of(b, a, update.scale) for b, a in rows]


def _mixed(group: _Group, method: Method, groups: int) -> _Made:
    truth = group.truth()
    rank = truth.rank if method.rank is None else max(1, method.rank // groups)
    if method.how in MIXTURES:
        matrix = MIXTURES[method.how](group.dense(), method.density)
        svd, own = truncated_svd(matrix, rank=rank), float(matrix.norm())
        kept = svd.product(rank)
        left = own**2 - float(svd.s[:rank].square().sum())
        cut = math.sqrt(left) if left > _NOTHING * own**2 else 0.0
        return _Made(kept, own, cut, truth.norm(), truth)
    if truth.rank <= rank:
        norm = truth.norm()
        return _Made(truth, norm, 0.0, norm)
    svd = truth.svd()
    own = float(svd.s.norm())
    return _Made(svd.product(rank), own, float(svd.s[rank:].norm()), own)


def _distance(made: _Made, written: Product) -> float:
    """‖what is written − the exact sum‖; what a cut leaves out and what rounding does stand at right angles, nearly."""
    if made.truth is not None:
        return Product.total([made.truth, written.scaled(-1.0)]).norm()
    return math.hypot(made.cut, _rounding(made.product, written))


def _rounding(product: Product, rounded: Product) -> float:
    """‖b·a − B·A‖ for factors b, a that are B, A rounded: δB·a + B·δA, of which no digits cancel."""
    off_b, off_a = Product(rounded.b - product.b, rounded.a), Product(product.b, rounded.a - product.a)
    return _norm(Product.total([off_b, off_a]))


def _norm(product: Product) -> float:
    """‖B·A‖ from the factors' Gram matrices: cheaper than `Product.norm`, for what is no small difference of sums."""
    return math.sqrt(max(0.0, product.inner(product)))


def _root(values: Iterable[float]) -> float:
    return math.sqrt(sum(value**2 for value in values))


def _seed(update: Update, method: Method) -> int:
    return seed_of(method.seed, update.path, update.a, update.b) if method.how == "dare" else 0


def _rounded(path: str, product: Product, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """B and A as they are written."""
    for factor in (product.b, product.a):
        if factor.numel() and float(factor.abs().max()) > torch.finfo(dtype).max:
            name = str(dtype).removeprefix("torch.")
            raise FormatError(f"{path!r} would hold values beyond the range of {name}: write fp32 or bf16")
    return product.b.to(dtype), product.a.to(dtype)


def _joined(like: Update, blocks: Sequence[tuple[Tensor, Tensor]], bias: Tensor | None) -> Update:
    """The groups' factors as one layer's, in the shapes that the layer's factors have."""
    b, a = torch.cat([b for b, _ in blocks]), torch.cat([a for _, a in blocks])
    if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
        raise FormatError(f"{like.path!r} comes to values that are not finite")
    a = a.reshape(a.shape[0], *like.a.shape[1:])
    b = b.reshape(*b.shape, *like.b.shape[2:])
    return Update(like.path, a, b, float(a.shape[0]), like.lookup, bias)


def _bias(weighted: Sequence[tuple[float, Update]], dtype: torch.dtype) -> Tensor | None:
    """What the updates add to the output beside their ΔW, or None."""
    given = [weight * update.scale * update.bias.double() for weight, update in weighted if update.bias is not None]
    return torch.stack(given).sum(0).to(dtype) if given else None
