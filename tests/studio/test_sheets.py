"""Sheets from the page: what varies, within the folders."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from loraloom.errors import ConfigError
from loraloom.imaging.grid import Sheet
from loraloom.studio import sheets
from loraloom.studio.desk import Desk
from loraloom.studio.easel import Painted, Progress
from loraloom.studio.sheets import EXAMPLES, NOTHING, Side, grid_of, kinds, needs_name, paint_sheet
from loraloom.studio.tab_grid import _Making

NONE = Side(NOTHING, "", "")


def grid(desk: Desk, rows: Side, columns: Side = NONE) -> Any:
    said = {"pencil": {"on": True, "unet": 1.0}}
    return grid_of(desk, desk.recipe(desk.first_form().values, said), rows, columns)


def test_rows_and_columns(desk: Desk) -> None:
    made = grid(desk, Side("weight", "pencil", "0..1/0.5"), Side("seed", "", "1..4"))
    assert made.shape == (1, 3, 4)
    assert made.cells[0, 1, 2].adapters[0].unet == 0.5 and made.cells[0, 1, 2].seed == 3


@pytest.mark.parametrize("kind", [kind for kind in EXAMPLES if kind not in ("checkpoint", "word")])
def test_every_example_on_the_page_can_be_painted(desk: Desk, kind: str) -> None:
    name = "pencil" if needs_name(kind) == "adapter" else ""
    assert len(grid(desk, Side(kind, name, EXAMPLES[kind]))) >= 2


def test_the_page_offers_kinds_that_there_are(desk: Desk) -> None:
    assert kinds()[0] == NOTHING and {"weight", "seed", "sampler", "checkpoint"} <= set(kinds())
    assert (needs_name("weight"), needs_name("word"), needs_name("seed")) == ("adapter", "text", "")


@pytest.mark.parametrize(
    ("side", "told"),
    [
        (Side("prompt", "", "@/etc/passwd"), "write them out here"),
        (Side("checkpoint", "", "../x"), "no plain name"),
        (Side("adapter", "", "none, /etc/passwd"), "no adapter '/etc/passwd'"),
        (Side("setup", "", "none | other:1"), "no adapter 'other'"),
        (Side("seed", "", "1..1000"), "1,000 cells"),
        (Side("seed", "", "x"), "seed"),
        (NONE, "something that varies"),
    ],
)
def test_what_reaches_outside_or_cannot_be_is_refused(desk: Desk, side: Side, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        grid(desk, side)


def test_a_sheet_is_painted_in_the_easels_turn(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(
        painter: Any, grid: Any, *, folder: Path, watch: Callable[[float, int], None], stop: Callable[[], bool]
    ) -> Any:
        assert painter is desk.painter and folder == desk.cells and not stop()
        watch(1.5, 4)
        time.sleep(0.2)  # so that the page has seen it
        return SimpleNamespace(cells=len(grid))

    monkeypatch.setattr(sheets, "make_sheet", make)
    events = list(paint_sheet(desk, grid(desk, Side("seed", "", "1..4")), page="a"))
    assert events[0] == Progress(150, 400, "picture 2 of 4")
    assert isinstance(events[-1], Painted) and events[-1].pictures[0].cells == 4


def test_a_finished_sheet_is_kept_shown_and_told(desk: Desk) -> None:
    """By the real sheet's own fields: a stand-in once had one that sheets have not."""
    seeds = grid(desk, Side("seed", "", "1..4"))
    sheet = Sheet(Image.new("RGB", (8, 8)), seeds, painted=3, reused=1, missing=0, seconds=0.5)
    shown = _Making(desk, "said", "sheet", "stop")._finished(Painted([sheet]), 0.5)
    assert Path(shown["sheet"]).is_file()
    assert "4 cells · 3 painted · 0.5 s · kept as" in shown["said"]
