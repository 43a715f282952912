"""How much of each update a rank keeps, and which rank keeps as much as is asked for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loraloom.adapters.product import Product, Svd
from loraloom.adapters.spectrum import Spectrum
from loraloom.errors import ConfigError
from loraloom.formats.updates import Update

SHARES = (0.9, 0.95, 0.99, 0.999)
"""Shares of ‖ΔW‖² that are shown where none is asked for."""


@dataclass(frozen=True)
class Choice:
    """One rank for all layers, or one share of each layer's ‖ΔW‖². Raises ConfigError for what is neither."""

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.energy is not None:
            raise ConfigError("--rank and --energy are both given: choose one rank for all layers, or one share")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"--rank {self.rank}: a rank is a whole number of at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(
                f"--energy {self.energy:g}: the share of ‖ΔW‖² to keep is above 0 and at most 1, such as 0.99"
            )

    @property
    def given(self) -> bool:
        return self.rank is not None or self.energy is not None

    def of(self, spectrum: Spectrum) -> int:
        """The rank for an update with these singular values; at least 1, as a file has no rank 0."""
        if self.energy is not None:
            return max(1, spectrum.rank_for(self.energy))
        return self.rank or len(spectrum.values)


@dataclass(frozen=True)
class SiteRanks:
    """One layer before and after."""

    path: str
    block: str
    before: int
    """Rank in the file that was read."""
    after: int
    values: tuple[float, ...]
    """Singular values of ΔW, largest first."""
    kept: float
    """Share of ‖ΔW‖² that is kept, 1 for ΔW = 0."""
    error: float
    """‖ΔW − ΔW'‖_F / ‖ΔW‖_F: by the singular values, and, once it is written, of what was read back."""
    numbers_before: int
    """How many numbers the factors have."""
    numbers_after: int
    why_whole: str = ""
    """Why the layer is left as it is, where another rank was asked for."""
    groups: int = 1
    """Of a grouped convolution, which is not resized."""

    @property
    def spectrum(self) -> Spectrum:
        return Spectrum(self.values)

    @property
    def norm(self) -> float:
        """‖ΔW‖_F."""
        return self.spectrum.norm

    def share_at(self, rank: int) -> float:
        """Share of ‖ΔW‖² that the best approximation of this rank keeps."""
        whole = math.fsum(value * value for value in self.values)
        return math.fsum(value * value for value in self.values[:rank]) / whole if whole else 1.0

    def at(self, rank: int) -> SiteRanks:
        """The layer cut to another rank."""
        kept = self.share_at(rank)
        return replace(self, after=rank, kept=kept, error=math.sqrt(max(0.0, 1.0 - kept)))

    def to_json(self) -> dict[str, Any]:
        """As JSON data, with the rank that each of `SHARES` takes."""
        return {
            "path": self.path,
            "block": self.block,
            "rank": self.before,
            "new_rank": self.after,
            "kept": self.kept,
            "error": self.error,
            "norm": self.norm,
            "numbers": self.numbers_before,
            "new_numbers": self.numbers_after,
            "why_whole": self.why_whole or None,
            "rank_for": {f"{share:g}": self.spectrum.rank_for(share) for share in SHARES},
            "singular_values": list(self.values),
        }


def resized(update: Update, block: str, choice: Choice) -> tuple[SiteRanks, Update]:
    """The layer at the rank of the choice, and what that comes to.

    alpha follows the rank, so that the scale stays what it was. Factors that already have the rank are not touched.
    """
    svd = update.product().svd()
    values = tuple(svd.s.tolist())[: update.rank]
    wanted = choice.of(Spectrum(values)) if choice.given else update.rank
    why = _why_whole(update, choice)
    made = update if why or wanted >= update.rank else _cut(update, svd, wanted)
    ranks = SiteRanks(
        update.path,
        block,
        update.rank,
        made.rank,
        values,
        1.0,
        0.0,
        _numbers(update),
        _numbers(made),
        why,
        update.groups,
    )
    if made is update:
        return ranks, made
    return replace(ranks, kept=ranks.share_at(made.rank), error=svd.left_out(made.rank)), made


def _why_whole(update: Update, choice: Choice) -> str:
    if update.groups > 1:
        return "a grouped convolution"
    return f"its rank is {update.rank}" if choice.rank is not None and choice.rank > update.rank else ""


def _cut(update: Update, svd: Svd, rank: int) -> Update:
    """The best update of this rank with the scale of the old; in the dtype of its factors."""
    kept: Product = svd.product(rank)
    rank = kept.rank  # fewer where the matrix has no more directions
    root = math.sqrt(abs(update.scale))
    sign = math.copysign(1.0, update.scale)
    ones = (1,) * (update.a.dim() - 2)
    return replace(
        update,
        a=(kept.a / root).to(update.a.dtype).reshape(rank, *update.a.shape[1:]),
        b=(kept.b * (sign / root)).to(update.b.dtype).reshape(-1, rank, *ones),
        alpha=update.scale * rank,
    )


def _numbers(update: Update) -> int:
    return update.a.numel() + update.b.numel()


@dataclass(frozen=True)
class Preview:
    """What a share of each layer's ‖ΔW‖² would come to."""

    energy: float
    ranks: tuple[int, ...]
    """Of every layer."""
    numbers: int
    """Of all factors."""
    error: float
    """Over all layers."""

    @classmethod
    def of(cls, sites: Sequence[SiteRanks], energy: float) -> Preview:
        choice = Choice(energy=energy)
        ranks = tuple(site.before if site.groups > 1 else choice.of(site.spectrum) for site in sites)
        paired = list(zip(sites, ranks, strict=True))
        numbers = sum(site.numbers_before * rank // site.before for site, rank in paired)
        return cls(energy, ranks, numbers, overall_error([site.at(rank) for site, rank in paired]))

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "energy": self.energy,
            "lowest_rank": min(self.ranks),
            "median_rank": statistics.median(self.ranks),
            "highest_rank": max(self.ranks),
            "numbers": self.numbers,
            "error": self.error,
        }


def overall_error(sites: Iterable[SiteRanks]) -> float:
    """‖ΔW − ΔW'‖ / ‖ΔW‖ over all layers as one vector."""
    listed = list(sites)
    whole = math.fsum(site.norm**2 for site in listed)
    return math.sqrt(math.fsum((site.error * site.norm) ** 2 for site in listed) / whole) if whole else 0.0


def overall_share(sites: Sequence[SiteRanks], rank: int | None = None) -> float:
    """Share of the ‖ΔW‖² of all layers that is kept, as chosen or at one rank for all."""
    whole = math.fsum(site.norm**2 for site in sites)
    kept = [site.norm**2 * (site.kept if rank is None else site.share_at(rank)) for site in sites]
    return math.fsum(kept) / whole if whole else 1.0
