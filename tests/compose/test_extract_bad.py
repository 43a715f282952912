"""What extraction refuses, in one sentence, and without leaving anything behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.compose.extract_models import bert, change, change_layers, gpt2, llama, pair, save

from loraloom.compose.extract import ExtractJob, extract
from loraloom.errors import BaseModelError, ConfigError, FormatError, LoraloomError, OutputError


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a tuned model and models of other kinds."""
    folder = tmp_path_factory.mktemp("checkpoints")
    pair(folder, llama, change_layers)
    save(gpt2(), folder / "gpt2")
    save(bert(), folder / "bert")
    save(llama(hidden_size=64, intermediate_size=96), folder / "larger")
    return folder


@pytest.fixture
def folder(checkpoints: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoints, tmp_path / "c")
    return tmp_path / "c"


def attempt(folder: Path, tuned: str = "tuned", base: str = "base", **settings: Any) -> LoraloomError:
    """The error of an extraction that must fail; nothing may be there afterwards that was not before."""
    before = sorted(folder.rglob("*"))
    out = settings.pop("out", folder / "out")
    with pytest.raises(LoraloomError) as caught:
        extract(ExtractJob(str(folder / tuned), str(folder / base), out, **{"rank": 2, **settings}))
    assert sorted(folder.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return caught.value


def test_identical_checkpoints(folder: Path) -> None:
    error = attempt(folder, "base", "base")
    assert isinstance(error, ConfigError) and "nothing differs: the 21 tensors of" in str(error)


def test_the_same_but_rounded(folder: Path) -> None:
    save(llama(), folder / "rounded", torch.bfloat16)
    assert "nothing differs" in str(attempt(folder, "rounded", "base"))


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_different_architectures(kind: str, folder: Path) -> None:
    error = attempt(folder, "tuned", kind)
    assert isinstance(error, FormatError) and f"a llama and {folder / kind} a {kind}: different arch" in str(error)


def test_different_sizes(folder: Path) -> None:
    assert "are models of different sizes" in str(attempt(folder, "tuned", "larger"))


def test_files_without_a_common_name(folder: Path) -> None:
    save_file({"x.weight": torch.ones(2, 2)}, folder / "x.safetensors")
    save_file({"y.weight": torch.ones(2, 2)}, folder / "y.safetensors")
    assert "share no tensor's name" in str(attempt(folder, "x.safetensors", "y.safetensors"))


@pytest.mark.parametrize("which", ["tuned", "base"])
def test_missing(which: str, folder: Path) -> None:
    error = attempt(folder, **{which: which[:-1] + "x"})
    assert isinstance(error, BaseModelError) and which[:-1] in str(error)


@pytest.mark.parametrize("which", ["tuned", "base"])
def test_pickles(which: str, folder: Path) -> None:
    (folder / which / "model.safetensors").unlink()
    torch.save({"a": torch.ones(2)}, folder / which / "pytorch_model.bin")
    assert "pickle" in str(attempt(folder))


@pytest.mark.parametrize("which", ["tuned", "base"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(which: str, value: float, folder: Path) -> None:
    file = folder / which / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, file, {"format": "pt"})
    error = str(attempt(folder))
    assert str(file) in error and "'model.layers.0.mlp.up_proj.weight' holds values that are not finite" in error


def test_cut_short(folder: Path) -> None:
    file = folder / "tuned" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert isinstance(attempt(folder), FormatError | BaseModelError)


def test_quantised(folder: Path) -> None:
    file = folder / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    assert "gptq weights" in str(attempt(folder))


def test_an_adapter_is_no_checkpoint(folder: Path) -> None:
    extract(ExtractJob(str(folder / "tuned"), str(folder / "base"), folder / "adapter", rank=1))
    assert "is an adapter" in str(attempt(folder, "adapter"))


def test_a_shard_that_is_not_there(folder: Path) -> None:
    shutil.rmtree(folder / "tuned")
    model = llama()
    change_layers(model)
    save(model, folder / "tuned", shards="20KB")
    next(iter(sorted((folder / "tuned").glob("model-*.safetensors")))).unlink()
    assert "model-00001" in str(attempt(folder))


Settings = dict[str, Any]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 0}, "--rank is 0"),
        ({"rank": -3}, "--rank is -3"),
        ({"rank": None}, "say --rank, or --energy"),
        ({"rank": None, "energy": 0.0}, "--energy is 0"),
        ({"rank": None, "energy": 99.0}, "--energy is 99, expected a share"),
        ({"rank": None, "energy": float("nan")}, "--energy is nan"),
        ({"dtype": "fp8"}, "--dtype 'fp8' is not one of"),
        ({"to": "koya"}, "did you mean 'kohya'"),
        ({"to": "kohya", "out": Path("x")}, "must end in .safetensors"),
        ({"targets": ()}, "--targets names no pattern"),
        ({"targets": ("q_prj",)}, "'q_prj' matches no layer that can carry an update; did you mean 'q_proj'"),
        ({"targets": ("input_layernorm",)}, "matches no layer that can carry an update"),
        ({"targets": ("re:(",)}, "is not a regular expression"),
        ({"to": "loralib", "out": Path("x.safetensors"), "keep_others": True}, "--keep-others needs --to peft"),
    ],
)
def test_settings(settings: Settings, told: str, checkpoints: Path) -> None:
    assert told in str(attempt(checkpoints, **settings))


def test_the_target_is_taken(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "run.json").write_text("{}")
    error = attempt(folder)
    assert isinstance(error, OutputError) and "is there already" in str(error)
    extract(ExtractJob(str(folder / "tuned"), str(folder / "base"), folder / "out", rank=1, overwrite=True))
    assert not (folder / "out" / "run.json").exists()  # it told of another adapter
    assert "is the checkpoint that is read" in str(attempt(folder, out=folder / "base", overwrite=True))


def test_nothing_that_could_be_carried(folder: Path) -> None:
    model = llama()
    change(model.model.norm.weight)
    save(model, folder / "norm")
    error = str(attempt(folder, "norm"))
    assert "no layer that could carry an update differs, only 'model.norm.weight'; --keep-others" in error


def test_a_failed_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("loraloom.compose.extract.writing.write_together", fail)
    assert "the disk is full" in str(attempt(folder))


def never(*_: Any) -> Callable[..., None]:
    raise AssertionError("a tensor was read")


def test_settings_are_checked_before_any_tensor_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraloom.compose.checkpoint.opened.CheckpointTensors.__getitem__", never)
    attempt(folder, targets=("nothing",))
    attempt(folder, "tuned", "larger")
    (folder / "out").mkdir()
    (folder / "out" / "x").write_text("")
    attempt(folder)
