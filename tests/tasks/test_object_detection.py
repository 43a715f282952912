"""Object detection but for the models: pictures and boxes as tensors, variation, scores, answers and drawings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tasks.detectors import draw, make_base, write_scenes

import loraloom.tasks.vision.detection_score as detection_score
from loraloom.data.config import DataConfig
from loraloom.data.table import Example
from loraloom.errors import BaseModelError, ConfigError, DataError, FormatError, MissingExtraError, OutputError
from loraloom.tasks import create_task
from loraloom.tasks.base import AnswerOptions, LeavesFiles
from loraloom.tasks.object_detection import ObjectDetection, ObjectDetectionOptions, detections
from loraloom.tasks.vision.detection_input import (
    PictureCache,
    Preparation,
    Variation,
    batch_of,
    clipped,
    normalised_boxes,
    pixel_boxes,
    prepare,
    vary,
)
from loraloom.tasks.vision.detection_score import Detections, Truth, average_precision, score_boxes
from loraloom.tasks.vision.drawing import DrawnBox, class_colour, draw_boxes, text_colour

RED, GREEN, GREY = (220, 40, 40), (30, 160, 60), (120, 120, 120)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(write_scenes(tmp_path / "scenes"), "test")


# --- sizes and batches


@pytest.mark.parametrize(
    ("preparation", "expected"),
    [
        (Preparation(None, 320, None, True), (240, 320)),
        (Preparation(240, None, None, True), (240, 320)),
        (Preparation(800, 1000, None, True), (750, 1000)),
        (Preparation(None, None, (128, 128), False), (96, 128)),
        (Preparation(None, None, (48, 128), False), (48, 64)),
        (Preparation(None, None, (48, 128), False, keep_aspect=False), (48, 128)),
    ],
)
def test_sizes_keep_the_aspect(preparation: Preparation, expected: tuple[int, int]) -> None:
    assert preparation.size(640, 480) == expected


@pytest.mark.parametrize("masked", [True, False])
def test_boxes_lie_on_what_they_are_of(masked: bool, tmp_path: Path) -> None:
    """The red rectangle is where the normalised box says, and the box comes back in the file's pixels."""
    box = (40, 12, 20, 30)
    file = draw(tmp_path / "a.png", {box: "red"}, size=(80, 60))
    canvas = None if masked else (64, 64)
    preparation = Preparation(None, 40 if masked else None, canvas, masked, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    inputs = {"file": str(file), "size": (80, 60), "boxes": [list(box)], "labels": [1]}
    wide = {**inputs, "file": str(draw(tmp_path / "b.png", {}, size=(60, 60))), "size": (60, 60), "boxes": []}
    cache = PictureCache()
    pictures = [prepare(one, preparation, cache) for one in (inputs, {**wide, "labels": []})]
    batch = batch_of(pictures, preparation, torch.float32)
    assert batch["pixel_values"].shape == ((2, 3, 40, 40) if masked else (2, 3, 64, 64))
    boxes = batch["labels"][0]["boxes"]
    unit = torch.tensor([40.0, 30.0] if masked else [64.0, 64.0])
    x, y = (boxes[0, :2] * unit).round().long().tolist()
    left = int((boxes[0, 0] - boxes[0, 2] / 2) * unit[0])
    values = batch["pixel_values"][0]
    assert values[:, y, x].round().tolist() == list(RED) and values[:, y, left - 2].round().tolist() == list(GREY)
    if masked:
        assert batch["pixel_mask"].sum((1, 2)).tolist() == [30 * 40, 40 * 40]
    back = pixel_boxes(boxes[None], batch["scales"][:1], batch["sizes"][:1])
    assert torch.allclose(back, torch.tensor([[list(map(float, box))]]), atol=1e-3)


def test_a_box_leaves_as_it_came() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0], [0.0, 0.0, 100.0, 80.0]])
    shares = normalised_boxes(boxes, 100, 80)
    assert shares.tolist() == [[0.25, 0.5, pytest.approx(0.3), 0.5], [0.5, 0.5, 1.0, 1.0]]
    size = torch.tensor([[100.0, 80.0]])
    assert torch.allclose(pixel_boxes(shares[None], size, size)[0], boxes)
    beyond = torch.tensor([[[0.0, 0.5, 0.5, 2.0]]])
    assert pixel_boxes(beyond, size, size).tolist() == [[[0.0, 0.0, 25.0, 80.0]]], "cut at the picture's edge"


def test_the_preparation_survives_its_file(tmp_path: Path) -> None:
    from loraloom.tasks.models.bases import ResolvedBase
    from loraloom.tasks.vision.detector import preparation_of

    config: Any = type("Config", (), {"model_type": "detr", "image_size": None})()
    base = ResolvedBase("x", tmp_path, "folder", "")
    for size in (96, (64, 96), None):
        (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
        first = preparation_of(base, config, size, True)
        first.save_pretrained(tmp_path)
        again = preparation_of(base, config, None, True)
        assert again.size(640, 480) == first.size(640, 480) and again.canvas == first.canvas
    (tmp_path / "preprocessor_config.json").write_text('{"size": 3', "utf-8")
    with pytest.raises(BaseModelError, match="cannot be read as JSON"):
        preparation_of(base, config, None, True)


@pytest.mark.parametrize(
    ("raw", "kind", "expected"),
    [
        ({"size": {"shortest_edge": 480, "longest_edge": 600}}, "detr", (450, 600)),
        ({"size": 480, "max_size": 600}, "conditional_detr", (450, 600)),
        ({"size": {"height": 640, "width": 640}}, "rt_detr", (480, 640)),
        ({"size": {"longest_edge": 1333, "shortest_edge": 800}}, "yolos", (750, 1000)),
        ({}, "detr", (800, 1067)),
    ],
)
def test_the_base_says_how_large_pictures_are(raw: Any, kind: str, expected: tuple[int, int], tmp_path: Path) -> None:
    import json

    from loraloom.tasks.models.bases import ResolvedBase
    from loraloom.tasks.vision.detector import preparation_of

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw), "utf-8")
    config: Any = type("Config", (), {"model_type": kind, "image_size": None, "patch_size": 16})()
    found = preparation_of(ResolvedBase("x", tmp_path, "folder", ""), config, None, True)
    if kind == "yolos":  # no mask: one canvas for all, as large as the longer side may be
        assert found.canvas == (1344, 1344)
    else:
        assert found.size(640, 480) == expected


# --- variation


def test_flipping_moves_boxes_with_the_picture() -> None:
    pixels = torch.zeros(3, 8, 10)
    pixels[:, 2:5, 1:4] = 200
    boxes = torch.tensor([[1.0, 2.0, 3.0, 3.0]])
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        picture, found, kept = vary(pixels, boxes, Variation(flip=True, zoom=1.0, colour=0.0))
        x, y, w, h = (int(side) for side in found[0])
        assert picture[:, y : y + h, x : x + w].min() == 200 and picture.sum() == pixels.sum() and kept.all()
        seen.add(x)
    assert seen == {1, 6}


def test_zoom_keeps_boxes_on_their_things() -> None:
    pixels = torch.full((3, 60, 80), 100.0)
    pixels[:, 20:40, 30:50] = 250.0
    boxes = torch.tensor([[30.0, 20.0, 20.0, 20.0]])
    widths = set()
    for seed in range(20):
        torch.manual_seed(seed)
        picture, found, _ = vary(pixels, boxes, Variation(flip=True, zoom=1.5, colour=0.0))
        assert picture.shape == pixels.shape
        x, y, w, h = found[0].tolist()
        inner = picture[:, math.ceil(y + 1) : int(y + h - 1), math.ceil(x + 1) : int(x + w - 1)]
        assert inner.min() > 240
        assert abs(float((picture[0] > 175).sum()) - w * h) < 2.5 * (w + h)
        widths.add(round(w))
    assert min(widths) < 17 and max(widths) > 24


def test_boxes_of_which_little_is_left_are_dropped() -> None:
    boxes = torch.tensor([[-8.0, 0.0, 10.0, 10.0], [-8.1, 0.0, 10.0, 10.0], [90.0, 70.0, 40.0, 10.0], [200.0, 0, 5, 5]])
    found, kept = clipped(boxes, 100, 80)
    assert kept.tolist() == [True, False, True, False]
    assert found.tolist() == [[0, 0, 2, 10], [90, 70, 10, 10]]


def test_variation_is_drawn_from_the_global_generator_alone(scenes: Path, tmp_path: Path) -> None:
    task = ObjectDetection(ObjectDetectionOptions(image_size=64))
    source = str(scenes / "annotations_train.json")
    splits = task.read(DataConfig(train=source, eval=source), seed=0)
    base = task.load(str(make_base(tmp_path / "base", "yolos")))
    features = task.encode(splits.train, base).features

    def pixels(seed: int, *, training: bool) -> torch.Tensor:
        torch.manual_seed(seed)
        return task.collate(features, base, training=training)["pixel_values"]

    assert torch.equal(pixels(0, training=True), pixels(0, training=True))
    assert not torch.equal(pixels(0, training=True), pixels(1, training=True))
    assert torch.equal(pixels(0, training=False), pixels(1, training=False))


def test_the_cache_forgets_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraloom.tasks.vision.detection_input.CACHED_BYTES", 3000)
    cache = PictureCache()
    files = [str(draw(tmp_path / f"{number}.png", {})) for number in range(3)]
    first = cache.resized(files[0], (20, 20))
    assert cache.resized(files[0], (20, 20)) is first
    for file in files[1:]:
        cache.resized(file, (20, 20))
    assert cache.resized(files[0], (20, 20)) is not first


# --- scores


def test_perfect_and_absent_predictions() -> None:
    truths = [Truth((64, 48), [[5, 5, 20, 20], [30, 5, 10, 10]], [0, 1], [400, 100], [False, False])] * 3
    exact = [Detections(truth.boxes, truth.labels, [0.9, 0.8]) for truth in truths]
    scores = score_boxes(exact, truths, ("a", "b"))
    assert scores["map"] == scores["map50"] == scores["map50_a"] == scores["map50_low"] == pytest.approx(1.0)
    assert "map_large" not in scores, "a size that no box has is no score of −1"
    assert scores["map_small"] == pytest.approx(1.0) and scores["n"] == 3
    none = score_boxes([Detections([], [], [])] * 3, truths, ("a", "b"))
    assert none["map"] == none["map50_high"] == 0.0
    wrong = [one._replace(labels=[1, 0]) for one in exact]
    assert score_boxes(wrong, truths, ("a", "b"))["map50"] == 0.0


def random_case(seed: int, pictures: int = 12) -> tuple[list[Detections], list[Truth]]:
    """Boxes with some noise, some of them missed, crowds, empty pictures and false alarms."""
    rng = np.random.default_rng(seed)
    found, truths = [], []
    for number in range(pictures):
        count = 0 if number == 3 else int(rng.integers(1, 6))
        boxes = [[*rng.uniform(0, 60, 2), *rng.uniform(8, 60, 2)] for _ in range(count)]
        labels = [int(label) for label in rng.integers(0, 3, count)]
        crowd = [bool(rng.random() < 0.1) for _ in range(count)]
        truths.append(Truth((128, 128), boxes, labels, [box[2] * box[3] for box in boxes], crowd))
        kept = [i for i in range(count) if rng.random() < 0.8]
        guesses = [([side + rng.normal(0, 3) for side in boxes[i]], labels[i], rng.random()) for i in kept]
        guesses += [([*rng.uniform(0, 60, 2), 20, 20], int(rng.integers(0, 3)), rng.random()) for _ in range(4)]
        guesses.sort(key=lambda guess: -guess[2])
        found.append(Detections(*(list(column) for column in zip(*guesses, strict=True))))  # type: ignore[arg-type]
    return found, truths


@pytest.mark.parametrize("seed", range(3))
def test_our_average_is_cocos(seed: int) -> None:
    found, truths = random_case(seed)
    judged = detection_score._judged(found, truths, ("a", "b", "c"))
    classes = detection_score._by_class(judged, len(truths))
    ours = average_precision(classes, np.ones((1, len(truths))))
    assert np.nanmean(ours) == pytest.approx(judged.stats[0], abs=1e-12)
    assert np.nanmean(ours[:, :, 0]) == pytest.approx(judged.stats[1], abs=1e-12)
    # a draw that holds some pictures twice and others never is what COCO gives for such a set
    drawn = np.random.default_rng(seed).integers(0, 3, len(truths))
    repeated = [number for number, times in enumerate(drawn) for _ in range(times)]
    again = detection_score._judged([found[n] for n in repeated], [truths[n] for n in repeated], ("a", "b", "c"))
    weighted = average_precision(classes, drawn[None].astype(float))
    assert np.nanmean(weighted) == pytest.approx(again.stats[0], abs=1e-12)


def test_intervals_hold_the_score_and_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    found, truths = random_case(5)
    scores = score_boxes(found, truths, ("a", "b", "c"))
    for key in ("map", "map50"):
        assert scores[f"{key}_low"] < scores[key] < scores[f"{key}_high"]
    assert scores == score_boxes(found, truths, ("a", "b", "c"))
    assert capsys.readouterr() == ("", ""), "pycocotools prints"


def test_a_crowd_swallows_what_matches_it() -> None:
    truth = Truth((100, 100), [[0, 0, 50, 50], [60, 60, 30, 30]], [0, 0], [2500, 900], [True, False])
    found = Detections([[5, 5, 20, 20], [60, 60, 30, 30]], [0, 0], [0.9, 0.8])
    assert score_boxes([found], [truth], ("a",))["map50"] == pytest.approx(1.0)
    alone = Truth(truth.size, truth.boxes, truth.labels, truth.areas, [False, False])
    assert score_boxes([found], [alone], ("a",))["map50"] < 0.6


def test_nothing_to_score_and_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="2 pictures without any box"):
        score_boxes([Detections([], [], [])] * 2, [Truth((9, 9), [], [], [], [])] * 2, ("a",))
    monkeypatch.setattr(detection_score, "COCO", None)
    with pytest.raises(MissingExtraError, match=r'pip install "loraloom\[detection\]"'):
        detection_score.check_installed()


# --- from outputs to boxes


def test_softmax_gives_each_query_its_best_class_but_nothing() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 5.0], [0.0, 3.0, 1.0]])
    boxes = torch.arange(12.0).reshape(3, 4)
    found = detections(logits, boxes, 2)
    expected = [row.softmax(0)[label] for row, label in ((logits[2], 1), (logits[0], 0), (logits[1], 1))]
    assert found.labels == [1, 0, 1]
    assert found.scores == pytest.approx([float(score) for score in expected])
    assert found.boxes == [boxes[2].tolist(), boxes[0].tolist(), boxes[1].tolist()]


def test_sigmoids_may_give_a_query_twice() -> None:
    logits = torch.tensor([[2.0, 3.0], [-1.0, 0.0]])
    found = detections(logits, torch.arange(8.0).reshape(2, 4), 2)
    assert found.labels == [1, 0, 1, 0]
    assert found.boxes[0] == found.boxes[1] == [0.0, 1.0, 2.0, 3.0]
    assert found.scores == pytest.approx([1 / (1 + math.exp(-value)) for value in (3, 2, 0, -1)])
    many = detections(torch.zeros(90, 2), torch.zeros(90, 4), 2)
    assert len(many.scores) == 100


# --- the task


def made(tmp_path: Path) -> ObjectDetection:
    task = ObjectDetection()
    task.restore({"labels": ["green", "red"], "image_size": [48, 64]})
    return task


def test_reading_sets_labels_and_keeps_the_test_split(scenes: Path) -> None:
    task = create_task("object-detection", image_size=[48, 64])
    splits = task.read(DataConfig(train=str(scenes), eval=str(scenes)), seed=0)
    assert isinstance(task, ObjectDetection) and task.names == ("green", "red")
    assert (len(splits.train), len(splits.evaluation)) == (4, 4)
    assert any("repeat training examples" in note for note in splits.notes), "the same pictures in both parts"
    assert task.options.image_size == (48, 64)


def test_without_held_out_pictures_some_are_set_aside(scenes: Path) -> None:
    data = DataConfig(train=str(scenes / "annotations_train.json"), eval_fraction=0.3)
    splits = ObjectDetection().read(data, seed=0)
    assert len(splits.train) + len(splits.evaluation) == 4 and splits.evaluation


def test_labels_only_in_evaluation_are_refused(scenes: Path) -> None:
    file = scenes / "annotations_test.json"
    file.write_text(file.read_text("utf-8").replace('"red"', '"rde"'), "utf-8")
    with pytest.raises(DataError, match="not trained on, 'rde'.*did you mean 'red'"):
        ObjectDetection().read(DataConfig(train=str(scenes), eval=str(scenes)), seed=0)


def test_pictures_to_look_at_need_no_boxes(scenes: Path, tmp_path: Path) -> None:
    task = made(tmp_path)
    folder = str(scenes / "test")
    assert len(task.read_more(folder, DataConfig(train=folder), labelled=False)) == 4
    one = task.question(str(scenes / "test" / "1.png"), 1)
    assert (one.values["width"], one.values["height"]) == (64, 48)
    with pytest.raises(DataError, match="does not exist"):
        task.question(str(scenes / "test" / "11.png"), 1)
    labelled = task.read_more(str(scenes), DataConfig(train=str(scenes)), labelled=True)
    assert [len(example.values["boxes"]) for example in labelled] == [2, 1, 3, 0]


def test_the_state_comes_back(tmp_path: Path) -> None:
    task = made(tmp_path)
    again = ObjectDetection()
    again.restore(task.state())
    assert (again.names, again.options) == (task.names, task.options)
    for broken in ({}, {"labels": []}, {"labels": [1]}):
        with pytest.raises(FormatError, match="no list of label names"):
            ObjectDetection().restore(broken)
    with pytest.raises(ConfigError, match="not known before"):
        _ = ObjectDetection().names


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="no option 'imagesize'.*did you mean 'image_size'"):
        create_task("object-detection", imagesize=3)
    with pytest.raises(ConfigError):
        create_task("object-detection", zoom=0.5)
    for size in (0, [64], [64, -1]):
        with pytest.raises(ConfigError):
            create_task("object-detection", image_size=size)


FOUND = Detections([[4.004, 4, 20, 16], [36, 20, 16, 20], [1, 1, 4, 4]], [1, 0, 0], [0.9, 0.6, 0.2])


def test_told_are_the_boxes_above_the_threshold(tmp_path: Path) -> None:
    task = made(tmp_path)
    assert task.describe(FOUND)["boxes"] == [
        {"label": "red", "score": 0.9, "box": [4.0, 4, 20, 16]},
        {"label": "green", "score": 0.6, "box": [36, 20, 16, 20]},
    ]
    assert len(task.describe(FOUND, AnswerOptions(threshold=0))["boxes"]) == 3
    assert task.describe(FOUND, AnswerOptions(threshold=0.95)) == {"boxes": []}
    assert task.answer_options == {"threshold"} and isinstance(task, LeavesFiles)


def test_the_drawn_picture_shows_frames_in_the_class_colour(scenes: Path, tmp_path: Path) -> None:
    task = made(tmp_path)
    example = Example({"file": str(scenes / "test" / "1.png")}, "file", 1)
    path = task.write_file(FOUND, example, tmp_path / "out.v2", AnswerOptions())
    assert path == tmp_path / "out.v2.png"
    with Image.open(path) as drawn:
        assert min(drawn.size) >= 320, "a small picture is enlarged"
        colours = {colour for _, colour in drawn.getcolors(10**6) or ()}
    assert {class_colour(0), class_colour(1)} <= colours
    with pytest.raises(OutputError, match="cannot be written"):
        task.write_file(FOUND, example, tmp_path / "no" / "where", AnswerOptions())


def test_text_can_be_read_on_every_class_colour() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [part / 3294.6 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    colours = [class_colour(number) for number in range(24)]
    assert len(set(colours)) == 24
    for colour in colours:
        bright, dark = sorted((luminance(colour), luminance(text_colour(colour))), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) > 4.5, "WCAG 2, level AA"


@pytest.mark.parametrize("size", [(8, 8), (700, 40), (640, 480)])
def test_any_picture_can_be_drawn_on(size: tuple[int, int]) -> None:
    boxes = [DrawnBox([0, 0, size[0], size[1]], "everything 1.00", 0), DrawnBox([2, 2, 0, 0], "nothing 0.50", 1)]
    assert draw_boxes(Image.new("RGB", size, "white"), boxes).size >= size
