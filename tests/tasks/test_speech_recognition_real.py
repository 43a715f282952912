"""The row of docs/results.md on a slice: three of the ten digits, by the people that it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT

from loraloom.tasks import create_task
from loraloom.training.config import load_config
from loraloom.training.restore import open_run
from loraloom.training.run import train
from loraloom.training.use import evaluate

WORDS = ["two", "six", "eight"]


def run(name: str, out: Path, speakers: list[str], **settings: Any) -> dict[str, dict[str, float]]:
    where = {"speaker": speakers, "text": WORDS}
    settings = {"data.where": where, "evaluate_every": 10_000, "batch_size": 8, "out": str(out), **settings}
    config = load_config(ROOT / f"examples/speech_recognition/{name}.yaml", settings)
    record = train(config, create_task(config.task, **config.task_options)).record
    return dict(record["metrics"])


def test_an_adapter_takes_a_model_of_three_speakers_to_the_fourth(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    three = ["george", "jackson", "lucas"]
    made = run("base", tmp_path / "base", three, epochs=12)
    assert made["trained"]["wer"] < 0.4
    adapted = run("lora", tmp_path / "lora", ["nicolas"], base=str(tmp_path / "base"), epochs=8)
    assert adapted["trained"]["wer"] <= 0.5 * adapted["base"]["wer"]

    opened = open_run(tmp_path / "lora", create_task)
    opened.data_changes = {"where": {"speaker": three, "text": WORDS}}
    test = "../shared/data/speech_recognition/fsdd_4_speakers/test"
    kept = evaluate(opened, test, without_adapter=True)
    assert kept["wer"] == pytest.approx(made["trained"]["wer"])
