"""The scenes that the small base learns from, their captions and restylings, and the checker that judges pictures."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from examples.text_to_image.checker import COLOURS as SEEN_COLOURS
from examples.text_to_image.checker import SUBJECTS as SEEN_SUBJECTS
from examples.text_to_image.checker import as_tensor, open_checker, save_checker, train_checker
from examples.text_to_image.draw_styles import draw_style
from examples.text_to_image.scenes import (
    COLOURS,
    LIGHTS,
    PLACES,
    SIDE,
    SUBJECTS,
    Scene,
    caption,
    draw,
    held_out_scenes,
    is_held_out,
    plain_caption,
    random_scene,
)
from examples.text_to_image.scenes.palette import darker, lighter, mix
from examples.text_to_image.scenes.pen import Pen, Pose
from examples.text_to_image.scenes.styles import STYLES
from PIL import Image


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=float)


def test_a_scene_is_always_drawn_alike() -> None:
    scene = Scene("cat", "orange", "snow", "sunset", 5)
    assert draw(scene).small().tobytes() == draw(scene).small().tobytes()


def test_another_seed_is_another_picture_of_the_same() -> None:
    first, second = (draw(Scene("cat", "orange", "snow", "day", seed)).small() for seed in (1, 2))
    assert first.size == (SIDE, SIDE)
    assert first.mode == "RGB"
    assert np.abs(_pixels(first) - _pixels(second)).mean() > 2


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_is_large_whole_and_in_its_colour(subject: str) -> None:
    drawing = draw(Scene(subject, "blue", "desert"))
    alpha = _pixels(drawing.subject.getchannel("A")) > 128
    assert 0.1 < alpha.mean() < 0.5
    border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
    assert not border.any()
    inside = _pixels(drawing.subject.convert("RGB"))[alpha]
    bluish = (inside[:, 2] > inside[:, 0] + 40).mean()
    assert bluish > 0.3, f"{bluish:.0%} of a blue {subject} is blue"


@pytest.mark.parametrize("colour", COLOURS)
def test_colour_changes_the_subject_and_nothing_behind_it(colour: str) -> None:
    drawing = draw(Scene("balloon", colour, "sea", seed=3))
    alpha = _pixels(drawing.subject.getchannel("A")) > 128
    mean = _pixels(drawing.subject.convert("RGB"))[alpha].mean(axis=0)
    nearest = min(COLOURS, key=lambda name: np.abs(mean - _balloon_mean(name)).sum())
    assert nearest == colour


def _balloon_mean(colour: str) -> np.ndarray:
    drawing = draw(Scene("balloon", colour, "meadow", seed=8))
    alpha = _pixels(drawing.subject.getchannel("A")) > 128
    return _pixels(drawing.subject.convert("RGB"))[alpha].mean(axis=0)


def test_light_goes_from_day_to_night() -> None:
    bright = [_pixels(draw(Scene("tree", "green", "meadow", light, 1)).small()).mean() for light in LIGHTS]
    assert bright == sorted(bright, reverse=True)
    assert bright[0] > 1.6 * bright[-1]


@pytest.mark.parametrize("place", PLACES)
def test_places_differ(place: str) -> None:
    def ground(name: str) -> np.ndarray:
        return np.mean(
            [_pixels(draw(Scene("rocket", "red", name, seed=k)).small())[52:].mean(axis=(0, 1)) for k in (1, 2)], 0
        )

    here = ground(place)
    assert all(np.abs(here - ground(other)).sum() > 20 for other in PLACES if other != place)


def test_shades_keep_the_form_of_dark_colours() -> None:
    assert sum(darker((40, 40, 50))) > 130  # lighter, in truth
    assert sum(darker((200, 40, 50))) < 290 < sum(lighter((200, 40, 50)))
    assert mix((0, 0, 0), (200, 100, 50), 0.5) == (100, 50, 25)


def test_a_pose_places_tilts_and_mirrors() -> None:
    assert Pose(100, 50, 10).at((1, -1)) == (110, 40)
    assert Pose(100, 50, 10, mirrored=True).at((1, -1)) == (90, 40)
    assert Pose(0, 0, 10, tilt=np.pi / 2).at((1, 0)) == pytest.approx((0, 10))


def test_a_pen_draws_what_it_is_told() -> None:
    pen = Pen(40, Pose(20, 20, 20))
    pen.disc(0, 0, 0.5, (255, 0, 0))
    pen.line([(-0.9, 0.9), (0.9, 0.9)], 0.1, (0, 0, 255))
    assert pen.layer.getpixel((20, 20)) == (255, 0, 0, 255)
    assert pen.layer.getpixel((20, 38)) == (0, 0, 255, 255)
    assert pen.layer.getpixel((2, 2)) == (0, 0, 0, 0)


def test_held_out_prompts_are_kept_out_and_even() -> None:
    scenes = held_out_scenes(200)
    assert len({(s.subject, s.colour, s.place, s.light) for s in scenes}) == 200
    assert all(is_held_out(s.colour, s.subject, s.place) for s in scenes)
    for names, field in ((SUBJECTS, "subject"), (COLOURS, "colour"), (PLACES, "place")):
        counts = [sum(getattr(s, field) == name for s in scenes) for name in names]
        assert min(counts) > 0.7 * max(counts)


def test_training_sees_every_pair_of_colour_and_subject() -> None:
    for subject in SUBJECTS:
        for colour in COLOURS:
            assert sum(not is_held_out(colour, subject, place) for place in PLACES) >= 3


def test_too_many_held_out_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match="210 held-out scenes, not 9999"):
        held_out_scenes(9999)


def test_captions_say_what_is_there() -> None:
    rng = random.Random(0)
    scene = Scene("house", "red", "meadow", "night")
    assert plain_caption(scene) == "a red house on a meadow at night"
    assert plain_caption(Scene("boat", "orange", "sea")) == "an orange boat by the sea"
    texts = [caption(scene, rng) for _ in range(400)]
    assert len(set(texts)) > 100
    assert all("house" in text for text in texts)
    assert np.mean(["red" in text for text in texts]) > 0.9
    assert not any(
        colour in text.split() for text in texts for colour in COLOURS if colour not in ("red", "green", "blue")
    )
    assert any(word in caption(scene, rng, poor=True) for word in ("blurry", "quality"))


def test_combinations_come_alike() -> None:
    rng = random.Random(4)
    drawn = [random_scene(rng) for _ in range(2000)]
    counts = [sum(scene.subject == subject for scene in drawn) for subject in SUBJECTS]
    assert min(counts) > 150


@pytest.fixture(scope="module")
def restyled() -> dict[str, list[Image.Image]]:
    rng = random.Random(12)
    drawings = [draw(random_scene(rng)) for _ in range(5)]
    made = {"plain": [drawing.small() for drawing in drawings]}
    return made | {name: [style.restyle(drawing) for drawing in drawings] for name, style in STYLES.items()}


@pytest.mark.parametrize("style", STYLES)
def test_a_measure_tells_its_style_from_all_else(style: str, restyled: dict[str, list[Image.Image]]) -> None:
    measure = STYLES[style].measure
    own = [measure(picture) for picture in restyled[style]]
    assert all(picture.size == (SIDE, SIDE) for picture in restyled[style])
    assert all(0 <= value <= 1 for value in own)
    for name, pictures in restyled.items():
        if name != style:
            assert np.mean(own) > 2.5 * np.mean([measure(picture) for picture in pictures]), name
    assert min(own) > max(measure(picture) for picture in restyled["plain"])


@pytest.mark.parametrize("style", STYLES)
def test_a_measure_rises_on_the_way_to_its_style(style: str, restyled: dict[str, list[Image.Image]]) -> None:
    def mean(share: float) -> float:
        pairs = zip(restyled["plain"], restyled[style], strict=True)
        return float(np.mean([STYLES[style].measure(Image.blend(plain, own, share)) for plain, own in pairs]))

    values = [mean(share) for share in (0.0, 0.5, 1.0)]
    assert values == sorted(values)


def test_a_style_set_has_captions_that_do_not_name_the_style(tmp_path: Path) -> None:
    draw_style(tmp_path / "neon", "neon", 4)
    rows = [json.loads(line) for line in (tmp_path / "neon" / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 4
    for row in rows:
        with Image.open(tmp_path / "neon" / row["file_name"]) as picture:
            assert picture.size == (SIDE, SIDE)
        assert "neon" not in row["text"]


def test_the_checker_answers_in_the_scenes_words() -> None:
    assert set(SEEN_COLOURS) == set(COLOURS)
    assert set(SEEN_SUBJECTS) == set(SUBJECTS)


def test_the_checker_learns_to_tell_subjects_and_colours(tmp_path: Path) -> None:
    asked = [(colour, subject) for colour in ("red", "blue") for subject in ("balloon", "car")]
    scenes = [Scene(subject, colour, "snow", seed=seed) for seed in range(20) for colour, subject in asked]
    pictures = np.stack([np.asarray(draw(scene).small()) for scene in scenes])
    labels = [(scene.colour, scene.subject) for scene in scenes]
    checker = train_checker(pictures, labels, epochs=12, batch=16, say=lambda line: None)
    fresh = [Scene(subject, colour, "desert", seed=900 + k) for k in range(4) for colour, subject in asked]
    seen = checker.look([draw(scene).small() for scene in fresh])
    assert np.mean([found == (s.colour, s.subject) for found, s in zip(seen, fresh, strict=True)]) >= 0.85
    save_checker(checker, tmp_path / "checker.safetensors")
    assert open_checker(tmp_path / "checker.safetensors").look([draw(s).small() for s in fresh]) == seen


def test_the_checker_takes_pictures_of_any_size() -> None:
    assert as_tensor([Image.new("L", (100, 30), 255)]).shape == (1, 3, 64, 64)
