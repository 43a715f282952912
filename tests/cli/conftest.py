"""The command line in process, a small base model, and files of labelled sentences."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.commands import Call, caller, make_tiny_base, sentences, write_csv

from loraloom.cli.main import main


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "train.csv", sentences(48))


@pytest.fixture
def eval_file(tmp_path: Path) -> Path:
    rows = [(text.replace("number", "of day"), label) for text, label in sentences(20)]
    return write_csv(tmp_path / "eval.csv", rows)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with random weights and a word-level vocabulary, in a folder of its own."""
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny-bert", seed=0)


@pytest.fixture
def train_words(tiny_base: Path, train_file: Path, eval_file: Path, tmp_path: Path) -> list[object]:
    """The words of a whole training run of a second, to `tmp_path/run`."""
    files = ["--data", train_file, "--eval", eval_file, "--out", tmp_path / "run"]
    fast = ["--epochs", 6, "--learning-rate", "2e-2", "--rank", 4, "--batch-size", 8, "--precision", "fp32"]
    return ["train", "--base", tiny_base, *files, *fast]


@pytest.fixture(scope="session")
def run_folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, shared by tests that only read it."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_csv(folder / "train.csv", sentences(48))
    words = ["train", "--base", tiny_base, "--data", data, "--eval", data, "--out", folder / "run", "--epochs", 12]
    words += ["--learning-rate", "2e-2", "--rank", 4, "--batch-size", 8, "--precision", "fp32"]
    assert main([str(word) for word in words]) == 0
    return folder / "run"
