"""Embedding files: what is read, and what is refused in which words."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.errors import ConfigError, FormatError
from loraloom.imaging.conditioning.embedding import misfit, read_embedding
from loraloom.imaging.conditioning.folder import EmbeddingFolder


def vectors(count=3, width=16):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("key", ["emb_params", "string_to_param", "<my-cat>"])
def test_one_tensor_under_any_name(tmp_path, key):
    save_file({key: vectors()}, tmp_path / "cat.safetensors")
    embedding = read_embedding(tmp_path / "cat.safetensors")
    assert torch.equal(embedding.vectors["text_encoder"], vectors())
    assert embedding.names == (("cat", "<my-cat>") if key == "<my-cat>" else ("cat",))


def test_one_vector_without_a_first_axis(tmp_path):
    save_file({"emb_params": vectors(1)[0]}, tmp_path / "cat.safetensors")
    assert torch.equal(read_embedding(tmp_path / "cat.safetensors").vectors["text_encoder"], vectors(1))


def test_emb_params_beside_other_tensors(tmp_path):
    save_file({"emb_params": vectors(), "step": torch.tensor(500)}, tmp_path / "cat.safetensors")
    assert read_embedding(tmp_path / "cat.safetensors").count == 3


def test_the_name_that_the_file_gives_itself(tmp_path):
    save_file({"emb_params": vectors()}, tmp_path / "v2-final.safetensors", metadata={"name": "nicecat"})
    folder = EmbeddingFolder(tmp_path)
    assert folder.names() == ["v2-final"]
    assert folder.load("nicecat") is folder.load("v2-final")


def test_two_encoders(tmp_path):
    save_file({"clip_l": vectors(), "clip_g": vectors(3, 24)}, tmp_path / "cat.safetensors")
    embedding = read_embedding(tmp_path / "cat.safetensors")
    assert embedding.widths == {"text_encoder": 16, "text_encoder_2": 24}
    assert embedding.count == 3


BAD = {
    "unequal": ({"clip_l": vectors(), "clip_g": vectors(2, 24)}, "clip_l 3, clip_g 2"),
    "half": ({"clip_g": vectors()}, "'clip_l' and 'clip_g' (SDXL)"),
    "adapter": (
        {"lora_up": vectors(), "lora_down": vectors()},
        "it holds lora_down, lora_up; expected is 'emb_params'",
    ),
    "shape": ({"emb_params": torch.zeros(2, 3, 4)}, "has shape (2, 3, 4) of float32"),
    "none": ({"emb_params": torch.zeros(0, 16)}, "has shape (0, 16)"),
    "ids": ({"emb_params": torch.zeros(2, 3, dtype=torch.int64)}, "of int64; expected are vectors"),
    "nan": ({"emb_params": torch.full((2, 3), torch.nan)}, "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_embedding_is_refused_in_words(tmp_path, name):
    tensors, sentence = BAD[name]
    save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(FormatError) as caught:
        read_embedding(tmp_path / f"{name}.safetensors")
    assert sentence in str(caught.value) and f"{name}.safetensors" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"PK\x03\x04" + b"x" * 60])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "cat.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match="cat.safetensors"):
        EmbeddingFolder(tmp_path).load("cat")


def test_a_checkpoint_in_the_wrong_folder_is_not_read(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(FormatError, match="1024 MB"):
        EmbeddingFolder(tmp_path).load("model")


@pytest.mark.parametrize("kind", ["web UI", "concept"])
def test_a_pickle_is_refused_with_the_line_that_converts_it(tmp_path, monkeypatch, kind):
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(vectors())}, "name": "cat"}
    torch.save(content if kind == "web UI" else {"<cat>": vectors()}, tmp_path / "cat.pt")
    folder = EmbeddingFolder(tmp_path)
    assert folder.names() == []
    with pytest.raises(FormatError, match="a pickle, which can run code") as caught:
        folder.load("cat")
    command = shlex.split(str(caught.value).partition("convert it once with: ")[2])
    assert command[:2] == ["python", "-c"]
    monkeypatch.chdir(tmp_path)
    exec(command[2], {})
    assert torch.equal(folder.load("cat").vectors["text_encoder"], vectors())
    assert folder.names() == ["cat"]


def test_the_folder_is_read_again_when_a_file_changes(tmp_path):
    folder = EmbeddingFolder(tmp_path)
    assert folder.entries() == ()
    save_file({"emb_params": vectors()}, tmp_path / "cat.safetensors")
    save_file({"emb_params": vectors()}, tmp_path / "dog.safetensors")
    first, dog = folder.entries(), folder.load("dog")
    assert folder.entries() is first
    save_file({"emb_params": vectors(5)}, tmp_path / "cat.safetensors")
    assert folder.load("cat").count == 5
    assert folder.load("dog") is dog
    (tmp_path / "cat.safetensors").unlink()
    assert folder.names() == ["dog"]


def test_folders_below_count_and_the_first_of_a_name(tmp_path):
    for place, count in (("a", 1), ("b", 2)):
        (tmp_path / place).mkdir()
        save_file({"emb_params": vectors(count)}, tmp_path / place / "cat.safetensors")
    (tmp_path / "a" / "round").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "cat.preview.png").write_bytes(b"")
    folder = EmbeddingFolder(tmp_path)
    assert folder.names() == ["cat"]
    assert folder.load("cat").count == 1


def test_an_unknown_name_and_an_unknown_folder_have_near_ones(tmp_path):
    save_file({"emb_params": vectors()}, tmp_path / "EasyNegativeV2.safetensors")
    with pytest.raises(FormatError, match="did you mean 'EasyNegativeV2'"):
        EmbeddingFolder(tmp_path).load("EasyNegative")
    with pytest.raises(ConfigError, match="no folder .*did you mean"):
        EmbeddingFolder(tmp_path.with_name(tmp_path.name + "x"))


def test_a_misfit_names_the_file_and_both_widths(tmp_path):
    save_file({"emb_params": vectors(2, 1024)}, tmp_path / "cat.safetensors")
    two = read_embedding(tmp_path / "cat.safetensors")
    said = misfit(two, {"text_encoder": 768}, 75, "mine")
    assert str(Path(tmp_path / "cat.safetensors")) in said
    assert "1024 wide (SD 2.x)" in said and "base 'mine' takes 768 wide (SD 1.x)" in said
    save_file({"clip_l": vectors(2, 768), "clip_g": vectors(2, 1280)}, tmp_path / "xl.safetensors")
    large = read_embedding(tmp_path / "xl.safetensors")
    assert "768 and 1280 wide (SDXL)" in misfit(large, {"text_encoder": 768}, 75, "mine")
    assert misfit(large, {"text_encoder": 768, "text_encoder_2": 1280}, 75, "mine") == ""
    assert misfit(two, {"text_encoder": 1024}, 1, "mine").endswith("holds 2 vectors, a chunk has room for 1")
