"""Composition on the page: how chosen adapters lie to each other, and the rack's mix written as one adapter."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraloom.compose.compare import Comparison, compare
from loraloom.compose.compare.advice import is_balanced, shared_inputs, verdict
from loraloom.compose.compare.maps import draw_comparison
from loraloom.compose.mix import MixJob, mix
from loraloom.compose.weights import Weighted
from loraloom.errors import ConfigError
from loraloom.studio.desk import Desk
from loraloom.studio.places import inside, plain_name
from loraloom.studio.rack import Use, uses_of

METHODS = {"the exact sum": "exact", "the nearest of a rank": "svd"}
"""Words on the page → `MixJob.how`."""


@dataclass(frozen=True)
class Compared:
    """What the page shows of a comparison."""

    sentences: tuple[str, ...]
    columns: list[str]
    rows: list[list[str]]
    picture: Path
    """Heat maps; a draft that does not last."""


def compared(desk: Desk, names: list[str]) -> Compared:
    """How adapters of the folders agree, interfere and weigh. Raises ConfigError for fewer than two."""
    if len(names) < 2:
        raise ConfigError("choose two adapters or more to compare them")
    found = compare([desk.adapter(name).path for name in names])
    with tempfile.TemporaryDirectory(prefix="loraloom-") as folder:
        path = Path(folder) / "comparison.png"
        draw_comparison(path, found)
        picture = desk.draft_file(path)
    return Compared(_sentences(found), *_pairs(found), picture)


def _sentences(found: Comparison) -> tuple[str, ...]:
    told = [verdict(found), shared_inputs(found)]
    if not is_balanced(found):
        weights = ", ".join(
            f"{adapter.name} {weighted.weight:.3g}"
            for adapter, weighted in zip(found.adapters, found.balanced(), strict=True)
        )
        told.append(f"weights at which their updates are of one size: {weights}")
    return tuple(sentence[0].upper() + sentence[1:] for sentence in told if sentence)


def _pairs(found: Comparison) -> tuple[list[str], list[list[str]]]:
    columns = ["pair", "cosine", "signs agree", "inputs in common", "outputs in common", "size of the sum"]
    return columns, [
        [
            f"{pair.first} · {pair.second}",
            f"{pair.sums.cosine:+.2f}",
            f"{pair.sums.weighted_signs:.0%}",
            f"{pair.sums.reading.mean:.0%} (chance {pair.sums.reading.mean_chance:.0%})",
            f"{pair.sums.writing.mean:.0%} (chance {pair.sums.writing.mean_chance:.0%})",
            f"{pair.sums.gain:.2f} ×",
        ]
        for pair in found.pairs
    ]


def write_mix(desk: Desk, said: Any, new: str, method: str, rank: float | None) -> str:
    """Write the adapters that are on, at their weights, as one adapter of the first adapter folder.

    Raises ConfigError where none is on, a weight follows a schedule, or the name is none; OutputError for a name that
    is taken; FormatError for adapters of different bases.
    """
    if not desk.places.adapters:
        raise ConfigError("there is no folder of your own to write to; start the studio with --adapters FOLDER")
    uses = uses_of(said, desk.names())
    if not uses:
        raise ConfigError("no adapter is on: turn on those that are to become one")
    how = METHODS.get(method, "exact")
    if how == "svd" and not rank:
        raise ConfigError("the nearest of which rank? Give one, such as 16")
    name = plain_name(new, "name of the new adapter").removesuffix(".safetensors")
    target = inside(desk.places.adapters[0], f"{name}.safetensors", "name of the new adapter")
    weighted = tuple(_weighted(desk, use) for use in uses)
    formats = {desk.adapter(use.name).facts.format for use in uses}
    to = "kohya" if formats == {"kohya"} else "diffusers"
    report = mix(MixJob(weighted, target, how, int(rank) if rank and how == "svd" else None, to=to))
    return f"{target.name} is written: {report.verdict}"


def _weighted(desk: Desk, use: Use) -> Weighted:
    """A use of the rack as a mix takes it: one weight, and factors for what has another."""
    if use.steps:
        raise ConfigError(f"the weight of '{use.name}' follows a schedule over the steps, which no file can hold")
    entry, blocks = desk.adapter(use.name), dict(use.blocks)
    path, parts = entry.path, entry.facts.parts
    if use.te == use.unet or not any(part.startswith("text_encoder") for part in parts):
        return Weighted(path, use.unet, blocks)
    if use.unet:
        texts = {name: factor for name, factor in blocks.items() if name.startswith("te")} or {"te": 1.0}
        return Weighted(path, use.unet, blocks | {name: f * use.te / use.unet for name, f in texts.items()})
    others = [part for part in parts if not part.startswith("text_encoder")]
    return Weighted(path, use.te, blocks | {f"{part}.*": 0.0 for part in others})
