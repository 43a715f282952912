"""The sheet that shows the three styles."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tests.imaging.plain_painter import Base, Painter

from loraloom.imaging.grid import read_grid
from loraloom.imaging.painter import Painter as RealPainter
from loraloom.imaging.showcase import NEGATIVE, PROMPT, SEEDS, SETUPS, scene_grid, scene_sheet
from loraloom.tasks.diffusion.places import shipped_bases


def test_only_the_weights_differ_from_column_to_column(tmp_path: Path) -> None:
    painter = Painter(SimpleNamespace(find=lambda name: tmp_path / name), Base("scenes", ()))
    grid = scene_grid(painter)
    assert {(cell.prompt, cell.negative) for cell in grid.cells.values()} == {(PROMPT, NEGATIVE)}
    mixtures = [{use.name: use.unet for use in grid.cells[0, 0, column].adapters} for column in range(len(SETUPS))]
    assert mixtures[0] == {}
    assert [list(mixture) for mixture in mixtures[1:4]] == [["pencil"], ["neon"], ["glass"]]
    assert all(set(mixture) == {"pencil", "neon", "glass"} for mixture in mixtures[4:])


def test_the_sheet_is_written_whole_with_its_recipe(tmp_path: Path) -> None:
    painter = Painter(SimpleNamespace(find=lambda name: tmp_path / name), Base("scenes", ()))
    told: list[tuple[float, int]] = []
    made = scene_sheet(tmp_path / "demo", lambda done, pictures: told.append((done, pictures)), painter=painter)
    assert (made.cells, painter.painted, told[-1]) == (18, 18, (18, 18))
    assert len(SEEDS) * len(SETUPS) == 18
    assert read_grid(made.path) == scene_grid(painter)
    with Image.open(made.path) as image:
        assert min(image.size) > 600
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["sheet.png"]


@pytest.mark.skipif("scenes" not in shipped_bases(), reason="the small base is not there")
def test_the_shipped_base_and_styles_can_make_it() -> None:
    """All of it but the painting."""
    painter = RealPainter("scenes", device="cpu")
    for recipe in scene_grid(painter).cells.values():
        assert painter.check(recipe) == recipe
        assert all(painter.shelf.find(use.name).is_file() for use in recipe.adapters)
