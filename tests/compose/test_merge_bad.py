"""What cannot be merged is refused by name, and nothing is left behind, whatever stops the work."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.compose.checkpoints import load, save_adapter, save_model, weights
from transformers import AutoModelForCausalLM

from loraloom.compose.checkpoint import streaming
from loraloom.compose.merge import MergeJob, merge, shards
from loraloom.compose.weights import Weighted
from loraloom.errors import BaseModelError, ConfigError, FormatError, OutputError


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and an adapter for it; only read."""
    folder = tmp_path_factory.mktemp("pair")
    base = save_model("llama", folder / "base")
    save_adapter(load(AutoModelForCausalLM, base), folder / "adapter", target_modules=["q_proj", "down_proj"])
    return base, folder / "adapter"


def job(base: Path, adapter: Path, out: Path, **settings: Any) -> MergeJob:
    return MergeJob(str(base), (Weighted(adapter),), out, **{"check": "layers", **settings})


def nothing_left(folder: Path, *but: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(but)


def test_an_adapter_for_another_model_has_every_fault_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = save_model("bert", tmp_path / "bert")
    with pytest.raises(FormatError, match=r"does not fit this model(.|\n)*model\.layers\.0\.mlp\.down_proj"):
        merge(job(base, pair[1], tmp_path / "out"))
    assert nothing_left(tmp_path, "bert")


def test_a_layer_that_the_base_lacks_is_never_skipped(pair: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    tensors = load_file(pair[1] / "adapter_model.safetensors")
    tensors = {key.replace("layers.1.mlp.down_proj", "layers.9.mlp.down_proj"): t for key, t in tensors.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_bytes((pair[1] / "adapter_config.json").read_bytes())
    with pytest.raises(FormatError, match=r"layers\.9\.mlp\.down_proj"):
        merge(job(pair[0], adapter, tmp_path / "out"))


def test_the_base_that_a_run_was_trained_over_is_asked_for(pair: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in pair[1].iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    (adapter / "run.json").write_text(json.dumps({"base": {"name": "other", "fingerprint": "0" * 64}}))
    with pytest.raises(FormatError, match=r"sha256 000000000000….*--any-base"):
        merge(job(pair[0], adapter, tmp_path / "out"))
    assert nothing_left(tmp_path, "adapter")
    assert merge(job(pair[0], adapter, tmp_path / "out", any_base=True)).holds


QUANTISED = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, ".SCB"),
    "gptq": ({"quant_method": "gptq", "bits": 4}, ".qweight"),
}


@pytest.mark.parametrize("how", QUANTISED)
def test_a_quantised_base_is_refused_by_name(how: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    settings, end = QUANTISED[how]
    base = tmp_path / "base"
    base.mkdir()
    config = json.loads((pair[0] / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    key = "model.layers.0.self_attn.q_proj"
    tensors = {f"{key}.weight": torch.ones(32, 32, dtype=torch.int8), key + end: torch.ones(32)}
    save_file(tensors, base / "model.safetensors")
    words = "--dequantize" if how == "bitsandbytes" else r"quantised \(gptq\).*dequantize\(\)"
    with pytest.raises(BaseModelError, match=words):
        merge(job(base, pair[1], tmp_path / "out"))


def test_values_that_the_dtype_has_no_number_for(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="would hold values that float16 has no number for"):
        merge(MergeJob(str(pair[0]), (Weighted(pair[1], 1e6),), tmp_path / "out", dtype="fp16", check="layers"))
    assert nothing_left(tmp_path)


def test_two_different_heads_must_be_chosen_between(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    for name in "ab":
        model = load(AutoModelForCausalLM, base)
        config = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "seed": ord(name)}
        save_adapter(model, tmp_path / name, **config)
    both = (Weighted(tmp_path / "a"), Weighted(tmp_path / "b"))
    with pytest.raises(ConfigError, match="a, b have heads of their own"):
        merge(MergeJob(str(base), both, tmp_path / "out", check="layers"))
    with pytest.raises(ConfigError, match="no adapter with a head"):
        merge(MergeJob(str(base), both, tmp_path / "out", head="c", check="layers"))
    assert merge(MergeJob(str(base), both, tmp_path / "out", head="b", check="layers")).holds
    wanted = load_file(tmp_path / "b" / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    assert torch.equal(weights(tmp_path / "out")["lm_head.weight"], wanted)


def test_what_is_there_already_is_kept(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        merge(job(*pair, out))
    with pytest.raises(OutputError, match="other things than a checkpoint"):
        merge(job(*pair, out, overwrite=True))
    assert (out / "notes.txt").read_text() == "mine"


def test_overwriting_leaves_nothing_of_the_old(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert merge(job(*pair, out)).holds
    (out / "model-99-of-99.safetensors").write_bytes(b"old")
    assert merge(job(*pair, out, overwrite=True)).holds
    assert not (out / "model-99-of-99.safetensors").exists()
    assert nothing_left(tmp_path, "out")


@pytest.mark.parametrize("place", ["base", "adapter"])
def test_what_is_read_is_never_written_over(place: str, pair: tuple[Path, Path]) -> None:
    chosen = pair[0] if place == "base" else pair[1]
    for out in (chosen, chosen / "inner", chosen.parent):
        with pytest.raises(OutputError, match="which is read"):
            merge(job(*pair, out, overwrite=True))


def test_a_folder_is_no_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder, and becomes one"):
        merge(job(*pair, tmp_path / "out.safetensors"))


def _no_space(file: Any, position: int, data: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_write", _no_space)
    with pytest.raises(OutputError, match="No space left"):
        merge(job(*pair, tmp_path / "deep" / "out"))
    assert nothing_left(tmp_path)


def test_an_interrupt_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards.ShardWriter, "check", stop)
    with pytest.raises(KeyboardInterrupt):
        merge(job(*pair, tmp_path / "out"))
    assert nothing_left(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_place_that_cannot_be_written(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot write"):
        merge(job(*pair, tmp_path / "closed" / "out"))


def test_a_written_tensor_that_is_not_what_was_meant_gets_no_name(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check reads what lies in the file: one number of one tensor is turned after it was written."""
    write = shards.ShardWriter.write

    def spoil(self: shards.ShardWriter, place: shards.Place) -> list[str]:
        names = write(self, place)
        changed = next(name for name in self.written if "q_proj" in name)
        file = next(file for file, (_, held) in self.files.items() if changed in held)
        tensors = load_file(place(self.name_of(file)))
        tensors[changed][3, 5] += 0.01
        save_file(tensors, place(self.name_of(file)))
        return names

    monkeypatch.setattr(shards.ShardWriter, "write", spoil)
    report = merge(job(*pair, tmp_path / "out"))
    assert not report.holds and [one.name for one in report.failed] == ["model.layers.0.self_attn.q_proj.weight"]
    assert nothing_left(tmp_path)


def test_the_whole_models_are_compared(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that no adapter changes is turned after it was written: layers hold, outputs do not."""
    write = shards.ShardWriter.write

    def spoil(self: shards.ShardWriter, place: shards.Place) -> list[str]:
        names = write(self, place)
        file = next(file for file, (_, held) in self.files.items() if "model.embed_tokens.weight" in held)
        tensors = load_file(place(self.name_of(file)))
        tensors["model.embed_tokens.weight"] *= 2
        tensors["model.embed_tokens.weight"][:, 0] += 1
        save_file(tensors, place(self.name_of(file)))
        return names

    monkeypatch.setattr(shards.ShardWriter, "write", spoil)
    report = merge(job(*pair, tmp_path / "out", check="outputs"))
    assert not report.failed and report.outputs is not None and not report.outputs.holds
    assert nothing_left(tmp_path)
