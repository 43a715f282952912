"""One textual-inversion embedding: the file formats it comes in, and which base it fits.

Read are safetensors files that hold `emb_params`, or one tensor under any name (n, D) or (D,), for SD 1.x and 2.x;
or `clip_l` (n, 768) with `clip_g` (n, 1280) for SDXL. Pickles can run code when they are read, and are refused
with the line that converts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import FormatError
from loraloom.formats.tensorfile import read_tensors

SINGLE, FIRST, SECOND = "text_encoder", "text_encoder", "text_encoder_2"
SDXL_KEYS = {"clip_l": FIRST, "clip_g": SECOND}
PLAIN_KEYS = {"emb_params", "string_to_param", "string_to_param.*", "embedding", "*"}
"""Tensor names that say nothing; any other name of a single tensor is the word that it was trained for."""
PICKLES = (".pt", ".bin", ".pth", ".ckpt", ".pkl")
LARGEST_FILE = 1 << 26
"""Bytes; 75 vectors of SDXL in float32 take 0.6 MB, so a larger file is a checkpoint in the wrong folder."""

FAMILIES = {(768,): "SD 1.x", (1024,): "SD 2.x", (768, 1280): "SDXL"}
"""Widths of the published models' encoders, for the sentence that says what an embedding was made for."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """The vectors that stand for one name, for each text encoder that they were trained for."""

    name: str
    """The file's name without its ending."""
    path: Path
    vectors: Mapping[str, Tensor]
    """{"text_encoder": (n, D)}; of SDXL also "text_encoder_2", with as many."""
    other_names: tuple[str, ...] = ()
    """Names that the file gives itself, where they differ from its own."""

    @property
    def count(self) -> int:
        """n, the places that it takes among the tokens."""
        return next(iter(self.vectors.values())).shape[0]

    @property
    def widths(self) -> dict[str, int]:
        """D by text encoder."""
        return {name: vectors.shape[1] for name, vectors in self.vectors.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it answers to in a prompt."""
        return (self.name, *self.other_names)


def read_embedding(path: Path) -> Embedding:
    """The embedding in a file, on the CPU. Raises FormatError, which says what is wrong with the file."""
    if path.suffix.lower() in PICKLES:
        raise FormatError(_pickle_sentence(path))
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise FormatError(
            f"{path} is no textual-inversion embedding: it has {size >> 20} MB, such files have under one"
        )
    tensors, metadata = read_tensors(path)
    vectors = {name: _rows(path, key, tensors[key]) for key, name in _wanted(path, set(tensors)).items()}
    counts = {len(each) for each in vectors.values()}
    if len(counts) > 1:
        found = ", ".join(f"{key} {tensors[key].shape[0]}" for key in SDXL_KEYS)
        raise FormatError(f"{path}: both encoders need as many vectors, found {found}")
    itself = [metadata.get("name", ""), *(set(tensors) - PLAIN_KEYS - set(SDXL_KEYS))]
    return Embedding(path.stem, path, vectors, tuple(name for name in itself if name.strip() and name != path.stem))


def _wanted(path: Path, keys: set[str]) -> dict[str, str]:
    """Tensor name → the text encoder it is for."""
    if keys == set(SDXL_KEYS):
        return SDXL_KEYS
    if len(keys) == 1 and not keys & set(SDXL_KEYS):
        return {next(iter(keys)): SINGLE}
    if "emb_params" in keys:
        return {"emb_params": SINGLE}
    listed = ", ".join(sorted(keys)[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
    raise FormatError(
        f"{path} is no textual-inversion embedding: it holds {listed or 'no tensor'}; expected is 'emb_params' or one "
        "tensor (SD 1.x, 2.x), or 'clip_l' and 'clip_g' (SDXL)"
    )


def _rows(path: Path, key: str, tensor: Tensor) -> Tensor:
    rows = tensor.unsqueeze(0) if tensor.ndim == 1 else tensor
    if rows.ndim != 2 or not rows.numel() or not rows.is_floating_point():
        shape = f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
        raise FormatError(f"{path}: {key!r} has shape {shape}; expected are vectors, (n, width) of a float type")
    if not torch.isfinite(rows).all():
        raise FormatError(f"{path}: {key!r} holds numbers that are not finite")
    return rows


def _pickle_sentence(path: Path) -> str:
    target = path.with_suffix(".safetensors").name
    line = (
        f"import torch, safetensors.torch as s; d = torch.load({path.name!r}, map_location='cpu', weights_only=True); "
        "d = d.get('string_to_param', d); "
        f"s.save_file({{'emb_params': next(iter(d.values())).detach().clone()}}, {target!r})"
    )
    return f'{path} is a pickle, which can run code when it is read; convert it once with: python -c "{line}"'


def misfit(embedding: Embedding, widths: Mapping[str, int], places: int, base: str) -> str:
    """Why `embedding` cannot stand in a prompt for `base`, in one sentence; "" when it can.

    `widths` are the base's encoders' by name, `places` what a chunk of it holds.
    """
    found = embedding.widths
    if any(found.get(name) != width for name, width in widths.items()) or len(found) > len(widths):
        return (
            f"embedding {embedding.name!r} is not used: {embedding.path} holds vectors {_width_words(found)}, "
            f"base {base!r} takes {_width_words(widths)}"
        )
    if embedding.count > places:
        return (
            f"embedding {embedding.name!r} is not used: {embedding.path} holds {embedding.count} vectors, "
            f"a chunk has room for {places}"
        )
    return ""


def _width_words(widths: Mapping[str, int]) -> str:
    """ "768 wide (SD 1.x)", or "768 and 1280 wide (SDXL)"."""
    family = FAMILIES.get(tuple(widths.values()))
    return " and ".join(map(str, widths.values())) + " wide" + (f" ({family})" if family else "")
