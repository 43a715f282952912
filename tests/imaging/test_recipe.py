"""Recipes and the text in which they travel: every recipe comes back, ours and the web UI's."""

from __future__ import annotations

import io
import json
import re
import string
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loraloom.errors import ConfigError, DataError, OutputError
from loraloom.imaging.pngfile import png_bytes, read_image, write_png
from loraloom.imaging.recipe import AdapterUse, Recipe, read_parameters, read_picture, write_parameters
from loraloom.imaging.samplers import SAMPLERS

WEB_UI = """a (red:1.2) house, <lora:ink:0.8>
second line
Negative prompt: blurry,
bad
Steps: 28, Sampler: DPM++ 2M SDE, Schedule type: Automatic, CFG scale: 5.5, Seed: 1234567890123, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned, Denoising strength: 0.4, Clip skip: 2, \
Lora hashes: "ink: 0123456789ab", TI hashes: "bad: c9c4a2, worse: 11", Version: v1.10.1"""

PIECES = [
    "Steps: 20, Sampler: Euler, Seed: 1",
    "Negative prompt:",
    "Loraloom: {}",
    "<lora:x:1>",
    "(b:1.2)",
    "BREAK",
    "AND",
]
PIECES += ["\n", "\r\n", " ", "a", ",", '"', "\\", "\0", "\u2028", "ü日本", ": 3", "\ud800"]
nasty = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
number = st.floats(min_value=-10, max_value=10, allow_nan=False)
names = st.text(string.ascii_letters + "._- /", min_size=1, max_size=12)
uses = st.builds(
    AdapterUse,
    names,
    number,
    number,
    st.lists(st.tuples(st.sampled_from(["down", "up.1", "mid"]), number), max_size=2, unique_by=lambda one: one[0]).map(
        tuple
    ),
    st.lists(st.tuples(st.integers(1, 20), number), max_size=2).map(tuple),
)
recipes = st.builds(
    Recipe,
    prompt=nasty,
    negative=nasty,
    adapters=st.lists(uses, max_size=3).map(tuple),
    sampler=st.sampled_from([*SAMPLERS, "DPM adaptive", "my, own: sampler"]),
    steps=st.integers(1, 10**6),
    guidance=st.floats(0, 100),
    width=st.integers(8, 8192),
    height=st.integers(8, 8192),
    seed=st.integers(0, 2**63),
    clip_skip=st.integers(1, 12),
    strength=st.none() | st.floats(0.01, 1),
    image=st.none() | nasty,
    base=st.one_of(names, nasty),
    eta=st.none() | st.floats(0, 1),
    guidance_rescale=st.floats(0, 1),
    rescale_mean=st.booleans(),
    embeddings=st.none() | nasty,
)


@given(recipes)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(Recipe(prompt="Steps: 20, Sampler: Euler, Seed: 1\nNegative prompt: x", negative="\nSteps: 1"))
@example(Recipe(prompt="", negative="", adapters=(AdapterUse("a b", 0.1 + 0.2, 1 / 3),)))
@example(Recipe(prompt="  padded \n", base="/models/some: base, 2.safetensors"))
def test_every_recipe_comes_back_through_its_text(recipe: Recipe) -> None:
    assert read_parameters(write_parameters(recipe)) == recipe


@given(recipes)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_recipe_comes_back_through_a_picture_and_json(recipe: Recipe) -> None:
    data = png_bytes(Image.new("RGB", (8, 8)), write_parameters(recipe))
    text = Image.open(io.BytesIO(data)).info["parameters"]
    assert read_parameters(text) == recipe
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def _read_as_the_web_ui(text: str) -> tuple[str, str, dict[str, str]]:
    """modules/infotext_utils.py of the web UI, in short."""
    parameter = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    *lines, last = text.strip().split("\n")
    assert len(parameter.findall(last)) >= 3
    prompt, negative, done = "", "", False
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            done, line = True, line[16:].strip()
        if done:
            negative += ("" if negative == "" else "\n") + line
        else:
            prompt += ("" if prompt == "" else "\n") + line
    return prompt, negative, dict(parameter.findall(last))


def test_the_web_ui_reads_what_we_write() -> None:
    recipe = Recipe(
        prompt="a house,\nred",
        negative="blurry",
        adapters=(AdapterUse("/styles/ink.safetensors", 0.5, 0.75),),
        sampler="DPM++ 2M Karras",
        guidance=4.5,
        seed=7,
        clip_skip=2,
    )
    facts = {"Model hash": "0123456789", "Lora hashes": "ink: abc", "Version": "loraloom 1"}
    prompt, negative, fields = _read_as_the_web_ui(write_parameters(recipe, facts))
    assert prompt == "a house,\nred <lora:ink:0.5:0.75>"
    assert negative == "blurry"
    wanted = {"Steps": "20", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "4.5", "Seed": "7"}
    wanted |= {"Size": "512x512", "Model": "scenes", "Clip skip": "2", "Lora hashes": '"ink: abc"'}
    assert {name: fields[name] for name in wanted} == wanted
    assert list(fields)[-1] == "Loraloom"


def test_a_text_of_the_web_ui_is_read() -> None:
    recipe = read_parameters(WEB_UI)
    assert recipe.prompt == "a (red:1.2) house, <lora:ink:0.8>\nsecond line"
    assert recipe.negative == "blurry,\nbad"
    assert (recipe.steps, recipe.sampler, recipe.guidance) == (28, "DPM++ 2M SDE Exponential", 5.5)
    assert (recipe.seed, recipe.width, recipe.height) == (1234567890123, 512, 768)
    assert (recipe.base, recipe.strength, recipe.clip_skip) == ("v1-5-pruned", 0.4, 2)
    assert recipe.adapters == ()


@pytest.mark.parametrize(
    ("fields", "sampler"),
    [
        ("Sampler: DPM++ 2M Karras", "DPM++ 2M Karras"),
        ("Sampler: Euler a, Schedule type: Automatic", "Euler a"),
        ("Sampler: DPM++ 2M, Schedule type: Uniform", "DPM++ 2M"),
        ("Sampler: Euler, Schedule type: SGM Uniform", "Euler SGM Uniform"),
    ],
)
def test_old_and_new_ways_to_name_a_sampler(fields: str, sampler: str) -> None:
    assert read_parameters(f"x\nSteps: 5, {fields}, Seed: 1").sampler == sampler


@pytest.mark.parametrize("text", ["", "a house", "Steps: 20", "\n\n", "Steps: 20, Seed: 1", '"' * 50, "a: b, c: d"])
def test_a_text_without_a_recipe_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="no recipe"):
        read_parameters(text)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("Steps: many, Seed: 1, Size: 8x8", "Steps is 'many'"),
        ("Steps: 1, Seed: 1.5, Size: 8x8", "Seed is '1.5'"),
        ('Steps: 1, Seed: 1, Loraloom: "[1"', "'Loraloom' is damaged"),
        ('Steps: 1, Seed: 1, Loraloom: "{\\"stepps\\": 3}"', "no field 'stepps'; did you mean 'steps'"),
        ('Steps: 1, Seed: 1, Loraloom: "{\\"steps\\": true}"', "steps is True"),
        ('Steps: 1, Seed: 1, Loraloom: "{\\"adapters\\": [3]}"', "adapters cannot be read"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(fields: str, told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)):
        read_parameters(f"a house\n{fields}")


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_text_makes_reading_fail_otherwise(text: str) -> None:
    with suppress(DataError):
        read_parameters(text)


def test_a_picture_keeps_its_recipe_and_is_written_whole(tmp_path: Path) -> None:
    recipe = Recipe(prompt="ein Haus, 家", seed=3)
    file = tmp_path / "new" / "picture.png"
    write_png(file, Image.new("RGB", (8, 8), "red"), write_parameters(recipe))
    assert read_picture(file) == recipe
    assert [entry.name for entry in file.parent.iterdir()] == ["picture.png"]
    assert file.read_bytes() == png_bytes(Image.new("RGB", (8, 8), "red"), write_parameters(recipe))


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_png(tmp_path / "file" / "x.png", Image.new("RGB", (8, 8)), "")


def test_jpeg_with_the_web_uis_comment(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + WEB_UI.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", exif=exif)
    assert read_picture(tmp_path / "x.jpg") == read_parameters(WEB_UI)


def _bad_pictures(folder: Path) -> dict[str, Path]:
    image = Image.new("RGB", (64, 64), "blue")
    whole = png_bytes(image, write_parameters(Recipe()))
    comfy = PngInfo()
    comfy.add_text("workflow", "{}")
    image.save(folder / "comfy.png", pnginfo=comfy)
    image.save(folder / "plain.png")
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    told = {"comfy": "workflow of ComfyUI", "plain": "no text chunk named 'parameters'", "cut": "damaged"}
    told |= {"text": "no picture", "empty": "no picture", "gone": "there is no picture"}
    return {sentence: folder / f"{name}.png" for name, sentence in told.items()}


def test_bad_pictures_are_told_in_words(tmp_path: Path) -> None:
    for sentence, file in _bad_pictures(tmp_path).items():
        with pytest.raises(DataError, match=sentence):
            read_picture(file)


def test_pictures_to_start_from_lie_on_white_and_stand_upright(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (4, 8)
    with pytest.raises(DataError, match="there is no file"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("ink", AdapterUse("ink")),
        ("ink:0.8", AdapterUse("ink", 0.8, 0.8)),
        ("ink:0.8:-0.5", AdapterUse("ink", 0.8, -0.5)),
        ("ink:te=0.1:unet=2", AdapterUse("ink", 0.1, 2.0)),
        ("/a dir/ink.safetensors:1", AdapterUse("/a dir/ink.safetensors")),
        ("ink:1:blocks=down*0,mid*0.5", AdapterUse("ink", 1, 1, (("down", 0.0), ("mid", 0.5)))),
        ("ink:1:steps=0.5*0", AdapterUse("ink", 1, 1, (), ((10, 0.0), (20, 1.0)))),
    ],
)
def test_adapters_as_options(text: str, use: AdapterUse) -> None:
    assert AdapterUse.parse(text) == use


@pytest.mark.parametrize("text", ["", ":0.5", "ink:high", "ink:1:2:3", "ink:blocks=sideways*1", "ink>:1", "ink:nan"])
def test_adapter_options_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form NAME:WEIGHT"):
        AdapterUse.parse(text)


def test_a_recipe_can_be_a_key() -> None:
    one = Recipe(adapters=(AdapterUse("a", 1, 1, (("down", 0.5),)),))
    assert len({one, replace(one), replace(one, seed=1)}) == 2
