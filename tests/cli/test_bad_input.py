"""What users get wrong: each is exit status 2, one sentence on stderr, nothing on stdout, nothing left behind."""

from __future__ import annotations

import json
import pickle
import re
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.commands import Call, Outcome, make_tiny_base, sentences, write_csv

from loraloom.training import files

Damage = Callable[[Path], None]


def _refused(outcome: Outcome, *told: str) -> None:
    """One sentence that tells `told`, status 2, a clean stdout."""
    assert outcome.status == 2, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    sentence = _error(outcome)
    for part in told:
        assert part in sentence, sentence


def _error(outcome: Outcome) -> str:
    """The error itself, without the notes that a run told before it."""
    return outcome.err[outcome.err.index("loraloom: ") :]


def _with(words: list[object], flag: str, value: object) -> list[object]:
    """The same command with another value for one flag."""
    position = words.index(flag) + 1 if flag in words else None
    return [*words, flag, value] if position is None else [*words[:position], value, *words[position + 1 :]]


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- data files

DATA: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "an empty file": ("a.csv", b"", ("a.csv", "empty")),
    "only a header": ("a.csv", b"text,label\n", ("a.csv",)),
    "bytes that are not UTF-8": ("a.csv", b"text,label\nfine,1\ncaf\xe9,0\n", ("a.csv", "UTF-8", "3")),
    "one class": ("a.csv", b"text,label\nfine,1\ngreat,1\nlovely,1\n", ("label", "1")),
    "a ragged row": ("a.csv", b"text,label\nfine,1\nbad\n", ("a.csv", "3")),
    "an empty text": ("a.csv", b"text,label\nfine,1\n,0\nbad,0\n", ("a.csv", "3")),
    "a broken line of JSON": ("a.jsonl", b'{"text": "fine", "label": 1}\n{"text": \n', ("a.jsonl", "2")),
    "a kind of file nobody reads": ("a.docx", b"PK", ("a.docx", ".docx")),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_cannot_be_used(name: str, call: Call, train_words: list[object], tmp_path: Path) -> None:
    file, content, told = DATA[name]
    (tmp_path / file).write_bytes(content)
    _refused(call(*_with(train_words, "--data", tmp_path / file)), *told)
    assert not (tmp_path / "run").exists()


def test_a_missing_file(call: Call, train_words: list[object], tmp_path: Path) -> None:
    _refused(call(*_with(train_words, "--data", tmp_path / "trian.csv")), "trian.csv", "train.csv")
    assert not (tmp_path / "run").exists()


def test_a_missing_column(call: Call, train_words: list[object], tmp_path: Path) -> None:
    _refused(call(*train_words, "--text-column", "txet"), "txet", "'text'")
    assert not (tmp_path / "run").exists()


def test_a_wrong_delimiter(call: Call, train_words: list[object], tmp_path: Path) -> None:
    _refused(call(*train_words, "--set", "data.delimiter=;"), "train.csv", "';'", "','")
    assert not (tmp_path / "run").exists()


def test_a_label_that_training_never_saw(call: Call, train_words: list[object], tmp_path: Path) -> None:
    unseen = write_csv(tmp_path / "unseen.csv", [*sentences(6), ("the bed was fine", "positiv")])
    _refused(call(*_with(train_words, "--eval", unseen)), "unseen.csv:8", "positiv", "'positive'")
    assert not (tmp_path / "run").exists()


# --- settings

SETTINGS: dict[str, tuple[list[object], tuple[str, ...]]] = {
    "rank 0": (["--rank", 0], ("rank", "0")),
    "a negative rank": (["--rank", -4], ("rank", "-4")),
    "a rank that is no number": (["--rank", "eight"], ("rank", "eight")),
    "an unknown method": (["--method", "lroa"], ("method", "lroa", "'lora'")),
    "an unknown task": (["--task", "text-clasification"], ("text-clasification", "text-classification")),
    "an unknown key": (["--set", "adapter.rnak=4"], ("adapter.rnak", "rank")),
    "targets that match nothing": (["--targets", "qeury"], ("qeury", "query")),
    "one pattern of two that matches nothing": (["--targets", "query,vlaue"], ("vlaue", "value")),
    "an exclusion that matches nothing": (["--exclude", "quary"], ("quary",)),
    "a rate below zero": (["--learning-rate", "-1e-3"], ("learning_rate", "-1e-3")),
    "a rate that is not a number": (["--learning-rate", "nan"], ("learning_rate", "nan")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_used(name: str, call: Call, train_words: list[object], tmp_path: Path) -> None:
    words, told = SETTINGS[name]
    for flag, value in zip(words[::2], words[1::2], strict=True):
        train_words = _with(train_words, str(flag), value)
    _refused(call(*train_words), *told)
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_in_a_file_is_named_with_its_line(call: Call, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("base: b\ndata:\n  train: t.csv\n  evel: e.csv\nout: o\n", "utf-8")
    _refused(call("train", config), "c.yaml", "line 4", "data.evel", "eval")


def test_a_configuration_file_that_is_not_there(call: Call, tmp_path: Path) -> None:
    _refused(call("train", tmp_path / "none.yaml"), "none.yaml")


def test_a_rank_larger_than_a_layer_allows_is_noted(call: Call, train_words: list[object]) -> None:
    outcome = call(*_with(train_words, "--rank", 40), "--max-steps", 2)
    assert outcome.status == 0, outcome.err
    assert "40" in outcome.err and "32" in outcome.err


def test_texts_longer_than_the_model_takes_are_cut_counted_and_told(
    call: Call, train_words: list[object], tmp_path: Path
) -> None:
    long = write_csv(tmp_path / "long.csv", [*sentences(16), ("the soup was " * 40, "positive")])
    outcome = call(*_with(train_words, "--data", long), "--max-steps", 2)
    assert outcome.status == 0, outcome.err
    assert re.search(r"1 of 17 \w+ examples were longer than the model takes and were cut", outcome.err)


# --- folders and bases


def test_an_output_folder_that_is_not_empty(call: Call, train_words: list[object], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    _refused(call(*train_words), "not empty", "--out")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_an_output_folder_that_is_a_file(call: Call, train_words: list[object], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    _refused(call(*train_words), "run", "file")


def test_nothing_to_resume(call: Call, tmp_path: Path) -> None:
    _refused(call("train", "--resume", "--out", tmp_path / "nothing"), "nothing", "no run to resume")


@pytest.mark.parametrize("base", ["no-such/model", "./no/such/folder", "sentence-transformers/all-MiniLM-L6-v3"])
def test_a_base_that_does_not_exist(base: str, call: Call, train_words: list[object], tmp_path: Path) -> None:
    _refused(call(*_with(train_words, "--base", base)), base)
    assert not (tmp_path / "run").exists()


def test_a_base_that_is_only_a_pickle(call: Call, train_words: list[object], tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "pickled"
    shutil.copytree(tiny_base, base)
    (base / "model.safetensors").unlink()
    torch.save({}, base / "pytorch_model.bin")
    _refused(call(*_with(train_words, "--base", base)), "pickle", "save_pretrained")


def test_a_full_disk(call: Call, train_words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own refusal: this process may write files of some kilobytes only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setitem(files._REASONS, 27, "no space is left on the disk")
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        outcome = call(*train_words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    _refused(outcome, "no space is left on the disk")
    assert not (tmp_path / "run").exists()


# --- adapter folders


def _tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return next(key for key in sorted(tensors) if "lora_A" in key)


def _missing(folder: Path) -> None:
    _tensors(folder, lambda tensors: tensors.pop(_first(tensors)))


def _extra(folder: Path) -> None:
    _tensors(folder, lambda tensors: tensors.update({"base_model.model.nowhere.lora_A.weight": torch.zeros(4, 32)}))


def _misshapen(folder: Path) -> None:
    _tensors(folder, lambda tensors: tensors.update({_first(tensors): torch.zeros(4, 31)}))


def _not_a_number(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[_first(tensors)][0, 0] = float("nan")

    _tensors(folder, change)


def _truncated(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _cut_in_its_header(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 10_000) + b"{}")


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")


def _pickle_by_another_name(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"a": 1}))


def _without_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def _unknown_kind(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "IA3"}))


ADAPTERS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "a missing tensor": (_missing, ("lora_A",)),
    "an extra tensor": (_extra, ("nowhere",)),
    "a misshapen tensor": (_misshapen, ("31", "32")),
    "a NaN": (_not_a_number, ("lora_A",)),
    "a truncated file": (_truncated, ("adapter_model.safetensors",)),
    "a broken header": (_cut_in_its_header, ("adapter_model.safetensors",)),
    "a pickle": (_pickled, ("adapter_model.bin", "safetensors")),
    "a pickle under a safe name": (_pickle_by_another_name, ("adapter_model.safetensors",)),
    "no configuration": (_without_config, ("adapter_config.json",)),
    "a broken configuration": (_broken_config, ("adapter_config.json",)),
    "another kind of adapter": (_unknown_kind, ("IA3",)),
}


@pytest.fixture
def copied_run(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "copied"))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_damaged_adapter(name: str, call: Call, copied_run: Path) -> None:
    damage, told = ADAPTERS[name]
    damage(copied_run)
    before = _bytes_of(copied_run)
    _refused(call("predict", copied_run, "--text", "the soup was great"), *told)
    assert _bytes_of(copied_run) == before


def test_an_adapter_for_another_base(call: Call, copied_run: Path, tmp_path: Path) -> None:
    other = make_tiny_base(tmp_path / "other", seed=1)
    _refused(call("predict", copied_run, "--text", "the soup was great", "--base", other), "base")


@pytest.mark.parametrize("verb", ["evaluate", "predict", "inspect"])
def test_a_folder_that_holds_no_run(verb: str, call: Call, tmp_path: Path, eval_file: Path) -> None:
    words = {"evaluate": ["--data", eval_file], "predict": ["--text", "fine"], "inspect": []}[verb]
    _refused(call(verb, tmp_path / "nothing", *words), "nothing")
    (tmp_path / "empty").mkdir()
    _refused(call(verb, tmp_path / "empty", *words), "empty")


def test_a_file_to_predict_that_is_not_there(call: Call, run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    _refused(call("predict", run_folder, "--data", tmp_path / "none.csv", "--out", out), "none.csv")
    assert not out.exists()


def test_an_error_with_json_is_an_object_of_the_same_sentence(
    call: Call, train_words: list[object], tmp_path: Path
) -> None:
    outcome = call(*_with(train_words, "--rank", 0), "--json")
    assert outcome.status == 2
    assert outcome.data["error"]["kind"] == "ConfigError"
    assert outcome.data["error"]["message"] in outcome.err
    assert not (tmp_path / "run").exists()
