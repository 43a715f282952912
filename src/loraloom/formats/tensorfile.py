"""Safetensors files: read with every claim of the header checked first, written to the same bytes each time.

A file is the header's length (8 bytes, little endian), the header (JSON: tensor → dtype, shape, offsets), and
the tensors end to end. What is wrong is told by the tensor's name, and nothing is read that was not checked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from loraloom.errors import FormatError, OutputError
from loraloom.formats.careful import LONGEST_JSON, brief, first_faults, open_regular, parse_json

_LONGEST_NAME, _MOST_DIMENSIONS, _LARGEST = 300, 32, 2**62
_SMALL = {
    "F8_E4M3": "8 bits",
    "F8_E5M2": "8 bits",
    "F8_E8M0": "8 bits",
    "F6_E2M3": "6 bits",
    "F6_E3M2": "6 bits",
    "F4": "4 bits",
}
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

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    metadata: Mapping[str, str]
    places: Mapping[str, tuple[int, int]]
    """First byte of each tensor in the file, and the one after its last."""

    def read(self, name: str, file: BinaryIO) -> Tensor:
        """A tensor from the open file, into memory of its own. Raises FormatError where it has become shorter."""
        begin, end = self.places[name]
        return self._tensor(name, _bytes(file, begin, end, self.path))

    def read_all(self, file: BinaryIO) -> dict[str, Tensor]:
        """Every tensor, side by side in one piece of memory, which takes a third of the time; each its own version."""
        if not self.places:
            return {}
        start = min(begin for begin, _ in self.places.values())
        data = _bytes(file, start, max(end for _, end in self.places.values()), self.path)
        found = {}
        for name in sorted(self.places):
            begin, end = self.places[name]
            own = data[begin - start : end - start]
            aligned = (begin - start) % self.dtypes[name].itemsize == 0
            found[name] = self._tensor(name, own if aligned else own.clone()).data
        return found

    def _tensor(self, name: str, data: Tensor) -> Tensor:
        return data.view(self.dtypes[name]).reshape(self.shapes[name])


def _bytes(file: BinaryIO, begin: int, end: int, path: Path) -> Tensor:
    """Bytes of an open file, in new memory. Raises FormatError where it has become shorter."""
    data = torch.empty(end - begin, dtype=torch.uint8)
    view, filled = data.numpy().data, 0
    file.seek(begin)
    while filled < len(view):  # one read gives 2 GiB at most
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise FormatError(f"{path} has become shorter while it was read")
        filled += count
    return data


def read_header(path: Path) -> Header:
    """Shapes, dtypes and metadata of a safetensors file, from its header alone.

    Raises FormatError for a file that is missing, cut short, no file, or whose header does not describe what follows.
    """
    try:
        with open_regular(path) as file:
            return _read_header(file, path)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from None


def read_tensors(path: Path, only: Iterable[str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, on the CPU, and the metadata of its header.

    They are read, not mapped: a map would be a view of what another program may yet change or cut short.
    `only` names those to read, None reads all. Raises FormatError as `read_header` does.
    """
    tensors, header = read_all(path, only)
    return tensors, dict(header.metadata)


def read_all(path: Path, only: Iterable[str] | None = None) -> tuple[dict[str, Tensor], Header]:
    """As `read_tensors`, with all that the header says."""
    try:
        with open_regular(path) as file:
            header = _read_header(file, path)
            if only is None:
                return header.read_all(file), header
            return {name: header.read(name, file) for name in sorted(set(only)) if name in header.places}, header
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_header(file: BinaryIO, path: Path) -> Header:
    header, start, data_size = _parsed(file, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: '__metadata__' in the header must hold strings by name")
    faults: list[str] = []
    entries = [entry for name, claim in header.items() if (entry := _entry(name, claim, data_size, faults))]
    faults += [] if faults else _layout_faults(entries, data_size)
    if faults:
        raise first_faults(f"{path}: the safetensors header is damaged", faults)
    shapes = {name: tuple(claim["shape"]) for name, claim in header.items()}
    dtypes = {name: _DTYPES[claim["dtype"]] for name, claim in header.items()}
    places = {entry.name: (start + entry.begin, start + entry.end) for entry in entries}
    return Header(path, shapes, dtypes, metadata, places)


def _parsed(file: BinaryIO, path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, where the tensors begin, and how many bytes of them there are."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8:
        raise FormatError(f"{path} is cut short: {size} bytes cannot hold a safetensors header")
    if length > size - 8:
        raise FormatError(_too_long(path, start, length, size))
    if length > LONGEST_JSON:
        raise FormatError(f"{path}: its header has {length} bytes, and at most {LONGEST_JSON} are read")
    raw = file.read(length)
    if len(raw) < length:
        raise FormatError(f"{path} has become shorter while it was read")
    try:
        header = parse_json(raw)
    except ValueError as error:
        raise FormatError(f"{path}: the safetensors header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the safetensors header is not a JSON object")
    return header, 8 + length, size - 8 - length


def _too_long(path: Path, start: bytes, length: int, size: int) -> str:
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return f"{path} is a pickle under another name, which could run code when it is read"
    return f"{path} is cut short or not a safetensors file: its header claims {length} bytes, {size - 8} follow"


def _entry(name: str, claim: object, data_size: int, faults: list[str]) -> _Entry | None:
    """A tensor's place in the file, or a fault."""
    if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        faults.append(f"{brief(name)}, of {len(name)} characters, is no name of a tensor")
    elif not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"}:
        faults.append(f"tensor {name!r} needs exactly a dtype, a shape and data_offsets")
    elif not isinstance(claim["dtype"], str) or claim["dtype"] not in _DTYPES:
        faults.append(_unknown_dtype(name, claim["dtype"]))
    else:
        return _placed_entry(name, claim["dtype"], claim["shape"], claim["data_offsets"], data_size, faults)
    return None


def _unknown_dtype(name: str, dtype: object) -> str:
    if isinstance(dtype, str) and dtype in _SMALL:
        return f"tensor {name!r} holds {dtype}, floats of {_SMALL[dtype]}, which are not read: save it as F16 or BF16"
    return f"tensor {name!r} has dtype {brief(dtype)}, expected one of {', '.join(_DTYPES)}"


def _placed_entry(name: str, dtype: str, shape: Any, offsets: Any, data_size: int, faults: list[str]) -> _Entry | None:
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        faults.append(
            f"tensor {name!r} has shape {brief(shape)} and data_offsets {brief(offsets)}, expected whole numbers"
        )
    elif not offsets[0] <= offsets[1] <= data_size:
        faults.append(
            f"tensor {name!r} lies at bytes {brief(offsets[0])} to {brief(offsets[1])}, but {data_size} bytes follow "
            "the header: the file is cut short or the header is wrong"
        )
    elif (needed := _bytes_of(shape, dtype)) != offsets[1] - offsets[0]:
        faults.append(
            f"tensor {name!r} ({dtype}, shape {brief(tuple(shape))}) needs {brief(needed)} bytes, but has {offsets}"
        )
    else:
        return _Entry(name, *offsets)
    return None


def _bytes_of(shape: list[int], dtype: str) -> int:
    """How many bytes a tensor takes; −1 for a shape that no tensor can have."""
    if len(shape) > _MOST_DIMENSIONS or prod(max(size, 1) for size in shape) > _LARGEST:
        return -1
    return prod(shape) * _DTYPES[dtype].itemsize


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


Outline = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name → dtype and shape of every tensor of a file."""


def header_bytes(outline: Outline, metadata: Mapping[str, str], order: Iterable[str] | None = None) -> bytes:
    """What a safetensors file begins with, from the dtypes and shapes alone; the tensors follow in `order`, else by
    name."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in sorted(outline) if order is None else order:
        dtype, shape = outline[name]
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
