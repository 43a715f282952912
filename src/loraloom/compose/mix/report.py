"""What a mix came to: layer by layer, adapter by adapter, and in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loraloom.compose.mix.combine import Method
from loraloom.compose.mix.plan import Ingredient, MixPlan, dtype_name, ingredient_json
from loraloom.compose.mix.sparsify import MIXTURES

WEAK, STRONG = 0.5, 1.5
"""The size of a mix, relative to its parts, from which it is worth a word."""


@dataclass(frozen=True)
class SiteMix:
    """One layer of the result; norms are Frobenius norms."""

    path: str
    rank: int
    exact: float
    """‖Σ w ΔW‖ of the exact sum."""
    size: float
    """‖ΔW‖ of the result."""
    distance: float
    """‖result − exact sum‖."""
    own: float
    """‖the method's own result before its cut to the rank‖."""
    cut: float
    """‖what the cut left out of that‖."""
    parts: tuple[float, ...]
    """‖w ΔW‖ of each adapter, 0 for one that does not change the layer."""

    @property
    def error(self) -> float:
        """‖result − exact sum‖ / ‖exact sum‖."""
        return _share(self.distance, self.exact)

    @property
    def left_out(self) -> float:
        """Share of the method's own result that the cut to the rank left out."""
        return _share(self.cut, self.own)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each adapter's part of the sum of ‖w ΔW‖."""
        total = sum(self.parts)
        return tuple(_share(part, total) for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "path": self.path,
            "rank": self.rank,
            "norm_exact": self.exact,
            "norm": self.size,
            "error": _finite(self.error),
            "left_out": _finite(self.left_out),
            "shares": list(self.shares),
        }


@dataclass(frozen=True)
class SourceShare:
    """One adapter's part in a mix."""

    ingredient: Ingredient
    norm: float
    """‖w ΔW‖ over all layers."""

    @classmethod
    def of(cls, ingredient: Ingredient, norms: Iterable[float]) -> SourceShare:
        return cls(ingredient, _root(norms))

    @property
    def alone(self) -> float:
        """‖ΔW‖ of the adapter at weight 1, going by its weight where no block says otherwise."""
        weight = abs(self.ingredient.weight)
        return self.norm / weight if weight else self.norm


@dataclass(frozen=True)
class MixReport:
    """A finished mix."""

    plan: MixPlan
    sites: tuple[SiteMix, ...]
    sources: tuple[SourceShare, ...]

    @property
    def error(self) -> float:
        """‖result − exact sum‖ / ‖exact sum‖ over all layers."""
        return _share(_root(site.distance for site in self.sites), self.exact)

    @property
    def left_out(self) -> float:
        """Share of the method's own result, over all layers, that the cut to the rank left out."""
        return _share(_root(site.cut for site in self.sites), _root(site.own for site in self.sites))

    @property
    def exact(self) -> float:
        """‖exact sum‖ over all layers."""
        return _root(site.exact for site in self.sites)

    @property
    def size(self) -> float:
        """‖result‖ over all layers."""
        return _root(site.size for site in self.sites)

    def worst(self, count: int) -> list[SiteMix]:
        """The layers that differ most from the exact sum, the worst first; of equal ones the larger."""
        return sorted(self.sites, key=lambda site: (-site.error, -site.exact, site.path))[:count]

    def share(self, source: SourceShare) -> float:
        """A source's part of the sum of ‖w ΔW‖ over all layers."""
        return _share(source.norm, sum(one.norm for one in self.sources))

    @property
    def warnings(self) -> list[str]:
        """What a user may not expect of the size of the result."""
        told = []
        size, exact = self.size, self.exact
        strongest = max((one.norm for one in self.sources), default=0.0)
        alone = max((one.alone for one in self.sources), default=0.0)
        if len(self.sources) > 1 and exact < WEAK * strongest:
            told.append(
                f"the adapters cancel each other: their sum has {exact / strongest:.0%} of the size of its largest part"
            )
        elif len(self.sources) > 1 and exact > STRONG * alone:
            told.append(
                f"the sum is {exact / alone:.1f} times as strong as the strongest adapter alone: smaller weights may "
                "serve better"
            )
        if self.plan.method.how != "exact" and exact and not WEAK <= size / exact <= STRONG:
            told.append(f"the result has {size / exact:.2f} times the size of the exact sum")
        return told

    @property
    def verdict(self) -> str:
        """How near the result is to the exact sum, in a sentence."""
        layers = f"{len(self.sites)} layer{'' if len(self.sites) == 1 else 's'}"
        dtype = dtype_name(self.plan.dtype)
        if self.plan.untouched is not None and not self.error:
            return f"{self.sources[0].ingredient.name!r} as it is, the same to the bit: {layers} in {dtype}"
        if self.plan.method.how == "exact":
            rounded = f"exact but for the rounding to {dtype}, {self.error:.1e} of the sum"
            rest = rounded if self.error else f"exact, in {dtype}"
            return f"{layers} at {_ranks(self.sites)}, {rest}" + (
                "" if self.error < 1e-5 else ": --dtype fp32 has less"
            )
        cut = f"; the cut to {_ranks(self.sites)} left out {percent(self.left_out)} of what {self.plan.method.how} made"
        cut = cut if self.plan.method.how in MIXTURES else ""
        return f"{layers} at {_ranks(self.sites)}, {percent(self.error)} away from the exact sum{cut}"

    def summary(self) -> dict[str, Any]:
        """The mix without its layers, as JSON data."""
        sources = {id(one.ingredient): one for one in self.sources}
        listed = []
        for one in (*self.plan.ingredients, *self.plan.idle):
            known = sources.get(id(one))
            norms = {"norm": 0.0, "share": 0.0} if known is None else {"norm": known.norm, "share": self.share(known)}
            listed.append(ingredient_json(one) | norms)
        return {
            **self.plan.to_json(),
            "sources": listed,
            "error": _finite(self.error),
            "left_out": _finite(self.left_out),
            "norm_exact": self.exact,
            "norm": self.size,
            "verdict": self.verdict,
            "warnings": self.warnings,
        }

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return self.summary() | {"sites": [site.to_json() for site in self.sites]}


def recipe(plan: MixPlan) -> str:
    """ "ink × 0.7 + glass × 0.4"."""
    return " + ".join(f"{one.name} × {weight_words(one)}" for one in plan.ingredients).replace("+ -", "− ")


def comment_of(plan: MixPlan) -> str:
    """The mix in one line, as a file's header has it."""
    return f"mix of {recipe(plan)}, {method_words(plan.method)}"


def weight_words(one: Ingredient) -> str:
    """The weight of an adapter, with what blocks say of it."""
    blocks = ", ".join(f"{name} × {factor:g}" for dose in one.doses for name, factor in dose.blocks.items())
    return f"{one.weight:g}" + (f" ({blocks})" if blocks else "")


def method_words(method: Method) -> str:
    """ "dare to rank 16, density 0.5, seed 0"."""
    words = method.how if method.rank is None else f"{method.how} to rank {method.rank}"
    if method.how in MIXTURES:
        words += f", density {method.density:g}"
    return words + (f", seed {method.seed}" if method.how == "dare" else "")


def card_lines(report: MixReport) -> list[str]:
    """The paragraphs of the model card."""
    rows = "\n".join(
        f"| {one.ingredient.name} | {weight_words(one.ingredient)} | {one.ingredient.source.rank} | "
        f"{percent(report.share(one))} |"
        for one in report.sources
    )
    heads = [f"The head `{module}` is that of {source.name}." for module, source in report.plan.heads.items()]
    return [
        f"Mixed from {len(report.sources)} trained adapter{'' if len(report.sources) == 1 else 's'} "
        f"({method_words(report.plan.method)}); it was not trained or scored itself.",
        f"| adapter | weight | rank | share of the norm |\n|---|---:|---:|---:|\n{rows}",
        f"{report.verdict[:1].upper()}{report.verdict[1:]}.",
        *heads,
        *(f"Note: {sentence}." for sentence in report.warnings),
        "Every layer's rank, size and error are in `mix.json`.",
    ]


def percent(share: float) -> str:
    """0.0123 as "1.2 %"; what is next to nothing in powers of ten."""
    if not math.isfinite(share):
        return "all"
    if share < 1e-4:
        return f"{share:.0e}" if share else "0 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"


def _ranks(sites: Sequence[SiteMix]) -> str:
    ranks = sorted({site.rank for site in sites})
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no rank"


def _share(part: float, whole: float) -> float:
    return part / whole if whole else (math.inf if part else 0.0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _root(values: Iterable[float]) -> float:
    return math.sqrt(sum(value**2 for value in values))
