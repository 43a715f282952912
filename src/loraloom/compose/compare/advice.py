"""What a comparison means for a mix, in plain words: who pulls apart where, and weights that balance the norms."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraloom.compose.compare.comparison import Comparison, Pair
from loraloom.compose.compare.overlap import Sums
from loraloom.compose.weights import Weighted

SAME = 0.999
"""Cosine from which two updates count as one but for their size."""
STRONG = 0.5
"""Cosine from which two updates want much the same."""
ALIKE = 0.3
"""Cosine from which a sum is so much larger that the weights should follow."""
SHARED = 0.3
"""Mean squared cosine of the principal angles from which two adapters read the same inputs, if it is beyond chance."""
NOTICED = 0.05
"""Cosine below which two updates count as independent, whatever chance would give."""
_SIGMAS = 3.0
_BALANCED = 0.02
"""Relative difference from balanced weights that is none."""


@dataclass(frozen=True)
class Finding:
    """Two adapters in one block, or in all, that do not act independently of each other."""

    first: str
    second: str
    block: str | None
    """None for all layers."""
    cosine: float
    chance: float
    """Standard deviation of the cosine of updates turned at random."""
    part: float
    """What the block adds to the cosine of the whole: ⟨X, Y⟩ over the block / ‖X‖‖Y‖ over all."""
    sums: Sums

    @property
    def sentence(self) -> str:
        """In plain words."""
        where = f" in {self.block}" if self.block else ""
        return f"{self.first} and {self.second} {self._verb}{where}: cosine {signed(self.cosine)}"

    @property
    def _verb(self) -> str:
        if self.cosine >= SAME:
            return "are the same"
        if self.cosine <= -SAME:
            return "undo each other"
        if self.cosine < 0:
            return "pull apart"
        return "want much the same" if self.cosine >= STRONG else "pull the same way"

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "first": self.first,
            "second": self.second,
            "block": self.block,
            "cosine": self.cosine,
            "cosine_by_chance": self.chance,
            "part_of_whole": self.part,
            "sentence": self.sentence,
        }


def findings(found: Comparison) -> list[Finding]:
    """Blocks in which two adapters are not independent, those first that weigh most in the whole."""
    listed = [
        _finding(pair, block, sums, _size(pair.sums))
        for pair in found.pairs
        for block, sums in pair.blocks.items()
        if _noticed(sums)
    ]
    return sorted(listed, key=lambda one: -abs(one.part))


def pair_findings(found: Comparison) -> list[Finding]:
    """Every pair over all its layers, the most apart first."""
    listed = [_finding(pair, None, pair.sums, _size(pair.sums)) for pair in found.pairs]
    return sorted(listed, key=lambda one: one.cosine)


def strongest(found: Comparison, most: int) -> list[Pair]:
    """The pairs that are furthest from independent, at most so many, in the order in which they were given."""
    chosen = sorted(found.pairs, key=lambda pair: -abs(pair.sums.cosine))[:most]
    return [pair for pair in found.pairs if pair in chosen]


def _finding(pair: Pair, block: str | None, sums: Sums, size: float) -> Finding:
    part = sums.inner / size if size else 0.0
    return Finding(pair.first, pair.second, block, sums.cosine, sums.cosine_chance, part, sums)


def _size(sums: Sums) -> float:
    return math.sqrt(sums.square_x * sums.square_y)


def _noticed(sums: Sums) -> bool:
    """Whether two updates are further from independent than chance, and than anybody would care about."""
    return abs(sums.cosine) >= NOTICED and abs(sums.cosine) > _SIGMAS * sums.cosine_chance


def verdict(found: Comparison) -> str:
    """One sentence on what a mix at these weights does."""
    if silent := [adapter.name for adapter in found.adapters if not adapter.norm]:
        return f"{_listed(silent)} {'changes' if len(silent) == 1 else 'change'} nothing (ΔW = 0): there is no mix"
    pairs = pair_findings(found)
    apart, alike = pairs[0], pairs[-1]
    if alike.cosine >= SAME or apart.cosine <= -SAME:
        return _of_one_update(alike if alike.cosine >= SAME else apart)
    if apart.cosine < 0 and _noticed(apart.sums):
        return f"{apart.sentence}{_most(found, apart)}; {_lost(found)}"
    if alike.cosine >= ALIKE:
        return f"{alike.sentence}{_most(found, alike)}; {_lost(found)}: take the weights down"
    low, high = signed(apart.cosine), signed(alike.cosine)
    cosines = f"cosine {high}" if len(pairs) == 1 else f"cosines {low} to {high}"
    if listed := findings(found):
        return f"little interference ({cosines}), most where {listed[0].sentence}; {_lost(found)}"
    return f"independent ({cosines}, and no block stands out): mix freely"


def shared_inputs(found: Comparison) -> str:
    """A sentence on the pair that reads the same inputs most, where that is far beyond chance; else ""."""
    pair = max(found.pairs, key=lambda one: one.sums.reading.mean)
    reading = pair.sums.reading
    if reading.mean < max(SHARED, 2 * reading.mean_chance) or abs(pair.sums.cosine) >= SAME:
        return ""
    return (
        f"{pair.first} and {pair.second} read the same inputs far beyond chance ({_percent(reading.mean)}, chance "
        f"{_percent(reading.mean_chance)}), as adapters begun from one seed do: {_percent(reading.first)} of "
        f"{pair.first}'s update and {_percent(reading.second)} of {pair.second}'s act on what both read"
    )


def _of_one_update(pair: Finding) -> str:
    if pair.cosine > 0:
        return f"{pair.first} and {pair.second} are one update but for its size: to mix them only adds their weights"
    return f"{pair.first} and {pair.second} are one update with opposite signs: at these weights they undo each other"


def _most(found: Comparison, pair: Finding) -> str:
    """Where a pair's cosine comes from."""
    own = [one for one in findings(found) if (one.first, one.second) == (pair.first, pair.second)]
    own = [one for one in own if one.cosine * pair.cosine > 0]
    return f", most in {own[0].block} ({signed(own[0].cosine)})" if own and len(found.blocks) > 1 else ""


def _lost(found: Comparison) -> str:
    """How large the sum is against independent updates of these sizes."""
    gain = found.gain()
    if abs(gain - 1) < 0.005:
        return "the sum is as large as of independent updates"
    more = "larger" if gain > 1 else "smaller"
    return f"the sum is {100 * abs(gain - 1):.0f} % {more} than of independent updates"


def is_balanced(found: Comparison) -> bool:
    """Whether the norms are the same already."""
    return all(
        abs(new.weight - adapter.weighted.weight) <= _BALANCED * abs(adapter.weighted.weight)
        for adapter, new in zip(found.adapters, found.balanced(), strict=True)
    )


def mix_command(weights: Sequence[Weighted], names: Mapping[Path, str], out: str = "mixed") -> str:
    """A line for the shell that mixes adapters at these weights; `names` are the words by which they were given."""
    words = [shlex.quote(f"{names.get(one.path, str(one.path))}:{one.weight:.3g}{_blocks(one)}") for one in weights]
    return f"loraloom mix {' '.join(words)} --how exact --out {out}"


def _blocks(one: Weighted) -> str:
    return ":blocks=" + ",".join(f"{name}*{factor:g}" for name, factor in one.blocks.items()) if one.blocks else ""


def advice(found: Comparison, names: Mapping[Path, str]) -> dict[str, Any]:
    """All of it as JSON data."""
    return {
        "verdict": verdict(found),
        "shared_inputs": shared_inputs(found) or None,
        "findings": [one.to_json() for one in [*pair_findings(found), *findings(found)]],
        "balanced": is_balanced(found),
        "command": mix_command(found.balanced(), names),
    }


def signed(value: float) -> str:
    """0.205 as "0.21", −0.031 as "−0.03"; what rounds to nothing without a sign."""
    text = f"{abs(value):.2f}"
    return f"−{text}" if value < 0 and float(text) else text


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
