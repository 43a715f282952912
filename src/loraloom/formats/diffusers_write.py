"""Writing diffusers' files (`pytorch_lora_weights.safetensors`), as `load_lora_weights` reads them.

The scale is folded into B and no alpha is written, which every version of diffusers, and every other reader of these
files, takes as a scale of 1. (A config in the header would keep alpha apart, but older versions and other programs
pass over it, and the update would act with the wrong strength without a word.) The factor is a power of two in most
adapters, so that nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from loraloom.errors import FormatError, one_error
from loraloom.formats.families import FAMILIES, check_family
from loraloom.formats.peft_file import MAGNITUDE
from loraloom.formats.resolving import canonical, part_of
from loraloom.formats.updates import Update, in_dtype, in_known_shape, magnitude_like, some_with_magnitudes


def diffusers_tensors(updates: Iterable[Update], kind: str | None, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Every tensor of a diffusers file by its key; `dtype` None keeps each factor's own, where nothing is folded.

    `kind` is the family of the base, None where that is not known.
    Raises FormatError naming each update that such a file cannot hold.
    """
    ordered = sorted(updates, key=lambda update: update.path)
    listed = [folded(in_known_shape(update, kind)) for update in ordered]
    faults = [fault for update in listed for fault in _faults(update)] + some_with_magnitudes(listed)
    if faults or not listed:
        raise one_error(FormatError, "this cannot be held by diffusers' file", faults or ["there is no update"])
    tensors: dict[str, Tensor] = {}
    for update in listed:
        written = update if dtype is None else in_dtype(update, dtype)
        path = canonical(update.path)
        tensors[f"{path}.lora_A.weight"] = written.a.contiguous()
        tensors[f"{path}.lora_B.weight"] = written.b.contiguous()
        if written.magnitude is not None:
            tensors[f"{path}.{MAGNITUDE}"] = magnitude_like(written)
    return tensors


def _faults(update: Update) -> list[str]:
    if not part_of(update.path):
        return [f"{update.path!r} does not name a part of a pipeline (unet, text_encoder, transformer …)"]
    if update.lookup:
        return [f"{update.path!r} is an embedding, which diffusers does not load"]
    if update.bias is not None:
        return [f"{update.path!r} has a bias behind its factors, which only some readers add"]
    return []


def folded(update: Update) -> Update:
    """The same update with alpha = rank: B times the scale, in float32 at least where that is not exact."""
    if update.scale == 1.0:
        return update
    b = update.b * update.scale
    if not torch.equal((b / update.scale), update.b):
        b = update.b.to(torch.promote_types(update.b.dtype, torch.float32)) * update.scale
    return replace(update, b=b, alpha=float(update.rank))


def diffusers_metadata(kind: str | None, given: Mapping[str, str] | None) -> dict[str, str]:
    """The header: the family of base models, and what is `given`."""
    family = {} if kind is None else {"modelspec.architecture": FAMILIES[check_family(kind)][1]}
    return {"format": "pt", **family, **(given or {})}
