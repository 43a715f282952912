"""How two updates of one layer lie to each other: cosine, signs, and the spaces that they read and write.

With ΔW = U diag(s) Vᵀ its rows span what the update reads of its input, its columns what it writes into the output.
The principal angles of two spaces with orthonormal bases Q₁ and Q₂ have as cosines the singular values of Q₁ᵀQ₂
(Björck & Golub 1973). Every measure stands beside what two updates of the same singular values, turned at random,
would give on average: E‖Q₁ᵀQ₂‖² = r₁r₂/n, and E⟨X, Y⟩² = ‖X‖²‖Y‖²/(O·I).

All is kept as sums, so that the measures of a block or of a whole adapter are those of its layers' sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from loraloom.adapters.product import Product, Svd

LARGEST = 2**18
"""Entries of a ΔW of which the signs are all compared; of a larger one as many rows as have so many entries."""
_NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest are rounding of the stored factors, and no direction."""


@dataclass(frozen=True)
class Turned:
    """One ΔW as it is compared: its factors, and its decomposition without negligible directions."""

    product: Product
    svd: Svd

    @classmethod
    def of(cls, product: Product) -> Turned:
        whole = product.svd()
        count = int((whole.s > _NEGLIGIBLE * whole.s[:1]).sum())
        return cls(product, Svd(whole.u[:, :count], whole.s[:count], whole.v[:count]))

    @property
    def rank(self) -> int:
        """Of the directions that count; 0 for ΔW = 0."""
        return len(self.svd.s)

    @property
    def square(self) -> float:
        """‖ΔW‖²."""
        return float(self.svd.s.square().sum())


@dataclass(frozen=True)
class Sums:
    """What two updates X and Y have in common, as sums over any number of layers; 0 where one lacks the layer."""

    square_x: float = 0.0
    """‖X‖²."""
    square_y: float = 0.0
    inner: float = 0.0
    """⟨X, Y⟩."""
    inner_chance: float = 0.0
    """E⟨X, Y⟩² of updates turned at random."""
    least: float = 0.0
    """min(r₁, r₂), how many principal angles there are."""
    rows: float = 0.0
    """‖V₁ᵀV₂‖², the sum of the squared cosines between the spaces read."""
    rows_chance: float = 0.0
    columns: float = 0.0
    """‖U₁ᵀU₂‖², between the spaces written."""
    columns_chance: float = 0.0
    x_in_rows: float = 0.0
    """‖X V₂V₂ᵀ‖²: of X, what reads inputs that Y reads too."""
    x_in_rows_chance: float = 0.0
    y_in_rows: float = 0.0
    y_in_rows_chance: float = 0.0
    x_in_columns: float = 0.0
    """‖U₂U₂ᵀX‖²: of X, what is written where Y writes too."""
    x_in_columns_chance: float = 0.0
    y_in_columns: float = 0.0
    y_in_columns_chance: float = 0.0
    entries: float = 0.0
    """Entries that are zero in neither."""
    agreeing: float = 0.0
    """Those of one sign."""
    weight: float = 0.0
    """Σ |x·y|."""
    agreeing_weight: float = 0.0
    """Σ |x·y| over those of one sign."""

    @property
    def cosine(self) -> float:
        """⟨X, Y⟩ / ‖X‖‖Y‖, −1 to 1; 0 where one is zero."""
        size = math.sqrt(self.square_x * self.square_y)
        return max(-1.0, min(1.0, self.inner / size)) if size else 0.0

    @property
    def cosine_chance(self) -> float:
        """Standard deviation of the cosine of updates turned at random."""
        size = math.sqrt(self.square_x * self.square_y)
        return math.sqrt(self.inner_chance) / size if size else 0.0

    @property
    def gain(self) -> float:
        """‖X + Y‖ / √(‖X‖² + ‖Y‖²): 1 independent, below it they cancel, √2 at most."""
        alone = self.square_x + self.square_y
        return math.sqrt(max(0.0, 1 + 2 * self.inner / alone)) if alone else 1.0

    @property
    def reading(self) -> Overlap:
        """The spaces read: of the rows."""
        return Overlap(
            _share(self.rows, self.least),
            _share(self.rows_chance, self.least),
            _share(self.x_in_rows, self.square_x),
            _share(self.x_in_rows_chance, self.square_x),
            _share(self.y_in_rows, self.square_y),
            _share(self.y_in_rows_chance, self.square_y),
        )

    @property
    def writing(self) -> Overlap:
        """The spaces written: of the columns."""
        return Overlap(
            _share(self.columns, self.least),
            _share(self.columns_chance, self.least),
            _share(self.x_in_columns, self.square_x),
            _share(self.x_in_columns_chance, self.square_x),
            _share(self.y_in_columns, self.square_y),
            _share(self.y_in_columns_chance, self.square_y),
        )

    @property
    def signs(self) -> float:
        """Share of the entries that have one sign in both; 0.5 by chance."""
        return _share(self.agreeing, self.entries) if self.entries else 0.5

    @property
    def weighted_signs(self) -> float:
        """The same of the entries' weight |x·y|, so that small ones do not speak for large ones."""
        return _share(self.agreeing_weight, self.weight) if self.weight else 0.5

    def to_json(self) -> dict[str, object]:
        """The measures as JSON data."""
        return {
            "cosine": self.cosine,
            "cosine_by_chance": self.cosine_chance,
            "gain": self.gain,
            "sign_agreement": self.signs,
            "sign_agreement_by_weight": self.weighted_signs,
            "reading": self.reading.to_json(),
            "writing": self.writing.to_json(),
            "norms": [math.sqrt(self.square_x), math.sqrt(self.square_y)],
        }


@dataclass(frozen=True)
class Overlap:
    """How far two spaces, and the updates in them, lie in each other; each 0 to 1, beside what chance would give."""

    mean: float
    """Mean squared cosine of the principal angles."""
    mean_chance: float
    first: float
    """Share of the first update's ‖ΔW‖² that lies in the second's space."""
    first_chance: float
    second: float
    second_chance: float

    def to_json(self) -> dict[str, float]:
        """As JSON data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class SitePair:
    """Two updates of one layer."""

    path: str
    sums: Sums
    row_cosines: tuple[float, ...] = ()
    """Of the principal angles between the spaces read, largest first."""
    column_cosines: tuple[float, ...] = ()
    sampled: bool = field(default=False)
    """Whether the signs were compared on some of the rows."""


def pooled(sums: Iterable[Sums]) -> Sums:
    """The sums of several layers together."""
    listed = list(sums)
    return Sums(*(math.fsum(getattr(one, entry.name) for one in listed) for entry in fields(Sums)))


def alone(path: str, x: Turned | None, y: Turned | None) -> SitePair:
    """A layer that one of two adapters changes, or none."""
    return SitePair(path, Sums(square_x=x.square if x else 0.0, square_y=y.square if y else 0.0))


def pair_up(path: str, x: Turned, y: Turned) -> SitePair:
    """Two updates (O, I) of one layer, all but the signs; ΔW is not formed."""
    height, width = x.product.shape
    rows, columns = x.svd.v @ y.svd.v.t(), x.svd.u.t() @ y.svd.u
    square_x, square_y = x.square, y.square
    sums = Sums(
        square_x=square_x,
        square_y=square_y,
        inner=x.product.inner(y.product),
        inner_chance=square_x * square_y / (height * width),
        least=min(x.rank, y.rank),
        rows=_energy(rows),
        rows_chance=x.rank * y.rank / width,
        columns=_energy(columns),
        columns_chance=x.rank * y.rank / height,
        x_in_rows=_energy(x.svd.s[:, None] * rows),
        x_in_rows_chance=square_x * y.rank / width,
        y_in_rows=_energy(rows * y.svd.s),
        y_in_rows_chance=square_y * x.rank / width,
        x_in_columns=_energy(x.svd.s[:, None] * columns),
        x_in_columns_chance=square_x * y.rank / height,
        y_in_columns=_energy(columns * y.svd.s),
        y_in_columns_chance=square_y * x.rank / height,
    )
    return SitePair(path, sums, _cosines(rows), _cosines(columns))


def _cosines(matrix: Tensor) -> tuple[float, ...]:
    return tuple(torch.linalg.svdvals(matrix).clamp(max=1.0).tolist()) if matrix.numel() else ()


def _energy(matrix: Tensor) -> float:
    return float(matrix.square().sum())


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole else 0.0


def sign_rows(shape: tuple[int, int], seed: int) -> Tensor | None:
    """The rows of a ΔW (O, I) on which signs are compared; None for all, where it is not large."""
    height, width = shape
    if height * width <= LARGEST:
        return None
    count = max(1, LARGEST // width)
    return torch.randperm(height, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def sign_sums(x: Tensor, y: Tensor) -> dict[str, float]:
    """Agreement of the signs of two equally large tensors, as the entries of `Sums` that tell of it."""
    products = x * y
    entries, total = float(products.count_nonzero()), float(products.sum())
    agreeing = float((products > 0).sum())
    weight = float(products.abs_().sum())
    return {
        "entries": entries,
        "agreeing": agreeing,
        "weight": weight,
        "agreeing_weight": max(0.0, (weight + total) / 2),
    }
