"""How much of an adapter is taken: one weight, and factors on top of it for blocks and layers.

A                                    the whole adapter
A:0.7, A:-0.2                        seven tenths of it; a fifth of it taken away
A:0.7:blocks=down*0,up.2*1.5         of a U-Net or transformer: nothing in the blocks on the way down, more in one
A:0.5:blocks=*.layers.0.**0.3        of any model: × 0.3 where the pattern matches, by the rules of --targets
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loraloom.adapters.targets import matches, no_match
from loraloom.errors import ConfigError, suggest
from loraloom.imaging.prompt import block_names
from loraloom.imaging.prompt.lora import BLOCKS, finite

_BLOCK = re.compile(r"(?:down|up|double|single)(?:\.\d+)?|mid|te[123]?")
_ARGUMENT = ":blocks="


@dataclass(frozen=True)
class Weighted:
    """An adapter, and how much of it is taken where. Raises ConfigError for a weight that is not finite."""

    path: Path
    weight: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict)
    """Block ("down", "up.2", "te") or target pattern → factor on top of the weight; 1 for what none of them means."""

    def __post_init__(self) -> None:
        for value in (self.weight, *self.blocks.values()):
            if not math.isfinite(value):
                raise ConfigError(f"the weight of '{self.path}' is {value}: it must be a finite number")

    def at(self, site: str) -> float:
        """The weight of a layer by its path.

        A pattern goes before a block, the first pattern given before the others, a block with a number before one
        without.

        >>> Weighted(Path("a"), 0.5, {"up": 2.0}).at("unet.up_blocks.1.resnets.0.conv1")
        1.0
        """
        return self.weight * next((self.blocks[name] for name in self._meaning(site)), 1.0)

    def _meaning(self, site: str) -> Iterator[str]:
        """The names in `blocks` that mean a layer, the one that decides first."""
        yield from (name for name in self.blocks if matches(name, site))
        yield from (name for name in _blocks_of(site) if name in self.blocks)

    @property
    def acts(self) -> bool:
        """Whether it can change anything at all."""
        return self.weight != 0

    @property
    def whole(self) -> bool:
        """Whether it is the adapter as it is: weight 1 everywhere."""
        return self.weight == 1 and all(factor == 1 for factor in self.blocks.values())

    def check(self, sites: Iterable[str]) -> None:
        """Raise ConfigError, with the nearest name, where a block or pattern means none of the layers."""
        paths = list(sites)
        for name in self.blocks:
            if any(matches(name, path) or name in _blocks_of(path) for path in paths):
                continue
            raise ConfigError(f"'{self.path}': blocks: {_nothing(name, paths)}")

    def to_json(self) -> dict[str, object]:
        """As JSON data; blocks only where there are any."""
        data: dict[str, object] = {"path": str(self.path), "weight": self.weight}
        return data | {"blocks": dict(self.blocks)} if self.blocks else data


def _blocks_of(site: str) -> tuple[str, ...]:
    """Names of the blocks that a layer lies in; a folder for a U-Net alone does not name it in its paths."""
    return block_names(site) or block_names(f"unet.{site}") or block_names(f"transformer.{site}")


def _nothing(name: str, paths: list[str]) -> str:
    """The sentence for a block or pattern that means no layer."""
    if not any(_blocks_of(path) for path in paths):
        return no_match(name, paths, "layer of it")
    known = dict.fromkeys(block for path in paths for block in _blocks_of(path))
    if _BLOCK.fullmatch(name):
        return f"{name!r} has no layer of it; it changes {', '.join(sorted(known))}"
    return no_match(name, paths, "layer of it") if "." in name else f"{name!r} is no block{suggest(name, known)}"


def parse_weighted(text: str, find: Callable[[str], Path] = Path) -> Weighted:
    """PATH[:WEIGHT][:blocks=…] as the command line has it; `find` turns what is typed into a path.

    Raises ConfigError that names what cannot be read, and what would be.

    >>> parse_weighted("ink:0.7:blocks=down*0,up.2*1.5").blocks
    {'down': 0.0, 'up.2': 1.5}
    """
    place, argument, blocks = text.partition(_ARGUMENT)
    name, weight = _name_and_weight(place)
    if not name:
        raise ConfigError(f"{text!r} names no adapter, e.g. ink.safetensors:0.7")
    return Weighted(find(name), weight, _read_blocks(text, blocks) if argument else {})


def _name_and_weight(place: str) -> tuple[str, float]:
    """What stands before and behind the last colon; a colon may also be part of a name that exists."""
    name, colon, weight = place.rpartition(":")
    if not colon or Path(place).exists():
        return place, 1.0
    try:
        value = float(weight)
    except ValueError:
        near = suggest(weight.partition("=")[0], ["blocks"]) if "=" in weight else ""
        raise ConfigError(
            f"{place!r}: the weight {weight!r} is not a number; write PATH:WEIGHT or PATH:WEIGHT:blocks=…{near}"
        ) from None
    if not math.isfinite(value):
        raise ConfigError(f"{place!r}: the weight is {value}, expected a finite number")
    return name, value


def _read_blocks(text: str, given: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for entry in _entries(given):
        name, star, factor = (part.strip() for part in entry.rpartition("*"))
        value = finite(factor)
        if not star or not name or value is None:
            raise ConfigError(
                f"{text!r}: blocks: {entry.strip()!r} is not NAME*FACTOR, e.g. down*0 or *.layers.0.**0.3; blocks are "
                f"{', '.join(BLOCKS)}"
            )
        if name in found:
            raise ConfigError(f"{text!r}: blocks: {name!r} is given twice")
        found[name] = value
    return found


def _entries(given: str) -> Iterator[str]:
    """The parts between commas; a regular expression may have commas of its own before its factor."""
    pending = ""
    for part in given.split(","):
        pending = f"{pending},{part}" if pending else part
        open_expression = pending.strip().startswith("re:") and finite(pending.rpartition("*")[2].strip()) is None
        if not open_expression:
            yield pending
            pending = ""
    if pending:
        yield pending
