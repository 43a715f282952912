"""The flat loop stays the readable twin of the real one: the same losses, scores and bytes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.cli.commands import make_tiny_base, sentences, write_csv

from loraloom.tasks import create_task
from loraloom.training.config import load_config
from loraloom.training.run import train

MOST_LINES = 200


@pytest.fixture(scope="module")
def flat_loop(request: pytest.FixtureRequest) -> ModuleType:
    path = Path(request.config.rootpath) / "examples" / "flat_loop.py"
    spec = importlib.util.spec_from_file_location("flat_loop", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flat_loop"] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_short(flat_loop: ModuleType) -> None:
    assert len(Path(str(flat_loop.__file__)).read_text("utf-8").splitlines()) <= MOST_LINES


def test_step_for_step_equal_to_the_real_loop(flat_loop: ModuleType, tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base", seed=0)
    files = {
        "train": write_csv(tmp_path / "train.csv", sentences(50)),
        "eval": write_csv(tmp_path / "e.csv", sentences(20)),
    }
    shared = {"rank": 4, "learning_rate": 1e-2, "epochs": 3, "batch_size": 8, "seed": 3}
    settings = flat_loop.Settings(
        base=str(base), train=str(files["train"]), evaluation=str(files["eval"]), max_grad_norm=0.5, **shared
    )
    flat = flat_loop.train(settings, tmp_path / "flat")

    rank = shared.pop("rank")
    config = load_config(
        None,
        {
            "base": str(base),
            "data.train": str(files["train"]),
            "data.eval": str(files["eval"]),
            "out": str(tmp_path / "real"),
            "adapter.rank": rank,
            "precision": "fp32",
            "max_grad_norm": 0.5,
            **shared,
        },
    )
    train(config, create_task(config.task))

    events = [json.loads(line) for line in (tmp_path / "real" / "log.jsonl").read_text("utf-8").splitlines()]
    assert [event["loss"] for event in events if "loss" in event] == pytest.approx(flat.losses, rel=1e-6)
    assert [event["accuracy"] for event in events if "accuracy" in event] == flat.scores
    name = "adapter_model.safetensors"
    assert (tmp_path / "flat" / name).read_bytes() == (tmp_path / "real" / name).read_bytes()
