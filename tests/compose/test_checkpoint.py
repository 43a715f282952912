"""Finding and opening checkpoints, and where a layer's weight lies in their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.compose.checkpoints import save_model

from loraloom.compose.checkpoint import Checkpoint
from loraloom.compose.checkpoint.dense import dense_view
from loraloom.compose.checkpoint.layout import Hints, key_skeleton
from loraloom.errors import BaseModelError, FormatError
from loraloom.formats.stored import StoredTensors


def test_a_sharded_folder(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_model("bert", tmp_path / "base"))
    assert checkpoint.form == "transformers" and checkpoint.config["model_type"] == "bert"
    assert len(checkpoint.shards) > 1
    assert sorted(name for names in checkpoint.shards.values() for name in names) == sorted(checkpoint.tensors)
    name = "encoder.layer.0.attention.self.query.weight"
    assert checkpoint.tensors[name].shape == checkpoint.tensors.shape(name) == (32, 32)
    file, begin, end = checkpoint.tensors.place(name)
    assert file in checkpoint.shards and end - begin == 32 * 32 * 4


def test_names_with_and_without_the_base_models_prefix(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_model("bert", tmp_path / "base"))
    plain = "encoder.layer.1.output.dense"
    assert checkpoint.layout([plain, f"bert.{plain}"]) == {plain: f"{plain}.weight", f"bert.{plain}": f"{plain}.weight"}


def test_a_shared_output_layer_lies_where_the_embedding_does(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_model("gpt2", tmp_path / "base"))
    assert checkpoint.layout(["lm_head"]) == {"lm_head": "transformer.wte.weight"}


def test_every_path_without_a_place_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_model("bert", tmp_path / "base"))
    with pytest.raises(FormatError, match=r"2 faults(.|\n)*quary.*did you mean(.|\n)*nowhere"):
        checkpoint.layout(["encoder.layer.0.attention.self.quary", "nowhere"])


def test_experts_that_are_put_together_when_loaded_can_be_taken_apart(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_model("mixtral", tmp_path / "base"))
    skeleton = checkpoint.skeleton(checkpoint.parts[0])
    path = "model.layers.0.mlp.experts.gate_up_proj"
    whole = torch.randn(skeleton.model.get_parameter(path).shape)
    parts = skeleton.spread(path, whole)
    assert set(parts) == set(skeleton.fused[path]) and len(parts) == 6
    stem = "model.layers.0.block_sparse_moe.experts.1"
    assert torch.equal(torch.cat([parts[f"{stem}.w1.weight"], parts[f"{stem}.w3.weight"]]), whole[1])


def test_a_pipeline_of_the_package() -> None:
    checkpoint = Checkpoint.open("scenes")
    assert checkpoint.form == "pipeline" and {part.name for part in checkpoint.parts} >= {"unet", "vae", "text_encoder"}
    assert checkpoint.layout(["unet.conv_in"]) == {"unet.conv_in": "unet.conv_in.weight"}
    assert checkpoint.tensors["unet.conv_in.weight"].dtype == checkpoint.tensors.dtype("unet.conv_in.weight")
    with pytest.raises(FormatError, match="is in no part"):
        checkpoint.layout(["unets.conv_in"])


def test_a_model_guessed_from_names_and_shapes(tmp_path: Path) -> None:
    tensors = {
        "words.weight": torch.zeros(7, 4),
        "block.0.up.weight": torch.zeros(6, 4),
        "block.0.up.bias": torch.zeros(6),
        "block.0.conv.weight": torch.zeros(6, 2, 3, 3),
        "scale": torch.zeros(4),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    skeleton = key_skeleton(StoredTensors(tmp_path / "m.safetensors"), Hints(frozenset(["words"]), {"block.0.conv": 2}))
    kinds = {path: type(module).__name__ for path, module in skeleton.model.named_modules() if path}
    assert kinds == {
        "words": "Embedding",
        "block": "Module",
        "block.0": "Module",
        "block.0.up": "Linear",
        "block.0.conv": "Conv2d",
    }
    assert {name: p.shape for name, p in skeleton.model.named_parameters()} == {n: t.shape for n, t in tensors.items()}
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_asking_whether_a_tensor_is_there_does_not_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(save_model("bert", tmp_path / "base"))
    dense = dense_view(checkpoint, False).tensors

    def read(self: StoredTensors, name: str) -> torch.Tensor:
        raise AssertionError(name)

    monkeypatch.setattr(StoredTensors, "__getitem__", read)
    for tensors in (checkpoint.tensors, checkpoint.parts[0].tensors, dense):
        assert "embeddings.word_embeddings.weight" in tensors and "nothing" not in tensors


def _pickles_alone(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def _no_weights(folder: Path) -> None:
    (folder / "readme.txt").write_text("nothing")


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _damaged_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')


def _missing_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


def _several_files(folder: Path) -> None:
    for name in ("a", "b"):
        save_file({name: torch.zeros(1)}, folder / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_pickles_alone, r"only as a pickle \(pytorch_model\.bin\).*save_pretrained"),
        (_no_weights, "holds no weights"),
        (_adapter, "is an adapter"),
        (_damaged_index, "cannot be read as an index"),
        (_missing_shard, "names 'model-1.safetensors', which is not in the folder"),
        (_several_files, "several weight files and no index"),
    ],
)
def test_folders_that_are_no_checkpoint(make: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(BaseModelError, match=words):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("m.bin", None, "is a pickle"),
        ("m.txt", None, "is no .safetensors file"),
        ("m.safetensors", "lora_unet_mid_block.lora_down.weight", "is an adapter"),
        ("m.safetensors", "model.diffusion_model.out.0.weight", "from_single_file.*save_pretrained"),
    ],
)
def test_files_that_are_no_checkpoint(name: str, key: str | None, words: str, tmp_path: Path) -> None:
    if key is None:
        (tmp_path / name).write_bytes(b"\x80\x02.")
    else:
        save_file({key: torch.zeros(1)}, tmp_path / name)
    with pytest.raises(BaseModelError, match=words):
        Checkpoint.open(tmp_path / name)


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="did you mean 'scenes'"):
        Checkpoint.open("scene")
    with pytest.raises(BaseModelError, match="there is no file.*did you mean 'model.safetensors'"):
        (tmp_path / "model.safetensors").touch()
        Checkpoint.open(tmp_path / "modle.safetensors")


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    base = save_model("bert", tmp_path / "base")
    (base / "config.json").write_text("{")
    with pytest.raises(BaseModelError, match="cannot be read as JSON"):
        Checkpoint.open(base)
    shutil.rmtree(base)
