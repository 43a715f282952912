"""Every shipped configuration is read as it stands, and trained on a slice of its data over a small base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.cli.commands import make_tiny_base, sentences, write_csv
from tests.documents import ROOT, name_of

from loraloom.cli.main import main
from loraloom.tasks import create_task, task_names
from loraloom.training.config import load_config

EVERY = sorted((ROOT / "examples").rglob("*.yaml"))
CONFIGS = [path for path in EVERY if path.parent.name == "text_classification"]
"""Those over a base that a tiny one can stand in for; tests/tasks/test_*_real.py train the others, base and adapter."""
PACKAGED = "sentiment"
SMALLER = {"epochs": 1, "data.limit": 64, "batch_size": 16, "precision": "fp32"}
"""What is taken instead of the file's own value, beside base and out."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny-bert", seed=0)


def test_there_are_configurations() -> None:
    assert {path.stem for path in CONFIGS} >= {"sentiment", "own_csv", "banking77", "vader"}


@pytest.mark.parametrize("path", EVERY, ids=name_of)
def test_it_is_read_as_it_stands(path: Path) -> None:
    config = load_config(path)
    assert config.unused() == []
    assert not Path(config.out).is_absolute()
    assert create_task(config.task, **config.task_options).name == config.task


def test_every_task_has_configurations() -> None:
    tasks = {load_config(path).task for path in EVERY}
    assert tasks == set(task_names())


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_it_trains(path: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = load_config(path).data.train
    if source == "reviews.csv":  # the reader's own file
        write_csv(tmp_path / source, sentences(60))
        monkeypatch.chdir(tmp_path)
    else:
        monkeypatch.chdir(ROOT)
        if not source.startswith(PACKAGED) and not Path(source).is_file():
            pytest.skip(f"the data of {path.name} is absent ({Path(source).parent.name})")
    words = ["train", path, "--base", base, "--out", tmp_path / "run", "--json"]
    for key, value in SMALLER.items():
        words += ["--set", f"{key}={value}"]
    assert main([str(word) for word in words]) == 0
    settings = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["settings"]
    assert _differences(yaml.safe_load(path.read_text("utf-8")), settings) <= {*SMALLER, "base", "out"}


def _differences(given: dict[str, object], used: dict[str, object], prefix: str = "") -> set[str]:
    """Dotted keys of a file whose values are not those of the run."""
    found: set[str] = set()
    for key, value in given.items():
        inner = used[key]
        if isinstance(value, dict) and isinstance(inner, dict) and value.keys() != inner.keys():
            found |= _differences(value, inner, f"{prefix}{key}.")
        elif inner != value:
            found.add(prefix + key)
    return found
