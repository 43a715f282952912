"""Whose voice: the speakers of a data set, and a vector for each of them.

SpeechT5 is told the speaker by an x-vector of unit norm. Where the user has such vectors, they are read from
a file; otherwise each name stands for a random direction, always the same one, which marks the speaker and
says nothing of the voice: what the voice is like is then learnt.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from loraloom.errors import ConfigError, DataError, FormatError, suggest

NOBODY = ""
"""The speaker of recordings that name none."""


@dataclass(frozen=True)
class Speakers:
    """The speakers that training knows."""

    counts: Mapping[str, int]
    """Recordings of each, in the order of the names."""
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """By name, as read from the user's file; empty where names stand for themselves."""

    @classmethod
    def of(cls, names: Sequence[str], vectors: Mapping[str, NDArray[np.float32]] | None = None) -> Speakers:
        """Those of the training examples. Raises ConfigError for one whose vector the file lacks."""
        counts = dict(sorted(Counter(names).items()))
        known = dict(vectors or {})
        if vectors is not None:
            if lost := [name for name in counts if name not in known and NOBODY not in known]:
                raise ConfigError(
                    f"speaker_embeddings: the file has no vector for the speaker {lost[0]!r}{suggest(lost[0], known)}"
                )
            known = {name: known.get(name, known.get(NOBODY)) for name in counts}  # type: ignore[misc]
        return cls(counts, known)

    @property
    def names(self) -> list[str]:
        """In the order of their numbers."""
        return list(self.counts)

    @property
    def usual(self) -> str:
        """The speaker with the most recordings, the first of equals."""
        return max(self.counts, key=lambda name: self.counts[name])

    def check(self, name: str, place: str) -> str:
        """The name, if training knew it. Raises DataError that says where it stood, and who there is."""
        if name not in self.counts:
            known = ", ".join(repr(other) for other in self.names[:8]) + (", …" if len(self.counts) > 8 else "")
            raise DataError(f"{place}: the speaker {name!r} is not one that was trained: {known}{self._near(name)}")
        return name

    def _near(self, name: str) -> str:
        return suggest(name, self.counts)

    def number(self, name: str) -> int:
        """The place of a name among the sorted ones."""
        return self.names.index(name)

    def vector(self, name: str, size: int) -> Tensor:
        """The speaker's embedding (size,), of unit norm. Raises ConfigError when the file's has another size."""
        if name not in self.vectors:
            return name_vector(name, size)
        found = torch.from_numpy(self.vectors[name])
        if len(found) != size:
            raise ConfigError(
                f"speaker_embeddings: the vector of {name!r} has {len(found)} numbers, the base model takes {size}"
            )
        return torch.nn.functional.normalize(found, dim=0)

    def state(self) -> dict[str, Any]:
        """As JSON data: counts, and vectors as the base64 of little-endian float32."""
        packed = {name: base64.b64encode(vector.astype("<f4").tobytes()).decode() for name, vector in self._items()}
        return {"counts": dict(self.counts), "vectors": packed}

    def _items(self) -> list[tuple[str, NDArray[np.float32]]]:
        return list(self.vectors.items())

    @classmethod
    def from_state(cls, state: object) -> Speakers:
        """The inverse of `state`. Raises FormatError."""
        try:
            counts = {str(name): int(count) for name, count in state["counts"].items()}  # type: ignore[index]
            packed = dict(state["vectors"])  # type: ignore[index]
            vectors = {name: np.frombuffer(base64.b64decode(text), "<f4").copy() for name, text in packed.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"task state: 'speakers' holds no counts and vectors ({error})") from None
        if not counts:
            raise FormatError("task state: 'speakers' names nobody")
        return cls(counts, vectors)


def name_vector(name: str, size: int) -> Tensor:
    """A direction (size,) of unit norm that stands for a name: normal numbers seeded by its sha256."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=0)


def read_vectors(path: str) -> dict[str, NDArray[np.float32]]:
    """Vectors by speaker from a .safetensors file (one tensor (size,) per name), or from an .npy file.

    An .npy file holds one vector (size,) or several (N, size), whose mean is taken; it is for every speaker.
    Raises ConfigError naming the file and what is wrong with it.
    """
    file = Path(path).expanduser()
    try:
        if file.suffix == ".npy":
            found = {NOBODY: np.load(file, allow_pickle=False)}
        elif file.suffix == ".safetensors":
            found = load_file(file)
        else:
            raise ConfigError(f"speaker_embeddings: {path} is neither a .safetensors nor an .npy file")
    except (OSError, ValueError, SafetensorError, EOFError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"speaker_embeddings: {path} cannot be read ({' '.join(str(error).split())})") from None
    return {name: _one_vector(path, name, np.asarray(array)) for name, array in found.items()}


def _one_vector(path: str, name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    rows = np.atleast_2d(array).astype(np.float32) if array.dtype.kind == "f" else np.zeros((0, 0), np.float32)
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all() or not np.abs(rows.mean(0)).sum():
        raise ConfigError(
            f"speaker_embeddings: {path} holds for {name!r} no vector of finite numbers but {array.dtype} {array.shape}"
        )
    mean: NDArray[np.float32] = rows.mean(0, dtype=np.float32)
    return mean
