"""Tensors read one by one from their files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraloom.errors import FormatError
from loraloom.formats.stored import StoredTensors


def tensors() -> dict[str, torch.Tensor]:
    return {
        "matrix": torch.randn(3, 5),
        "half": torch.randn(4, 2, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "count": torch.tensor([7], dtype=torch.int64),
    }


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = tensors()
    save_file(written, tmp_path / "a.safetensors")
    save_file({"other": torch.ones(2)}, tmp_path / "b.safetensors")
    stored = StoredTensors(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert set(stored) == {*written, "other"}
    assert len(stored) == 6
    for name, tensor in written.items():
        assert torch.equal(stored[name], tensor)
        assert stored[name].dtype == stored.dtype(name) == tensor.dtype
        assert stored.shape(name) == tuple(tensor.shape)
    assert stored.files["other"] == tmp_path / "b.safetensors"


def test_a_change_of_a_tensor_stays_in_memory(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(4)}, tmp_path / "a.safetensors")
    stored = StoredTensors(tmp_path / "a.safetensors")
    stored["x"].fill_(1.0)
    assert torch.equal(stored["x"], torch.zeros(4))


def test_a_name_in_two_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FormatError, match=r"'x' is in two files: .*a\.safetensors and .*b\.safetensors"):
        StoredTensors(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    save_file({"good": torch.zeros(1), "bad": torch.tensor([1.0, torch.nan])}, tmp_path / "a.safetensors")
    stored = StoredTensors(tmp_path / "a.safetensors", finite=True)
    assert stored["good"] == 0
    with pytest.raises(FormatError, match="'bad' holds values that are not finite"):
        stored["bad"]
    assert StoredTensors(tmp_path / "a.safetensors")["bad"].isnan().any()


def test_a_file_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(64)}, path)
    stored = StoredTensors(path)
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(FormatError, match="has become shorter"):
        stored["x"]
