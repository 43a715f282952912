"""Sheets of pictures from the page: sides written as a kind and its values, and no files but those of the folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraloom.errors import ConfigError
from loraloom.imaging.grid import Axis, Grid, make_sheet, parse_axis
from loraloom.imaging.grid.kinds import KINDS
from loraloom.imaging.recipe import Recipe
from loraloom.studio.desk import Desk
from loraloom.studio.easel import Event, Told
from loraloom.studio.places import inside

MOST_CELLS = 400
NOTHING = "nothing"
EXAMPLES: Mapping[str, str] = {
    "weight": "0..1/0.25",
    "te": "0..1/0.5",
    "unet": "0..1/0.5",
    "scale": "0, 0.5, 1, 1.5",
    "setup": "none | pencil:1 | pencil:0.6 neon:0.5",
    "adapter": "none, pencil, neon:0.8",
    "prompt": "a red house | a blue boat",
    "negative": "blurry | dark",
    "word": "house, boat, cat",
    "seed": "1..4",
    "steps": "5, 10, 20",
    "guidance": "2, 4, 8",
    "size": "64, 96x64",
    "clip-skip": "1, 2",
    "eta": "0, 0.5, 1",
    "checkpoint": "the name of a run",
}
"""What the field of values shows for a kind."""


@dataclass(frozen=True)
class Side:
    """One side of a sheet as the page has it."""

    kind: str
    name: str
    values: str


def kinds() -> list[str]:
    """The kinds that the page offers: all that need no picture from elsewhere."""
    return [NOTHING, *(kind for kind in KINDS if kind in EXAMPLES or kind == "sampler")]


def needs_name(kind: str) -> str:
    """What a kind's name is: "adapter", "text", or "" where it has none."""
    named = KINDS[kind].named if kind in KINDS else ""
    return {"[NAME]": "adapter", "TEXT": "text"}.get(named, "")


def axis_of(side: Side, runs: Path) -> Axis | None:
    """The axis of a side; None for one that does not vary. Raises ConfigError."""
    if side.kind in (NOTHING, ""):
        return None
    values = side.values.strip()
    if values.startswith("@"):
        raise ConfigError(f"{side.kind}: values from a file are for `loraloom grid`; write them out here")
    if side.kind == "checkpoint":
        values = str(inside(runs, values, "checkpoint"))
    name = f' "{side.name.strip()}"' if side.name.strip() and needs_name(side.kind) else ""
    return parse_axis(f"{side.kind}{name}: {values}")


def grid_of(desk: Desk, recipe: Recipe, rows: Side, columns: Side) -> Grid:
    """The sheet that the page asks for. Raises ConfigError, also for adapters that are not in the folders."""
    runs = desk.places.runs
    grid = Grid(axis_of(rows, runs), axis_of(columns, runs), recipe)
    if len(grid) > MOST_CELLS:
        raise ConfigError(f"the sheet would have {len(grid):,} cells; {MOST_CELLS} are the most on this page")
    for cell in grid.cells.values():
        for use in cell.adapters:
            if use.name not in desk.names() and not Path(use.name).resolve().is_relative_to(runs.resolve()):
                raise ConfigError(f"there is no adapter '{use.name[:80]}' in the folders")
    return grid


def paint_sheet(desk: Desk, grid: Grid, *, page: str) -> Iterator[Event]:
    """Paint a sheet cell by cell; those that an earlier sheet had are not painted again."""

    def job(tell: Told, stop: Callable[[], bool]) -> list[Any]:
        def watch(done: float, pictures: int) -> None:
            tell(round(100 * done), 100 * pictures, f"picture {min(int(done) + 1, pictures)} of {pictures}")

        return [make_sheet(desk.painter, grid, folder=desk.cells, watch=watch, stop=stop)]

    return desk.do(job, page=page)


def keep_sheet(desk: Desk, sheet: Any) -> Path:
    """Save a finished sheet beside the pictures. Raises OutputError."""
    return Path(sheet.save(desk.gallery.new_file("sheet", folder="sheets")))
