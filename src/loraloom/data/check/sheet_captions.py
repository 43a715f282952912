"""The captioned pictures of a sample sheet: some by chance, with the shortest and the longest caption among them."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from loraloom.data.check.findings import shortened
from loraloom.data.check.part import Part
from loraloom.data.check.sheet_pictures import place_picture
from loraloom.data.check.sheet_style import GREY, INCHES, TEXT, drawn
from loraloom.data.table import Example

_ACROSS, _ROWS = 7, 5
_TILE = (INCHES - 0.4) / _ACROSS  # inches, with the space between
_LINE, _NAME, _GAP = 0.15, 0.15, 0.14  # inches
_WIDTH = 29  # characters of a caption's line, at 8 points
_MOST_LINES = 4
_WIDE = "mw@%_"
_LOWEST, _HIGHEST = 0.3, 1.0  # of a tile's width: what the pictures of a row need


def captions_height(part: Part) -> float:
    """Inches that the pictures need."""
    return 0.1 + sum(_row_height(row) for row in _rows(part))


def draw_captions(figure: SubFigure, part: Part) -> None:
    """Draw the pictures with what is said of them, from the top."""
    height = captions_height(part)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, INCHES), ylim=(height, 0), aspect="auto")
    axes.axis("off")
    top = 0.05
    for row in _rows(part):
        for number, example in enumerate(row):
            _draw_one(axes, part, example, (0.2 + number * _TILE, top, _TILE, _picture_height(row)))
        top += _row_height(row)
    axes.set(xlim=(0, INCHES), ylim=(height, 0), aspect="auto")  # imshow moves them


def _draw_one(axes: Axes, part: Part, example: Example, tile: tuple[float, float, float, float]) -> None:
    left, top, _, height = tile
    place_picture(axes, example, tile)
    size = f"{example.values['width']}×{example.values['height']}"
    name = f"{shortened(part.place(example), 22)} · {size}"
    base = top + height + 0.08
    axes.text(left + 0.03, base, name, fontsize=6.5, color=GREY, va="baseline", parse_math=False)
    for number, line in enumerate(_lines(example)):
        below = base + _NAME + number * _LINE + 0.03
        axes.text(left + 0.03, below, line, fontsize=8, color=TEXT, va="baseline", parse_math=False)


def _rows(part: Part) -> Iterator[list[Example]]:
    shown = _shown(part)
    return (shown[start : start + _ACROSS] for start in range(0, len(shown), _ACROSS))


def _shown(part: Part) -> list[Example]:
    """Pictures by chance, and those with the shortest and the longest caption, in file order."""
    ordered = sorted(part.examples, key=lambda one: len(str(one.values.get("text", ""))))
    ends = {id(one) for one in (ordered[:1] + ordered[-1:])}
    others = [one for one in part.examples if id(one) not in ends]
    chosen = ends | {id(one) for one in drawn(others, _ACROSS * _ROWS - len(ends))}
    return [one for one in part.examples if id(one) in chosen]


def _lines(example: Example) -> list[str]:
    """The caption's lines, none wider than a tile; of a long one the first, ending in "…"."""
    text = str(example.values.get("text", ""))
    for width in range(_WIDTH, _WIDTH // 3, -1):
        lines = textwrap.wrap(text, width, max_lines=_MOST_LINES, placeholder="…", break_on_hyphens=False)
        if all(_width_of(line) <= _WIDTH for line in lines):
            break
    return lines


def _width_of(line: str) -> float:
    """About as many usual characters as the line is wide."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in line)
    return len(line) + wide + 0.4 * sum(character in _WIDE or character.isupper() for character in line)


def _picture_height(row: list[Example]) -> float:
    """Inches for the pictures of a row: what the highest of them needs, at most a square."""
    tallest = max(float(one.values["height"] / one.values["width"]) for one in row)
    return _TILE * min(_HIGHEST, max(_LOWEST, tallest))


def _row_height(row: list[Example]) -> float:
    return _picture_height(row) + _NAME + _LINE * max(len(_lines(one)) for one in row) + _GAP
