"""An attached adapter into another program's file: kohya's, or diffusers'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from loraloom.adapters import AdapterSet
from loraloom.errors import ConfigError, FormatError, one_error
from loraloom.formats.anyfile import DIFFUSERS_NAME
from loraloom.formats.diffusers_write import diffusers_metadata, diffusers_tensors
from loraloom.formats.keys import grouped
from loraloom.formats.kohya import kohya_metadata, kohya_tensors
from loraloom.formats.peft_file import AdapterFile
from loraloom.formats.peft_write import PeftWriter
from loraloom.formats.tensorfile import tensor_pieces, write_together
from loraloom.formats.updates import Updates, updates_of

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""Precisions that files are written in, by their short names."""


def save_kohya(
    adapters: AdapterSet,
    name: str,
    file: Path | str,
    *,
    kind: str,
    dtype: torch.dtype | None = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one adapter of a pipeline's parts as a kohya file, for the web UI, Forge and ComfyUI.

    `kind` is the family of the base ("sd1", "sd2", "sdxl"), which decides the names; `metadata` goes into the header
    beside kohya's own `ss_*` fields. The same adapter gives the same bytes. Raises FormatError that names what such a
    file cannot hold, OutputError where it cannot be written; nothing is then left behind.
    """
    updates = pure_updates(_as_file(adapters, name))
    tensors = kohya_tensors(updates.values(), kind, dtype)
    write_together({_file_name(file): tensor_pieces(tensors, kohya_metadata(tensors, kind, metadata))})


def save_diffusers(
    adapters: AdapterSet,
    name: str,
    folder_or_file: Path | str,
    *,
    kind: str | None = None,
    dtype: torch.dtype | None = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one adapter of a pipeline's parts as diffusers' `save_lora_weights` does, the scale folded into B.

    A folder, or a name without an ending, gets `pytorch_lora_weights.safetensors`. Raises as `save_kohya` does.
    """
    updates = pure_updates(_as_file(adapters, name))
    tensors = diffusers_tensors(updates.values(), kind, dtype)
    path = Path(folder_or_file)
    path = path if path.suffix == ".safetensors" and not path.is_dir() else path / DIFFUSERS_NAME
    write_together({path: tensor_pieces(tensors, diffusers_metadata(kind, metadata))})


def _as_file(adapters: AdapterSet, name: str) -> AdapterFile:
    """The adapter in PEFT's vocabulary, in memory."""
    writer = PeftWriter(adapters, name)
    return AdapterFile(writer.config(None, None), writer.tensors(), {}, Path(f"adapter {name!r}"))


def pure_updates(file: AdapterFile) -> Updates:
    """The updates of an adapter that has nothing else. Raises FormatError naming heads, biases and the like."""
    updates, rest = updates_of(file, magnitudes=True)
    if rest:
        told = [sentence.replace("belongs to nothing known", "is no update of a layer") for sentence in grouped(rest)]
        raise one_error(FormatError, f"{file.path} holds what these formats have no word for", told)
    return updates


def _file_name(file: Path | str) -> Path:
    path = Path(file)
    if path.suffix != ".safetensors":
        raise ConfigError(f"'{path}': a kohya file's name must end in .safetensors")
    return path
