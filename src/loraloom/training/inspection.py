"""What an adapter does to each layer, and how much of its rank it uses: as data and as a picture."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loraloom.adapters.spectrum import Spectrum, site_values
from loraloom.training.config import TrainConfig
from loraloom.training.curves import BLUE, GREY, LIGHT, png_bytes
from loraloom.training.evidence import base_norm, pattern_table, weight_changes
from loraloom.training.files import write_bytes
from loraloom.training.job import ADAPTER
from loraloom.training.prepare import load_base
from loraloom.training.restore import Opened

_CHANGE = "Oranges"
_USED_UP, _HALF = 0.9, 0.5
_BLOCK = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


@dataclass(frozen=True)
class SiteReport:
    """One layer. `rank` and what follows from it are 0 where the whole weight was trained."""

    path: str
    relative_change: float
    """‖ΔW‖_F / ‖W‖_F."""
    change: float
    """‖ΔW‖_F."""
    rank: int = 0
    effective_rank: float = 0.0
    """exp of the entropy of the singular values (Roy & Vetterli 2007)."""
    rank_90: int = 0
    """Directions that hold 90 % of ‖ΔW‖²."""
    rank_99: int = 0
    singular_values: tuple[float, ...] = ()
    """Of ΔW, largest first."""

    @classmethod
    def of(cls, path: str, rank: int, spectrum: Spectrum, relative_change: float = 0.0) -> SiteReport:
        """What the spectrum of a low-rank ΔW tells; the relative change is 0 where the base is not at hand."""
        return cls(
            path=path,
            relative_change=relative_change,
            change=spectrum.norm,
            rank=rank,
            effective_rank=spectrum.effective_rank,
            rank_90=spectrum.rank_for(0.90),
            rank_99=spectrum.rank_for(0.99),
            singular_values=spectrum.values,
        )


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` tells of a result."""

    method: str
    sites: tuple[SiteReport, ...]
    patterns: tuple[dict[str, Any], ...]
    verdict: str
    """One sentence on how much of the rank is used, and what follows."""
    record: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "method": self.method,
            "verdict": self.verdict,
            "patterns": list(self.patterns),
            "sites": [asdict(site) for site in self.sites],
            "metrics": self.record.get("metrics"),
            "parameters": self.record.get("parameters"),
            "result_bytes": self.record.get("result_bytes"),
            "effective": self.record.get("effective"),
            "output_change": self.record.get("evidence", {}).get("output_change"),
        }


def inspect_run(opened: Opened) -> Inspection:
    """Measure every layer of a result against its base model."""
    if opened.adapters is None:
        sites = _whole_sites(opened)
        return Inspection("full", sites, (), _whole_verdict(sites), opened.record)
    sites = _adapter_sites(opened)
    patterns = tuple(pattern_table(opened.adapters, ADAPTER))
    return Inspection("lora", sites, patterns, rank_verdict(sites), opened.record)


def _adapter_sites(opened: Opened) -> tuple[SiteReport, ...]:
    adapters = opened.adapters
    assert adapters is not None
    tensors = adapters.tensors(ADAPTER)
    reports = []
    for site in adapters.plan(ADAPTER).sites:
        spectrum = Spectrum(tuple(site_values(adapters, ADAPTER, site, tensors)))
        weight = base_norm(opened.base.model, site.module, site.parameter)
        relative = spectrum.norm / weight if weight else float(spectrum.norm > 0)
        reports.append(SiteReport.of(site.path, site.rank, spectrum, relative))
    return tuple(reports)


def _whole_sites(opened: Opened) -> tuple[SiteReport, ...]:
    fresh = load_base(TrainConfig.model_validate(opened.record["settings"]), opened.task, torch.float32)
    rows = weight_changes(fresh.model, opened.base.model)
    return tuple(SiteReport(row["path"], row["relative"], row["change"]) for row in rows)


def _whole_verdict(sites: Sequence[SiteReport]) -> str:
    if not sites:
        return "no weight matrix was trained"
    median = statistics.median(site.relative_change for site in sites)
    return f"all {len(sites)} weight matrices were trained; half of them moved by more than {median:.2%} of their norm"


def rank_verdict(sites: Sequence[SiteReport]) -> str:
    """How much of the rank is used over all layers, and whether another rank would be better."""
    moved = [site for site in sites if site.change > 0]
    if not moved:
        return "no layer was changed: the adapter does nothing" if sites else "no layer has a low-rank update"
    shares = [site.rank_99 / site.rank for site in moved]
    held = statistics.median(site.rank_99 for site in moved)
    rank = statistics.median(site.rank for site in moved)
    told = f"99 % of the update lies in {held:g} of {rank:g} directions (median of {len(moved)} layers)"
    if statistics.median(shares) >= _USED_UP:
        return f"{told}: the rank is used up, a higher one may learn more"
    if statistics.quantiles(shares, n=10)[-1] <= _HALF if len(shares) > 1 else shares[0] <= _HALF:
        enough = max(site.rank_99 for site in moved)
        return f"{told}: rank {enough} would hold as much in every layer"
    return f"{told}: the rank fits"


def draw_inspection(path: Path, inspection: Inspection) -> None:
    """Write the spectra, the use of the rank and the size of the updates as a PNG. Raises OutputError."""
    ranked = [site for site in inspection.sites if site.rank and site.change > 0]
    grid = _Grid.of([site.path for site in inspection.sites])
    height = max(4.2, 0.32 * len(grid.rows) + 2.2)
    if not ranked:
        figure = Figure(figsize=(7, height), layout="constrained")
        _draw_grid(figure, figure.subplots(), grid, _by_path(inspection, "relative_change"), "‖ΔW‖ / ‖W‖", _CHANGE)
    else:
        figure = Figure(figsize=(15, height), layout="constrained")
        spectra, used, moved = figure.subplots(1, 3, width_ratios=[1, 1.25, 1.25])
        _draw_spectra(spectra, ranked)
        _draw_grid(figure, used, grid, _by_path(inspection, "effective_rank"), "effective rank", "Blues")
        _draw_grid(figure, moved, grid, _by_path(inspection, "relative_change"), "‖ΔW‖ / ‖W‖", _CHANGE)
    figure.suptitle(inspection.verdict[0].upper() + inspection.verdict[1:], fontsize=11)
    write_bytes(path, png_bytes(figure))


def _by_path(inspection: Inspection, name: str) -> dict[str, float]:
    return {site.path: float(getattr(site, name)) for site in inspection.sites}


def _draw_spectra(axes: Axes, sites: Sequence[SiteReport]) -> None:
    """σᵢ / σ₁ of every layer, and their median."""
    shapes = [[value / site.singular_values[0] for value in site.singular_values] for site in sites]
    for shape in shapes:
        axes.plot(range(1, len(shape) + 1), shape, color=LIGHT, linewidth=0.8)
    longest = max(map(len, shapes))
    middle = [statistics.median([shape[i] for shape in shapes if i < len(shape)]) for i in range(longest)]
    axes.plot(range(1, longest + 1), middle, color=BLUE, marker="o", linewidth=2, label="median layer")
    axes.axhline(0.1, color=GREY, linestyle="--", linewidth=1, label="a tenth: 1 % of the energy")
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("direction")
    axes.set_title("singular values of ΔW, σᵢ / σ₁", fontsize=10)
    axes.legend(frameon=False, loc="lower left")


@dataclass(frozen=True)
class _Grid:
    """Layers by their kind (rows) and the number of their block (columns)."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[str, tuple[int, int]]
    """Path to row and column."""

    @classmethod
    def of(cls, paths: Sequence[str]) -> _Grid:
        places = {path: _place(path) for path in paths}
        rows = tuple(dict.fromkeys(kind for kind, _ in places.values()))
        numbers = {block for _, block in places.values()}
        columns = tuple(sorted(numbers, key=lambda block: (block == "", int(block or 0))))
        cells = {path: (rows.index(kind), columns.index(block)) for path, (kind, block) in places.items()}
        return cls(rows, columns, cells)


def _place(path: str) -> tuple[str, str]:
    """What a layer is called in its block, and the block's number ("" outside of the blocks)."""
    found = _BLOCK.search(path)
    if found is None:
        return path, ""
    return path[found.end() :].strip(".") or path[: found.start()], found.group(1)


def _draw_grid(figure: Figure, axes: Axes, grid: _Grid, values: dict[str, float], title: str, colours: str) -> None:
    table = torch.full((len(grid.rows), len(grid.columns)), float("nan"))
    for path, (row, column) in grid.cells.items():
        table[row, column] = values[path]
    # The root keeps small layers apart where one, such as a pooler, moves ten times as far.
    scale = PowerNorm(0.5, vmin=0) if colours == _CHANGE else Normalize(vmin=0)
    image = axes.imshow(table.numpy(), cmap=colours, aspect="auto", norm=scale)
    axes.set_yticks(range(len(grid.rows)), grid.rows, fontsize=8)
    axes.set_xticks(range(len(grid.columns)), [name or "–" for name in grid.columns], fontsize=8)
    axes.set_xlabel("block")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
