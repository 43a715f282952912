"""Drawing a sheet: pictures in rows and columns with their labels, the prompts above, dark on light."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from loraloom.errors import ConfigError
from loraloom.imaging.grid.typeset import Face

PAPER, INK, SOFT, FRAME, EMPTY = "#ffffff", "#1f2937", "#6b7280", "#d7dbe0", "#f3f4f6"

NATURAL = 192
"""Pixels of a cell that small pictures are enlarged to, in whole steps."""
MOST_PIXELS = 80_000_000
"""Pixels of a whole sheet: readers take a larger picture for an attack."""
LEAST_CELL, MOST_CELL = 32, 4096
_ROW_LABEL = 140
"""Pixels of a row's label, at most, where the cells are no wider."""


@dataclass(frozen=True)
class Heading:
    """What stands along one side of a sheet."""

    name: str = ""
    """What varies, such as "seed"; empty where there is nothing to tell."""
    labels: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Block:
    """Rows of pictures under one label; None is a cell without a picture."""

    pictures: Sequence[Sequence[Image.Image | None]]
    label: str = ""


@dataclass(frozen=True)
class SheetText:
    """The words above the pictures; an empty one is left out."""

    title: str = ""
    prompt: str = ""
    negative: str = ""
    facts: str = ""
    """What else all pictures share: the sampler, the steps …"""


@dataclass(frozen=True)
class Drawing:
    """A sheet that is ready to be drawn."""

    text: SheetText
    rows: Heading
    columns: Heading
    blocks: tuple[Block, ...]
    cell: tuple[int, int]
    """Width and height of a cell in pixels."""
    foot: tuple[str, ...] = field(default=())
    """One line or more under each column; () for none."""

    @property
    def unit(self) -> float:
        """The size of type and margins: it grows with the cells, so that a large sheet reads as well as a small one."""
        return min(3.0, max(1.0, self.cell[0] / 256))


def cell_size(pictures: Sequence[tuple[int, int]], wanted: int | None = None) -> tuple[int, int]:
    """Width and height of a cell that holds pictures of these sizes.

    Small ones are enlarged by a whole factor, so that no pixel is wider than its neighbour; `wanted` sets the
    longer side instead. Raises ConfigError where it is out of bounds.
    """
    width, height = max(size[0] for size in pictures), max(size[1] for size in pictures)
    longer = max(width, height)
    if wanted is None:
        factor = max(1, round(NATURAL / longer))
        return width * factor, height * factor
    if not LEAST_CELL <= wanted <= MOST_CELL:
        raise ConfigError(f"cell: {wanted} pixels; {LEAST_CELL} to {MOST_CELL} are accepted")
    return max(1, round(width * wanted / longer)), max(1, round(height * wanted / longer))


def fitting_cell(cell: tuple[int, int], cells: int) -> tuple[int, int]:
    """`cell`, or the largest whole part of it with which a sheet of so many cells stays readable for every program.

    Raises ConfigError where not even the smallest cells would fit.
    """
    area = cells * cell[0] * cell[1] * 1.15  # of which labels and margins
    divisor = max(1, math.ceil(math.sqrt(area / MOST_PIXELS)))
    if divisor > 1 and max(cell) // divisor < LEAST_CELL:
        raise ConfigError(f"{cells:,} pictures do not fit on one sheet; make several with fewer values each")
    return max(1, cell[0] // divisor), max(1, cell[1] // divisor)


def draw_sheet(drawing: Drawing) -> Image.Image:
    """The sheet as an RGB picture."""
    return _Page(drawing).draw()


def enlarged(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """A picture brought to the size of a cell, its proportions kept."""
    scale = min(cell[0] / picture.width, cell[1] / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return (
        picture.convert("RGB")
        if size == picture.size
        else picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    )


class _Page:
    """Where everything goes; measured first, then drawn from top to bottom."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        unit = drawing.unit
        self.title = Face(round(21 * unit), INK)
        self.body = Face(round(13 * unit), INK)
        self.soft = Face(round(13 * unit), SOFT)
        self.label = Face(self._label_size(unit), INK, leading=1.22)
        self.axis = Face(round(12 * unit), SOFT)
        self.margin, self.gap = round(28 * unit), round(5 * unit)
        self.space = round(10 * unit)
        self.row_lines = self._row_lines()
        self.left = self.margin + self._row_width()
        count = len(drawing.columns.labels)
        self.inner = count * drawing.cell[0] + (count - 1) * self.gap
        self.width = max(self.left + self.inner + self.margin, round(420 * unit))

    # -- measuring ----------------------------------------------------------------------------------

    def _label_size(self, unit: float) -> int:
        """Smaller type where labels would else be cut."""
        wanted, labels = round(14 * unit), self.drawing.columns.labels
        for size in range(wanted, round(11 * unit), -1):
            face, width = Face(size, INK), self.drawing.cell[0]
            if all(face.width(word) <= width for label in labels for word in label.split()):
                return size
        return round(11 * unit)

    def _row_lines(self) -> list[list[str]]:
        width = max(self.drawing.cell[0], round(_ROW_LABEL * self.drawing.unit))
        lines = max(2, self.drawing.cell[1] // self.label.line)
        return [self.label.wrap(label, width, lines) for label in self.drawing.rows.labels]

    def _row_width(self) -> int:
        """Pixels of the row labels, with the space behind them."""
        lines = [line for lines in self.row_lines for line in lines]
        widest = max(*map(self.label.width, lines), *map(self.axis.width, self._corner()), 0)
        return math.ceil(widest) + self.space if widest else 0

    def _corner(self) -> list[str]:
        """What varies to the right and downwards, in lines for the corner between the labels."""
        rows, columns = self.drawing.rows.name, self.drawing.columns.name
        width = max(self.drawing.cell[0], round(120 * self.drawing.unit))
        across = self.axis.wrap(f"{columns} →", width, 2) if columns else []
        return across + (self.axis.wrap(f"{rows} ↓", width, 2) if rows else [])

    def _heads(self, labels: Sequence[str], face: Face) -> list[list[str]]:
        return [face.wrap(label, self.drawing.cell[0], 4) for label in labels]

    def _paragraphs(self) -> list[tuple[str, list[str]]]:
        """The words above the pictures, each with its name, in lines."""
        text = self.drawing.text
        named = (("Prompt", text.prompt, 5), ("Negative", text.negative, 4), ("Settings", text.facts, 2))
        width = self.width - 2 * self.margin - self._name_width()
        return [(name, self.body.wrap(words, width, lines)) for name, words, lines in named if words]

    def _name_width(self) -> int:
        return math.ceil(self.soft.width("Negative")) + self.space

    # -- drawing ------------------------------------------------------------------------------------

    def draw(self) -> Image.Image:
        """Draw on paper that is long enough, and cut off what is left over."""
        drawing = self.drawing
        cells = sum(len(block.pictures) for block in drawing.blocks) * (drawing.cell[1] + self.gap)
        words = (24 + 16 * len(drawing.blocks)) * self.title.line
        self.paper = Image.new("RGB", (self.width, cells + words + 2 * self.margin), PAPER)
        self.pen = ImageDraw.Draw(self.paper)
        top = self._draw_text(self.margin)
        for number, block in enumerate(drawing.blocks):
            top = self._draw_block(top + (2 * self.space if number else 0), block)
        bottom = top - self.gap + self.margin
        return self.paper.crop((0, 0, self.width, bottom))

    def _draw_text(self, top: int) -> int:
        if self.drawing.text.title:
            for line in self.title.wrap(self.drawing.text.title, self.width - 2 * self.margin, 2):
                self.title.draw(self.pen, self.margin, top, line)
                top += self.title.line
            top += self.space // 2
        for name, lines in self._paragraphs():
            self.soft.draw(self.pen, self.margin, top, name)
            for line in lines:
                self.body.draw(self.pen, self.margin + self._name_width(), top, line)
                top += self.body.line
        return top + (round(1.2 * self.space) if top > self.margin else 0)

    def _draw_block(self, top: int, block: Block) -> int:
        if block.label:
            for line in self.body.wrap(block.label, self.width - 2 * self.margin, 3):
                self.body.draw(self.pen, self.margin, top, line)
                top += self.body.line
            self.pen.line((self.margin, top, self.left + self.inner, top), FRAME)
            top += self.space // 2
        top = self._draw_heading(top)
        for lines, pictures in zip(self.row_lines, block.pictures, strict=True):
            self._draw_row(top, lines, pictures)
            top += self.drawing.cell[1] + self.gap
        return self._draw_foot(top)

    def _draw_heading(self, top: int) -> int:
        """The labels of the columns, standing on one line above the cells, and in the corner what varies."""
        heads = self._heads(self.drawing.columns.labels, self.label)
        labelled = max(map(len, heads)) * self.label.line if any(self.drawing.columns.labels) else 0
        corner = self._corner()
        height = max(labelled, len(corner) * self.axis.line)
        for number, line in enumerate(corner):
            line_top = top + height - (len(corner) - number) * self.axis.line
            self.axis.draw(self.pen, self.left - self.space - self.axis.width(line), line_top, line)
        for number, lines in enumerate(heads):
            self._draw_centred(number, top + height - len(lines) * self.label.line, lines, self.label)
        return top + height + (self.space // 2 if height else 0)

    def _draw_centred(self, column: int, top: int, lines: Sequence[str], face: Face) -> None:
        """Lines of text over or under a column."""
        middle = self._x(column) + self.drawing.cell[0] / 2
        for row, line in enumerate(lines):
            face.draw(self.pen, middle - face.width(line) / 2, top + row * face.line, line)

    def _draw_foot(self, top: int) -> int:
        heads = self._heads(self.drawing.foot, self.axis)
        for number, lines in enumerate(heads):
            self._draw_centred(number, top, lines, self.axis)
        return top + max(map(len, heads), default=0) * self.axis.line

    def _draw_row(self, top: int, lines: Sequence[str], pictures: Sequence[Image.Image | None]) -> None:
        height = self.drawing.cell[1]
        first = top + (height - len(lines) * self.label.line) / 2
        for number, line in enumerate(lines):
            x = self.left - self.space - self.label.width(line)
            self.label.draw(self.pen, x, first + number * self.label.line, line)
        for number, picture in enumerate(pictures):
            self._draw_cell(self._x(number), top, picture)

    def _draw_cell(self, x: int, top: int, picture: Image.Image | None) -> None:
        width, height = self.drawing.cell
        if picture is None:
            self.pen.rectangle((x, top, x + width - 1, top + height - 1), fill=EMPTY, outline=FRAME)
            return
        shown = enlarged(picture, self.drawing.cell)
        place = x + (width - shown.width) // 2, top + (height - shown.height) // 2
        self.paper.paste(shown, place)

    def _x(self, column: int) -> int:
        return self.left + column * (self.drawing.cell[0] + self.gap)
