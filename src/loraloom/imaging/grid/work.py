"""Making a sheet: what it comes to, and the making itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from loraloom.errors import ConfigError
from loraloom.imaging.grid.cells import CellFolder, Ingredients, adapter_files
from loraloom.imaging.grid.painting import CellPainter, Painted, Watcher
from loraloom.imaging.grid.plan import Grid
from loraloom.imaging.grid.record import chunks_of, write_sheet
from loraloom.imaging.grid.sheet import Block, Drawing, Heading, cell_size, draw_sheet, fitting_cell
from loraloom.imaging.grid.wording import text_of
from loraloom.imaging.painter import Painter


@dataclass(frozen=True)
class SheetPlan:
    """What making a sheet comes to, before anything is painted."""

    cells: int
    pictures: int
    """Cells that differ: each of these is painted once."""
    finished: int
    """Of the pictures, those that are on the disk already."""
    steps: int
    """Sampling steps of the pictures that are left."""
    cell: tuple[int, int]
    """Of a cell on the sheet, in pixels."""

    @property
    def left(self) -> int:
        """Pictures that are still to be painted."""
        return self.pictures - self.finished


@dataclass(frozen=True)
class Sheet:
    """A sheet that was made."""

    image: Image.Image
    grid: Grid
    painted: int
    reused: int
    """Pictures that were on the disk already."""
    missing: int
    """Cells without a picture: of a sheet that was stopped."""
    seconds: float
    notes: tuple[str, ...] = ()
    chunks: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The texts that the PNG carries."""

    def save(self, path: str | Path) -> Path:
        """Write the PNG with its recipe in it, whole or not at all. Raises OutputError."""
        return write_sheet(Path(path), self.image, self.chunks)


def plan_sheet(painter: Painter, grid: Grid, *, folder: str | Path | None = None, cell: int | None = None) -> SheetPlan:
    """What making a sheet would come to; paints and writes nothing.

    Raises ConfigError where the sheet, a cell of it or an adapter cannot be.
    """
    kept = _checked(painter, grid, folder)
    recipes = set(grid.cells.values())
    left = [recipe for recipe in recipes if kept is None or recipe not in kept]
    return SheetPlan(
        cells=len(grid),
        pictures=len(recipes),
        finished=len(recipes) - len(left),
        steps=sum(recipe.steps for recipe in left),
        cell=_cell(grid, cell),
    )


def _checked(painter: Painter, grid: Grid, folder: str | Path | None) -> CellFolder | None:
    """The folder of finished pictures, if there is to be one. Raises ConfigError for a cell that cannot be painted."""
    for place, recipe in grid.cells.items():
        try:
            painter.check(recipe)
        except ConfigError as error:
            told = ", ".join(f"{name} {label}" for name, label in grid.labels(place).items())
            raise ConfigError(f"{told}: {error}") from None
    if folder is not None:
        return CellFolder(folder, Ingredients(painter, grid.cells.values()))
    adapter_files(grid.cells.values(), painter.shelf)
    return None


def _cell(grid: Grid, wanted: int | None) -> tuple[int, int]:
    sizes = [(recipe.width, recipe.height) for recipe in grid.cells.values()]
    return fitting_cell(cell_size(sizes, wanted), len(grid))


def make_sheet(
    painter: Painter,
    grid: Grid,
    *,
    folder: str | Path | None = None,
    batch: int | None = None,
    cell: int | None = None,
    foot: tuple[str, ...] = (),
    watch: Watcher | None = None,
    stop: Callable[[], bool] | None = None,
) -> Sheet:
    """Paint what is missing, and draw the sheet.

    `folder` keeps every picture as soon as it is finished, and what it holds already is not painted again: a sheet
    that was interrupted goes on. `batch` pictures that differ in the seed alone are painted in one call, and are the
    same as those painted one by one. `cell` is the longer side of a cell in pixels, `foot` a line under each column.
    `stop` is asked between steps and pictures; the cells that are left then stay empty.
    Raises ConfigError before anything is painted, FormatError, OutputError.
    """
    start = time.monotonic()
    kept, size = _checked(painter, grid, folder), _cell(grid, cell)
    found = CellPainter(painter, grid, kept, size, watch, stop).paint(batch)
    return Sheet(
        image=draw_sheet(_drawing(grid, found, size, foot)),
        grid=grid,
        painted=found.painted,
        reused=found.reused,
        missing=len(grid) - len(found.shown),
        seconds=time.monotonic() - start,
        notes=tuple(found.notes),
        chunks=chunks_of(grid, found.parameters),
    )


def _drawing(grid: Grid, found: Painted, cell: tuple[int, int], foot: tuple[str, ...]) -> Drawing:
    headings = [Heading(axis.heading, axis.labels) if axis else Heading() for axis in (grid.rows, grid.columns)]
    labels = [f"{grid.blocks.heading} {label}" for label in grid.blocks.labels] if grid.blocks else [""]
    _, rows, columns = grid.shape
    blocks = (
        Block([[found.shown.get((block, row, column)) for column in range(columns)] for row in range(rows)], label)
        for block, label in enumerate(labels)
    )
    return Drawing(text_of(grid), headings[0], headings[1], tuple(blocks), cell, foot)
