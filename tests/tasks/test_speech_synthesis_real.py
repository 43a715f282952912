"""The row of docs/results.md on a slice: a base that spells in tones comes nearer to a reader's voice."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import soundfile
from tests.conftest import ROOT

from loraloom.tasks import create_task
from loraloom.tasks.base import AnswerOptions
from loraloom.training.config import load_config
from loraloom.training.restore import open_run
from loraloom.training.run import train


def run(name: str, out: Path, **settings: Any) -> dict[str, dict[str, float]]:
    config = load_config(ROOT / f"examples/speech_synthesis/{name}.yaml", {**settings, "out": str(out)})
    return dict(train(config, create_task(config.task, **config.task_options)).record["metrics"])


def test_an_adapter_takes_a_spelling_machine_towards_a_voice(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    drawing = runpy.run_path(str(ROOT / "examples/speech_synthesis/draw_tones.py"))
    drawing["draw"](shared_data / "causal_lm/pride_and_prejudice/train.jsonl", tmp_path / "tones", train=32, test=1)
    tones = {"data.train": str(tmp_path / "tones" / "train"), "data.eval": str(tmp_path / "tones" / "test")}
    made = run("base", tmp_path / "base", epochs=5, batch_size=8, **tones)
    assert made["trained"]["mel_l1"] < 0.9 * made["base"]["mel_l1"]

    more = {"data.limit": 8, "data.eval_limit": 1, "epochs": 6, "batch_size": 4, "options.max_frames_per_token": 4}
    adapted = run("lora", tmp_path / "lora", base=str(tmp_path / "base"), **more)
    assert adapted["trained"]["mcd"] < 0.9 * adapted["base"]["mcd"]
    assert adapted["trained"]["mel_l1"] < 0.9 * adapted["base"]["mel_l1"]
    assert adapted["trained"]["silent"] == adapted["trained"]["clipped"] == 0

    opened = open_run(tmp_path / "lora", create_task)
    task: Any = opened.task
    question = task.question("printing, in the only sense", 1)
    [speech] = task.answer(opened.callable, task.encode([question], opened.base).features, opened.base, AnswerOptions())
    file = task.write_file(speech, question, tmp_path / "heard", AnswerOptions())
    assert soundfile.info(file).samplerate == 16_000
    assert soundfile.info(file).duration == pytest.approx(speech.seconds)
