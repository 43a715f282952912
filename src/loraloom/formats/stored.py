"""Tensors that stay in their files until they are asked for, for models and adapters larger than the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from loraloom.adapters.adapterset import is_finite
from loraloom.errors import FormatError
from loraloom.formats.careful import open_regular
from loraloom.formats.tensorfile import read_header


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one or several safetensors files by name; each asked for is read anew, into memory of its own.

    A memory map would do, but its pages count as the process's memory until the system wants them back.
    Raises FormatError for a damaged header, for a name that two files hold, and, when a tensor is asked for, where
    the file has become shorter; with `finite` also for a tensor with values that are not finite.
    """

    def __init__(self, *files: Path, finite: bool = False) -> None:
        self.finite = finite
        self.headers = {path: read_header(path) for path in files}
        self.files = _owners((path, header.shapes) for path, header in self.headers.items())
        """Name → the file that holds it."""

    def __getitem__(self, name: str) -> Tensor:
        path = self.files[name]
        try:
            with open_regular(path) as file:
                tensor = self.headers[path].read(name, file)
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error.strerror or error}") from None
        if self.finite and not is_finite(tensor):
            raise FormatError(f"{path}: tensor {name!r} holds values that are not finite")
        return tensor

    def __contains__(self, name: object) -> bool:  # the mapping's own way would read the tensor
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, which is not read."""
        return self.headers[self.files[name]].shapes[name]

    def place(self, name: str) -> tuple[Path, int, int]:
        """The file that holds a tensor, its first byte there, and the one after its last."""
        file = self.files[name]
        begin, end = self.headers[file].places[name]
        return file, begin, end

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor, which is not read."""
        return self.headers[self.files[name]].dtypes[name]


def _owners(files: Iterable[tuple[Path, Iterable[str]]]) -> dict[str, Path]:
    owners: dict[str, Path] = {}
    for path, names in files:
        for name in names:
            if name in owners:
                raise FormatError(f"tensor {name!r} is in two files: {owners[name]} and {path}")
            owners[name] = path
    return owners
