"""The task's own parts: reading pictures, fitting them, batches, scores, state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from loraloom.data.config import DataConfig
from loraloom.data.table import Example
from loraloom.errors import BaseModelError, ConfigError, DataError, FormatError
from loraloom.tasks import create_task
from loraloom.tasks.base import AnswerOptions, BaseModel, DrawsScores, Task
from loraloom.tasks.image_classification import ImageClassification, Prediction, convolution_targets
from loraloom.tasks.vision.confusion import confusion, draw_confusion
from loraloom.tasks.vision.image_processing import PictureProcessor, PictureStore, read_processor

from .picture_models import LABELS, SIZE, draw, draw_folder, make_picture_base


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train and test, a folder per class in each; to be read only."""
    root = tmp_path_factory.mktemp("pictures")
    draw_folder(root / "train", 6)
    draw_folder(root / "test", 2, first=500)
    return root


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_picture_base(tmp_path_factory.mktemp("bases") / "vit", "vit")


def make_task(**options: Any) -> ImageClassification:
    task = create_task("image-classification", **options)
    assert isinstance(task, ImageClassification)
    return task


def labelled_task(**options: Any) -> ImageClassification:
    task = make_task(**options)
    task.restore({"labels": list(LABELS)})
    return task


def config(root: Path, **more: Any) -> DataConfig:
    return DataConfig(train=str(root / "train"), eval=str(root / "test"), **more)


def test_it_is_a_task() -> None:
    task: Task = make_task()
    assert isinstance(task, DrawsScores)
    assert task.asks_for == "file" and task.answer_options == {"top_k"}


# --- reading


def test_folder_per_class(pictures: Path) -> None:
    task = make_task()
    splits = task.read(config(pictures), seed=0)
    assert task.labels.names == LABELS
    assert (len(splits.train), len(splits.evaluation)) == (18, 6)
    first = splits.train[0].values
    assert (first["label"], first["width"], first["height"]) == ("circle", 40, 36)
    assert any(note.startswith("3 labels: circle (6)") for note in splits.notes)


def test_splits_of_one_folder(pictures: Path) -> None:
    splits = make_task().read(DataConfig(train=str(pictures), eval_split="test"), seed=0)
    assert (len(splits.train), len(splits.evaluation)) == (18, 6)


def test_table_with_paths(pictures: Path, tmp_path: Path) -> None:
    rows = [f"{file},{file.parent.name}" for file in sorted((pictures / "train").rglob("*.png"))]
    (tmp_path / "table.csv").write_text("\n".join(["image,kind", *rows]) + "\n", "utf-8")
    task = make_task()
    splits = task.read(DataConfig(train=str(tmp_path / "table.csv"), columns={"label": "kind"}), seed=0)
    assert task.labels.names == LABELS
    assert len(splits.train) + len(splits.evaluation) == 18 and splits.evaluation
    more = task.read_more(str(tmp_path / "table.csv"), DataConfig(train="x"), labelled=True)
    assert len(more) == 18, "the column that training read is looked for first"


def test_part_is_set_aside_of_each_class_without_twins(pictures: Path, tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "all", 10)
    twin = root / "circle" / "twin.png"
    twin.write_bytes((root / "circle" / "0.png").read_bytes())
    splits = make_task().read(DataConfig(train=str(root), eval_fraction=0.2), seed=0)
    held = [example.values["label"] for example in splits.evaluation]
    assert {label: held.count(label) for label in LABELS} == {label: 2 for label in LABELS}
    sides = {Path(e.values["file"]).name for e in splits.train if e.values["label"] == "circle"}
    assert {"twin.png", "0.png"} <= sides or not {"twin.png", "0.png"} & sides


def test_leaks_are_told(pictures: Path, tmp_path: Path) -> None:
    draw_folder(tmp_path / "test", 2)  # the first pictures of training again
    splits = make_task().read(DataConfig(train=str(pictures / "train"), eval=str(tmp_path / "test")), seed=0)
    assert any("6 of 6 evaluation examples repeat training examples" in note for note in splits.notes)


def test_label_that_training_never_saw(pictures: Path, tmp_path: Path) -> None:
    draw_folder(tmp_path / "test", 1)
    (tmp_path / "test" / "circle").rename(tmp_path / "test" / "circles")
    with pytest.raises(DataError, match="'circles' is not among those.*did you mean 'circle'"):
        make_task().read(DataConfig(train=str(pictures / "train"), eval=str(tmp_path / "test")), seed=0)


def test_bad_pictures_are_named_or_skipped(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "train", 4)
    (root / "circle" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    data = DataConfig(train=str(root), eval_fraction=0.25)
    with pytest.raises(DataError, match=r"broken\.jpg"):
        make_task().read(data, seed=0)
    splits = make_task().read(data.model_copy(update={"skip_bad": True}), seed=0)
    assert len(splits.train) + len(splits.evaluation) == 12
    assert any("broken.jpg" in note for note in splits.notes)


def test_classes_can_be_chosen(pictures: Path) -> None:
    task = make_task()
    splits = task.read(config(pictures, where={"label": ["cross", "stripes"]}), seed=0)
    assert task.labels.names == ("cross", "stripes")
    assert (len(splits.train), len(splits.evaluation)) == (12, 4)


def test_animations_are_told_of(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "train", 4)
    frames = [draw("circle", seed) for seed in (90, 91)]
    frames[0].save(root / "circle" / "moving.gif", save_all=True, append_images=frames[1:])
    splits = make_task().read(DataConfig(train=str(root), eval_fraction=0.25), seed=0)
    assert any("moving.gif" in note and "the first one" in note for note in splits.notes)


def test_question_is_one_picture(pictures: Path, vit: Path) -> None:
    task = labelled_task()
    base = task.load(str(vit))
    example = task.question(str(pictures / "test" / "cross" / "0.png"), 1)
    batch = task.collate(task.encode([example], base).features, base)
    assert batch.keys() == {"pixel_values"} and batch["pixel_values"].shape == (1, 3, SIZE, SIZE)
    with pytest.raises(DataError, match="absent.png"):
        task.question("absent.png", 1)


def test_unlabelled_folder_for_prediction(tmp_path: Path) -> None:
    draw("cross", 1).save(tmp_path / "a.png")
    examples = labelled_task().read_more(str(tmp_path), DataConfig(train="x"), labelled=False)
    assert [Path(example.values["file"]).name for example in examples] == ["a.png"]
    assert "label" not in examples[0].values


# --- options


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image_sise": 64}, "no option 'image_sise'.*did you mean 'image_size'"),
        ({"image_size": 4}, "image_size"),
        ({"resize": "fit"}, "resize.*'crop', 'pad' or 'stretch'"),
        ({"augment": "heavy"}, "augment.*'none', 'light' or 'strong'"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        create_task("image-classification", **options)


# --- how pictures are prepared


def halves(width: int, height: int) -> Image.Image:
    """Left half black, right half white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    return Image.fromarray(pixels)


def test_crop_keeps_aspect_and_the_middle() -> None:
    fitted = PictureProcessor(20, 20).fit(halves(200, 40))
    assert fitted.shape == (20, 20, 3)
    assert fitted[:, :9].max() < 30 and fitted[:, 11:].min() > 225
    circle = PictureProcessor(64, 64).fit(draw("circle", 1, (160, 80)))
    bright = circle.mean(2) > 120
    assert abs(bright.any(0).sum() - bright.any(1).sum()) <= 3, "a circle stays one"


def test_pad_shows_all_on_the_colour_that_is_zero() -> None:
    processor = PictureProcessor(20, 20, "pad", mean=(0.2, 0.4, 0.6))
    fitted = processor.fit(halves(200, 100))
    assert (fitted[:5] == (51, 102, 153)).all() and (fitted[15:] == (51, 102, 153)).all()
    assert fitted[5:15, :8].max() < 30 and fitted[5:15, 12:].min() > 225
    values = processor.normalise(torch.from_numpy(fitted).permute(2, 0, 1)[None].float())
    assert values[0, :, 0].abs().max() < 1e-6


def test_stretch_shows_all_of_it() -> None:
    fitted = PictureProcessor(20, 20, "stretch").fit(halves(200, 40))
    assert fitted[:, 0].max() == 0 and fitted[:, -1].min() == 255
    assert abs(int(fitted.mean()) - 127) < 3


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (30_000, 1), (1, 30_000), (7, 5)])
def test_extreme_pictures_come_to_the_size(resize: Any, size: tuple[int, int]) -> None:
    fitted = PictureProcessor(24, 16, resize).fit(Image.new("RGB", size, "red"), margin=1.5)
    assert fitted.shape == (36, 24, 3)
    assert (fitted == (255, 0, 0)).all(-1).any()


def test_normalisation_is_that_of_the_formula() -> None:
    processor = PictureProcessor(2, 2, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    values = torch.rand(2, 3, 2, 2) * 255
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    torch.testing.assert_close(processor.normalise(values), (values / 255 - mean) / std)


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_written_file_means_the_same_to_transformers(resize: Any, tmp_path: Path) -> None:
    processor = PictureProcessor(32, 32, resize, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), resample=3)
    processor.save_pretrained(tmp_path)
    again, notes = read_processor(tmp_path, config=None, size=None, resize=resize)
    assert again == processor and not notes
    from transformers import AutoImageProcessor

    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    picture = draw("circle", 3, (90, 60))
    expected = torch.as_tensor(np.asarray(theirs(picture)["pixel_values"]))
    ours = processor.normalise(torch.from_numpy(processor.fit(picture)).permute(2, 0, 1)[None].float())
    assert (ours - expected).abs().mean() < 0.06


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ({"size": 40}, (40, 40)),
        ({"size": {"height": 40, "width": 48}}, (40, 48)),
        ({"size": {"shortest_edge": 50}, "do_center_crop": True, "crop_size": 40}, (40, 40)),
        ({"size": 256, "do_center_crop": True, "crop_size": {"height": 40, "width": 48}}, (40, 48)),
        ({"size": {"shortest_edge": 44}, "crop_pct": 0.875}, (44, 44)),
        ({}, (64, 96)),
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 40}, (40, 40)),
    ],
)
def test_sizes_in_all_their_spellings(told: dict[str, Any], size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told), "utf-8")
    model = type("Config", (), {"image_size": [64, 96], "num_channels": 3})
    processor, _ = read_processor(tmp_path, config=model, size=None, resize="crop")
    assert (processor.height, processor.width) == size
    given, _ = read_processor(tmp_path, config=model, size=(10, 12), resize="crop")
    assert (given.height, given.width) == (10, 12)


def test_preprocessor_values_are_used(tmp_path: Path) -> None:
    told = {"image_mean": [0.1, 0.2, 0.3], "image_std": 0.25, "resample": 0, "rescale_factor": 0.5}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told), "utf-8")
    found, _ = read_processor(tmp_path, config=None, size=None, resize="crop")
    assert (found.mean, found.std, found.resample, found.rescale) == ((0.1, 0.2, 0.3), (0.25,) * 3, 0, 0.5)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}), "utf-8")
    found, _ = read_processor(tmp_path, config=None, size=None, resize="crop")
    assert (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("content", ["{", "[]", '{"image_mean": [1, 2]}', '{"resample": "soft"}'])
def test_damaged_preprocessor_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content, "utf-8")
    with pytest.raises(BaseModelError, match="preprocessor_config.json"):
        read_processor(tmp_path, config=None, size=None, resize="crop")


def test_grey_and_many_channel_models(tmp_path: Path) -> None:
    grey = type("Config", (), {"num_channels": 1, "image_size": 8})
    processor, _ = read_processor(tmp_path, config=grey, size=None, resize="crop")
    assert processor.normalise(torch.full((2, 3, 8, 8), 255.0)).shape == (2, 1, 8, 8)
    with pytest.raises(BaseModelError, match="4 channels"):
        read_processor(tmp_path, config=type("Config", (), {"num_channels": 4}), size=None, resize="crop")


def test_store_decodes_once_within_its_budget(tmp_path: Path) -> None:
    files = []
    for seed in range(3):
        files.append(str(tmp_path / f"{seed}.png"))
        draw("cross", seed).save(files[-1])
    processor, calls = PictureProcessor(10, 10), []

    def fit(picture: Image.Image) -> Any:
        calls.append(picture)
        return processor.fit(picture)

    store = PictureStore(budget=2 * 300)
    first = store.rows(files, "10x10", fit)
    assert first.shape == (3, 10, 10, 3) and first.dtype == np.uint8 and store.used == 600
    assert (store.rows(files, "10x10", fit) == first).all() and len(calls) == 4
    store.rows(files[:1], "other", fit)
    assert len(calls) == 5, "another way to fit is another picture"


# --- batches and losses


def features_of(task: ImageClassification, root: Path, base: BaseModel, count: int = 4) -> list[Any]:
    splits = task.read(config(root), seed=0)
    return task.encode(splits.train[::5][:count], base).features


def test_evaluation_batches_do_not_vary_and_training_ones_do(pictures: Path, vit: Path) -> None:
    task = labelled_task(flip=True)
    base = task.load(str(vit))
    features = features_of(task, pictures, base)
    state = torch.random.get_rng_state()
    still = task.collate(features, base)
    task.collate(features, base)
    torch.manual_seed(1)
    first = task.collate(features, base, training=True)["pixel_values"]
    torch.manual_seed(1)
    assert torch.equal(first, task.collate(features, base, training=True)["pixel_values"])
    torch.random.set_rng_state(state)
    assert torch.equal(still["pixel_values"], task.collate(features, base)["pixel_values"])
    assert first.shape == still["pixel_values"].shape == (4, 3, SIZE, SIZE)
    assert not torch.equal(first, still["pixel_values"])
    assert still["labels"].tolist() == [0, 0, 1, 2]


def test_without_augmentation_training_sees_what_evaluation_sees(pictures: Path, vit: Path) -> None:
    task = labelled_task(augment="none")
    base = task.load(str(vit))
    features = features_of(task, pictures, base)
    both = [task.collate(features, base, training=training)["pixel_values"] for training in (False, True)]
    assert torch.equal(*both)


def test_pixels_are_in_the_precision_of_the_model(pictures: Path, vit: Path) -> None:
    task = labelled_task()
    base = task.load(str(vit), dtype=torch.bfloat16)
    batch = task.collate(features_of(task, pictures, base), base, training=True)
    assert batch["pixel_values"].dtype == torch.bfloat16
    assert task.outputs(base.model, batch).dtype == torch.float32


def test_loss_is_a_sum_of_smoothed_cross_entropies(pictures: Path, vit: Path) -> None:
    task = labelled_task(label_smoothing=0.1)
    base = task.load(str(vit))
    batch = task.collate(features_of(task, pictures, base), base)
    loss, count = task.loss(base.model, batch)
    logits = task.outputs(base.model, batch)
    target = functional.one_hot(batch["labels"], 3) * 0.9 + 0.1 / 3
    torch.testing.assert_close(loss, -(target * logits.log_softmax(-1)).sum())
    assert count == 4


# --- results


def test_scores_and_description() -> None:
    task = labelled_task()
    predictions = [Prediction(0, [0.7, 0.2, 0.1]), Prediction(2, [0.1, 0.3, 0.6]), Prediction(1, [0.2, 0.5, 0.3])]
    scores = task.score(predictions, [0, 2, 0])
    assert scores["accuracy"] == pytest.approx(2 / 3) and scores["n"] == 3
    assert scores["accuracy_low"] < 2 / 3 < scores["accuracy_high"]
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert task.describe(predictions[0]) == {
        "label": "circle",
        "score": 0.7,
        "scores": {"circle": 0.7, "cross": 0.2, "stripes": 0.1},
    }
    assert list(task.describe(predictions[1], AnswerOptions(top_k=2))["scores"]) == ["stripes", "cross"]
    with pytest.raises(DataError, match="no pictures to score"):
        task.score([], [])


@pytest.mark.parametrize("classes", [2, 10, 130])
def test_confusion_matrix_is_drawn(classes: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    actual = random.integers(0, classes, 500)
    predicted = np.where(random.random(500) < 0.8, actual, random.integers(0, classes, 500))
    counts = confusion(predicted.tolist(), actual.tolist(), classes)
    assert counts.sum() == 500 and np.trace(counts) == (predicted == actual).sum()
    assert counts[actual[0]].sum() == (actual == actual[0]).sum()
    names = [f"class {number} with a rather long name" for number in range(classes)]
    with Image.open(draw_confusion(tmp_path / "confusion.png", counts, names)) as picture:
        assert picture.width > 500 and picture.height > 400
        assert len(picture.convert("RGB").getcolors(10**6) or []) > 20


def test_classes_without_pictures_are_drawn_too(tmp_path: Path) -> None:
    task = labelled_task()
    files = task.draw_scores([Prediction(0, [1.0, 0.0, 0.0])], [0], tmp_path)
    assert [file.name for file in files] == ["confusion.png"] and files[0].stat().st_size > 1000


def test_state_and_back(vit: Path, pictures: Path) -> None:
    task = make_task(image_size=24, resize="pad")
    task.read(config(pictures), seed=0)
    task.load(str(vit))
    state = json.loads(json.dumps(task.state()))
    again = make_task()
    again.restore(state)
    base = again.load(str(vit))
    assert again.labels == task.labels and base.processor.fitted_size() == (24, 24)
    assert base.processor.resize == "pad" and again.state() == state


@pytest.mark.parametrize("state", [{}, {"labels": ["a"]}, {"labels": ["a", "b"], "pictures": {"hight": 3}}])
def test_damaged_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="task state"):
        make_task().restore(state)


def test_labels_are_unknown_before_reading(vit: Path) -> None:
    with pytest.raises(ConfigError, match="labels are not known"):
        make_task().load(str(vit))


def test_what_to_adapt_without_linear_layers() -> None:
    head = nn.Linear(4, 2)
    plain = nn.ModuleDict({"conv_a": nn.Conv2d(3, 4, 1), "deep": nn.Conv2d(4, 4, 3, groups=4), "head": head})
    assert convolution_targets(plain, ["head"]) == ("conv_a",)
    numbered = nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), "head": head})
    assert convolution_targets(numbered, ["head"]) == ("body.0",)
    assert convolution_targets(numbered, []) == (), "with linear layers, 'all-linear' is right"


def test_examples_without_files_are_not_invented() -> None:
    task = labelled_task()
    with pytest.raises(KeyError):
        task.encode([Example({"label": "circle"}, "memory", 1)], None)  # type: ignore[arg-type]
