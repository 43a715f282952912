"""Which pictures a sheet is made of, and how they are put together for painting."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from loraloom.adapters import AdapterSpec, attach
from loraloom.errors import ConfigError, FormatError
from loraloom.formats import load_any
from loraloom.imaging.grid.axis import parse_axis
from loraloom.imaging.grid.checkpoints import checkpoints_in
from loraloom.imaging.grid.jobs import jobs_of
from loraloom.imaging.grid.plan import Grid
from loraloom.imaging.recipe import AdapterUse, Recipe

RECIPE = Recipe(prompt="a red cat at sea", negative="a cat, blurry", steps=3, width=64, height=64)
WITH_PENCIL = replace(RECIPE, adapters=(AdapterUse("pencil", 0.8, 0.8),))


def grid(rows: str = "", columns: str = "", recipe: Recipe = RECIPE, blocks: str = "") -> Grid:
    sides = [parse_axis(side) if side else None for side in (rows, columns, blocks)]
    return Grid(sides[0], sides[1], recipe, sides[2])


def weights(recipe: Recipe) -> dict[str, tuple[float, float]]:
    return {use.name: (use.te, use.unet) for use in recipe.adapters}


def test_rows_columns_and_blocks() -> None:
    made = grid("seed: 1..2", "guidance: 2, 4, 6", blocks="steps: 5, 9")
    assert (made.shape, len(made)) == ((2, 2, 3), 12)
    cell = made.cells[1, 0, 2]
    assert (cell.steps, cell.seed, cell.guidance) == (9, 1, 6.0)
    assert made.labels((1, 0, 2)) == {"steps": "9", "seed": "1", "guidance": "6"}
    assert all(recipe.prompt == RECIPE.prompt for recipe in made.cells.values())


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ("weight pencil: 0.5", "", {"pencil": (0.5, 0.5)}),
        ("weight: 0.5", "", {"pencil": (0.5, 0.5)}),
        ("te: 0.5", "", {"pencil": (0.5, 0.8)}),
        ("unet pencil: 0.5", "", {"pencil": (0.8, 0.5)}),
        ("weight neon: 0.5", "", {"pencil": (0.8, 0.8), "neon": (0.5, 0.5)}),
        ("weight neon: 0.5", "weight pencil: 0.1", {"pencil": (0.1, 0.1), "neon": (0.5, 0.5)}),
        ("adapter: neon:0.3", "", {"pencil": (0.8, 0.8), "neon": (0.3, 0.3)}),
        ("adapter: neon", "weight: 0.4", {"pencil": (0.8, 0.8), "neon": (0.4, 0.4)}),
        ("weight: 0.4", "adapter: none", {"pencil": (0.8, 0.8)}),
        ("adapter: pencil:0.3", "", {"pencil": (0.3, 0.3)}),
        ("setup: none", "", {}),
        ("setup: neon:1 glass:0.5:0.25", "", {"neon": (1.0, 1.0), "glass": (0.5, 0.25)}),
        ("weight neon: 0.2", "setup: neon:1 glass:1", {"neon": (0.2, 0.2), "glass": (1.0, 1.0)}),
        ("scale: 0.5", "setup: neon:1 glass:0.5", {"neon": (0.5, 0.5), "glass": (0.25, 0.25)}),
        ("scale: 0.5", "", {"pencil": (0.4, 0.4)}),
    ],
)
def test_adapters_and_their_weights(rows: str, columns: str, expected: dict[str, tuple[float, float]]) -> None:
    (cell,) = grid(rows, columns, WITH_PENCIL).cells.values()
    assert weights(cell) == expected


def test_a_file_is_turned_by_its_short_name() -> None:
    recipe = replace(RECIPE, adapters=(AdapterUse("styles/pencil.safetensors"),))
    (cell,) = grid("weight pencil: 0.5", recipe=recipe).cells.values()
    assert weights(cell) == {"styles/pencil.safetensors": (0.5, 0.5)}


def test_words_change_in_both_prompts() -> None:
    cells = grid("word cat: boat").cells[0, 0, 0]
    assert (cells.prompt, cells.negative) == ("a red boat at sea", "a boat, blurry")
    later = grid("prompt: a cat | two cats", "word cat: dog").cells
    assert [recipe.prompt for recipe in later.values()] == ["a dog", "two dogs"]


def test_the_rest_of_a_recipe() -> None:
    cell = grid("size: 96x64", "sampler: ddim", blocks="clip-skip: 2").cells[0, 0, 0]
    assert (cell.width, cell.height, cell.sampler, cell.clip_skip) == (96, 64, "DDIM", 2)
    cell = grid("strength: 0.5", "eta: 0.1", blocks="negative: ugly").cells[0, 0, 0]
    assert (cell.strength, cell.eta, cell.negative) == (0.5, 0.1, "ugly")


@pytest.mark.parametrize(
    ("rows", "columns", "recipe", "words"),
    [
        ("", "", RECIPE, "something that varies"),
        ("seed: 1", "seed: 2", RECIPE, "vary the same: seed"),
        ("weight: 1", "", RECIPE, "none that it could mean"),
        ("weight: 1", "setup: none", WITH_PENCIL, "whose\\?"),
        ("weight: 1", "", replace(RECIPE, adapters=(AdapterUse("a"), AdapterUse("b"))), "one of a, b"),
        ("word dog: cat", "", RECIPE, "neither prompt has the text 'dog'"),
    ],
)
def test_a_sheet_that_cannot_be_is_refused(rows: str, columns: str, recipe: Recipe, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        grid(rows, columns, recipe)


def test_a_sheet_travels_as_json() -> None:
    made = grid("weight pencil: 0..1[3]", "setup: none | all = pencil:1 neon:1", WITH_PENCIL, "seed: 1..2")
    again = Grid.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made
    assert again.cells == made.cells
    for damaged in ([], {"rows": 1, "recipe": {}}, {"rows": {"kind": "seed"}, "recipe": {}}):
        with pytest.raises(ValueError, match="sheet"):
            Grid.from_json(damaged)


# -- jobs -------------------------------------------------------------------------------------------


def test_seeds_in_a_row_are_painted_together() -> None:
    made = grid("seed: 1..5, 9", "guidance: 2, 4")
    jobs = jobs_of(made.cells, batch=4)
    assert [(job.recipe.guidance, job.recipe.seed, len(job.places)) for job in jobs] == [
        (2.0, 1, 4),
        (2.0, 5, 1),
        (2.0, 9, 1),
        (4.0, 1, 4),
        (4.0, 5, 1),
        (4.0, 9, 1),
    ]
    painted = {
        place: recipe
        for job in jobs
        for places, recipe in zip(job.places, job.recipes, strict=True)
        for place in places
    }
    assert painted == made.cells


def test_the_same_recipe_is_painted_once() -> None:
    made = grid("adapter: none, neon", "weight: 0.5, 1")
    jobs = jobs_of(made.cells, batch=4)
    assert len(made) == 4
    assert [len(job.places) for job in jobs] == [1, 1, 1]
    assert jobs[0].places == (((0, 0, 0), (0, 0, 1)),)


def test_cells_with_the_same_adapters_are_painted_in_a_row() -> None:
    made = grid("guidance: 2, 4", "weight pencil: 0, 0.5, 1")
    assert [job.recipe.adapters[0].unet for job in jobs_of(made.cells, batch=4)] == [0, 0, 0.5, 0.5, 1, 1]


# -- checkpoints ------------------------------------------------------------------------------------


def test_checkpoints_of_a_run_in_their_order(tmp_path: Path) -> None:
    for name in ("run-000010.safetensors", "run-000002.safetensors", "run.safetensors", ".run.safetensors"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("x")
    found = checkpoints_in(str(tmp_path))
    assert [Path(name).name for name in found] == [
        "run-000002.safetensors",
        "run-000010.safetensors",
        "run.safetensors",
    ]
    axis = parse_axis(f"checkpoint: {tmp_path}")
    assert axis.values == found
    assert axis.labels == ("run 2", "run 10", "run")


def test_folders_of_adapters_and_the_run_itself(tmp_path: Path) -> None:
    for place in ("snapshots/step-00000020", "snapshots/step-00000003", ""):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "adapter_model.safetensors").write_bytes(b"")
    found = checkpoints_in(str(tmp_path))
    assert [Path(name).name for name in found] == ["step-00000003", "step-00000020", tmp_path.name]
    made = Grid(parse_axis(f"checkpoint: {tmp_path}"), parse_axis("weight: 0.5"), RECIPE)
    assert weights(made.cells[0, 1, 0]) == {found[1]: (0.5, 0.5)}


def test_checkpoints_of_a_run_that_trains_become_adapters(tmp_path: Path) -> None:
    """As training leaves them; loaded, they are the adapter that was being trained."""

    def model() -> nn.ModuleDict:
        return nn.ModuleDict({"unet": nn.Sequential(nn.Linear(6, 5), nn.Conv2d(3, 4, 3))})

    trained = attach(model(), AdapterSpec(rank=2, targets=("0", "1"), alpha_pattern={"1": 3.0}), name="default")
    for parameter in trained.parameters("default"):
        nn.init.normal_(parameter.detach())
    tensors = {f"weight.{name}": tensor for name, tensor in trained.tensors("default").items()}
    for step in (20, 3):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        save_file(tensors | {"moment.0.step": torch.zeros(1)}, folder / "state.safetensors")
        (folder / "state.json").write_text("{}")
    adapter = {"rank": 2, "alpha": None, "alpha_pattern": {"1": 3.0}, "scaling": "alpha/r"}
    (tmp_path / "run-state.json").write_text(json.dumps({"settings": {"adapter": adapter}}))
    axis = parse_axis(f"checkpoint: {tmp_path}")
    assert axis.labels == ("step 3", "step 20")
    loaded = load_any(model(), Path(str(axis.values[0])), name="again")
    for path in ("unet.0", "unet.1"):
        assert torch.equal(loaded.delta("again", path), trained.delta("default", path))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    save_file({"weight.unet.0|head": torch.zeros(1)}, folder / "state.safetensors")
    with pytest.raises(FormatError, match="run-state.json"):
        checkpoints_in(str(tmp_path))
    (tmp_path / "run-state.json").write_text('{"settings": {"adapter": {"rank": 2}}}')
    with pytest.raises(FormatError, match="holds no adapter"):
        checkpoints_in(str(tmp_path))


def test_a_folder_without_adapters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no adapters"):
        parse_axis(f"checkpoint: {tmp_path}")
