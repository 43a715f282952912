"""`loraloom grid` from the command line, with a tiny pipeline of the real classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.cli.commands import Call, Outcome
from tests.imaging import tiny

from loraloom import formats
from loraloom.adapters import AdapterSpec, attach
from loraloom.cli.sheet_progress import Lines
from loraloom.imaging.grid import read_grid
from loraloom.imaging.painter import Painter

Grid = Callable[..., Outcome]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and two adapters for it that change much."""
    folder = tmp_path_factory.mktemp("grid")
    tiny.saved("sd1", folder)
    (folder / "styles").mkdir()
    for seed, name in enumerate(("pencil", "neon")):
        adapters = attach(tiny.diffusion("sd1").parts, AdapterSpec(rank=2, targets=("to_q", "to_v")), name=name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _, parameter in adapters.named_parameters(name):
                torch.nn.init.normal_(parameter.detach(), std=0.5)
        formats.save_diffusers(adapters, name, folder / "styles" / f"{name}.safetensors")
    return folder


@pytest.fixture
def grid(call: Call, small: Path, tmp_path: Path) -> Grid:
    """Run `loraloom grid` with the small base; the sheet goes to tmp_path/sheet.png."""

    def run(*words: object, prompt: Sequence[str] = ("--prompt", "a red house")) -> Outcome:
        base = ["--base", small / "tiny-sd1", "--lora-dir", small / "styles", "--device", "cpu"]
        return call("grid", *base, *prompt, "--steps", 1, "--out", tmp_path / "sheet.png", *words)

    return run


WEIGHTS = ("--rows", "seed: 1..2", "--columns", "weight pencil: 0..1/0.5")


def test_a_sheet_from_the_first_word_to_the_file(grid: Grid, tmp_path: Path) -> None:
    made = grid(*WEIGHTS, "--title", "Weights", "--json", "--quiet")
    assert (made.status, made.data["painted"], made.data["reused"]) == (0, 6, 0)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (made.data["width"], made.data["height"])
        assert {"parameters", "loraloom-sheet", "cell 1.1", "cell 2.3"} <= set(image.info)
    assert read_grid(tmp_path / "sheet.png").title == "Weights"
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_it_is_made_again_by_itself_and_goes_on_from_kept_pictures(grid: Grid, tmp_path: Path) -> None:
    kept = ("--pictures", tmp_path / "cells")
    assert grid(*WEIGHTS, *kept).status == 0
    first = (tmp_path / "sheet.png").read_bytes()
    names = sorted(path.name for path in (tmp_path / "cells").iterdir())
    assert len(names) == 6
    assert "6 pictures, 6 of them finished; 0 to paint" in grid(*WEIGHTS, *kept, "--dry-run").out
    (tmp_path / "cells" / names[0]).unlink()
    again = grid("--from", tmp_path / "sheet.png", *kept, "--json", prompt=())
    assert (again.data["painted"], again.data["reused"]) == (1, 5)
    assert (tmp_path / "sheet.png").read_bytes() == first


def test_pictures_painted_in_one_call_are_those_painted_alone(grid: Grid, tmp_path: Path) -> None:
    sheets = []
    for batch in (1, 2):
        assert grid(*WEIGHTS, "--batch", batch).status == 0
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1]


def test_an_interrupted_sheet_keeps_what_is_finished(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint, calls = Painter.paint, []

    def interrupted(self: Painter, *words: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return paint(self, *words, **named)

    monkeypatch.setattr(Painter, "paint", interrupted)
    ended = grid(*WEIGHTS, "--batch", 1)
    assert ended.status == 130
    assert "the same command goes on" in ended.err
    assert not (tmp_path / "sheet.png").exists()
    going_on = grid(*WEIGHTS, "--batch", 1, "--json")
    assert (going_on.data["painted"], going_on.data["reused"]) == (4, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_dry_run_counts_and_writes_nothing(grid: Grid, tmp_path: Path) -> None:
    told = grid("--rows", "adapter: none, neon", "--columns", "weight: 0.5, 1", "--lora", "pencil", "--dry-run")
    assert told.out.splitlines() == [
        "2 rows × 2 columns: 4 cells of 192 × 192 pixels",
        "3 pictures (1 cells show one that is there already); 3 to paint, 3 steps",
    ]
    assert grid(*WEIGHTS, "--dry-run", "--json").data["left"] == 6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "grid needs --rows AXIS or --columns AXIS"),
        (("--rows", "sead: 1"), "did you mean 'seed'?"),
        (("--rows", "seed:"), "there are no values"),
        (("--rows", "guidance: 0..1/0"), "'0..1/0' never ends"),
        (("--rows", "seed: 1..101"), "101 cells, 101 of them to be painted: --yes makes it"),
        (("--rows", "weight pencl: 0, 1"), "did you mean 'pencil'?"),
        (("--rows", "setup: none | nope:1"), "there is no lora 'nope'"),
        (("--rows", "sampler: Eular"), "there is no sampler 'Eular'"),
        (("--rows", "size: 64, 60"), "size 60×60: width is 60, which is no multiple of 8"),
        (("--rows", "strength: 0.5"), "no picture to start from"),
        (("--rows", "seed: 1", "--columns", "seed: 2"), "vary the same: seed"),
        (("--rows", "seed: 1", "--cell", "5"), "cell: 5 pixels"),
        (("--rows", "seed: 1", "--out", "sheet.jpg"), "must end in .png"),
        (("--rows", "seed: 1", "--out", "absent/sheet.png"), "there is no such folder"),
        (("--rows", "prompt: @absent.txt"), "cannot be read: no such file"),
        (("--from", "absent.png"), "absent.png"),
    ],
)
def test_bad_input_is_one_sentence(grid: Grid, tmp_path: Path, words: Sequence[str], told: str) -> None:
    refused = grid(*words)
    assert (refused.status, refused.out) == (2, "")
    (sentence,) = [line for line in refused.err.splitlines() if line.startswith("loraloom: ")]
    assert told in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(every=0)
    lines(0, 4)
    lines(1.5, 4)
    assert capsys.readouterr().err.splitlines()[-1].startswith("1 of 4 pictures, ")
    quiet = Lines(every=1000)
    quiet(1, 4)
    assert capsys.readouterr().err == ""
