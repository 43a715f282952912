"""The row of docs/results.md on a slice: three digits make a base, an adapter brings two more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraloom.tasks import create_task
from loraloom.training.config import load_config
from loraloom.training.restore import open_run
from loraloom.training.run import train
from loraloom.training.use import evaluate, predict

ROOT = Path(__file__).parents[2]
DIGITS = ROOT.parent / "shared" / "data" / "image_classification" / "sign_language_digits"
EXAMPLES = ROOT / "examples" / "image_classification"
SLICE = {
    "data.train": str(DIGITS / "train"),
    "data.eval": str(DIGITS / "test"),
    "options.image_size": 32,
    "batch_size": 16,
}


def run(file: str, **settings: Any) -> Any:
    config = load_config(EXAMPLES / file, {**SLICE, **settings})
    return train(config, create_task(config.task, **config.task_options))


@pytest.mark.skipif(not DIGITS.is_dir(), reason="the shared data are not here")
def test_adapter_brings_new_digits_to_a_base(tmp_path: Path) -> None:
    base = run(
        "base.yaml",
        **{
            "base_config": str(EXAMPLES / "tiny"),
            "out": str(tmp_path / "base"),
            "data.where": {"label": ["0", "1", "2"]},
            "epochs": 6,
        },
    )
    five = {"data.where": {"label": ["0", "1", "2", "3", "4"]}, "base": str(base.out), "epochs": 5}
    lora = run("lora.yaml", **five, out=str(tmp_path / "lora"))
    opened = open_run(lora.out, create_task)
    opened.data_changes = {"where": five["data.where"]}
    scores = evaluate(opened, str(DIGITS / "test"))
    before = evaluate(opened, str(DIGITS / "test"), without_adapter=True)
    assert scores["n"] == 70
    assert scores["accuracy"] > max(0.6, before["accuracy"] + 0.2), (before, scores)
    assert (lora.out / "confusion.png").is_file()
    told = predict(opened, source=str(DIGITS / "test" / "3"))
    assert len(told) == 14 and told[0].result["label"] in "01234"
