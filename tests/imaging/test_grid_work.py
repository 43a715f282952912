"""Making sheets: what is painted, what is kept, what is taken up again, and the recipe in the file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tests.imaging.plain_painter import Base, Killed, Painter, picture_of

from loraloom.errors import ConfigError, DataError, OutputError
from loraloom.imaging.grid import Grid, make_sheet, parse_axis, plan_sheet, read_grid
from loraloom.imaging.recipe import AdapterUse, Recipe, read_picture, write_parameters


@pytest.fixture
def base(tmp_path: Path) -> Path:
    file = tmp_path / "base.safetensors"
    file.write_bytes(b"weights")
    return file


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    folder = tmp_path / "styles"
    folder.mkdir()
    for name in ("pencil", "neon"):
        (folder / f"{name}.safetensors").write_bytes(name.encode())
    return folder


@pytest.fixture
def painter(styles: Path, base: Path) -> Painter:
    def find(name: str) -> Path:
        if not (styles / f"{name}.safetensors").is_file():
            raise ConfigError(f"there is no adapter {name!r}")
        return styles / f"{name}.safetensors"

    return Painter(SimpleNamespace(find=find), Base("base", (base,)))


@pytest.fixture
def grid() -> Grid:
    recipe = Recipe(prompt="a cat", steps=2, width=64, height=64, base="base")
    return Grid(parse_axis("seed: 1..3"), parse_axis("setup: none | pencil:1 | pencil:0.5 neon:0.5"), recipe)


def test_every_cell_shows_its_own_picture(painter: Painter, grid: Grid) -> None:
    sheet = make_sheet(painter, grid, cell=64)
    assert (sheet.painted, sheet.reused, sheet.missing) == (9, 0, 0)
    colours = {colour for _, colour in sheet.image.getcolors(1 << 20) or () if _ >= 64 * 64}
    assert {picture_of(recipe).getpixel((0, 0)) for recipe in grid.cells.values()} <= colours
    assert sheet.notes == ("a note",)


def test_seeds_are_painted_together_and_nothing_changes(painter: Painter, grid: Grid) -> None:
    together = make_sheet(painter, grid, batch=4)
    assert [batch for _, batch in painter.calls] == [3, 3, 3]
    alone = make_sheet(painter, grid, batch=1)
    assert together.image.tobytes() == alone.image.tobytes()
    assert together.chunks == alone.chunks


def test_an_interrupted_sheet_goes_on_and_ends_the_same(painter: Painter, grid: Grid, tmp_path: Path) -> None:
    whole = make_sheet(painter, grid, batch=1)
    folder = tmp_path / "cells"
    broken = replace(painter, calls=[], last=4)
    with pytest.raises(Killed):
        make_sheet(broken, grid, folder=folder, batch=1)
    assert len(list(folder.iterdir())) == 4
    (folder / ".seed.png.partial").write_bytes(b"half")
    plan = plan_sheet(painter, grid, folder=folder)
    assert (plan.pictures, plan.finished, plan.left, plan.steps) == (9, 4, 5, 10)
    going_on = replace(painter, calls=[])
    sheet = make_sheet(going_on, grid, folder=folder, batch=1)
    assert (going_on.painted, sheet.painted, sheet.reused) == (5, 5, 4)
    assert sheet.image.tobytes() == whole.image.tobytes()
    assert list(sheet.chunks.items()) == list(whole.chunks.items())


def test_a_larger_sheet_takes_what_the_smaller_one_painted(painter: Painter, grid: Grid, tmp_path: Path) -> None:
    make_sheet(painter, grid, folder=tmp_path / "cells")
    larger = replace(grid, rows=parse_axis("seed: 0..3"))
    assert make_sheet(painter, larger, folder=tmp_path / "cells").painted == 3


def test_a_damaged_picture_is_painted_again(painter: Painter, grid: Grid, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    whole = make_sheet(painter, grid, folder=folder)
    first, second, *_ = sorted(folder.iterdir())
    first.write_bytes(first.read_bytes()[:60])
    second.write_bytes(b"")
    again = make_sheet(painter, grid, folder=folder)
    assert (again.painted, again.reused) == (2, 7)
    assert again.image.tobytes() == whole.image.tobytes()


@pytest.mark.parametrize("what", ["adapter", "base", "number format"])
def test_pictures_of_other_ingredients_are_not_taken(
    what: str, painter: Painter, grid: Grid, base: Path, styles: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cells"
    make_sheet(painter, grid, folder=folder)
    if what == "adapter":
        (styles / "neon.safetensors").write_bytes(b"another neon")
    elif what == "base":
        os.utime(base, ns=(1, 1))
    else:
        painter.diffusion.dtype = "bf16"
    again = make_sheet(painter, grid, folder=folder)
    assert again.painted == (3 if what == "adapter" else 9)


def test_single_pictures_carry_their_own_recipe(painter: Painter, grid: Grid, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    make_sheet(painter, grid, folder=folder)
    found = {read_picture(file) for file in folder.iterdir()}
    assert found == set(grid.cells.values())
    assert any(file.name.startswith("seed-1_adapters-pencil-0.5-neon-0.5-") for file in folder.iterdir())


def test_the_sheet_carries_the_recipe_of_all_and_of_each(painter: Painter, grid: Grid, tmp_path: Path) -> None:
    file = make_sheet(painter, grid).save(tmp_path / "sheet.png")
    assert read_grid(file) == grid
    assert read_picture(file) == grid.recipe
    with Image.open(file) as image:
        image.load()
        assert image.text["cell 2.3"] == write_parameters(grid.cells[0, 1, 2])
        assert sum(key.startswith("cell ") for key in image.text) == 9
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_files_without_the_recipe_of_a_sheet_are_refused(tmp_path: Path) -> None:
    plain, broken = tmp_path / "plain.png", tmp_path / "broken.png"
    Image.new("RGB", (8, 8)).save(plain)
    broken.write_bytes(plain.read_bytes()[:40])
    with pytest.raises(DataError, match="holds no recipe of a sheet"):
        read_grid(plain)
    for file in (broken, tmp_path / "absent.png"):
        with pytest.raises(DataError, match="cannot be read as a picture"):
            read_grid(file)


def test_a_sheet_that_cannot_be_written_leaves_nothing(painter: Painter, grid: Grid, tmp_path: Path) -> None:
    sheet = make_sheet(painter, grid)
    with pytest.raises(OutputError, match="cannot be written"):
        sheet.save(tmp_path / "absent" / "sheet.png")
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(OutputError):
        sheet.save(tmp_path / "sheet.png")
    assert not any("partial" in path.name for path in tmp_path.iterdir())


def test_an_unknown_adapter_stops_the_sheet_before_anything_is_painted(
    painter: Painter, grid: Grid, tmp_path: Path
) -> None:
    unknown = replace(grid, columns=parse_axis("adapter: none, nope"))
    with pytest.raises(ConfigError, match="no adapter 'nope'"):
        make_sheet(painter, unknown)
    with pytest.raises(ConfigError, match="no adapter 'nope'"):
        plan_sheet(painter, unknown, folder=tmp_path / "cells")
    assert not painter.calls


def test_a_cell_that_cannot_be_stops_the_sheet_before_anything_is_painted(painter: Painter, grid: Grid) -> None:
    with pytest.raises(ConfigError, match="size 60×60, adapters no adapter: width is 60"):
        make_sheet(painter, replace(grid, rows=parse_axis("size: 64, 60")))
    assert not painter.calls


def test_a_stopped_sheet_has_empty_cells(painter: Painter, grid: Grid) -> None:
    sheet = make_sheet(painter, grid, batch=1, stop=lambda: painter.painted == 2)
    assert (sheet.painted, sheet.missing) == (2, 7)


def test_progress_counts_pictures_and_shares_of_them(painter: Painter, grid: Grid) -> None:
    told: list[tuple[float, int]] = []
    make_sheet(painter, grid, batch=3, watch=lambda done, pictures: told.append((done, pictures)))
    assert [done for done, _ in told] == [0, 1.5, 3, 3, 4.5, 6, 6, 7.5, 9, 9]
    assert {pictures for _, pictures in told} == {9}


def test_what_is_the_same_is_painted_once(painter: Painter) -> None:
    recipe = Recipe(prompt="a cat", steps=1, width=64, height=64, base="base", adapters=(AdapterUse("pencil"),))
    grid = Grid(parse_axis("adapter: none, neon"), parse_axis("weight: 0.5, 1"), recipe)
    plan = plan_sheet(painter, grid)
    assert (plan.cells, plan.pictures) == (4, 3)
    assert make_sheet(painter, grid).painted == painter.painted == 3
