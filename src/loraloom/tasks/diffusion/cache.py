"""Tensors that were costly to make, kept on disk under what they were made from: latents, text embeddings.

A key is hashed; whatever changes the tensors must be part of it. Files are written whole or not at all, so
that several runs may share a folder; one that turns out damaged is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from loraloom.errors import FormatError, OutputError
from loraloom.formats.tensorfile import read_tensors, tensor_pieces

Tensors = dict[str, Tensor]


def cache_folder(given: str | None) -> Path:
    """The folder as given, else "loraloom/diffusion" in the user's cache folder (XDG_CACHE_HOME)."""
    if given is not None:
        return Path(given).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "loraloom" / "diffusion"


def key_of(**facts: Any) -> str:
    """A name for what is made from these facts: 40 hexadecimal digits."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


class TensorCache:
    """A folder of small safetensors files, and the first of them in memory."""

    def __init__(self, folder: Path, budget: int = 2**30) -> None:
        self.folder = folder
        self.budget = budget
        """Bytes that tensors kept in memory may take; those beyond are read at each use."""
        self.used = 0
        self._kept: dict[str, Tensors] = {}

    def path(self, key: str) -> Path:
        """Where a key's file lies."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether a key is there, in memory or as a whole file."""
        return key in self._kept or self.find(key) is not None

    def find(self, key: str) -> Tensors | None:
        """A key's tensors, None where there are none or their file is damaged."""
        if key in self._kept:
            return self._kept[key]
        if not self.path(key).is_file():
            return None
        try:
            tensors, _ = read_tensors(self.path(key))
        except FormatError:
            return None
        self._remember(key, tensors)
        return tensors

    def get(self, key: str) -> Tensors:
        """A key's tensors. Raises FormatError where they were taken away since they were put."""
        found = self.find(key)
        if found is None:
            raise FormatError(f"{self.path(key)} was there when the run began and is gone or damaged: begin anew")
        return found

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a key, on disk and, as far as the budget goes, in memory. Raises OutputError."""
        # Clones: a row of a batch would keep the whole batch in memory.
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        path = self.path(key)
        partial = path.with_name(f".{key}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not flushed to the disk: what a power cut spoils is made anew, and flushing thousands of files is slow.
            partial.write_bytes(b"".join(tensor_pieces(own, {})))
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise OutputError(
                f"cannot keep latents and text embeddings in {self.folder}: {error.strerror or error}; name another "
                "folder as options.cache"
            ) from None
        self._remember(key, own)

    def forget(self, key: str) -> None:
        """Remove a key's file and tensors."""
        self._kept.pop(key, None)
        with suppress(OSError):
            self.path(key).unlink()

    def _remember(self, key: str, tensors: Tensors) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if self.used + size <= self.budget:
            self._kept[key] = tensors
            self.used += size
