"""The desk: painting, keeping, recipes brought back, adapters that come and go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.studio.fakes import FakePainter

from loraloom.errors import ConfigError, DataError
from loraloom.imaging.recipe import AdapterUse, Recipe, read_picture, write_parameters
from loraloom.studio.desk import Desk
from loraloom.studio.easel import Failed, Painted
from loraloom.studio.form import Form, form_of, new_seed
from loraloom.studio.places import Places

ON = {"pencil": {"on": True, "unet": 0.5, "te": 0.5, "split": False}}


def paint(desk: Desk, said: Any = None, **changes: Any) -> Any:
    form = replace(desk.first_form(), **changes)
    return list(desk.paint(form.values, said, page="a"))[-1]


def test_a_picture_is_painted_kept_and_its_settings_come_back(desk: Desk, painter: FakePainter) -> None:
    done = paint(desk, ON, prompt="a <b> cat", negative="dark", seed=7, steps=3, guidance=2.5, sampler="DDIM")
    assert isinstance(done, Painted)
    assert painter.recipes[-1].adapters == (AdapterUse("pencil", 0.5, 0.5),)
    (kept,) = desk.keep("a")
    assert kept.parent == desk.places.pictures and desk.gallery.files() == [kept]
    form, states, notes = desk.read(kept)
    assert notes == []
    assert (form.prompt, form.negative, form.seed, form.steps) == ("a <b> cat", "dark", 7, 3)
    assert (form.guidance, form.sampler) == (2.5, "DDIM")
    assert states["pencil"]["on"] and states["pencil"]["unet"] == 0.5
    again = list(desk.paint(form.values, states, page="b"))[-1]
    assert isinstance(again, Painted)
    assert again.pictures[0].image.tobytes() == Image.open(kept).tobytes()


def test_a_batch_is_kept_whole_under_names_of_its_own(desk: Desk) -> None:
    paint(desk, batch=3, seed=5)
    kept = desk.keep("a")
    assert [read_picture(path).seed for path in kept] == [5, 6, 7]
    with pytest.raises(ConfigError, match="no new picture"):
        desk.keep("a")


def test_a_live_picture_is_one(desk: Desk, painter: FakePainter) -> None:
    form = replace(desk.first_form(), batch=4)
    done = list(desk.paint(form.values, None, page="a", live=True))[-1]
    assert isinstance(done, Painted) and len(done.pictures) == 1


def test_a_failure_is_told_and_leaves_nothing_to_keep(desk: Desk) -> None:
    assert paint(desk, prompt="fail: the embedding has the wrong width") == Failed("the embedding has the wrong width")
    with pytest.raises(ConfigError):
        desk.keep("a")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": None}, "steps is empty; give a number from 1 to 150"),
        ({"steps": 2.5}, "steps: 2.5 is no whole number"),
        ({"steps": 10**9}, "steps is 1000000000"),
        ({"width": -64}, "width is -64"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": "x"}, "seed is x"),
        ({"seed": True}, "seed is True"),
        ({"batch": 99}, "pictures is 99"),
    ],
)
def test_fields_out_of_range_are_refused(desk: Desk, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told.split(";")[0]):
        paint(desk, **changes)


@pytest.mark.parametrize("name", ["/etc/passwd", "../other", "no-such", "runs"])
def test_a_tag_in_the_prompt_names_adapters_of_the_folders_alone(desk: Desk, painter: FakePainter, name: str) -> None:
    for field in ("prompt", "negative"):
        with pytest.raises(ConfigError, match="there is no such adapter in the folders"):
            paint(desk, **{field: f"a cat <lora:{name}:1>"})
    assert painter.recipes == []
    assert isinstance(paint(desk, prompt="a cat <lora:Pencil:0.5>"), Painted)


def test_what_a_recipe_has_and_the_page_has_not_is_told(desk: Desk) -> None:
    recipe = Recipe(
        prompt="x", adapters=(AdapterUse("/home/me/pencil.safetensors", 1, 1), AdapterUse("oil", 1, 1)),
        sampler="Restart", eta=0.5, base="dreams", steps=5, width=64, height=64,
    )  # fmt: skip
    form, states, notes = desk.unfold(recipe)
    assert form.sampler == "DPM++ 2M" and list(states) == ["pencil"]
    assert len(notes) == 4
    for word in ("'oil'", "'eta'", "'Restart'", "'dreams'"):
        assert any(word in note for note in notes), word


def test_a_recipe_comes_in_as_text_too(desk: Desk) -> None:
    form, _, _ = desk.read_text(write_parameters(Recipe(prompt="a\nb", seed=9, width=64, height=64, sampler="DDIM")))
    assert (form.prompt, form.seed) == ("a\nb", 9)
    for text in ("", "hello", "x" * 10_000):
        with pytest.raises(DataError):
            desk.read_text(text)


def test_bad_pictures_are_refused_in_words(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    whole = (tmp_path / "bare.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:40])
    for name in ("text.png", "bare.png", "cut.png", "none.png"):
        with pytest.raises(DataError, match=r".{20}"):
            desk.read(tmp_path / name)


def test_adapters_come_and_go_with_their_files(desk: Desk, places: Places) -> None:
    assert desk.names() == ["glass", "neon", "pencil"] and not desk.look_again()
    (places.adapters[0] / "oil.safetensors").write_bytes(b"weights")
    before = desk.version
    assert desk.look_again() and desk.version == before + 1
    assert [entry["name"] for entry in desk.entries()] == ["glass", "neon", "oil", "pencil"]
    (places.adapters[0] / "oil.safetensors").unlink()
    assert desk.look_again() and "oil" not in desk.names()


def test_drafts_do_not_pile_up_and_go_with_the_desk(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraloom.studio.desk._DRAFTS", 2)
    done = paint(desk)
    files = [desk.draft(done.pictures[0]) for _ in range(4)]
    assert [path.exists() for path in files] == [False, False, True, True]
    assert read_picture(files[-1]).prompt == desk.first_form().prompt
    desk.close()
    assert not files[-1].exists()


def test_the_gallery_finds_and_removes_its_own_files_alone(desk: Desk, tmp_path: Path) -> None:
    paint(desk)
    (kept,) = desk.keep("a")
    (tmp_path / "other.png").write_bytes(b"")
    for name in ("../other.png", "other.png", str(tmp_path / "other.png"), ""):
        with pytest.raises(ConfigError):
            desk.gallery.remove(name)
    desk.gallery.remove(kept.name)
    assert desk.gallery.files() == [] and (tmp_path / "other.png").exists()


def test_the_form_is_the_recipe_and_back(desk: Desk) -> None:
    form = Form("a", "b", "DDIM", 3, 2.0, 64, 96, new_seed(), 1, 2)
    assert form_of(desk.recipe(form.values, None)) == form
    assert Form.of(form.values) == form
