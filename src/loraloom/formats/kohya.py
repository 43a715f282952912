"""Writing kohya's files, which the web UI, Forge, ComfyUI and diffusers load.

Factors are written as they are, to the bit, with their alpha. The one exception: where layers differ in alpha, the
file gets the most common one, and each other layer's B takes up the ratio. Every reader's alpha / rank then gives the
same scale, also diffusers', which reads one alpha for all layers of a part and passes over the others (0.42).
rsLoRA's scale alpha / √rank is stored as an alpha of alpha · √rank, as LyCORIS does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from loraloom.errors import FormatError, one_error
from loraloom.formats.dotting import underscored
from loraloom.formats.families import FAMILIES, check_family
from loraloom.formats.resolving import blocks_per_level, canonical, part_of
from loraloom.formats.selection import most_common
from loraloom.formats.transformer_names import fuse
from loraloom.formats.unet_names import to_original
from loraloom.formats.updates import Update, in_dtype, in_known_shape, magnitude_like

PREFIXES = {
    "sd1": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sd2": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "sd3": {
        "transformer": "lora_unet",
        "text_encoder": "lora_te1",
        "text_encoder_2": "lora_te2",
        "text_encoder_3": "lora_te3",
    },
    "flux": {"transformer": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te3"},
}
"""Family of the base → part → the start of kohya's keys."""
_DORA = (
    "DoRA's magnitudes are written by outputs, as LyCORIS (`wd_on_out`) and PEFT define them; diffusers leaves "
    "`dora_scale` out, and some versions of the web UI and ComfyUI divide by another norm"
)


def kohya_tensors(updates: Iterable[Update], kind: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Every tensor of a kohya file by its key; `dtype` None keeps each factor's own.

    Raises ConfigError for an unknown family, FormatError naming each update that such a file cannot hold.
    """
    listed = [in_known_shape(replace(update, path=canonical(update.path)), kind) for update in updates]
    named, faults = _named(listed, check_family(kind))
    if faults:
        raise one_error(FormatError, "this cannot be held by a kohya file", faults)
    if any(update.magnitude is not None for update in named.values()):
        warnings.warn(_DORA, stacklevel=2)
    tensors: dict[str, Tensor] = {}
    for name, update in with_one_alpha(named).items():
        written = update if dtype is None else in_dtype(update, dtype)
        tensors[f"{name}.lora_down.weight"] = written.a.contiguous()
        tensors[f"{name}.lora_up.weight"] = written.b.contiguous()
        if written.magnitude is not None:
            tensors[f"{name}.dora_scale"] = magnitude_like(written, kohya=True)
        tensors[f"{name}.alpha"] = torch.tensor(update.alpha, dtype=torch.float32)
    return tensors


def _named(updates: Iterable[Update], kind: str) -> tuple[dict[str, Update], list[str]]:
    """Updates by the names that a kohya file has for their layers, and what such a file cannot hold."""
    listed, prefixes = list(updates), PREFIXES[kind]
    faults = [fault for update in listed if (fault := _fault(update, kind))]
    fused = fuse(listed, kind) if kind in ("sd3", "flux") and not faults else {}
    layers = blocks_per_level(update.path for update in listed)
    named = {f"{prefixes['transformer']}_{name}": update for name, update in fused.items()}
    for update in [] if faults else listed:
        part, _, inside = update.path.partition(".")
        name = underscored(inside)
        original = to_original(name, layers) if kind == "sdxl" and part == "unet" else name
        if part == "transformer":
            faults += [] if _is_fused(update, kind) else [f"{update.path!r} has no name in the original transformer"]
        elif original is None:
            faults.append(f"{update.path!r} has no name in the original U-Net")
        else:
            named[f"{prefixes[part]}_{original}"] = update
    return named, faults


def _is_fused(update: Update, kind: str) -> bool:
    return bool(fuse([replace(update, magnitude=None)], kind))  # which is of all parts or none


def _fault(update: Update, kind: str) -> str:
    """Why no kohya file for this family holds an update, or ""."""
    part = part_of(update.path)
    if part not in PREFIXES[kind]:
        return (
            f"{update.path!r} belongs to {part or 'no part'!r}, and files for {kind} hold {', '.join(PREFIXES[kind])}"
        )
    if update.lookup:
        return f"{update.path!r} is an embedding, for which kohya's files have no word"
    return "" if update.bias is None else f"{update.path!r} has a bias behind its factors, which kohya's files have not"


def with_one_alpha(updates: Mapping[str, Update]) -> dict[str, Update]:
    """The same updates, all with the most common alpha; the B of those that had another takes up the ratio.

    Raises FormatError where there are none.
    """
    if not updates:
        raise FormatError("there is no update to write")
    alpha = most_common([update.alpha for update in updates.values()])
    return {
        name: update
        if update.alpha == alpha
        else replace(update, alpha=alpha, b=_times(update.b, update.alpha / alpha))
        for name, update in sorted(updates.items())
    }


def _times(tensor: Tensor, factor: float) -> Tensor:
    """In float32 at least: half precision would round twice."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * factor


def kohya_metadata(tensors: Mapping[str, Tensor], kind: str, given: Mapping[str, str] | None) -> dict[str, str]:
    """The header for these tensors: kohya's `ss_*` fields, and what is `given`, which comes first."""
    ranks = {int(tensor.shape[0]) for key, tensor in tensors.items() if key.endswith("lora_down.weight")}
    alpha = next(float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha"))
    version, architecture = FAMILIES[check_family(kind)]
    return {
        "format": "pt",
        "modelspec.architecture": architecture,
        "ss_base_model_version": version,
        "ss_network_alpha": f"{alpha:g}",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_module": "networks.lora",
        "ss_v2": str(kind == "sd2"),
        **(given or {}),
    }
