"""The painter: the same recipe is the same picture, adapters are turned without reloading, bad recipes are told."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.imaging import tiny
from tests.imaging.adapters_made import attached, made, write

from loraloom.errors import ConfigError, DataError, FormatError
from loraloom.imaging import mixing
from loraloom.imaging.painter import Painter, Picture
from loraloom.imaging.recipe import AdapterUse, Recipe, read_picture
from loraloom.imaging.shelf import AdapterShelf

pytestmark = pytest.mark.filterwarnings("ignore:.*__array:DeprecationWarning")
PROMPT = "a red house"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tiny.diffusion(), tmp_path_factory.mktemp("adapters"), "ink", "neon", "glass")


@pytest.fixture(scope="module")
def painter(folder: Path) -> Painter:
    """One for nearly all tests: what was painted before must leave no trace."""
    return Painter(tiny.diffusion(), adapters=AdapterShelf(folder))


def recipe_of(painter: Painter, prompt: str = PROMPT, **given: Any) -> Recipe:
    return painter.recipe(**{"prompt": prompt, "steps": 4, "guidance": 3.0, "seed": 1, **given})


def paint(painter: Painter, prompt: str = PROMPT, **given: Any) -> bytes:
    return pixels(painter.paint(recipe_of(painter, prompt, **given))[0])


def pixels(picture: Picture) -> bytes:
    return picture.image.tobytes()


def difference(one: bytes, other: bytes) -> float:
    """Mean over all values, 0 to 255."""
    arrays = [np.frombuffer(data, np.uint8).astype(float) for data in (one, other)]
    return float(np.abs(arrays[0] - arrays[1]).mean())


# -- the same recipe is the same picture ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_picture_is_its_recipe(kind: str, tmp_path: Path) -> None:
    made(tiny.diffusion(kind), tmp_path, "ink")
    recipe = None
    found = []
    for _ in range(2):
        painter = Painter(tiny.diffusion(kind), adapters=AdapterShelf(tmp_path))
        recipe = recipe_of(painter, f"{PROMPT} <lora:ink:0.5>", negative="blue")
        found.append(painter.paint(recipe)[0])
        assert found[-1].image.size == (64, 64) and found[-1].notes == []
    assert pixels(found[0]) == pixels(found[1])
    found[0].save(tmp_path / "x.png")
    assert read_picture(tmp_path / "x.png") == recipe == found[0].recipe
    assert pixels(painter.paint(read_picture(tmp_path / "x.png"))[0]) == pixels(found[0])
    assert difference(pixels(found[0]), paint(painter, negative="blue")) > 1


@pytest.mark.parametrize("sampler", ["DPM++ 2M Karras", "Euler a", "DPM++ SDE", "DDIM"])
def test_a_picture_of_a_batch_is_the_one_made_alone(painter: Painter, sampler: str) -> None:
    recipe = recipe_of(painter, sampler=sampler, seed=10, eta=0.5)
    batch = painter.paint(recipe, batch=3)
    assert [picture.seed for picture in batch] == [10, 11, 12]
    assert len({pixels(picture) for picture in batch}) == 3
    for picture in batch:
        assert picture.recipe == replace(recipe, seed=picture.seed)
        assert pixels(painter.paint(picture.recipe)[0]) == pixels(picture)


def test_a_negative_seed_is_drawn_and_told(painter: Painter) -> None:
    one, other = (painter.paint(recipe_of(painter, seed=-1))[0] for _ in range(2))
    assert one.seed >= 0 and one.seed != other.seed
    assert f"Seed: {one.seed}," in one.parameters
    assert paint(painter, seed=one.seed) == pixels(one)


def test_what_was_painted_before_leaves_no_trace(painter: Painter, folder: Path) -> None:
    first = paint(painter)
    mixed = paint(painter, f"{PROMPT} <lora:ink:0.7>")
    for prompt in ("a boat <lora:ink:2> <lora:neon:1>", "<lora:glass:1:steps=0.5*0>", "a [cat:tree:2]"):
        paint(painter, prompt)
    assert paint(painter) == first
    assert paint(painter, f"{PROMPT} <lora:ink:0.7>") == mixed
    assert paint(Painter(tiny.diffusion(), adapters=AdapterShelf(folder)), f"{PROMPT} <lora:ink:0.7>") == mixed


# -- adapters ------------------------------------------------------------------------------------------


def test_turning_a_weight_loads_nothing(painter: Painter) -> None:
    paint(painter, f"{PROMPT} <lora:ink:0.2> <lora:neon:0.3> <lora:glass:0.1>")
    loads = painter.mixer.loads
    assert len(painter.mixer._loaded) == 3
    shown = {paint(painter, f"{PROMPT} <lora:ink:{weight}> <lora:neon:0.3>") for weight in (0.0, 0.5, 1.0)}
    assert len(shown) == 3 and painter.mixer.loads == loads
    folds = painter.mixer.folds
    paint(painter, f"{PROMPT} <lora:ink:1.0> <lora:neon:0.3>", seed=2)
    assert painter.mixer.folds == folds


def test_weight_nought_is_the_base(painter: Painter) -> None:
    assert paint(painter, f"{PROMPT} <lora:ink:0>") == paint(painter)


def test_tags_and_options_add_up(painter: Painter) -> None:
    whole = paint(painter, f"{PROMPT} <lora:ink:0.8>")
    for prompt, uses in (
        (PROMPT, ("ink:0.8",)),
        (f"{PROMPT} <lora:ink:0.5>", ("ink:0.3",)),
        (f"{PROMPT} <lora:ink:0.4> <lora:ink:0.4>", ()),
    ):
        adapters = tuple(AdapterUse.parse(use) for use in uses)
        assert difference(paint(painter, prompt, adapters=adapters), whole) < 0.02


def test_text_and_unet_are_turned_apart(painter: Painter) -> None:
    shown = [paint(painter, f"{PROMPT} <lora:ink:{te}:{unet}>") for te, unet in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert len(set(shown)) == 4
    blocks = ("te*0", "down*0,mid*0,up*0", "up.1*0", "mid*3")
    turned = [paint(painter, f"{PROMPT} <lora:ink:1:blocks={block}>") for block in blocks]
    assert turned[0] == shown[2] and turned[1] == shown[1]
    assert len({*shown, *turned}) == 6


def test_weights_over_the_steps(painter: Painter) -> None:
    """Folded at each change, as layers where there are many, and both alike."""
    on, off = paint(painter, f"{PROMPT} <lora:ink:0:1>"), paint(painter, f"{PROMPT} <lora:ink:0:0>")
    assert paint(painter, f"{PROMPT} <lora:ink:0:1:steps=4*1>") == on
    assert paint(painter, f"{PROMPT} <lora:ink:0:1:steps=4*0>") == off
    half = f"{PROMPT} <lora:ink:0:1:steps=2*1,0>"
    folded = paint(painter, half)
    assert folded not in (on, off)
    painter.mixer.fold = False
    assert difference(paint(painter, half), folded) < 0.1
    painter.mixer.fold = True
    rising = f"{PROMPT} <lora:ink:0:1:steps=1.0*0..1>"
    before = painter.mixer.folds
    many = paint(painter, rising, steps=8)
    assert painter.mixer.folds == before and many != paint(painter, f"{PROMPT} <lora:ink:0:1>", steps=8)


@pytest.mark.parametrize("how", ["kohya", "diffusers", "peft"])
def test_every_format_paints_the_same(how: str, painter: Painter, tmp_path: Path) -> None:
    made(tiny.diffusion(), tmp_path, "ink", how=how)
    other = Painter(tiny.diffusion(), adapters=AdapterShelf(tmp_path))
    prompt = f"{PROMPT} <lora:ink:0.6:0.9>"
    assert difference(paint(other, prompt), paint(painter, prompt)) < 0.02


def test_a_changed_file_is_read_again(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "ink.safetensors", tmp_path / "style.safetensors")
    painter = Painter(tiny.diffusion(), adapters=AdapterShelf(tmp_path))
    prompt = f"{PROMPT} <lora:style:1>"
    first = paint(painter, prompt)
    shutil.copy(folder / "neon.safetensors", tmp_path / "style.safetensors")
    second = paint(painter, prompt)
    assert second != first and painter.mixer.loads == 2
    shutil.copy(folder / "ink.safetensors", tmp_path / "style.safetensors")
    assert paint(painter, prompt) == first


def test_adapters_that_go_unused_are_let_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(tiny.diffusion(), adapters=AdapterShelf(folder))
    monkeypatch.setattr(mixing, "KEPT", 1)
    first = paint(painter, f"{PROMPT} <lora:ink:1>")
    for name in ("neon", "glass"):
        paint(painter, f"{PROMPT} <lora:{name}:1>")
    assert paint(painter, f"{PROMPT} <lora:ink:1>") == first
    assert painter.mixer.loads == 4


def test_an_adapter_for_another_base_is_refused_and_nothing_breaks(painter: Painter, tmp_path: Path) -> None:
    expected = paint(painter, f"{PROMPT} <lora:ink:1>")
    other = tiny.diffusion(block_out_channels=(16, 24, 24, 24))
    file = write(attached(other, "big"), "big", tmp_path, "kohya", "sd1")
    with pytest.raises(FormatError, match="big"):
        paint(painter, PROMPT, adapters=(AdapterUse(str(file)), AdapterUse("neon")))
    assert paint(painter, f"{PROMPT} <lora:ink:1>") == expected


def test_texts_are_encoded_once_while_the_text_encoder_stays(painter: Painter) -> None:
    paint(painter, f"{PROMPT} <lora:ink:1:1>")
    encoded = painter._conditioner.encoded
    paint(painter, f"{PROMPT} <lora:ink:1:0.3>", seed=4)
    assert painter._conditioner.encoded == encoded
    paint(painter, f"{PROMPT} <lora:ink:0.5:0.3>")
    assert painter._conditioner.encoded > encoded


# -- from a picture ------------------------------------------------------------------------------------


def test_strength_leads_from_the_picture_to_the_prompt(painter: Painter, tmp_path: Path) -> None:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "start.png")
    image = str(tmp_path / "start.png")
    shown = [paint(painter, image=image, strength=share, steps=10) for share in (0.1, 0.5, 1.0)]
    assert difference(shown[0], shown[1]) < difference(shown[0], shown[2])
    assert painter.check(recipe_of(painter, image=image)).strength == 0.75


# -- progress and stopping -----------------------------------------------------------------------------


def test_progress_counts_over_all_pictures(painter: Painter) -> None:
    told: list[tuple[int, int]] = []
    painter.paint(recipe_of(painter), batch=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(step, 8) for step in range(1, 9)]


def test_what_is_finished_is_kept_when_stopped(painter: Painter) -> None:
    told: list[int] = []
    recipe = recipe_of(painter)
    pictures = painter.paint(recipe, batch=3, progress=lambda done, _: told.append(done), stop=lambda: len(told) >= 6)
    assert len(pictures) == 1 and pixels(pictures[0]) == paint(painter)
    assert painter.paint(recipe, stop=lambda: True) == []


def test_threads_take_turns(painter: Painter) -> None:
    prompts = [f"{PROMPT} <lora:{name}:1>" for name in ("ink", "neon")] * 2
    expected = [paint(painter, prompt) for prompt in prompts]
    found: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda n=n, p=p: found.update({n: paint(painter, p)})) for n, p in enumerate(prompts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(prompts))] == expected


# -- what is told --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"sampler": "Eulr a"}, "no sampler 'Eulr a'; did you mean 'Euler a'"),
        ({"width": 60}, "width is 60, which is no multiple of 8; take 56 or 64"),
        ({"height": 4}, "height is 4: from 8 to 8192 pixels"),
        ({"height": 9000}, "height is 9000"),
        ({"steps": 0}, "steps is 0: from 1 to"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"clip_skip": 0}, "clip_skip is 0"),
        ({"strength": 0.5}, "no picture to start from"),
        ({"image": "x.png", "strength": 0.0}, "strength is 0: it must be above 0"),
        ({"eta": 2.0}, "eta is 2"),
        ({"adapters": (AdapterUse("inc"),)}, "there is no lora 'inc'.*did you mean 'ink'"),
        ({"adapters": (AdapterUse("ink", float("inf")),)}, "weight of lora 'ink' is inf"),
        ({"prompt": "<lora:glas:1>"}, "there is no lora 'glas'.*did you mean 'glass'"),
    ],
)
def test_what_cannot_be_painted_is_told(painter: Painter, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        painter.paint(recipe_of(painter, **given))


def test_further_bad_input(painter: Painter, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch is 0"):
        painter.paint(recipe_of(painter), batch=0)
    with pytest.raises(DataError, match="there is no file"):
        painter.paint(recipe_of(painter, image=str(tmp_path / "gone.png")))
    with pytest.raises(ConfigError, match="dtype 'fp8'"):
        Painter(str(tiny.saved("sd1", tmp_path)), dtype="fp8")


def test_oddities_become_notes(painter: Painter) -> None:
    picture = painter.paint(recipe_of(painter, "a (red house <hypernet:x:1>"))[0]
    assert any("hypernet" in note for note in picture.notes) and len(picture.notes) == 2


def test_a_picture_tells_its_files(painter: Painter, folder: Path) -> None:
    text = painter.paint(recipe_of(painter, f"{PROMPT} <lora:ink:1>"))[0].parameters
    assert "Model: tiny-sd1" in text and 'Lora hashes: "ink: ' in text and "Version: loraloom " in text


def test_defaults_of_a_base(tmp_path: Path) -> None:
    place = tiny.saved("sd1", tmp_path)
    (place / "defaults.json").write_text(
        '{"sampler": "Euler a", "steps": 7, "guidance": 2.5, "width": 32, "height": 40}'
    )
    painter = Painter(str(place), embeddings=tmp_path)
    recipe = painter.recipe(prompt="x", steps=3)
    assert (recipe.sampler, recipe.steps, recipe.guidance, recipe.width, recipe.height) == ("Euler a", 3, 2.5, 32, 40)
    assert recipe.base == str(place) and recipe.embeddings == str(tmp_path)
    picture = painter.paint(recipe)[0]
    assert picture.image.size == (32, 40)
    assert f"Model hash: {painter.diffusion.fingerprint[:10]}, Model: tiny-sd1" in picture.parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, folder: Path, tmp_path: Path) -> None:
    whole = Painter(tiny.diffusion(), adapters=AdapterShelf(folder))
    half = Painter(str(tiny.saved("sd1", tmp_path)), adapters=AdapterShelf(folder), dtype=dtype)
    assert half.diffusion.dtype == dtype
    prompt = f"{PROMPT} <lora:ink:0.5>"
    assert difference(paint(half, prompt), paint(whole, prompt)) < 12


def test_what_a_page_asks_of_a_painter() -> None:
    painter = Painter(tiny.diffusion())
    assert painter.samplers()[0] == "Euler a" and painter.base == "tiny-sd1" and painter.example
    assert painter.token_count("a red house") == (3, 1)
