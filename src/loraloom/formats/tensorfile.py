"""Safetensors files: read with every claim of the header checked first, written to the same bytes each time.

A file is the header's length (8 bytes, little endian), the header (JSON: tensor → dtype, shape, offsets), and
the tensors end to end. The library that reads the tensors checks this too; it is done here before, so that the
error can name the tensor and what is wrong with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loraloom.errors import FormatError, OutputError, one_error

_LONGEST_HEADER = 100_000_000  # what the safetensors library accepts
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
Buffer = bytes | memoryview
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class _Entry:
    """What the header says of one tensor."""

    name: str
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself, checked against its size; no tensor is read."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    metadata: Mapping[str, str]
    places: Mapping[str, tuple[int, int]]
    """First byte of each tensor in the file, and the one after its last."""


def read_header(path: Path) -> Header:
    """Shapes, dtypes and metadata of a safetensors file, from its header alone.

    Raises FormatError for a file that is missing, cut short, or whose header does not describe what follows it.
    """
    try:
        header, data_size = _header(path)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: '__metadata__' in the header must hold strings by name")
    faults: list[str] = []
    entries = [entry for name, claim in header.items() if (entry := _entry(name, claim, data_size, faults))]
    faults += [] if faults else _layout_faults(entries, data_size)
    if faults:
        raise one_error(FormatError, f"{path}: the safetensors header is damaged", faults)
    shapes = {name: tuple(claim["shape"]) for name, claim in header.items()}
    dtypes = {name: _DTYPES[claim["dtype"]] for name, claim in header.items()}
    start = path.stat().st_size - data_size
    places = {entry.name: (start + entry.begin, start + entry.end) for entry in entries}
    return Header(shapes, dtypes, metadata, places)


def read_tensors(path: Path, only: Iterable[str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, on the CPU, and the metadata of its header.

    `only` names those to read, None reads all. Raises FormatError as `read_header` does.
    """
    header = read_header(path)
    names = sorted(header.shapes if only is None else set(only) & set(header.shapes))
    return _load(path, names), dict(header.metadata)


def _load(path: Path, names: list[str]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise FormatError(f"{path} is not a sound safetensors file: {error}") from None


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header, and how many bytes of tensors follow it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8:
            raise FormatError(f"{path} is cut short: {size} bytes cannot hold a safetensors header")
        if length > size - 8 or length > _LONGEST_HEADER:
            raise FormatError(_too_long(path, start, length, size))
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the safetensors header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the safetensors header is not a JSON object")
    return header, size - 8 - length


def _too_long(path: Path, start: bytes, length: int, size: int) -> str:
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return f"{path} is a pickle under another name, which could run code when it is read"
    return f"{path} is cut short or not a safetensors file: its header claims {length} bytes, {size - 8} follow"


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is given twice")
        found[name] = value
    return found


def _entry(name: str, claim: object, data_size: int, faults: list[str]) -> _Entry | None:
    """A tensor's place in the file, or a fault."""
    if not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"}:
        faults.append(f"tensor {name!r} needs exactly a dtype, a shape and data_offsets")
        return None
    dtype, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        faults.append(f"tensor {name!r} has dtype {dtype!r}, expected one of {', '.join(_DTYPES)}")
    elif not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        faults.append(f"tensor {name!r} has shape {shape!r} and data_offsets {offsets!r}, expected whole numbers")
    elif not offsets[0] <= offsets[1] <= data_size:
        faults.append(
            f"tensor {name!r} lies at bytes {offsets[0]} to {offsets[1]}, but {data_size} bytes follow the header: "
            "the file is cut short or the header is wrong"
        )
    elif (needed := prod(shape) * _DTYPES[dtype].itemsize) != offsets[1] - offsets[0]:
        faults.append(f"tensor {name!r} ({dtype}, shape {tuple(shape)}) needs {needed} bytes, but has {offsets}")
    else:
        return _Entry(name, *offsets)
    return None


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _layout_faults(entries: list[_Entry], data_size: int) -> list[str]:
    """Tensors must lie end to end: an overlap or a gap means that some offset is wrong."""
    faults, position = [], 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            faults.append(f"tensor {entry.name!r} starts at byte {entry.begin}, expected {position}")
        position = entry.end
    if not faults and position != data_size:
        faults.append(f"the tensors end at byte {position}, but {data_size} bytes follow the header")
    return faults


def tensor_pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[Buffer]:
    """A safetensors file, piece by piece, for `write_together`.

    Same tensors and metadata, same bytes: names are sorted, which the library's own writer does not do for
    metadata.
    """
    outline = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    yield header_bytes(outline, metadata)
    for name in sorted(tensors):
        yield tensor_bytes(tensors[name])


def header_bytes(outline: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with, from the dtypes and shapes alone; the tensors follow in order of names."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name, (dtype, shape) in sorted(outline.items()):
        end = position + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor as a safetensors file has it."""
    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data


def write_together(files: Mapping[Path, Iterable[Buffer]]) -> None:
    """Write files under temporary names, flush them, and only then give all of them their names.

    Raises OutputError where one cannot be written; the former files, or none, are then still there.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    made = [path.parent for path in files if not path.parent.exists()]
    try:
        for path, pieces in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(temporary[path], pieces)
        for path in files:
            os.replace(temporary[path], path)
    except OSError as error:
        _remove(temporary.values(), made)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
    except BaseException:
        _remove(temporary.values(), made)
        raise


def _write(path: Path, pieces: Iterable[Buffer]) -> None:
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _remove(files: Iterable[Path], folders: Iterable[Path]) -> None:
    for path in files:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
