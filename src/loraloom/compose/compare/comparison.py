"""How adapters lie to each other, layer by layer and in all: before they are mixed.

    found = compare([Path("glass.safetensors"), Weighted(Path("neon.safetensors"), 0.7)])
    found.pairs[0].sums.cosine, found.pairs[0].sums.reading.mean

Cosines and angles come from the factors; ΔW is formed for its signs alone, one layer at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from loraloom.adapters.product import Product
from loraloom.compose.blocks import blocks_of
from loraloom.compose.compare.overlap import SitePair, Sums, Turned, alone, pair_up, pooled, sign_rows, sign_sums
from loraloom.compose.sources import Source, open_adapters
from loraloom.compose.weights import Weighted
from loraloom.errors import ConfigError


@dataclass(frozen=True)
class Compared:
    """One of the adapters."""

    name: str
    path: Path
    weighted: Weighted
    """As it would be mixed."""
    sites: int
    rank: int
    """The largest."""
    norms: dict[str, float]
    """‖w ΔW‖_F per layer."""
    whole: int = 0
    """Heads and biases, which are not compared."""

    @property
    def norm(self) -> float:
        """‖w ΔW‖_F over all layers."""
        return math.sqrt(math.fsum(norm * norm for norm in self.norms.values()))

    def block_norm(self, paths: Sequence[str]) -> float:
        """‖w ΔW‖_F over some layers."""
        return math.sqrt(math.fsum(self.norms.get(path, 0.0) ** 2 for path in paths))


@dataclass(frozen=True)
class Pair:
    """Two of the adapters, each at its weight."""

    first: str
    second: str
    sites: tuple[SitePair, ...]
    """Every layer that one of them changes."""
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    blocks: dict[str, Sums]

    @property
    def sums(self) -> Sums:
        """Over all layers."""
        return pooled(site.sums for site in self.sites)

    @property
    def sampled(self) -> int:
        """In how many layers the signs were compared on some rows only."""
        return sum(site.sampled for site in self.sites)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "first": self.first,
            "second": self.second,
            **self.sums.to_json(),
            "signs": "exact" if not self.sampled else f"rows sampled in {self.sampled} layers",
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "blocks": {block: sums.to_json() for block, sums in self.blocks.items()},
            "sites": [
                {
                    "path": site.path,
                    **site.sums.to_json(),
                    "cosines_of_angles_read": list(site.row_cosines),
                    "cosines_of_angles_written": list(site.column_cosines),
                    "signs_sampled": site.sampled,
                }
                for site in self.sites
            ],
        }


@dataclass(frozen=True)
class Comparison:
    """Everything that `compare` found."""

    adapters: tuple[Compared, ...]
    pairs: tuple[Pair, ...]
    blocks: dict[str, tuple[str, ...]]
    """Block → its layers."""

    def pair(self, first: str, second: str) -> Pair:
        """The pair of these names, in this order. Raises KeyError."""
        return next(pair for pair in self.pairs if (pair.first, pair.second) == (first, second))

    def norm_together(self, block: str | None = None) -> float:
        """‖Σ wᵢΔWᵢ‖_F over all layers, or those of a block."""
        chosen = [pair.sums if block is None else pair.blocks[block] for pair in self.pairs]
        squares = math.fsum(self._squares(block))
        return math.sqrt(max(0.0, squares + 2 * math.fsum(sums.inner for sums in chosen)))

    def gain(self, block: str | None = None) -> float:
        """‖Σ wᵢΔWᵢ‖ / √Σ‖wᵢΔWᵢ‖²: 1 for independent updates, less where they cancel, √n at most."""
        independent = math.sqrt(math.fsum(self._squares(block)))
        return self.norm_together(block) / independent if independent else 1.0

    def cancellation(self, block: str | None = None) -> float:
        """1 − `gain`: what of the adapters is lost in their sum; below 0 where they add up."""
        return 1.0 - self.gain(block)

    def _squares(self, block: str | None) -> list[float]:
        if block is None:
            return [adapter.norm**2 for adapter in self.adapters]
        return [adapter.block_norm(self.blocks[block]) ** 2 for adapter in self.adapters]

    def balanced(self) -> tuple[Weighted, ...]:
        """Weights at which every ‖wᵢΔWᵢ‖ is the same, and their sum what it is now; one that is zero keeps its own."""
        acting = [adapter.norm for adapter in self.adapters if adapter.norm > 0]
        wanted = math.fsum(acting) / len(acting) if acting else 0.0
        return tuple(
            replace(adapter.weighted, weight=adapter.weighted.weight * (wanted / adapter.norm if adapter.norm else 1.0))
            for adapter in self.adapters
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        balanced = self.balanced()
        return {
            "adapters": [
                {
                    "name": adapter.name,
                    **adapter.weighted.to_json(),
                    "sites": adapter.sites,
                    "rank": adapter.rank,
                    "norm": adapter.norm,
                    "balanced_weight": weight.weight,
                    "norm_per_block": {block: adapter.block_norm(paths) for block, paths in self.blocks.items()},
                    "not_compared": adapter.whole,
                }
                for adapter, weight in zip(self.adapters, balanced, strict=True)
            ],
            "norm_together": self.norm_together(),
            "gain": self.gain(),
            "cancellation": self.cancellation(),
            "cancellation_per_block": {block: self.cancellation(block) for block in self.blocks},
            "pairs": [pair.to_json() for pair in self.pairs],
        }


def compare(adapters: Sequence[Weighted | Path], *, seed: int = 0) -> Comparison:
    """Compare adapters for one base, each at its weight; a path stands for weight 1.

    `seed` chooses the rows on which the signs of large layers are compared. Raises ConfigError for less than two,
    FormatError for a file that is no adapter and for adapters of different bases, which it names.
    """
    weighted = [one if isinstance(one, Weighted) else Weighted(one) for one in adapters]
    if len(weighted) < 2:
        told = f"only '{weighted[0].path}' is given" if weighted else "none is given"
        raise ConfigError(f"two adapters are needed to compare, {told}; `loraloom inspect` and `resize` look at one")
    sources = open_adapters([one.path for one in weighted])
    for one, source in zip(weighted, sources, strict=True):
        one.check(source.updates)
    blocks = blocks_of({path for source in sources for path in source.updates})
    table = _Table(sources, weighted, seed)
    for path in blocks:
        table.add(path)
    return table.comparison(blocks)


class _Table:
    """Gathers what two of the adapters have in common, layer by layer; of a layer nothing but numbers is kept."""

    def __init__(self, sources: Sequence[Source], weighted: Sequence[Weighted], seed: int) -> None:
        self.sources, self.weighted, self.seed = sources, weighted, seed
        self.norms: list[dict[str, float]] = [{} for _ in sources]
        self.pairs = list(itertools.combinations(range(len(sources)), 2))
        self.sites: dict[tuple[int, int], list[SitePair]] = {pair: [] for pair in self.pairs}

    def add(self, path: str) -> None:
        """Compare one layer of all adapters."""
        turned = [self._turned(index, path) for index in range(len(self.sources))]
        for norms, one in zip(self.norms, turned, strict=True):
            if one is not None:
                norms[path] = math.sqrt(one.square)
        rows = next((sign_rows(one.product.shape, self.seed) for one in turned if one is not None), None)
        dense = [None if one is None or not one.rank else _rows(one.product, rows).dense() for one in turned]
        for i, j in self.pairs:
            if turned[i] is not None or turned[j] is not None:
                self.sites[i, j].append(_site_pair(path, (turned[i], turned[j]), (dense[i], dense[j]), rows))

    def _turned(self, index: int, path: str) -> Turned | None:
        updates = self.sources[index].updates
        if path not in updates:
            return None
        return Turned.of(updates[path].product().scaled(self.weighted[index].at(path)))

    def comparison(self, blocks: dict[str, str]) -> Comparison:
        """What was gathered."""
        layers: dict[str, tuple[str, ...]] = {}
        for path, block in blocks.items():
            layers[block] = (*layers.get(block, ()), path)
        adapters = tuple(
            Compared(source.name, source.path, one, len(source.updates), source.rank, norms, len(source.rest))
            for source, one, norms in zip(self.sources, self.weighted, self.norms, strict=True)
        )
        return Comparison(adapters, tuple(self._pair(i, j, layers) for i, j in self.pairs), layers)

    def _pair(self, i: int, j: int, layers: dict[str, tuple[str, ...]]) -> Pair:
        one, two = self.sources[i], self.sources[j]
        found = {site.path: site.sums for site in self.sites[i, j]}
        return Pair(
            one.name,
            two.name,
            tuple(self.sites[i, j]),
            tuple(path for path in one.updates if path not in two.updates),
            tuple(path for path in two.updates if path not in one.updates),
            {block: pooled(found[path] for path in paths if path in found) for block, paths in layers.items()},
        )


def _rows(product: Product, rows: Tensor | None) -> Product:
    return product if rows is None else Product(product.b[rows], product.a)


def _site_pair(
    path: str,
    turned: tuple[Turned | None, Turned | None],
    dense: tuple[Tensor | None, Tensor | None],
    rows: Tensor | None,
) -> SitePair:
    x, y = turned
    if x is None or y is None:
        return alone(path, x, y)
    pair = pair_up(path, x, y)
    if dense[0] is None or dense[1] is None:
        return pair
    return replace(pair, sums=replace(pair.sums, **sign_sums(dense[0], dense[1])), sampled=rows is not None)
