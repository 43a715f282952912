"""Sheets of pictures: rows and columns over weights, adapters, prompts, seeds and whatever else a recipe has.

grid = Grid(parse_axis("seed: 1..4"), parse_axis("weight pencil: 0..1/0.25"), recipe)
make_sheet(Painter("scenes"), grid, folder="cells").save("sheet.png")
"""

from __future__ import annotations

from loraloom.imaging.grid.axis import Axis, parse_axis
from loraloom.imaging.grid.kinds import KINDS
from loraloom.imaging.grid.plan import Grid, Place
from loraloom.imaging.grid.record import read_grid
from loraloom.imaging.grid.work import Sheet, SheetPlan, make_sheet, plan_sheet

__all__ = [
    "Axis",
    "Grid",
    "KINDS",
    "Place",
    "Sheet",
    "SheetPlan",
    "make_sheet",
    "parse_axis",
    "plan_sheet",
    "read_grid",
]
