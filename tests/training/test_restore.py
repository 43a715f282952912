"""From the folder of a run back to a model: the same scores, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_task import TinyTask, tiny_config, write_examples

from loraloom.errors import BaseModelError, FormatError, LoraloomError
from loraloom.tasks.base import Task
from loraloom.training.restore import open_run
from loraloom.training.run import train
from loraloom.training.use import evaluate, predict


def tiny(name: str) -> Task:
    assert name == "tiny"
    return TinyTask()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(tiny_config(folder, epochs=4, out=str(folder / "lora")), TinyTask())
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_opened_run_scores_what_its_record_says(tmp_path: Path, method: str, precision: str) -> None:
    rate = 0.05 if method == "lora" else 3e-3
    config = tiny_config(tmp_path, method=method, precision=precision, epochs=5, learning_rate=rate)
    result = train(config, TinyTask())
    opened = open_run(tmp_path / "out", tiny, precision=precision)
    assert evaluate(opened, str(tmp_path / "eval.tsv")) == result.metrics
    if precision == "bf16" and method == "lora":
        exact = open_run(tmp_path / "out", tiny, precision="fp32")
        assert evaluate(exact, str(tmp_path / "eval.tsv")) == result.record["metrics"]["trained_over_fp32_base"]


def test_predictions_of_texts_and_of_a_file(folder: Path, tmp_path: Path) -> None:
    opened = open_run(folder / "lora", tiny)
    source = write_examples(tmp_path / "more.tsv", 50, seed=9)
    texts = [line.partition("\t")[2] for line in source.read_text().splitlines()]
    from_texts, from_file = predict(opened, texts=texts), predict(opened, source=str(source))
    assert [entry.result for entry in from_texts] == [entry.result for entry in from_file]
    assert {entry.result["label"] for entry in from_file} == {"odd", "even"}
    assert [entry.example.values["text"] for entry in from_texts] == texts
    assert [entry.example.line for entry in from_file] == list(range(1, 51))
    # Each alone gives what it gives in a batch.
    assert [predict(opened, texts=[text])[0].result for text in texts[:5]] == [entry.result for entry in from_texts[:5]]
    notes: list[str] = []
    predict(opened, texts=[" ".join(["w1"] * 30)], note=notes.append)
    assert notes == ["1 of 1 examples were longer than the model takes and were cut"]
    assert predict(opened, texts=[]) == []


def broken(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "lora", tmp_path / "broken"))


def change_record(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_adapter_for_another_base_is_refused(folder: Path) -> None:
    with pytest.raises(FormatError, match=r"was trained over 'tiny-base' with weights of sha256 .*; 'tiny-other' has"):
        open_run(folder / "lora", tiny, base="tiny-other")
    with pytest.raises(BaseModelError, match="'gone' does not exist"):
        open_run(folder / "lora", tiny, base="gone")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is not the output folder of a finished run: run.json is missing"),
        ("{", "cannot be read"),
        ("[]", "the key 'format' is missing"),
        ("{}", "the key 'format' is missing"),
    ],
)
def test_a_record_that_is_none(folder: Path, tmp_path: Path, content: str | None, told: str) -> None:
    out = broken(folder, tmp_path)
    (out / "run.json").unlink()
    if content is not None:
        (out / "run.json").write_text(content)
    with pytest.raises(FormatError, match=told):
        open_run(out, tiny)


def test_a_record_of_a_newer_version_is_refused(folder: Path, tmp_path: Path) -> None:
    out = broken(folder, tmp_path)
    change_record(out, format=99)
    with pytest.raises(FormatError, match="format 99, made by a newer version"):
        open_run(out, tiny)


@pytest.mark.parametrize("fault", ["missing", "extra", "misshapen", "nan", "truncated", "no file"])
def test_damaged_adapter_files_are_refused(folder: Path, tmp_path: Path, fault: str) -> None:
    out = broken(folder, tmp_path)
    path = out / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    if fault == "missing":
        del tensors[name]
    elif fault == "extra":
        tensors["nowhere.lora_A.weight"] = tensors[name].clone()
    elif fault == "misshapen":
        tensors[name] = tensors[name][1:].clone()
    elif fault == "nan":
        tensors[name][0] = float("nan")
    if fault == "no file":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        save_file(tensors, path)
    with pytest.raises(LoraloomError):
        open_run(out, tiny)
