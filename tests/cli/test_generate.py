"""`loraloom generate`: pictures from words, made again from themselves, and every mistake told in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.cli.commands import Call
from tests.imaging import tiny
from tests.imaging.adapters_made import made

from loraloom.imaging.recipe import read_picture

pytestmark = pytest.mark.filterwarnings("ignore:.*__array:DeprecationWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved("sd1", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tiny.diffusion(), tmp_path_factory.mktemp("adapters"), "ink", "neon")


@pytest.fixture
def generate(call: Call, base: Path, folder: Path) -> Any:
    """`loraloom generate` with a tiny base, its adapters and few steps, and further words."""

    def run(*words: object) -> Any:
        return call("generate", "--base", base, "--lora-dir", folder, "--steps", 2, *words)

    return run


def test_pictures_into_a_folder(generate: Any, tmp_path: Path) -> None:
    done = generate(
        "--prompt", "a red house", "--seed", 7, "--batch", 2, "--out", tmp_path / "new", "--lora", "ink:0.5"
    )
    assert (done.status, done.err) == (0, "")
    files = [tmp_path / "new" / f"{seed}.png" for seed in (7, 8)]
    assert done.out == "".join(f"{file}  seed {seed}\n" for file, seed in zip(files, (7, 8), strict=True))
    assert [read_picture(file).seed for file in files] == [7, 8]
    assert read_picture(files[0]).adapters[0].name == "ink"


def test_a_picture_is_made_again_and_changed(generate: Any, call: Call, folder: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / f"{name}.png" for name in ("first", "again", "other"))
    words = ("--prompt", "a (red:1.2) house <lora:neon:0.5>", "--negative", "blue", "--lora", "ink:0.4:0.8")
    assert generate(*words, "--seed", 3, "--sampler", "euler a", "--out", first).status == 0
    recipe, shelf = read_picture(first), ("--lora-dir", folder)
    assert call("generate", "--from", first, *shelf, "--out", again).status == 0
    assert again.read_bytes() == first.read_bytes()
    done = call("generate", "--from", first, *shelf, "--out", other, "--lora", "ink:1", "--guidance", 2, "--json")
    told = done.data["pictures"][0]
    assert told["file"] == str(other) and told["recipe"]["guidance"] == 2.0 and told["recipe"]["sampler"] == "Euler a"
    assert told["recipe"]["adapters"] == [{"name": "ink", "te": 1.0, "unet": 1.0}]
    assert told["recipe"]["prompt"] == recipe.prompt and told["seed"] == 3
    assert other.read_bytes() != first.read_bytes()


def test_seeds_are_drawn_and_printed(generate: Any, tmp_path: Path) -> None:
    done = [generate("--prompt", "x", "--json", "--out", tmp_path / str(n)).data["pictures"][0] for n in range(2)]
    assert done[0]["seed"] != done[1]["seed"]
    drawn = generate("--prompt", "x", "--seed", -1, "--out", tmp_path)
    (file,) = tmp_path.glob("*.png")
    assert drawn.out == f"{file}  seed {file.stem}\n"


def test_from_a_picture(generate: Any, tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "start.png")
    done = generate("--prompt", "x", "--image", tmp_path / "start.png", "--strength", 0.5, "--size", "32x48",
                    "--out", tmp_path / "end.png")  # fmt: skip
    assert done.status == 0
    recipe = read_picture(tmp_path / "end.png")
    assert (recipe.image, recipe.strength, recipe.width, recipe.height) == (str(tmp_path / "start.png"), 0.5, 32, 48)


def test_notes_go_to_stderr(generate: Any, tmp_path: Path) -> None:
    done = generate("--prompt", "a (red house", "--out", tmp_path / "x.png", "--json")
    assert done.status == 0 and done.err.startswith("note: ")
    assert done.data["pictures"][0]["notes"]


def test_files_are_not_overwritten_unasked(generate: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    assert generate("--prompt", "x", "--seed", 1, "--out", file).status == 0
    before = file.read_bytes()
    refused = generate("--prompt", "y", "--seed", 2, "--out", file)
    assert refused.status == 2 and "is there already" in refused.err and "--overwrite" in refused.err
    assert file.read_bytes() == before
    assert generate("--prompt", "y", "--seed", 2, "--out", file, "--overwrite").status == 0
    assert file.read_bytes() != before


BAD: list[tuple[tuple[object, ...], str]] = [
    ((), 'generate needs --prompt "TEXT", or --from'),
    (("--prompt", "x", "--batch", 0), "--batch is 0"),
    (("--prompt", "x", "--batch", 2, "--out", "a.png"), "one file, and 2 pictures"),
    (("--prompt", "x", "--out", "a.jpg"), "pictures are written as .png"),
    (("--prompt", "x", "--sampler", "Eulr"), "no sampler 'Eulr'; did you mean 'Euler'"),
    (("--prompt", "x", "--steps", "many"), "--steps is 'many': a whole number"),
    (("--prompt", "x", "--guidance", "strong"), "--guidance is 'strong': a number"),
    (("--prompt", "x", "--size", "60x64"), "width is 60, which is no multiple of 8"),
    (("--prompt", "x", "--size", "big"), "--size 'big' is not of the form WIDTHxHEIGHT"),
    (("--prompt", "x", "--lora", "inc:1"), "there is no lora 'inc'"),
    (("--prompt", "x", "--lora", "ink:high"), "lora 'ink:high' is not of the form"),
    (("--prompt", "<lora:neo:1>"), "did you mean 'neon'"),
    (("--prompt", "x", "--strength", 0.5), "no picture to start from"),
    (("--prompt", "x", "--image", "gone.png"), "there is no file 'gone.png'"),
    (("--prompt", "x", "--lora-dir", "gone"), "there is no folder 'gone'"),
    (("--prompt", "x", "--embeddings", "gone"), "gone"),
    (("--from", "gone.png"), "there is no picture 'gone.png'"),
    (("--prompt", "x", "--dtype", "fp7"), "dtype 'fp7' is not one of"),
    (("--prompt", "x", "--device", "gpu"), "device 'gpu'"),
]


@pytest.mark.parametrize(("words", "told"), BAD, ids=[told for _, told in BAD])
def test_mistakes_are_told_in_one_sentence(
    words: tuple[object, ...], told: str, generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = generate(*words)
    assert done.status == 2 and done.out == "" and told in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_picture_without_a_recipe(generate: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    done = generate("--from", tmp_path / "plain.png", "--out", tmp_path / "y.png")
    assert done.status == 2 and "no text chunk named 'parameters'" in done.err


def test_bad_bases(call: Call, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.ckpt")
    done = call("generate", "--prompt", "x", "--base", tmp_path / "model.ckpt")
    assert done.status == 2 and "is a pickle" in done.err
    done = call("generate", "--prompt", "x", "--base", "scenas")
    assert done.status == 2 and "'scenas'" in done.err
