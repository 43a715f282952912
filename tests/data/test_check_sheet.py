"""The sample sheets: every kind of data gets one, whatever stands in it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loraloom.data import DataConfig
from loraloom.data.check import Checked, check_data
from loraloom.data.check.sheet import draw_sheet
from loraloom.data.check.sheet_recordings import spectrogram
from loraloom.data.check.sheet_style import by_value, drawn
from loraloom.data.check.sheet_texts import draw_texts, texts_height
from loraloom.data.recordings import Recording
from loraloom.data.table import Example
from loraloom.errors import OutputError

ODD_TEXTS = [
    "costs $5 and $6 or $x^$",
    "日本語のテキスト 😀",
    "line one\nline two\n\nline three",
    "word " * 400,
    "<b>&amp;</b> {x} \\n _a_",
]


def texts(tmp_path: Path, labels: int) -> Checked:
    rows = [{"text": f"{text} {n}", "label": f"label_{n % labels}$"} for n, text in enumerate(ODD_TEXTS * 8)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows[:9])))
    return check_data("text-classification", DataConfig(train=str(tmp_path)))


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


@pytest.mark.parametrize("labels", [1, 2, 20])
def test_a_sheet_of_texts_that_are_hard_to_draw(labels: int, tmp_path: Path) -> None:
    checked = texts(tmp_path, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_sheet(tmp_path / "sheet.png", checked)
    width, height = size_of(tmp_path / "sheet.png")
    assert width == 1400
    assert height > 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet.png", "test.jsonl", "train.jsonl"]


def test_the_rows_of_a_label_are_its_shortest_middle_longest_and_one_by_chance(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    lines = [f"{'w ' * n}number {n}" for n in range(1, 30)]
    rows = [{"text": text, "label": f"label {n % 6}"} for n, text in enumerate(lines)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = check_data("text-classification", DataConfig(train=str(tmp_path / "a.jsonl"))).parts[0]
    figure = Figure(figsize=(14, texts_height(part)))
    draw_texts(figure.add_subfigure(figure.add_gridspec(1, 1)[0, 0]), part)
    written = [text.get_text() for axes in figure.subfigs[0].axes for text in axes.texts]
    assert [written.count(tag) for tag in ("shortest", "median", "longest", "random")] == [6, 6, 6, 6]
    assert lines[0] in written
    assert lines[28] in written
    assert "label 0 · 5" in written


@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_a_sheet_of_pictures(task: str, tmp_path: Path) -> None:
    images, annotations = [], []
    for number in range(4):
        name = f"{number}.png" if task == "object-detection" else f"{'ab'[number % 2]}/{number}.png"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        colour = (200, 40 * number, 90)
        Image.new("RGB", (300 if number else 40, 200), colour).save(tmp_path / name)
        images.append({"id": number, "file_name": name})
        annotations.append({"image_id": number, "category_id": 1, "bbox": [5, 5, 30, 100]})
    if task == "object-detection":
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "patch $x$"}]}
        (tmp_path / "annotations.json").write_text(json.dumps(content))
    draw_sheet(tmp_path / "sheet.png", check_data(task, DataConfig(train=str(tmp_path))))
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24) or []}
    assert {(200, 40 * number, 90) for number in range(4)} <= colours  # each of the pictures is there


def test_a_sheet_of_recordings(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    rows = []
    for number, seconds in enumerate((0.02, 0.5, 1.0, 40.0)):
        noise = np.random.default_rng(number).normal(0, 0.1, round(8_000 * seconds)).astype(np.float32)
        soundfile.write(tmp_path / f"{number}.wav", noise, 8_000)
        rows.append({"file_name": f"{number}.wav", "text": f"some $words$ {number}", "speaker": "ab"[number % 2]})
    soundfile.write(tmp_path / "4.wav", np.zeros(8_000, np.float32), 8_000)
    rows.append({"file_name": "4.wav", "text": "silence", "speaker": "a"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    draw_sheet(tmp_path / "sheet.png", check_data("speech-recognition", DataConfig(train=str(tmp_path))))
    assert size_of(tmp_path / "sheet.png")[0] == 1400


def test_a_spectrogram_shows_a_tone_where_it_is() -> None:
    rate = 8_000
    samples = np.sin(2 * np.pi * 1_000 * np.arange(rate) / rate).astype(np.float32)
    levels = spectrogram(Recording(samples, rate, {}))
    frequencies = np.linspace(0, rate / 2, len(levels))
    assert abs(frequencies[levels.mean(axis=1).argmax()] - 1_000) < 50
    assert levels.max() == pytest.approx(0, abs=1e-6)


def test_a_sheet_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    checked = texts(tmp_path, 2)
    with pytest.raises(OutputError, match="cannot be written"):
        draw_sheet(tmp_path / "nowhere" / "sheet.png", checked)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        draw_sheet(tmp_path / "folder.png", checked)
    assert not list(tmp_path.glob(".*part"))


def test_choices_by_chance_are_the_same_every_time() -> None:
    examples = [Example({"label": f"l{n % 30}"}, "a", n) for n in range(300)]
    assert drawn(examples, 5) == drawn(examples, 5)
    assert drawn(examples, 5) != drawn(examples, 5, "other")
    assert [one.line for one in drawn(examples, 5)] == sorted(one.line for one in drawn(examples, 5))
    assert len(by_value(examples, "label", 12)) == 12
