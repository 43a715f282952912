"""What is taken for what: the confusion matrix of a classifier, as a PNG that can be read with 2 or 200 classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Counts = NDArray[np.int64]

_MOST_COUNTED = 30  # classes up to which each cell has room for its number
_MOST_NAMED = 120  # classes up to which each has its name on the axes; beyond, every second, third, …
_LONGEST_NAME = 24
_DARK = 0.55  # shares from which the number on a cell is white


def confusion(predicted: Sequence[int], actual: Sequence[int], classes: int) -> Counts:
    """How often each class was taken for each: (classes, classes), rows actual, columns predicted."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (np.asarray(actual, dtype=np.int64), np.asarray(predicted, dtype=np.int64)), 1)
    return counts


def draw_confusion(path: Path, counts: Counts, names: Sequence[str]) -> Path:
    """Draw (classes, classes) counts as a PNG: colours are shares of each row, numbers are counts."""
    classes = len(names)
    side = min(max(4.2, 0.42 * classes), 18.0)
    figure = Figure(figsize=(side + 2.2, side + 1.2), layout="constrained")
    axes = figure.subplots()
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    _name_axes(axes, names, side)
    if classes <= _MOST_COUNTED:
        _write_counts(axes, counts, shares, side)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the row")
    hits, total = int(np.trace(counts)), int(counts.sum())
    axes.set_title(f"{hits} of {total} right ({100 * hits / max(total, 1):.1f} %)", fontsize=11)
    FigureCanvasAgg(figure).print_figure(path, dpi=120, format="png")
    return path


def _name_axes(axes: Axes, names: Sequence[str], side: float) -> None:
    step = -(-len(names) // _MOST_NAMED)
    places = list(range(0, len(names), step))
    shown = [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name in names]
    size = min(10.0, 0.72 * 72 * side * step / len(names))
    upright = max(len(shown[place]) for place in places) <= 3 and len(names) <= _MOST_COUNTED
    axes.set_xticks(places, [shown[place] for place in places], fontsize=size, rotation=0 if upright else 90)
    axes.set_yticks(places, [shown[place] for place in places], fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(1, len(names)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(names)) - 0.5, minor=True)
    axes.grid(which="minor", color="#d6dae0", linewidth=0.5)
    axes.tick_params(which="both", length=0)


def _write_counts(axes: Axes, counts: Counts, shares: NDArray[np.float64], side: float) -> None:
    size = min(11.0, 72 * side / len(counts) / max(2.2, 0.75 * len(str(counts.max()))))
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > _DARK else "#1f2937"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour)
