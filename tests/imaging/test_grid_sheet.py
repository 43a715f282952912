"""How a sheet looks, measured: where pictures land, that labels are there, whole, and inside the paper."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from loraloom.errors import ConfigError
from loraloom.imaging.grid.sheet import (
    MOST_PIXELS,
    Block,
    Drawing,
    Heading,
    SheetText,
    cell_size,
    draw_sheet,
    fitting_cell,
)
from loraloom.imaging.grid.typeset import Face

RED, BLUE = (200, 30, 30), (30, 30, 200)
TEXT = SheetText("A title", "a prompt of some words", "what is not wanted", "Euler · 20 steps")


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def drawing(rows: Heading, columns: Heading, blocks: int = 1, text: SheetText = TEXT, cell: int = 64) -> Drawing:
    """A sheet in a chequerboard of red and blue."""
    pictures = [
        [picture((RED, BLUE)[(row + column) % 2]) for column, _ in enumerate(columns.labels)]
        for row, _ in enumerate(rows.labels)
    ]
    made = tuple(Block(pictures, f"block {number}" if blocks > 1 else "") for number in range(blocks))
    return Drawing(text, rows, columns, made, (cell, cell))


def places_of(sheet: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return np.all(np.asarray(sheet) == colour, axis=-1)


def ink_around(sheet: Image.Image) -> tuple[int, int, int, int]:
    """White pixels from each edge to the first that is not."""
    used = np.argwhere(np.any(np.asarray(sheet) < 250, axis=-1))
    (top, left), (bottom, right) = used.min(axis=0), used.max(axis=0)
    return left, top, sheet.width - 1 - right, sheet.height - 1 - bottom


def test_every_picture_is_on_the_sheet_whole() -> None:
    sheet = draw_sheet(drawing(Heading("seed", ("1", "2")), Heading("weight", ("0", "0.5", "1"))))
    assert places_of(sheet, RED).sum() == places_of(sheet, BLUE).sum() == 3 * 64 * 64


@pytest.mark.parametrize("cell", [32, 64, 512, 900])
def test_margins_are_white_and_ample(cell: int) -> None:
    labels = ("a short one", "a label that is much longer than any cell is wide " * 4)
    sheet = draw_sheet(drawing(Heading("prompt", labels), Heading("adapters", labels), blocks=2, cell=cell))
    assert min(ink_around(sheet)) >= 20
    assert max(ink_around(sheet)) <= 400


def test_labels_stand_over_their_columns_and_beside_their_rows() -> None:
    plain = drawing(Heading("", ("", "")), Heading("", ("", "")), text=SheetText())
    bare = draw_sheet(plain)
    labelled = draw_sheet(drawing(Heading("", ("", "")), Heading("", ("", "WWW")), text=SheetText()))
    pictures = np.argwhere(places_of(labelled, RED) | places_of(labelled, BLUE))
    head = np.asarray(labelled)[: pictures[:, 0].min()]
    ink = np.argwhere(np.any(head < 200, axis=-1))[:, 1]
    second = pictures[:, 1].min() + 64 + 5
    assert second <= ink.min() and ink.max() < second + 64
    assert abs((ink.min() + ink.max()) / 2 - (second + 32)) <= 1
    assert labelled.height > bare.height


def test_a_cell_without_a_picture_is_marked_empty() -> None:
    made = drawing(Heading("", ("",)), Heading("", ("1", "2")))
    empty = Drawing(made.text, made.rows, made.columns, (Block([[picture(RED), None]]),), made.cell)
    sheet = draw_sheet(empty)
    assert places_of(sheet, RED).sum() == 64 * 64
    assert places_of(sheet, (243, 244, 246)).sum() > 60 * 60


def test_pictures_of_other_proportions_are_centred() -> None:
    made = Drawing(
        SheetText(), Heading(), Heading(labels=("", "")), (Block([[picture(RED), picture(BLUE, (64, 32))]]),), (64, 64)
    )
    found = np.argwhere(places_of(draw_sheet(made), BLUE))
    red = np.argwhere(places_of(draw_sheet(made), RED))
    assert found[:, 0].min() - red[:, 0].min() == 16
    assert len(found) == 64 * 32


def test_a_line_under_each_column() -> None:
    made = drawing(Heading(), Heading(labels=("a", "b")))
    with_foot = Drawing(made.text, made.rows, made.columns, made.blocks, made.cell, ("one", "two"))
    assert draw_sheet(with_foot).height > draw_sheet(made).height


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    assert cell_size([(64, 64)]) == (192, 192)
    assert cell_size([(64, 96), (64, 64)]) == (128, 192)
    assert cell_size([(512, 768)]) == (512, 768)
    assert cell_size([(512, 768)], 384) == (256, 384)
    for wanted in (31, 5000):
        with pytest.raises(ConfigError, match="cell"):
            cell_size([(64, 64)], wanted)


def test_a_sheet_never_outgrows_what_programs_open() -> None:
    assert fitting_cell((192, 192), 100) == (192, 192)
    width, height = fitting_cell((1024, 1024), 400)
    assert 400 * width * height < MOST_PIXELS
    assert width == 1024 // 3
    with pytest.raises(ConfigError, match="do not fit on one sheet"):
        fitting_cell((64, 64), 1_000_000)


# -- type -------------------------------------------------------------------------------------------

FACE = Face(14, "#000000")


@pytest.mark.parametrize(
    "text", ["a few words in a row", "x" * 80, "one\ntwo", "", "漢字" * 20, "a, (b:1.3),((c)),d_e_f" * 3]
)
def test_wrapped_lines_fit_and_lose_nothing(text: str) -> None:
    lines = FACE.wrap(text, 90, 100)
    assert all(FACE.width(line) <= 90 for line in lines)
    assert "".join(itertools.chain(*lines)).replace(" ", "") == "".join(text.split())


def test_what_does_not_fit_ends_in_an_ellipsis() -> None:
    lines = FACE.wrap("word " * 50, 90, 2)
    assert len(lines) == 2
    assert lines[1].endswith("…")
    assert all(FACE.width(line) <= 90 for line in lines)


def test_signs_that_the_first_face_lacks_are_drawn_all_the_same() -> None:
    """A missing sign would come out as the same empty box as any other."""

    def drawn(text: str) -> bytes:
        made = Drawing(SheetText(title=text), Heading(), Heading(), (Block([[picture(RED)]]),), (64, 64))
        return draw_sheet(made).tobytes()

    assert len({drawn(sign) for sign in "×→↓αжé–"}) == 7
