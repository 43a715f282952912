"""Heat maps of a comparison: who lies how to whom, in which block, and how large each is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from loraloom.compose.compare.advice import signed, strongest, verdict
from loraloom.compose.compare.comparison import Comparison
from loraloom.training.curves import png_bytes
from loraloom.training.files import write_bytes

_COSINE, _SHARE, _NORM = "RdBu_r", "Purples", "Oranges"
_MOST_CELLS = 220
"""Cells of a map beyond which no numbers are written into them."""
_MOST_PAIRS = 8
"""Pairs that have a column of their own; of more the strongest."""
_LONGEST = 16
"""Characters of a name that an axis shows."""
_WIDEST = 16.0
"""Inches."""
_UPRIGHT = 5
"""Columns beyond which their names are turned."""
_LEAST_SPAN = 0.2
"""Smallest end of the scale of cosines, so that noise does not shine."""


def draw_comparison(path: Path, found: Comparison) -> None:
    """Write the heat maps as a PNG: cosines between adapters and per block, inputs, norms. Raises OutputError."""
    blocks, pairs, adapters = list(found.blocks), strongest(found, _MOST_PAIRS), found.adapters
    names = [_short(adapter.name) for adapter in adapters]
    columns = [f"{_short(pair.first)}\n{_short(pair.second)}" for pair in pairs]
    several = len(adapters) > 2
    figure, axes = _panels(several, len(adapters), len(pairs), len(blocks))
    if several:
        _cosines(figure, axes.pop(0), _between(found), names, names, "cosine of ΔW")
    table = torch.tensor([[pair.blocks[block].cosine for pair in pairs] for block in blocks])
    _cosines(figure, axes[0], table, blocks, columns, "cosine per block")
    shared = torch.tensor([[pair.blocks[block].reading.mean for pair in pairs] for block in blocks])
    _map(figure, axes[1], shared, blocks, columns, "inputs in common", _SHARE, Normalize(0, 1))
    norms = torch.tensor([[adapter.block_norm(found.blocks[block]) for adapter in adapters] for block in blocks])
    scale = PowerNorm(0.5, vmin=0, vmax=max(float(norms.max()), 1e-12))
    _map(figure, axes[2], norms, blocks, names, "‖w ΔW‖ per block", _NORM, scale)
    figure.suptitle(_capital(verdict(found)), fontsize=11, wrap=True)
    write_bytes(path, png_bytes(figure))


def _panels(several: bool, adapters: int, pairs: int, blocks: int) -> tuple[Figure, list[Axes]]:
    """An empty figure and its panels, side by side, or two and two where that would be wider than a screen."""
    widths = [1.2 + 0.75 * adapters] * several + [1.4 + 0.75 * pairs] * 2 + [1.4 + 0.75 * adapters]
    height, names = max(3.6, 0.27 * blocks + 2.2), 1.2 * (max(adapters, pairs) > _UPRIGHT)
    if several and sum(widths) > _WIDEST:
        figure = Figure(figsize=(max(12.0, widths[0] + widths[1] + 4), 2 * (height + names)), layout="constrained")
        return figure, list(figure.subplots(2, 2, width_ratios=[widths[0], widths[1]]).flat)
    figure = Figure(figsize=(max(10.0, sum(widths) + 2.5), height + names), layout="constrained")
    return figure, list(figure.subplots(1, len(widths), width_ratios=widths))


def _between(found: Comparison) -> Tensor:
    """Cosines of all adapters with each other; the diagonal, which says nothing, is left empty."""
    names = [adapter.name for adapter in found.adapters]
    table = torch.full((len(names), len(names)), float("nan"))
    for pair in found.pairs:
        i, j = names.index(pair.first), names.index(pair.second)
        table[i, j] = table[j, i] = pair.sums.cosine
    return table


def _cosines(
    figure: Figure, axes: Axes, table: Tensor, rows: Sequence[str], columns: Sequence[str], title: str
) -> None:
    known = table[~table.isnan()]
    end = min(1.0, max(_LEAST_SPAN, float(known.abs().max()) if len(known) else 0.0))
    _map(figure, axes, table, rows, columns, title, _COSINE, Normalize(-end, end))


def _map(
    figure: Figure,
    axes: Axes,
    table: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    colours: str,
    scale: Normalize,
) -> None:
    """One table as colours, with its numbers in it where they can be read."""
    axes.set_facecolor("#eceef1")
    image = axes.imshow(table.numpy(), cmap=colours, aspect="auto", norm=scale, interpolation="none")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    crowded = len(columns) > _UPRIGHT
    axes.set_xticks(range(len(columns)), list(columns), fontsize=8, rotation=90 if crowded else 0)
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0)
    if table.numel() <= _MOST_CELLS:
        _write_numbers(axes, table, scale, image.get_cmap())
    figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=8)


def _write_numbers(axes: Axes, table: Tensor, scale: Normalize, colours: Colormap) -> None:
    for row, values in enumerate(table.tolist()):
        for column, value in enumerate(values):
            if value == value:
                red, green, blue, _ = colours(float(scale(value)))
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                text = signed(value) if abs(value) < 10 else f"{value:.3g}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "#222")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
