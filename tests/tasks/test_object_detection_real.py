"""The row of docs/results.md on a slice: few scenes, few cells, few steps, by the files that the row goes by."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT

from loraloom.tasks import create_task
from loraloom.training.config import load_config
from loraloom.training.run import train


def run(name: str, out: Path, **settings: Any) -> dict[str, dict[str, float]]:
    settings = {"evaluate_every": 10_000, "data.eval_limit": 24, "out": str(out), **settings}
    config = load_config(ROOT / f"examples/object_detection/{name}.yaml", settings)
    return dict(train(config, create_task(config.task, **config.task_options)).record["metrics"])


@pytest.mark.timeout(300)
def test_an_adapter_takes_a_detector_of_drawn_shapes_to_cells(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    drawing = runpy.run_path(str(ROOT / "examples/object_detection/draw_scenes.py"))
    for split, count in (("train", 48), ("test", 8)):
        drawing["write_split"](tmp_path / "scenes", split, count, 0)
    scenes = {f"data.{part}": str(tmp_path / "scenes" / f"annotations_{split}.json") for part, split in PARTS.items()}
    run("base", tmp_path / "base", **scenes, epochs=8)
    found = run("lora", tmp_path / "lora", base=str(tmp_path / "base"), **{"data.limit": 96}, epochs=6, batch_size=4)
    assert found["trained"]["map50"] > found["base"]["map50_high"] + 0.01
    assert found["trained"]["map50_RBC"] > 0.02, "the most frequent cell is not found"


PARTS = {"train": "train", "eval": "test"}
