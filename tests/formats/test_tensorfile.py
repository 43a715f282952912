"""Safetensors files: written alike, read only when every claim of the header holds."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import Tensor

from loraloom.errors import FormatError, OutputError
from loraloom.formats.tensorfile import read_tensors, tensor_pieces, write_together

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.tensor([[1.5], [2.5]], dtype=torch.bfloat16),
    "count": torch.tensor(3),
    "none": torch.empty(0, 4),
}


def write(path: Path, tensors: dict[str, Tensor], **metadata: str) -> bytes:
    write_together({path: tensor_pieces(tensors, metadata)})
    return path.read_bytes()


def with_header(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", TENSORS, format="pt", note="ü")
    tensors, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt", "note": "ü"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_library_reads_it_too(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", TENSORS, format="pt")
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_the_librarys_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(save(TENSORS, {"format": "pt"}))
    tensors, _ = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_same_tensors_same_bytes(tmp_path: Path) -> None:
    turned = dict(reversed(TENSORS.items()))
    first = write(tmp_path / "x", TENSORS, b="1", a="2", c="3")
    assert first == write(tmp_path / "y", turned, c="3", a="2", b="1")


DAMAGED = {
    "two tensors in one place": ({"a": entry(), "b": entry()}, "'b' starts at byte 0, expected 8"),
    "a gap": ({"a": entry(offsets=(8, 16))}, "'a' starts at byte 8, expected 0"),
    "bytes left over": ({"a": entry()}, "the tensors end at byte 8, but 16 bytes follow"),
    "beyond the end": ({"a": entry((6,), (0, 24))}, "lies at bytes 0 to 24, but 16 bytes follow"),
    "backwards": ({"a": entry((2,), (8, 0))}, "lies at bytes 8 to 0"),
    "a size that is not the shape's": ({"a": entry((3,), (0, 16))}, "needs 12 bytes"),
    "a shape of another kind": ({"a": entry(("2",), (0, 16))}, r"shape \['2'\]"),
    "a negative size": ({"a": entry((-4, -1), (0, 16))}, "expected whole numbers"),
    "a size that is true": ({"a": entry((True, 4), (0, 16))}, "expected whole numbers"),
    "one offset": ({"a": entry((4,), (0,))}, "expected whole numbers"),
    "an unknown dtype": ({"a": entry((4,), (0, 16), "F33")}, "dtype 'F33', expected one of F64"),
    "a dtype that is none": ({"a": entry((4,), (0, 16), ["F32"])}, "expected one of F64"),
    "no dtype": ({"a": {"shape": [4], "data_offsets": [0, 16]}}, "needs exactly a dtype"),
    "a field too many": ({"a": {**entry((4,), (0, 16)), "more": 1}}, "needs exactly a dtype"),
    "an entry that is none": ({"a": 3}, "needs exactly a dtype"),
    "metadata that is none": ({"__metadata__": {"a": 1}}, "'__metadata__' in the header must hold strings"),
    "a list": ([], "not a JSON object"),
    "not JSON": (b"{oh", "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not JSON"),
    "a name twice": (b'{"a": 1, "a": 2}', "'a' is given twice"),
    "a nest without end": (b"[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_header_that_lies(name: str, tmp_path: Path) -> None:
    header, told = DAMAGED[name]
    path = with_header(tmp_path / "x.safetensors", header, bytes(16))
    with pytest.raises(FormatError, match=told) as error:
        read_tensors(path)
    assert "x.safetensors" in str(error.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = with_header(tmp_path / "x", {"a": entry(dtype="F3"), "b": entry((9,)), "c": 1}, bytes(16))
    with pytest.raises(FormatError, match="3 faults"):
        read_tensors(path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    whole = write(path, TENSORS, format="pt")
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_tensors(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FormatError, match="bytes follow the header"):
        read_tensors(path)


def test_a_length_beyond_reason(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff" * 16)
    with pytest.raises(FormatError, match="its header claims 18446744073709551615 bytes, 8 follow"):
        read_tensors(tmp_path / "x")


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_under_another_name(new: bool, tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.safetensors", _use_new_zipfile_serialization=new)
    with pytest.raises(FormatError, match="is a pickle under another name"):
        read_tensors(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FormatError, match="is a pickle under another name"):
        read_tensors(tmp_path / "x.safetensors")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"x\.safetensors cannot be read: No such file"):
        read_tensors(tmp_path / "x.safetensors")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_give_an_error_or_the_truth(data: st.DataObject, tmp_path: Path) -> None:
    """One changed byte anywhere before the tensors: refused, or every tensor's bytes are right."""
    path = tmp_path / "x.safetensors"
    whole = bytearray(write(path, TENSORS, note="n"))
    end = 8 + int.from_bytes(whole[:8], "little")
    whole[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        tensors, _ = read_tensors(path)
    except FormatError:
        return
    assert sorted(map(content, tensors.values())) == sorted(map(content, TENSORS.values()))


def content(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=200), as_header=st.booleans())
def test_noise(noise: bytes, as_header: bool, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if as_header:
        with_header(path, noise, bytes(8))
    else:
        path.write_bytes(noise)
    try:
        read_tensors(path)
    except FormatError as error:
        assert str(path) in str(error)


def test_a_write_that_fails_leaves_the_former_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("former")

    def full_disk() -> Any:
        yield b"some"
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="cannot write .*second: No space left on device"):
        write_together({first: [b"new"], second: full_disk()})
    assert first.read_text() == "former"
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_folder_that_cannot_be_made_is_not_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_together({tmp_path / "new" / "x": [b""], tmp_path / "file" / "x": [b""]})
    assert not (tmp_path / "new").exists()
