"""Painting the cells of a sheet: job by job, each finished picture on the disk before the next is begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from loraloom.imaging.grid.cells import CellFolder
from loraloom.imaging.grid.jobs import Job, jobs_of
from loraloom.imaging.grid.plan import Grid, Place
from loraloom.imaging.grid.sheet import enlarged
from loraloom.imaging.painter import Painter
from loraloom.imaging.recipe import Recipe

SMALL = 128 * 128
"""Pixels of a picture up to which several are painted at once: of larger ones, one alone fills the machine."""
SMALL_BATCH = 4


Watcher = Callable[[float, int], None]
"""Told how many pictures are finished, of how many; one that is being painted counts by its share of steps."""


@dataclass
class Painted:
    """The pictures of a sheet, at the size in which it shows them."""

    shown: dict[Place, Image.Image] = field(default_factory=dict)
    parameters: dict[Place, str] = field(default_factory=dict)
    painted: int = 0
    reused: int = 0
    notes: dict[str, None] = field(default_factory=dict)
    """Sentences of the painter, each once, in their order."""


@dataclass
class CellPainter:
    """Fills a sheet with pictures."""

    painter: Painter
    grid: Grid
    folder: CellFolder | None
    """Where finished pictures are kept."""
    cell: tuple[int, int]
    watch: Watcher | None = None
    stop: Callable[[], bool] | None = None
    found: Painted = field(default_factory=Painted)
    pictures: int = 0

    def paint(self, batch: int | None) -> Painted:
        """Take what is finished, paint the rest."""
        left = self._take_finished()
        self.pictures = self.found.reused + len(set(left.values()))
        self._tell()
        for job in jobs_of(left, batch or _batch(self.grid)):
            if self.stop is not None and self.stop():
                break
            self._do(job)
        return self.found

    def _take_finished(self) -> dict[Place, Recipe]:
        """Show what is on the disk; returns the cells that are left."""
        left, taken = dict[Place, Recipe](), set[Recipe]()
        for place, recipe in self.grid.cells.items():
            kept = self.folder.take(recipe) if self.folder is not None else None
            if kept is None:
                left[place] = recipe
            else:
                taken.add(recipe)
                self._show([place], *kept)
        self.found.reused = len(taken)
        return left

    def _do(self, job: Job) -> None:
        def progress(step: int, steps: int, *_: object) -> None:
            self._tell(len(job.places) * step / max(1, steps))

        pictures = self.painter.paint(job.recipe, batch=len(job.places), progress=progress, stop=self.stop)
        for picture, recipe, places in zip(pictures, job.recipes, job.places, strict=False):
            if self.folder is not None:
                self.folder.put(recipe, picture, self.grid.labels(places[0]))
            self._show(places, picture.image, picture.parameters)
            self.found.painted += 1
            self.found.notes |= dict.fromkeys(picture.notes)
        self._tell()

    def _show(self, places: Sequence[Place], picture: Image.Image, parameters: str) -> None:
        self.found.shown |= dict.fromkeys(places, enlarged(picture, self.cell))
        self.found.parameters |= dict.fromkeys(places, parameters)

    def _tell(self, painting: float = 0.0) -> None:
        if self.watch is not None:
            self.watch(min(self.found.reused + self.found.painted + painting, self.pictures), self.pictures)


def _batch(grid: Grid) -> int:
    largest = max(recipe.width * recipe.height for recipe in grid.cells.values())
    return SMALL_BATCH if largest <= SMALL else 1
