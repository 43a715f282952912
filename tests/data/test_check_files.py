"""What a check finds in pictures, boxes and recordings, and that no bad file stops it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loraloom.data import DataConfig
from loraloom.data.check import Finding, Report, check_data
from loraloom.data.check.boxes import Box, fault_of, overlap
from loraloom.data.check.perceptual import PictureIndex, look_of
from loraloom.errors import DataError

soundfile = pytest.importorskip("soundfile")


def checked(task: str, train: Path, **settings: Any) -> Report:
    return check_data(task, DataConfig(train=str(train), **settings)).report


def found(report: Report) -> dict[str, list[Finding]]:
    kinds: dict[str, list[Finding]] = {}
    for _, finding in report.findings():
        kinds.setdefault(finding.kind, []).append(finding)
    return kinds


def scene(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A smooth made-up picture with edges, another for every seed."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 255, (7, 8, 3), dtype=np.uint8).astype(np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **settings)
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes of five sound pictures each."""
    for number in range(10):
        save(tmp_path / "set" / ("cat", "dog")[number % 2] / f"{number}.png", scene(number))
    return tmp_path / "set"


# -- pictures


def test_sound_pictures_have_nothing_amiss(classes: Path) -> None:
    report = checked("image-classification", classes)
    (part,) = report.parts
    assert report.findings() == []
    assert (part.usable, part.rows) == (10, 10)
    assert part.balance["label"].counts == {"cat": 5, "dog": 5}
    assert part.lengths["width"].max == 96


def test_no_bad_file_stops_it_and_each_is_named_by_its_reason(classes: Path) -> None:
    (classes / "cat" / "empty.png").touch()
    (classes / "cat" / "words.jpg").write_text("this is no picture at all")
    whole = (classes / "dog" / "1.png").read_bytes()
    (classes / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (classes / "dog" / "notes.doc").write_text("of another kind")
    (classes / "bird").mkdir()
    save(classes / "stray.png", scene(50))
    report = checked("image-classification", classes)
    kinds = found(report)
    assert {finding.places[0] for finding in kinds["bad-file"]} == {"cat/empty.png", "cat/words.jpg", "dog/cut.png"}
    assert len({finding.what for finding in kinds["bad-file"]}) == 3
    assert kinds["other-file"][0].places == ["dog/notes.doc"]
    assert kinds["empty-folder"][0].places == ["bird"]
    assert kinds["no-class"][0].places == ["stray.png"]
    assert (report.parts[0].usable, report.parts[0].rows) == (10, 13)


def test_odd_pictures_are_told_apart(classes: Path) -> None:
    folder = classes / "cat"
    save(folder / "tiny.png", scene(20, (20, 90)))
    save(folder / "strip.png", scene(21, (400, 60)))
    save(folder / "grey.png", scene(22).convert("L"))
    save(folder / "cmyk.jpg", scene(23).convert("CMYK"))
    save(folder / "clear.png", scene(24).convert("RGBA"))
    save(folder / "moving.gif", scene(25), save_all=True, append_images=[scene(26), scene(27)])
    save(folder / "deep.png", Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80) * 10))
    save(folder / "flat.png", Image.new("RGB", (64, 64), "red"))
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / "turned.jpg", scene(28), exif=exif)
    kinds = found(checked("image-classification", classes))
    told = {name: finding.places[0].split(" ")[0].removeprefix("cat/") for name, (finding, *_) in kinds.items()}
    assert told == {
        "extreme-aspect": "strip.png",
        "tiny-picture": "tiny.png",
        "grey-picture": "grey.png",
        "cmyk-picture": "cmyk.jpg",
        "deep-picture": "deep.png",
        "transparent-picture": "clear.png",
        "animated-picture": "moving.gif",
        "turned-picture": "turned.jpg",
        "blank-picture": "flat.png",
    }
    assert kinds["turned-picture"][0].places == ["cat/turned.jpg (80×96)"]


def test_duplicates_conflicts_and_leaks_of_pictures(classes: Path, tmp_path: Path) -> None:
    train, test = tmp_path / "both" / "train", tmp_path / "both" / "test"
    shutil.copytree(classes, train)
    shutil.copy(train / "cat" / "0.png", train / "cat" / "again.png")
    shutil.copy(train / "cat" / "2.png", train / "dog" / "other.png")
    save(train / "dog" / "saved.jpg", scene(3), quality=70)
    save(test / "cat" / "new.png", scene(60))
    shutil.copy(train / "cat" / "4.png", test / "cat" / "leak.png")
    save(test / "dog" / "near.jpg", scene(5, (192, 160)), quality=80)
    save(test / "bird" / "61.png", scene(61))
    report = checked("image-classification", tmp_path / "both")
    kinds = found(report)
    assert [part.name for part in report.parts] == ["train", "test"]
    assert set(kinds["duplicate"][0].places) == {"cat/again.png = cat/0.png", "dog/other.png = cat/2.png"}
    assert kinds["conflicting-labels"][0].places == ["'cat' in cat/2.png, 'dog' in dog/other.png"]
    assert kinds["near-duplicate"][0].places == ["dog/saved.jpg ≈ dog/3.png"]
    assert kinds["leak"][0].places == ["test/cat/leak.png = train/cat/4.png"]
    assert kinds["near-leak"][0].places == ["test/dog/near.jpg ≈ train/dog/5.png"]
    assert kinds["unseen-label"][0].places == ["'bird' (1 in test)"]


def test_a_table_names_its_pictures_and_what_is_missing(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / f"{number}.png", scene(number))
    rows = "\n".join(f"{number}.png,{'ab'[number % 2]}" for number in range(5))
    (tmp_path / "metadata.csv").write_text(f"file_name,label\n{rows}\ngone.png,a\n")
    kinds = found(checked("image-classification", tmp_path))
    assert kinds["bad-file"][0].places == ["gone.png"]
    assert "does not exist" in kinds["bad-file"][0].what
    assert kinds["not-listed"][0].places == ["5.png"]


def test_huge_unlabelled_pictures_and_labels_that_only_training_has(classes: Path, tmp_path: Path) -> None:
    save(tmp_path / "flat" / "huge.png", Image.new("1", (6_000, 5_000)))
    alone = found(checked("image-classification", tmp_path / "flat"))
    assert alone["huge-picture"][0].places == ["huge.png (6000×5000)"]
    assert alone["unlabelled"][0].places == ["huge.png"]
    save(tmp_path / "test" / "cat" / "new.png", scene(70))
    kinds = found(checked("image-classification", classes, eval=str(tmp_path / "test")))
    assert kinds["unmet-label"][0].places == ["'dog' (evaluation)"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="did you mean 'pictures'"):
        checked("image-classification", tmp_path / "pictrues")


@pytest.mark.parametrize("seed", range(12))
def test_a_picture_looks_like_itself_and_like_no_other(seed: int, tmp_path: Path) -> None:
    index = PictureIndex()
    for number in range(300):
        index.add(number, look_of(scene(number)))
    path = save(tmp_path / "a.jpg", scene(seed, (300, 250)).point(lambda value: min(255, value + 4)), quality=60)
    with Image.open(path) as image:
        assert index.nearest(look_of(image.convert("RGB"))) == seed
    assert index.nearest(look_of(scene(1000 + seed))) is None


def test_flat_pictures_look_like_nothing() -> None:
    index = PictureIndex()
    index.add(0, look_of(Image.new("RGB", (64, 64), "white")))
    assert index.nearest(look_of(Image.new("RGB", (64, 64), "white"))) is None


# -- boxes


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((10, 10, 20, 20), None),
        ((0, 0, 100, 50), "whole-box"),
        ((99.5, 10, 20, 20), "box-over-edge"),
        ((-5, 10, 20, 20), "box-over-edge"),
        ((-0.5, 10, 20, 20), None),
        ((100, 10, 20, 20), "box-outside"),
        ((10, -30, 20, 20), "box-outside"),
        ((10, 10, 0, 20), "box-without-area"),
        ((10, 10, 20, -3), "box-without-area"),
        ((10, 10, 3, 20), "tiny-box"),
    ],
)
def test_faults_of_a_box_in_a_picture_of_100_by_50(box: tuple[float, ...], kind: str | None) -> None:
    assert fault_of(Box("a", *box), 100, 50) == kind


def test_overlap_is_intersection_over_union() -> None:
    assert overlap(Box("a", 0, 0, 2, 2), Box("a", 1, 0, 2, 2)) == pytest.approx(1 / 3)
    assert overlap(Box("a", 0, 0, 2, 2), Box("a", 2, 0, 2, 2)) == 0


def coco(folder: Path, boxes: list[dict[str, Any]], **settings: Any) -> Path:
    """Three pictures of 96 × 80, and annotations of them."""
    images = []
    for number in range(3):
        save(folder / f"{number}.png", scene(number))
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 80})
    images[2].update(settings)
    annotations = [{"id": number, **box} for number, box in enumerate(boxes)]
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "plate"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_boxes_that_cannot_be_right(tmp_path: Path) -> None:
    sound = {"image_id": 0, "category_id": 1, "bbox": [10, 10, 30, 30]}
    folder = coco(
        tmp_path,
        [
            sound,
            {**sound, "bbox": [10, 11, 30, 29]},
            {**sound, "category_id": 2},
            {**sound, "bbox": [200, 10, 30, 30]},
            {**sound, "bbox": [80, 60, 40, 40]},
            {**sound, "bbox": [10, 10, 0, 5]},
            {**sound, "bbox": [1, 2, 3]},
            {**sound, "image_id": 77},
            {**sound, "category_id": 77},
            {**sound, "image_id": 2},
        ],
        width=80,
        height=96,
    )
    report = checked("object-detection", folder)
    kinds = found(report)
    counts = {name: sum(finding.count for finding in findings) for name, findings in kinds.items()}
    assert counts == {
        "bad-annotation": 1,
        "unknown-picture": 1,
        "unknown-category": 1,
        "box-outside": 1,
        "box-over-edge": 1,
        "box-without-area": 1,
        "double-box": 1,
        "no-boxes": 1,
        "wrong-size": 1,
        "few-examples": 1,
    }
    assert kinds["double-box"][0].places == ["0.png cell [10, 11, 30, 29]"]
    assert kinds["no-boxes"][0].places == ["1.png"]
    assert kinds["wrong-size"][0].places == ["2.png (96×80, stated 80×96)"]
    assert report.parts[0].balance["category"].counts == {"cell": 6, "plate": 1}
    assert report.parts[0].lengths["boxes a picture"].max == 6


def test_a_missing_picture_of_the_annotations_is_named(tmp_path: Path) -> None:
    folder = coco(tmp_path, [{"image_id": 0, "category_id": 1, "bbox": [10, 10, 30, 30]}])
    (folder / "1.png").unlink()
    report = checked("object-detection", folder)
    assert found(report)["bad-file"][0].places[0].endswith("1.png")
    assert (report.parts[0].usable, report.parts[0].rows) == (2, 3)


# -- recordings


def tone(seconds: float, rate: int = 16_000, level: float = 0.3, pitch: float = 220.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def recordings(folder: Path, files: dict[str, tuple[np.ndarray, int, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (samples, rate, text) in files.items():
        soundfile.write(folder / name, samples, rate)
        rows.append({"file_name": name, "text": text})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


SPOKEN = {f"{n}.wav": (tone(1 + n / 10, pitch=200 + n), 16_000, f"the sentence number {n}") for n in range(6)}


def test_sound_recordings_have_nothing_amiss(tmp_path: Path) -> None:
    report = checked("speech-recognition", recordings(tmp_path, SPOKEN))
    (part,) = report.parts
    assert report.findings() == []
    assert (part.usable, part.columns["text"]) == (6, "text")
    assert part.lengths["seconds"].sum == pytest.approx(7.5)


def test_odd_recordings_are_told_apart(tmp_path: Path) -> None:
    loud = np.clip(tone(1.2, level=3.0, pitch=333), -1, 1)
    odd = {
        "silent.wav": (np.zeros(16_000, np.float32), 16_000, "nothing to be heard"),
        "quiet.wav": (tone(1, level=0.002), 16_000, "hardly to be heard"),
        "clipped.wav": (loud, 16_000, "far too loud a sound"),
        "stereo.wav": (np.stack([tone(1.1), tone(1.1, pitch=330)], axis=1), 16_000, "two channels of it"),
        "telephone.wav": (tone(1.3, rate=8_000), 8_000, "over the telephone"),
        "short.wav": (tone(0.05, pitch=440), 16_000, "a"),
        "rushed.wav": (
            tone(1, pitch=250),
            16_000,
            "so many words that none could say them in a second of time or two " * 3,
        ),
        "drawn.wav": (tone(31, pitch=260), 16_000, "much too slow"),
    }
    kinds = found(checked("speech-recognition", recordings(tmp_path, {**SPOKEN, **odd})))
    told = {name: finding.places[0].split(" ")[0] for name, (finding, *_) in kinds.items()}
    assert told == {
        "silent": "silent.wav",
        "quiet": "quiet.wav",
        "clipped": "clipped.wav",
        "stereo": "stereo.wav",
        "other-rate": "telephone.wav",
        "low-rate": "telephone.wav",
        "short-recording": "short.wav",
        "long-recording": "drawn.wav",
        "odd-pace": "rushed.wav",
        "near-empty": "short.wav",
    }
    assert {place.split(" ")[0] for place in kinds["odd-pace"][0].places} == {"rushed.wav", "drawn.wav"}


def test_bad_recordings_and_rows_are_named_and_passed_over(tmp_path: Path) -> None:
    folder = recordings(tmp_path, {**SPOKEN, "mute.wav": (tone(1), 16_000, "")})
    (folder / "0.wav").write_bytes(b"RIFF but no more")
    (folder / "1.wav").unlink()
    (folder / "2.wav").write_bytes(b"")
    (folder / "spare.wav").write_bytes((folder / "3.wav").read_bytes())
    report = checked("speech-synthesis", folder)
    kinds = found(report)
    assert {place for finding in kinds["bad-file"] for place in finding.places} == {"0.wav", "1.wav", "2.wav"}
    assert kinds["row-missing-value"][0].places == ["metadata.jsonl:7"]
    assert kinds["not-listed"][0].places == ["spare.wav"]
    assert (report.parts[0].usable, report.parts[0].rows) == (3, 7)


def test_characters_that_hardly_any_transcript_has(tmp_path: Path) -> None:
    files = {f"{n}.wav": (tone(0.5, pitch=100 + n), 16_000, f"line {'abc'[n % 3]}") for n in range(30)}
    files["0.wav"] = (files["0.wav"][0], 16_000, "line ß")
    assert found(checked("speech-recognition", recordings(tmp_path, files)))["rare-character"][0].places == ["'ß' (1)"]


def test_the_same_recording_in_both_splits_leaks(tmp_path: Path) -> None:
    recordings(tmp_path / "train", SPOKEN)
    recordings(tmp_path / "test", {"a.wav": SPOKEN["2.wav"], "b.wav": (tone(1.2, pitch=999), 16_000, "a new one")})
    kinds = found(checked("speech-recognition", tmp_path))
    assert kinds["leak"][0].places == ["test/a.wav = train/2.wav"]


# -- real data


@pytest.mark.parametrize(
    ("task", "name", "counts"),
    [
        ("text-classification", "text_classification/vader_tweets", (2_622, 657)),
        ("image-classification", "image_classification/sign_language_digits", (420, 140)),
        ("object-detection", "object_detection/bccd", (216, 60)),
        ("speech-recognition", "speech_recognition/fsdd_4_speakers", (480, 200)),
        ("speech-synthesis", "speech_synthesis/ljspeech_mini", (22, 5)),
    ],
)
def test_real_sets_are_read_whole_and_are_sound(
    task: str, name: str, counts: tuple[int, int], shared_data: Path
) -> None:
    report = checked(task, shared_data / name)
    assert tuple(part.usable for part in report.parts) == counts
    assert report.problems == []
