"""The pictures of a sample sheet: a row per class, or larger ones with their boxes drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patches import Rectangle
from PIL import Image

from loraloom.data.check.boxes import Box
from loraloom.data.check.findings import shortened
from loraloom.data.check.part import Part
from loraloom.data.check.sheet_style import BLUE, CYCLE, GREY, INCHES, TEXT, by_value, drawn
from loraloom.data.pictures import open_picture
from loraloom.data.table import Example

_CLASSES, _ACROSS = 14, 11
_TILE = 1.08  # inches, with the space between
_NAMED = 1.6  # inches for the name of a class
_BOXED_ACROSS, _BOXED = 4, 12
_CAPTION, _KEY = 0.22, 0.40  # inches
_SPACE = 0.06  # of a tile


def pictures_height(part: Part) -> float:
    """Inches that the pictures need."""
    if _has_boxes(part):
        return _KEY + math.ceil(len(_boxed(part)) / _BOXED_ACROSS) * (_boxed_tile(part)[1] + _CAPTION) + 0.1
    groups = by_value(part.examples, "label", _CLASSES)
    rows = len(groups) or math.ceil(len(_plain(part)) / (_ACROSS + 1))
    return rows * (_TILE + (0 if groups else _CAPTION)) + 0.35


def draw_pictures(figure: SubFigure, part: Part) -> None:
    """Draw the pictures, from the top."""
    height = pictures_height(part)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, INCHES), ylim=(height, 0), aspect="auto")
    axes.axis("off")
    if _has_boxes(part):
        _draw_boxed(axes, part)
    elif groups := by_value(part.examples, "label", _CLASSES):
        _draw_classes(axes, part, groups)
    else:
        _draw_plain(axes, part)
    axes.set(xlim=(0, INCHES), ylim=(height, 0), aspect="auto")  # imshow moves them


def _draw_classes(axes: Axes, part: Part, groups: dict[str, list[Example]]) -> None:
    top = 0.05
    for name, examples in groups.items():
        label = f"{shortened(name, 22)}\n{len(examples):,}"
        axes.text(0.2, top + _TILE / 2, label, fontsize=9, color=BLUE, va="center", parse_math=False)
        for number, example in enumerate(drawn(examples, _ACROSS, name)):
            place_picture(axes, example, (_NAMED + number * _TILE, top, _TILE, _TILE))
        top += _TILE
    total = len(part.tallies.get("label", ()))
    if total > len(groups):
        told = f"{len(groups)} of {total} classes shown, from the most to the least frequent"
        axes.text(0.2, top + 0.15, told, fontsize=8, color=GREY, va="center")


def _plain(part: Part) -> list[Example]:
    return drawn(part.examples, 5 * (_ACROSS + 1))


def _draw_plain(axes: Axes, part: Part) -> None:
    for number, example in enumerate(_plain(part)):
        down, across = divmod(number, _ACROSS + 1)
        left, top = 0.4 + across * _TILE * 1.03, 0.05 + down * (_TILE + _CAPTION)
        place_picture(axes, example, (left, top, _TILE, _TILE))
        name = shortened(part.place(example), 18)
        axes.text(left + 0.03, top + _TILE + 0.02, name, fontsize=6.5, color=GREY, va="top", parse_math=False)


def place_picture(axes: Axes, example: Example, tile: tuple[float, float, float, float]) -> tuple[float, float, float]:
    """Draw a picture into a tile (left, top, width, height); returns left, top and inches a pixel."""
    left, top, width, height = tile
    room = width * (1 - _SPACE), height * (1 - _SPACE)
    wide, high = example.values["width"], example.values["height"]
    scale = min(room[0] / wide, room[1] / high)
    size = max(1, round(wide * scale * 100)), max(1, round(high * scale * 100))  # a dot of the sheet each
    grid = np.asarray(open_picture(example.values["file"]).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))
    left, top = left + (room[0] - wide * scale) / 2, top + (room[1] - high * scale) / 2
    axes.imshow(grid, extent=(left, left + wide * scale, top + high * scale, top), interpolation="none")
    axes.add_patch(Rectangle((left, top), wide * scale, high * scale, fill=False, edgecolor="#d1d5db", linewidth=0.5))
    return left, top, scale


def _has_boxes(part: Part) -> bool:
    return any("boxes" in example.values for example in part.examples)


def _boxed_tile(part: Part) -> tuple[float, float]:
    """Width and height in inches; as high as the pictures are on average, within reason."""
    width = (INCHES - 0.4) / _BOXED_ACROSS
    ratios = [example.values["height"] / example.values["width"] for example in part.examples]
    return width, width * min(1.4, max(0.4, sum(ratios) / len(ratios)))


def _boxed(part: Part) -> list[Example]:
    """Pictures by chance, such that every category is there, the rarest first."""
    chosen: dict[str, Example] = {}
    categories = [name for name, _ in reversed(part.tallies.get("category", {}).most_common())]  # type: ignore[union-attr]
    for name in categories:
        having = [one for one in part.examples if any(box.category == name for box in one.values["boxes"])]
        for one in drawn(having, 1):
            chosen[one.values["file"]] = one
    for one in drawn(part.examples, _BOXED):
        chosen.setdefault(one.values["file"], one)
    return list(chosen.values())[:_BOXED]


def _draw_boxed(axes: Axes, part: Part) -> None:
    names = [name for name, _ in part.tallies["category"].most_common()] if "category" in part.tallies else []
    colours = {name: CYCLE[number % len(CYCLE)] for number, name in enumerate(names)}
    left = 0.25
    for name in names[:16]:
        axes.add_patch(Rectangle((left, 0.12), 0.16, 0.14, fill=False, edgecolor=colours[name], linewidth=2))
        axes.text(left + 0.22, 0.19, shortened(name, 20), fontsize=8.5, color=TEXT, va="center", parse_math=False)
        left += 0.5 + 0.085 * min(20, len(name))
    width, height = _boxed_tile(part)
    for number, example in enumerate(_boxed(part)):
        down, across = divmod(number, _BOXED_ACROSS)
        tile = (0.2 + across * width, _KEY + down * (height + _CAPTION), width, height)
        place = place_picture(axes, example, tile)
        _draw_boxes(axes, example.values["boxes"], place, colours)
        told = f"{shortened(part.place(example), 34)} · {len(example.values['boxes'])} boxes"
        axes.text(tile[0], tile[1] + height, told, fontsize=7, color=GREY, va="top", parse_math=False)


def _draw_boxes(axes: Axes, boxes: Sequence[Box], place: tuple[float, float, float], colours: dict[str, str]) -> None:
    left, top, scale = place
    for box in boxes:
        corner = left + box.x * scale, top + box.y * scale
        colour = colours.get(box.category, TEXT)
        axes.add_patch(
            Rectangle(corner, box.width * scale, box.height * scale, fill=False, edgecolor=colour, linewidth=1.3)
        )
