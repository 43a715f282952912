"""Pictures of what a rank keeps, and of how adapters lie to each other."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loraloom.compose.resize.ranks import SiteRanks, overall_share
from loraloom.compose.resize.resizing import ResizeReport
from loraloom.training.curves import BLUE, GREY, LIGHT, ORANGE, png_bytes
from loraloom.training.files import write_bytes

_LEVELS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
_NOTHING = "#eceef1"
_NINES = 4.5
"""Nines beyond which everything counts as the whole: 99.997 %."""


def draw_ranks(path: Path, report: ResizeReport) -> None:
    """Write what each rank would keep, over all layers and per block, as a PNG. Raises OutputError."""
    blocks = _blocks(report.sites)
    figure = Figure(figsize=(13, max(4.6, 0.3 * len(blocks) + 2.0)), layout="constrained")
    curve, strip = figure.subplots(1, 2, width_ratios=[1, 1.25])
    moving = [site for site in report.sites if site.norm > 0]
    _draw_curve(curve, moving, report)
    _draw_strip(figure, strip, blocks, report)
    figure.suptitle(_ranks_title(report), fontsize=11)
    write_bytes(path, png_bytes(figure))


def _ranks_title(report: ResizeReport) -> str:
    if not report.choice.given:
        return f"{report.name}: what each rank would keep of the update"
    before, after = report.numbers
    asked = f"rank {report.choice.rank}" if report.choice.rank else f"{100 * (report.choice.energy or 0):g} % per layer"
    kept, numbers = f"{100 * report.kept:.2f} %", f"{100 * after / before:.0f} %"
    return f"{report.name} at {asked}: {kept} of ‖ΔW‖² kept by {numbers} of the numbers"


def _blocks(sites: Sequence[SiteRanks]) -> dict[str, list[SiteRanks]]:
    blocks: dict[str, list[SiteRanks]] = {}
    for site in sites:
        blocks.setdefault(site.block, []).append(site)
    return blocks


def _highest(sites: Sequence[SiteRanks]) -> int:
    return max((site.before for site in sites), default=1)


def _nines(share: float) -> float:
    """How many nines a share has: 0.9 → 1, 0.99 → 2; the axis on which what is left out can be seen."""
    return min(_NINES, -math.log10(max(1e-12, 1.0 - share)))


def _draw_curve(axes: Axes, sites: Sequence[SiteRanks], report: ResizeReport) -> None:
    """Share kept over the rank: the median layer, the band of eight in ten, and all layers together."""
    ranks = range(1, _highest(report.sites) + 1)
    shares = {rank: [_nines(site.share_at(rank)) for site in sites] or [_NINES] for rank in ranks}
    low, high = ([_quantile(shares[rank], level) for rank in ranks] for level in (0.1, 0.9))
    axes.fill_between(ranks, low, high, color=LIGHT, alpha=0.5, linewidth=0, label="eight in ten layers")
    middle = [statistics.median(shares[rank]) for rank in ranks]
    axes.plot(ranks, middle, color=BLUE, marker="o", markersize=4, linewidth=2, label="median layer")
    together = [_nines(overall_share(sites, rank)) for rank in ranks]
    axes.plot(ranks, together, color=GREY, linestyle="--", linewidth=1.5, label="all layers together")
    _mark_choice(axes, report)
    ticks = [0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999]
    axes.set_yticks([*map(_nines, ticks), _NINES], [*(f"{100 * share:g} %" for share in ticks), "all"])
    axes.set_ylim(0, _NINES + 0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rank")
    axes.set_title("share of ‖ΔW‖² that is kept", fontsize=10)
    axes.legend(loc="lower right", fontsize=9, framealpha=0.85, edgecolor="none")


def _mark_choice(axes: Axes, report: ResizeReport) -> None:
    if report.choice.rank is not None:
        axes.axvline(report.choice.rank, color=ORANGE, linewidth=1.5, label=f"chosen: rank {report.choice.rank}")
    if report.choice.energy is not None:
        share = 100 * report.choice.energy
        axes.axhline(_nines(report.choice.energy), color=ORANGE, linewidth=1.5, label=f"chosen: {share:g} % per layer")


def _quantile(values: Sequence[float], level: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(level))


def _draw_strip(figure: Figure, axes: Axes, blocks: dict[str, list[SiteRanks]], report: ResizeReport) -> None:
    """Share kept per block (rows) and rank (columns); the chosen ranks as a line from the lowest to the highest."""
    highest = _highest(report.sites)
    table = torch.full((len(blocks), highest), float("nan"))  # beyond a block's own rank there is nothing to keep
    for row, sites in enumerate(blocks.values()):
        for rank in range(1, _highest(sites) + 1):
            table[row, rank - 1] = overall_share(sites, rank)
    norm = BoundaryNorm(_LEVELS, 256)
    extent = (0.5, highest + 0.5, len(blocks) - 0.5, -0.5)
    axes.set_facecolor(_NOTHING)
    image = axes.imshow(table.numpy(), cmap="Blues", aspect="auto", norm=norm, extent=extent, interpolation="none")
    if report.choice.given:
        for row, sites in enumerate(blocks.values()):
            after = [site.after for site in sites]
            axes.plot([min(after), max(after)], [row, row], color=ORANGE, linewidth=2.5, solid_capstyle="round")
            axes.plot([statistics.median(after)], [row], "o", color=ORANGE, markersize=6, markeredgecolor="white")
    axes.set_yticks(range(len(blocks)), list(blocks), fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rank" + (" (orange: chosen, lowest – median – highest layer)" if report.choice.given else ""))
    axes.set_title("kept per block", fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.9, ticks=_LEVELS, spacing="uniform")
    bar.ax.set_yticklabels([f"{100 * level:g} %" for level in _LEVELS], fontsize=8)
