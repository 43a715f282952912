"""The picture of a run: training loss, held-out score and learning rate over the steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loraloom.training.files import write_bytes

BLUE, ORANGE, GREY, LIGHT = "#2563a8", "#c8641b", "#6b7280", "#a9c4e4"

Entries = Sequence[Mapping[str, Any]]


def draw_curves(
    path: Path,
    entries: Entries,
    *,
    metric: str,
    base_score: float | None,
    best_step: int | None,
    base_label: str = "base",
) -> None:
    """Write the log's `entries` as a PNG: three panels over one axis of steps. Raises OutputError."""
    steps = [entry for entry in entries if entry["kind"] == "step"]
    evaluations = [entry for entry in entries if entry["kind"] == "evaluation" and metric in entry]
    figure = Figure(figsize=(8, 7.5), layout="constrained")
    losses, scores, rates = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.4])
    _draw_loss(losses, steps)
    _draw_scores(scores, evaluations, metric, (base_score, base_label), best_step)
    rates.plot([entry["step"] for entry in steps], [entry["learning_rate"] for entry in steps], color=GREY)
    rates.set_ylabel("learning rate")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.set_ylim(bottom=0)
    rates.set_xlabel("step")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels([losses, scores, rates])
    write_bytes(path, png_bytes(figure))


def plain(axes: Axes) -> None:
    """A panel without frame on its right and top, over a pale grid."""
    axes.spines[["right", "top"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG, drawn without pyplot's global state."""
    for axes in figure.axes:
        if not axes.images:
            plain(axes)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=120, format="png")
    return buffer.getvalue()


def smoothed(values: Sequence[float], span: int) -> list[float]:
    """The mean of the values up to `span` places before each, itself included."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[end] - sums[max(0, end - span)]) / (end - max(0, end - span)) for end in range(1, len(values) + 1)]


def _draw_loss(axes: Axes, steps: Entries) -> None:
    numbers, losses = [entry["step"] for entry in steps], [entry["loss"] for entry in steps]
    span = max(1, len(losses) // 20)
    axes.plot(numbers, losses, color=LIGHT, linewidth=1, label="each step")
    if span > 1:
        axes.plot(numbers, smoothed(losses, span), color=BLUE, linewidth=2, label=f"mean of {span} steps")
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=min(0.0, min(losses, default=0.0)))
    axes.legend(frameon=False, loc="upper right")


def _draw_scores(
    axes: Axes, evaluations: Entries, metric: str, base: tuple[float | None, str], best_step: int | None
) -> None:
    numbers, scores = [entry["step"] for entry in evaluations], [entry[metric] for entry in evaluations]
    if all(f"{metric}_low" in entry for entry in evaluations):
        low, high = ([entry[f"{metric}_{end}"] for entry in evaluations] for end in ("low", "high"))
        axes.fill_between(numbers, low, high, color=ORANGE, alpha=0.15, linewidth=0, label="95 % interval")
    axes.plot(numbers, scores, color=ORANGE, marker="o", markersize=4, linewidth=2, label="held-out score")
    if base[0] is not None:
        axes.axhline(base[0], color=GREY, linestyle="--", linewidth=1.2, label=base[1])
    if best_step is not None and best_step in numbers:
        best = scores[numbers.index(best_step)]
        axes.plot([best_step], [best], "o", markersize=10, fillstyle="none", color=ORANGE, label="kept")
    axes.set_ylabel(metric.replace("_", " "))
    axes.legend(frameon=False, loc="best", ncols=2)
