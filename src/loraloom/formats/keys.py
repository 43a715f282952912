"""What the keys of an adapter file say: whose format it is, and which tensor is what of which layer.

Nothing is read but names, so that it serves a file's header as well as its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from loraloom.errors import FormatError, suggest
from loraloom.formats.peft_names import PREFIX

PARTS = ("unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer")
"""Parts of a pipeline that adapters are for, by diffusers' names."""

ROLES = {
    "lora_down.weight": "A",
    "lora_up.weight": "B",
    "lora_mid.weight": "mid",
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "bias",
    "lora_embedding_A": "lookup A",
    "lora_embedding_B": "lookup B",
    "lora.down.weight": "A",
    "lora.up.weight": "B",
    "lora_linear_layer.down.weight": "A",
    "lora_linear_layer.up.weight": "B",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "diff": "diff",
    "diff_b": "diff_b",
    "weight": "ia3",
    "on_input": "on_input",
    **{f"hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")},
    **{name: name for name in ("oft_blocks", "oft_diag", "bias_indices", "bias_values", "bias_size", "rescale")},
    **{name: name for name in ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "w_norm", "b_norm")},
}
"""The end of a key → what the tensor is; of PEFT, diffusers in all its spellings, kohya and LyCORIS."""

OLD_ATTENTION = {"to_q": ("to_q", "q_proj"), "to_k": ("to_k", "k_proj"), "to_v": ("to_v", "v_proj"),
                 "to_out": ("to_out.0", "out_proj")}  # fmt: skip
"""diffusers' first spelling, `….processor.to_q_lora.down.weight`: the layer in a U-Net, and in a text encoder."""

KOHYA_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_transformer_": "transformer",
    "lycoris_": "",
}
"""The start of a kohya key → the part; LyCORIS' own prefix leaves the part to the model."""

_MOST_SUGGESTIONS = 3  # comparing names is slow, and the third says what the thirtieth would
_OLD = re.compile(r"(?P<stem>.+)\.(?P<which>to_(?:q|k|v|out))_lora\.(?P<end>down\.weight|up\.weight|alpha)")
_OLD_ENDS = {"down.weight": "A", "up.weight": "B", "alpha": "alpha"}
_BARE_UNET = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_out.", "time_embedding.", "add_embedding.")
_BARE_STARTS = {
    **dict.fromkeys(_BARE_UNET, "unet"),
    "text_model.": "text_encoder",
    "transformer_blocks.": "transformer",
    "single_transformer_blocks.": "transformer",
}
"""Starts of keys in diffusers' oldest files, which hold one part and do not name it."""


@dataclass
class Keys:
    """The keys of a file, sorted."""

    format: str
    """"peft", "diffusers", "kohya" or "loralib"."""
    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Layer, as the format names it, → what the tensor is → key of the file."""
    unknown: list[str] = field(default_factory=list)
    repeated: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of keys that say the same."""


def sort_keys(keys: Iterable[str], path: Path) -> Keys:
    """Recognise the format and sort. Raises FormatError for a file of no format, or of two at once.

    Keys of no known meaning are left in `unknown` for the reader to tell.
    """
    read = {key: _parse(key) for key in sorted(keys)}
    formats = sorted({parsed[0] for parsed in read.values() if parsed is not None})
    if not formats:
        raise FormatError(_of_no_format(path, list(read)))
    if len(formats) > 1:
        told = ", ".join(f"{next(k for k, p in read.items() if p and p[0] == f)!r} ({f})" for f in formats)
        raise FormatError(f"{path} mixes the keys of several formats, {told}: which one holds cannot be told")
    found = Keys(formats[0])
    for key, parsed in read.items():
        if parsed is None:
            found.unknown.append(key)
        elif (other := found.layers.setdefault(parsed[1], {}).setdefault(parsed[2], key)) != key:
            found.repeated.append((other, key))
    return found


def _parse(key: str) -> tuple[str, str, str] | None:
    """(format, layer, what) of a key, None for one that means nothing here."""
    if key.startswith(PREFIX):
        return "peft", key, "whole"
    start = next((prefix for prefix in KOHYA_PREFIXES if key.startswith(prefix)), None)
    if start is not None:
        stem, _, end = key.partition(".")
        role = _role(end)
        return None if role is None or stem == start else ("kohya", stem, role)
    if (part := _part(key)) is not None and (parsed := _diffusers(key, part)) is not None:
        return parsed
    stem, _, end = key.rpartition(".")
    return ("loralib", stem, end.removeprefix("lora_")) if stem and end in ("lora_A", "lora_B") else None


def _role(end: str) -> str | None:
    named = re.fullmatch(r"(lora_[AB])\.\w+\.(weight|bias)", end)  # PEFT's layers, saved with the adapter's name
    return ROLES.get(f"{named[1]}.{named[2]}" if named else end)


def _part(key: str) -> str | None:
    first = key.partition(".")[0]
    if first in PARTS:
        return first
    return next((part for start, part in _BARE_STARTS.items() if key.startswith(start)), None)


def _diffusers(key: str, part: str) -> tuple[str, str, str] | None:
    rest = key.removeprefix(f"{part}.").replace(".processor.", ".")
    old = _OLD.fullmatch(rest)
    if old is not None:
        leaf = OLD_ATTENTION[old["which"]][part.startswith("text_encoder")]
        return "diffusers", f"{part}.{old['stem']}.{leaf}", _OLD_ENDS[old["end"]]
    pieces = rest.split(".")
    for length in (3, 2, 1):
        role = _role(".".join(pieces[-length:])) if len(pieces) > length else None
        if role is not None and role != "ia3":
            return "diffusers", f"{part}.{'.'.join(pieces[:-length])}", role
    return None


def _of_no_format(path: Path, keys: list[str]) -> str:
    if not keys:
        return f"{path} holds no tensor"
    hint = suggest(keys[0].partition(".")[2], ROLES, most=1)
    shown = ", ".join(map(repr, keys[:3])) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return f"{path} is not an adapter of PEFT, diffusers, kohya, LyCORIS or loralib: its tensors are {shown}{hint}"


def grouped(keys: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """One sentence per group of unknown keys that differ in numbers alone, with the nearest known."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(re.sub(r"\d+", "#", key), []).append(key)
    options, told = list(known), list[str]()
    for members in groups.values():
        count = f" and {len(members) - 1} like it" if len(members) > 1 else ""
        near = suggest(members[0], options, most=1) if len(told) < _MOST_SUGGESTIONS else ""
        told.append(f"{members[0]!r}{count} belongs to nothing known{near}")
    return told
