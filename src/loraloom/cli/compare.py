"""`loraloom compare`: how adapters agree, interfere and weigh, before they are mixed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.adapter_source import adapter_path
from loraloom.cli.options import Debug, Json
from loraloom.cli.resize import check_png

if TYPE_CHECKING:
    from loraloom.compose.compare import Comparison, Pair
    from loraloom.compose.compare.overlap import Overlap

_TOLD, _PAIRS, _COLUMNS = 8, 15, 6
"""Rows of findings and notes; rows of pairs; columns of pairs."""


def compare(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[:WEIGHT]…",
            help="Two or more adapters of one base: files, folders or names of shipped styles, each with its weight.",
            show_default=False,
        ),
    ],
    *,
    png: Annotated[str | None, typer.Option(metavar="FILE", help="Draw heat maps to this .png file.")] = None,
    blocks: Annotated[bool, typer.Option("--blocks", help="Show every block, not only where adapters meet.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict and the balanced weights alone.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how adapters agree, interfere and weigh, before they are mixed.

    The cosine tells whether two updates pull the same way (above 0), apart (below) or are independent; inputs and
    outputs in common are the mean squared cosine of the principal angles between what they read and write. Beside
    each stands what chance would give. ‖sum‖ is the size of the two together against that of independent updates:
    below 1 they cancel.
    """
    check_png(png)
    from loraloom.cli import output
    from loraloom.compose.compare import compare as run
    from loraloom.compose.compare.advice import advice
    from loraloom.compose.compare.maps import draw_comparison
    from loraloom.compose.weights import parse_weighted

    names: dict[Path, str] = {}

    def find(given: str) -> Path:
        path = adapter_path(given)
        names[path] = given
        return path

    found = run([parse_weighted(text, find) for text in adapters])
    if png is not None:
        draw_comparison(Path(png), found)
    if json:
        output.emit({**found.to_json(), **advice(found, names), "png": png})
        return
    if not quiet:
        _show(found, blocks=blocks)
    output.say(*_told(found, names, quiet=quiet), *([f"drawn in {png}"] if png else []))


def _show(found: Comparison, *, blocks: bool) -> None:
    from loraloom.cli import output
    from loraloom.compose.compare.advice import strongest

    output.show_table(("adapter", "weight", "layers", "rank", "‖w ΔW‖", "balanced weight"), _adapters(found))
    columns: tuple[str, ...] = (
        "pair",
        "cosine",
        "chance",
        "signs (by size)",
        "inputs (chance)",
        "outputs (chance)",
        "‖sum‖",
    )
    output.show_table(columns, [_pair(pair) for pair in strongest(found, _PAIRS)])
    if blocks:
        pairs = strongest(found, _COLUMNS)
        columns = ("block", *map(_pair_name, pairs), "‖sum‖")
        output.show_table(columns, _blocks(found, pairs), title="cosine per block")
    elif rows := _findings(found):
        output.show_table(("most in", "pair", "cosine", "part of it in all", "inputs (chance)"), rows)


def _adapters(found: Comparison) -> list[list[str]]:
    return [
        [
            adapter.name,
            f"{adapter.weighted.weight:g}{' by block' if adapter.weighted.blocks else ''}",
            str(adapter.sites),
            str(adapter.rank),
            f"{adapter.norm:.4g}",
            f"{balanced.weight:.3g}",
        ]
        for adapter, balanced in zip(found.adapters, found.balanced(), strict=True)
    ]


def _pair_name(pair: Pair) -> str:
    return f"{pair.first} · {pair.second}"


def _pair(pair: Pair) -> list[str]:
    sums = pair.sums
    return [
        _pair_name(pair),
        f"{sums.cosine:+.2f}",
        f"±{sums.cosine_chance:.1g}",
        f"{100 * sums.signs:.0f} % ({100 * sums.weighted_signs:.0f})",
        _overlap(sums.reading),
        _overlap(sums.writing),
        f"{sums.gain:.2f} ×",
    ]


def _overlap(overlap: Overlap) -> str:
    return f"{100 * overlap.mean:.0f} % ({100 * overlap.mean_chance:.0f})"


def _findings(found: Comparison) -> list[list[str]]:
    from loraloom.compose.compare.advice import findings

    return [
        [
            one.block or "",
            f"{one.first} · {one.second}",
            f"{one.cosine:+.2f}",
            f"{one.part:+.2f}",
            _overlap(one.sums.reading),
        ]
        for one in findings(found)[:_TOLD]
    ]


def _blocks(found: Comparison, pairs: list[Pair]) -> list[list[str]]:
    return [
        [block, *(f"{pair.blocks[block].cosine:+.2f}" for pair in pairs), f"{found.gain(block):.2f} ×"]
        for block in found.blocks
    ]


def _told(found: Comparison, names: dict[Path, str], *, quiet: bool) -> list[str]:
    """The verdict, what was left out, and weights that balance the norms."""
    from loraloom.compose.compare.advice import is_balanced, mix_command, verdict

    lines = [] if quiet else _notes(found)
    lines.append(verdict(found))
    if is_balanced(found):
        return [*lines, "the norms are balanced at these weights"]
    return [*lines, f"with equal norms: {mix_command(found.balanced(), names)}"]


def _notes(found: Comparison) -> list[str]:
    from loraloom.compose.compare.advice import shared_inputs

    notes = [
        f"note: {len(paths)} layers are changed by {who} and not by {other}, e.g. {paths[0]}"
        for pair in found.pairs
        for who, other, paths in (
            (pair.first, pair.second, pair.only_first),
            (pair.second, pair.first, pair.only_second),
        )
        if paths
    ]
    if len(found.pairs) > _PAIRS:
        notes.append(f"note: the {_PAIRS} pairs furthest from independent of {len(found.pairs)}; --json has all")
    if sampled := max(pair.sampled for pair in found.pairs):
        notes.append(f"note: the signs of {sampled} large layers were compared on rows drawn by chance")
    if sentence := shared_inputs(found):
        notes.append(f"note: {sentence}")
    if whole := [adapter.name for adapter in found.adapters if adapter.whole]:
        notes.append(f"note: heads and biases ({', '.join(whole)}) are not compared")
    more = len(notes) - _TOLD
    return notes if more <= 0 else [*notes[:_TOLD], f"note: and {more} more like these"]
