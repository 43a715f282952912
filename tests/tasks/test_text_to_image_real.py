"""Real icons and photographs on a slice: shapes, captions, and an adapter that lowers the held-out loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from loraloom.tasks import create_task
from loraloom.training.config import TrainConfig
from loraloom.training.run import train

from .painters import save_base

SETTINGS: dict[str, Any] = {"task": "text-to-image", "precision": "fp32", "device": "cpu", "adapter": {"rank": 4}}


def run(folder: Path, **settings: Any) -> Any:
    config = TrainConfig.model_validate({**SETTINGS, "out": str(folder / "out"), **settings})
    return train(config, create_task(config.task, **config.task_options))


def test_icons_lower_the_loss(shared_data: Path, tmp_path: Path) -> None:
    base = save_base("sd1", tmp_path)
    data = {"train": str(shared_data / "text_to_image/fontawesome_black"), "limit": 24, "eval": None, "eval_limit": 6}
    data["eval"] = data["train"]
    options = {"cache": str(tmp_path / "cache"), "resolution": 64, "sample_steps": 1}
    result = run(tmp_path, base=str(base), data=data, options=options, epochs=2, batch_size=6, learning_rate=3e-3)
    metrics = result.record["metrics"]
    assert metrics["trained"]["loss"] < metrics["base"]["loss"]
    assert result.record["data"]["evaluation_examples"] == 6


def test_a_few_photographs_of_a_subject(shared_data: Path, tmp_path: Path) -> None:
    base = save_base("sdxl", tmp_path)
    folder = str(shared_data / "text_to_image/dreambooth_subjects/dog")
    options = {
        "cache": str(tmp_path / "cache"),
        "instance_prompt": "a photo of sks dog",
        "class_prompt": "a photo of a dog",
    }
    options |= {"class_pictures": 1, "sample_steps": 1, "resolution": [96, 96]}
    result = run(tmp_path, base=str(base), data={"train": folder, "eval_fraction": 0.2}, options=options, max_steps=2)
    assert result.record["metrics"]["trained"]["loss"] > 0
    assert any("1 pictures of the class" in note for note in result.record["notes"])
    assert torch.isfinite(torch.tensor(result.record["evidence"]["output_change"]))
