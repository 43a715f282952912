"""A run's loss and score as one small SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraloom.training.curves import smoothed

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 240, 52, 26, 14
_MOST_POINTS = 400
_NOT_SCORES = ("kind", "step", "epoch")

Entries = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class _Scale:
    """Steps and values to places in the picture."""

    steps: float
    low: float
    high: float

    def place(self, step: float, value: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT - 8) * step / max(self.steps, 1)
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return f"{x:.1f},{_TOP + (_HEIGHT - _BOTTOM - _TOP) * (1 - share):.1f}"


def losses_of(entries: Entries) -> Points:
    """(step, loss) of every step whose loss is a number, thinned to some hundred points."""
    found = [
        (float(entry["step"]), float(entry["loss"]))
        for entry in entries
        if entry.get("kind") == "step" and math.isfinite(entry.get("loss", math.nan))
    ]
    return found[:: max(1, math.ceil(len(found) / _MOST_POINTS))]


def scores_of(entries: Entries) -> tuple[str, Points]:
    """The first metric of the evaluations, and (step, score) of each."""
    scored = [entry for entry in entries if entry.get("kind") == "evaluation"]
    names = [name for name in (scored[-1] if scored else {}) if name not in _NOT_SCORES]
    if not names:
        return "", []
    return names[0], [(float(entry["step"]), float(entry[names[0]])) for entry in scored if names[0] in entry]


def draw_curve(entries: Entries, steps: int | None = None) -> str:
    """The SVG, or a sentence while there is nothing to draw. `steps` is the length of the whole run if known."""
    losses = losses_of(entries)
    if not losses:
        return '<p class="ll-quiet">The curve appears with the first steps.</p>'
    metric, scores = scores_of(entries)
    length = max([steps or 0, *(step for step, _ in losses)])
    values = [value for _, value in losses]
    low, high = min(0.0, min(values)), max(values)
    scale = _Scale(length, low, high * 1.05 or 1.0)
    span = max(1, len(values) // 20)
    means = list(zip([step for step, _ in losses], smoothed(values, span), strict=True))
    parts = [_axes(scale, length), _line(losses, scale, "ll-each"), _line(means, scale, "ll-mean")]
    if scores:
        parts.append(_score_line(scores, length))
    legend = f"loss {means[-1][1]:.4g}" + (f" · {metric.replace('_', ' ')} {scores[-1][1]:.4g}" if scores else "")
    return (
        f'<figure class="ll-curve"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(legend)}">{"".join(parts)}</svg>{_legend(means[-1][1], metric, scores)}</figure>'
    )


def _line(points: Points, scale: _Scale, name: str) -> str:
    places = " ".join(scale.place(step, value) for step, value in points)
    return f'<polyline class="{name}" points="{places}"/>'


def _score_line(scores: Points, length: float) -> str:
    """The scores over their own range, on the right: their unit is not the loss's."""
    values = [score for _, score in scores]
    room = (max(values) - min(values)) * 0.1 or abs(values[0]) * 0.1 or 1.0
    scale = _Scale(length, min(values) - room, max(values) + room)
    dots = "".join(
        '<circle class="ll-score" r="4" cx="{}" cy="{}"/>'.format(*scale.place(step, score).split(","))
        for step, score in scores
    )
    return _line(scores, scale, "ll-scores") + dots


def _axes(scale: _Scale, length: float) -> str:
    lines = []
    for share in (0.0, 0.5, 1.0):
        value = scale.low + share * (scale.high - scale.low)
        _, y = scale.place(0, value).split(",")
        lines.append(f'<line class="ll-grid" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y}" y2="{y}"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    base = _HEIGHT - 6
    lines.append(f'<text x="{_LEFT}" y="{base}">step 0</text>')
    lines.append(f'<text x="{_WIDTH - 8}" y="{base}" text-anchor="end">{length:.0f}</text>')
    return "".join(lines)


def _legend(loss: float, metric: str, scores: Points) -> str:
    told = f'<span class="ll-key-loss">training loss {loss:.4g}</span>'
    if scores:
        named = html.escape(metric.replace("_", " "))
        told += f'<span class="ll-key-score">{named} {scores[-1][1]:.4g}</span>'
    return f"<figcaption>{told}</figcaption>"
