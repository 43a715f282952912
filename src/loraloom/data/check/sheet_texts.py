"""The rows of a sample sheet of texts: the shortest, a middle one, the longest and some by chance, label by label."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from loraloom.data.check.findings import shortened
from loraloom.data.check.part import Part
from loraloom.data.check.sheet_style import BLUE, GREY, TEXT, by_value, drawn
from loraloom.data.table import Example

_LABELS = 12
_LINE, _GAP, _HEADING = 0.165, 0.07, 0.30  # inches
_WIDTH = 165  # characters of a row, at 8 points
_MOST_LINES = 3
_SIDES = ("source", "target", "prompt", "completion")


@dataclass(frozen=True)
class _Row:
    """One example on the sheet."""

    tag: str
    place: str
    cells: list[list[str]]
    """Per column of text, its lines."""

    @property
    def height(self) -> float:
        """Inches."""
        return _LINE * max(1, *map(len, self.cells)) + _GAP


def texts_height(part: Part) -> float:
    """Inches that the rows need."""
    groups = _groups(part)
    return 0.4 + sum((_HEADING if name else 0) + sum(row.height for row in rows) for name, rows in groups)


def draw_texts(figure: SubFigure, part: Part) -> None:
    """Draw the rows, from the top."""
    height = texts_height(part)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, 1), ylim=(height, 0))
    axes.axis("off")
    top = 0.05
    for name, rows in _groups(part):
        if name:
            axes.text(
                0.015, top + _HEADING / 2, name, fontsize=9.5, weight="bold", color=BLUE, va="center", parse_math=False
            )
            top += _HEADING
        for row in rows:
            _draw_row(axes, row, top)
            top += row.height


def _draw_row(axes: Axes, row: _Row, top: float) -> None:
    base = top + 0.02
    axes.text(0.015, base, row.tag, fontsize=7.5, color=GREY, va="top")
    axes.text(0.065, base, row.place, fontsize=7.5, color=GREY, va="top", parse_math=False)
    left, width = 0.155, 0.83 / len(row.cells)
    for number, lines in enumerate(row.cells):
        text = "\n".join(lines)
        axes.text(
            left + number * width, base, text, fontsize=8, color=TEXT, va="top", linespacing=1.2, parse_math=False
        )
    axes.axhline(top - _GAP / 4, 0.015, 0.985, color="#e5e7eb", linewidth=0.6)


def _groups(part: Part) -> list[tuple[str, list[_Row]]]:
    """Heading and rows; without labels one group, without a heading."""
    labelled = by_value(part.examples, "label", _LABELS)
    if not labelled:
        return [("", [_row(part, tag, one) for tag, one in _chosen(part.examples, 5, 12)])]
    total = len(part.tallies.get("label", ()))
    more = f"   ({len(labelled)} of {total} labels shown)" if total > len(labelled) else ""
    each, chance = (1, 1) if len(labelled) > 5 else (2, 5)
    groups = []
    for number, (name, examples) in enumerate(labelled.items()):
        heading = f"{shortened(name, 60)} · {len(examples):,}{more if number == 0 else ''}"
        groups.append((heading, [_row(part, tag, one) for tag, one in _chosen(examples, each, chance)]))
    return groups


def _chosen(examples: Sequence[Example], each: int, chance: int) -> list[tuple[str, Example]]:
    """The shortest, those in the middle, the longest, and some by chance, each once."""
    ordered = sorted(examples, key=lambda one: (len(one.values["text"]), one.line))
    middle = max(0, len(ordered) // 2 - each // 2)
    asked = [
        *[("shortest", one) for one in ordered[:each]],
        *[("median", one) for one in ordered[middle : middle + each]],
        *[("longest", one) for one in ordered[::-1][:each]],
    ]
    used = {one.line for _, one in asked}
    asked += [("random", one) for one in drawn([one for one in examples if one.line not in used], chance)]
    seen: set[int] = set()
    return [(tag, one) for tag, one in asked if not (one.line in seen or seen.add(one.line))]  # type: ignore[func-returns-value]


def _row(part: Part, tag: str, example: Example) -> _Row:
    sides: list[str] = [role for role in _SIDES if role in part.columns] or ["text"]
    texts = [str(example.values.get(role, "")) for role in sides]
    cells = [_wrapped(text, _WIDTH // len(sides) - 4 * (len(sides) - 1)) for text in texts]
    return _Row(tag, shortened(part.place(example), 22), cells)


def _wrapped(text: str, width: int) -> list[str]:
    """At most `_MOST_LINES` lines; line breaks of the text are shown."""
    text = " ⏎ ".join(line.strip() for line in text.splitlines() if line.strip())
    lines = textwrap.wrap(text, width) or [""]
    if len(lines) <= _MOST_LINES:
        return lines
    last = lines[_MOST_LINES - 1][: width - 22].rstrip()
    return [*lines[: _MOST_LINES - 1], f"{last} … ({len(text):,} characters)"]
