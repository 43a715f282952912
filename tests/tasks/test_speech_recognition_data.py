"""What speech recognition takes for training and what it refuses: by name, or left out when asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

sys.path.insert(0, str(Path(__file__).parent))

import speakers_made as made

from loraloom.data.config import DataConfig
from loraloom.errors import DataError
from loraloom.tasks import create_task
from loraloom.tasks.base import BaseModel


def write_rows(folder: Path, waves: dict[str, np.ndarray], text: str = "ab", name: str = "metadata.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, wave in waves.items():
        sf.write(folder / file, wave, made.RATE)
    (folder / name).write_text("".join(json.dumps({"file": file, "text": text}) + "\n" for file in waves))
    return folder


def odd_waves() -> dict[str, np.ndarray]:
    good = made.sound("ab")
    return {
        "good.wav": good,
        "fine.flac": made.sound("ab", pitch=1.1),
        "silent.wav": np.zeros(2000),
        "clipped.wav": np.clip(good * 4, -1, 1),
        "long.wav": np.tile(made.sound("abcd"), 180 * made.RATE // len(made.sound("abcd")) + 1)[: 180 * made.RATE],
        "stereo.wav": np.stack([good, good], axis=1),
    }


def load(task: Any, folder: Path, family: str = "wav2vec2") -> BaseModel:
    return task.load(str(made.write_config(folder, family)), seed=1, from_config=True)


def test_silent_and_very_long_recordings_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "set", odd_waves())
    task = create_task("speech-recognition")
    with pytest.raises(DataError, match=r"2 recordings: .*silent.wav is silent.*long.wav lasts 180.0 s.*--skip-bad"):
        task.read(DataConfig(train=str(folder), eval=str(folder)), seed=0)


def test_they_are_left_out_when_asked_and_clipped_ones_are_told_of(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "set", odd_waves())
    task = create_task("speech-recognition")
    splits = task.read(DataConfig(train=str(folder), eval=str(folder), skip_bad=True), seed=0)
    assert [Path(one.values["file"]).name for one in splits.train] == [
        "good.wav",
        "fine.flac",
        "clipped.wav",
        "stereo.wav",
    ]
    notes = "\n".join(splits.notes)
    assert "left out 2 recordings" in notes
    assert "training: 1 recordings are clipped: clipped.wav" in notes
    assert "evaluation: 1 recordings are silent: silent.wav" in notes
    assert len(splits.evaluation) == 6  # what is scored is not chosen


def test_max_seconds_moves_the_bound(tmp_path: Path) -> None:
    waves = {name: odd_waves()[name] for name in ("good.wav", "fine.flac", "long.wav")}
    folder = write_rows(tmp_path / "set", waves)
    data = DataConfig(train=str(folder), eval=str(folder))
    assert len(create_task("speech-recognition", max_seconds=200).read(data, seed=0).train) == 3
    with pytest.raises(DataError, match=r"3 recordings: .*options.max_seconds is 0.2"):
        create_task("speech-recognition", max_seconds=0.2).read(data, seed=0)


def test_a_transcript_with_more_characters_than_frames_is_named(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "set", {"good.wav": made.sound("ab"), "short.wav": made.sound("")}, "abcd" * 5)
    task = create_task("speech-recognition")
    splits = task.read(DataConfig(train=str(folder), eval=str(folder)), seed=0)
    base = load(task, tmp_path / "base")
    with pytest.raises(DataError, match=r"short.wav lasts 0.12 s, 11 frames, and its transcript needs 20"):
        task.encode(splits.train, base)
    # what is only scored has a place all the same
    features = task.encode(splits.evaluation, base).features
    assert len(task.predict(base.model, task.collate(features, base), base)) == 2


def test_equal_characters_in_a_row_need_a_frame_between_them(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "set", {"a.wav": made.sound("ab"), "b.wav": made.sound("ba")}, "aabb")
    task = create_task("speech-recognition")
    splits = task.read(DataConfig(train=str(folder), eval=str(folder)), seed=0)
    load(task, tmp_path / "base")
    reader = task.recogniser
    labels = reader.spell("aabb")
    step = 20 / made.RATE
    for frames, fits in ((5, False), (6, True)):
        seconds = (reader._least() / made.RATE) + (frames - 1) * step
        assert reader.frames(round(seconds * made.RATE)) == frames
        assert (reader.check(labels, seconds) is None) == fits
    assert splits.train


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_three_minutes_are_heard_in_windows(family: str, tmp_path: Path) -> None:
    waves = {name: odd_waves()[name] for name in ("good.wav", "fine.flac", "long.wav")}
    folder = write_rows(tmp_path / "set", waves)
    task = create_task("speech-recognition", max_seconds=20)
    data = DataConfig(train=str(folder), eval=str(folder), skip_bad=True)
    task.read(data, seed=0)
    base = load(task, tmp_path / "base", family)
    examples = task.read_more(str(folder), data, labelled=False)
    features = task.encode(examples, base).features
    batch = task.collate(features, base)
    windows = (batch["owners"] == 2).sum()
    assert windows >= (9 if family == "wav2vec2" else 180)
    if family == "whisper":
        return  # 180 windows of a second each take a while to write
    predictions = task.predict(base.model, batch, base)
    assert [round(one.seconds, 2) for one in predictions] == [0.24, 0.24, 180.0]
    times = [span.start for span in predictions[2].spans]
    assert times == sorted(times)
    assert times[-1] > 100
    whole = batch["input_values"].shape[1]
    assert whole <= 20 * made.RATE
    alone = task.predict(base.model, task.collate(features[2:], base), base)
    assert alone[0].text == predictions[2].text


def test_a_recording_shorter_than_a_frame_is_heard(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "set", {"a.wav": made.sound("ab"), "b.wav": made.sound("ba")})
    task = create_task("speech-recognition")
    task.read(DataConfig(train=str(folder), eval=str(folder)), seed=0)
    base = load(task, tmp_path / "base")
    sf.write(tmp_path / "click.wav", np.array([0.1, 0.5, -0.4]), made.RATE)
    example = task.question(str(tmp_path / "click.wav"), 1)
    batch = task.collate(task.encode([example], base).features, base)
    assert task.predict(base.model, batch, base)[0].seconds == pytest.approx(0.0015)


def test_whisper_refuses_to_train_on_what_it_cannot_hear_whole(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "set", {"a.wav": made.sound("ab"), "b.wav": made.sound("abcdabcdabcdabcdabcd")})
    task = create_task("speech-recognition")
    splits = task.read(DataConfig(train=str(folder), eval=str(folder)), seed=0)
    base = load(task, tmp_path / "base", "whisper")
    with pytest.raises(DataError, match=r"b.wav lasts 1.32 s, and the model hears 1 s at once"):
        task.encode(splits.train, base)


def test_speakers_are_chosen_by_where(tmp_path: Path) -> None:
    folder = made.write_set(tmp_path / "set")
    task = create_task("speech-recognition")
    splits = task.read(DataConfig(train=str(folder), eval=str(folder), where={"speaker": ["anna"]}), seed=0)
    assert [one.values["text"] for one in splits.train] == made.TEXTS[::2]


def test_a_csv_and_a_folder_per_word_are_read_too(tmp_path: Path) -> None:
    made.write_set(tmp_path / "set")
    rows = [f"{number}.wav,{text}" for number, text in enumerate(made.TEXTS)]
    (tmp_path / "set" / "list.csv").write_text("\n".join(["path,transcription", *rows]) + "\n")
    for word in ("ab", "cd"):
        write_rows(tmp_path / "words" / word, {"1.wav": made.sound(word), "2.wav": made.sound(word, pitch=1.2)})
        (tmp_path / "words" / word / "metadata.jsonl").unlink()
    for source, texts in (
        (tmp_path / "set" / "list.csv", made.TEXTS),
        (tmp_path / "words", ["ab", "ab", "cd", "cd"]),
    ):
        splits = create_task("speech-recognition").read(DataConfig(train=str(source), eval=str(source)), seed=0)
        assert [one.values["text"] for one in splits.train] == texts


def test_the_same_recording_on_both_sides_is_told_of(tmp_path: Path) -> None:
    folder = made.write_set(tmp_path / "set")
    splits = create_task("speech-recognition").read(DataConfig(train=str(folder), eval=str(folder)), seed=0)
    assert any("8 of 8 evaluation examples repeat training examples" in note for note in splits.notes)


def test_decoded_recordings_are_kept_up_to_the_budget(tmp_path: Path) -> None:
    folder = made.write_set(tmp_path / "set")
    for budget, kept in ((64, True), (0, False)):
        task = create_task("speech-recognition", cache_mb=budget)
        splits = task.read(DataConfig(train=str(folder), eval=str(folder)), seed=0)
        base = load(task, tmp_path / f"base{budget}")
        features = task.encode(splits.train, base).features
        first = task.collate(features, base)["input_values"]
        assert (task._listener.used > 0) == kept
        assert (
            task._listener.windows(features[0].inputs["file"]) is task._listener.windows(features[0].inputs["file"])
        ) == kept
        assert first.equal(task.collate(features, base)["input_values"])
