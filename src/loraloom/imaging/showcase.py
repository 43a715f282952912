"""The sheet that shows what weighted adapters are: one prompt, one negative prompt, and only the weights turned.

    scene_sheet(Path("runs/demo")).path          # PNG: set-ups of the shipped styles from left to right, seeds down

Made with the base that comes with the package, so nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loraloom.imaging.grid import Axis, Grid, make_sheet
from loraloom.imaging.painter import Painter
from loraloom.training.files import writing

BASE = "scenes"
PROMPT = "best quality, a (red:1.1) boat on the sea at sunset"
NEGATIVE = "blurry, (low quality:1.1)"
GUIDANCE = 3.0
SETUPS = (
    "none",
    "pencil:1",
    "neon:1",
    "glass:1",
    "pencil:0.35 neon:0.4 glass:0.6",
    "pencil:0.6 neon:0.35 glass:0.35",
)
"""No adapter, each alone, and the three together at two settings."""
SEEDS = (1, 2, 3)
TITLE = "One prompt, three adapters: only their weights are turned"
NAME = "sheet.png"


@dataclass(frozen=True)
class SheetResult:
    """The sheet as it was made."""

    path: Path
    seconds: float
    """From the first picture to the drawn sheet; the base was loaded before."""
    cells: int


def scene_grid(painter: Painter) -> Grid:
    """Seeds × set-ups over the one recipe."""
    recipe = painter.recipe(prompt=PROMPT, negative=NEGATIVE, guidance=GUIDANCE, seed=SEEDS[0])
    return Grid(Axis("seed", SEEDS), Axis("setup", SETUPS), recipe, title=TITLE)


def scene_sheet(
    folder: Path, progress: Callable[[float, int], None] | None = None, *, painter: Painter | None = None
) -> SheetResult:
    """Make the sheet in `folder`, which is made if need be, as sheet.png; an older one is replaced.

    `progress` is told how many pictures are finished, of how many. Raises MissingExtraError without diffusers,
    OutputError where the folder cannot be written.
    """
    painter = painter or Painter(BASE)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    sheet = make_sheet(painter, scene_grid(painter), watch=progress)
    return SheetResult(sheet.save(folder / NAME), sheet.seconds, len(sheet.grid))
