"""Families of base models, by the marks that adapter files bear of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from loraloom.errors import ConfigError, suggest

FAMILIES = {
    "sd1": ("sd_v1", "stable-diffusion-v1/lora"),
    "sd2": ("sd_v2", "stable-diffusion-v2-512/lora"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    "sd3": ("sd3", "stable-diffusion-3/lora"),
    "flux": ("flux1", "flux-1-dev/lora"),
}
"""Family → kohya's `ss_base_model_version`, and the `modelspec.architecture` of the same header."""

_ARCHITECTURES = (
    ("stable-diffusion-v1", "sd1"),
    ("stable-diffusion-v2", "sd2"),
    ("stable-diffusion-xl", "sdxl"),
    ("stable-diffusion-3", "sd3"),
    ("flux", "flux"),
)
_VERSIONS = (("sdxl", "sdxl"), ("sd_v2", "sd2"), ("sd_v1", "sd1"), ("sd_1", "sd1"), ("sd3", "sd3"), ("flux", "flux"))
_NAMES = (
    (r"single_transformer_blocks|single_blocks_\d|double_blocks_\d", "flux"),
    (r"joint_blocks_\d|norm1_context|^transformer[._]transformer_blocks", "sd3"),
    (r"^lora_te2_|^text_encoder_2\.|add_embedding|label_emb|^lora_unet_(?:input|output)_blocks", "sdxl"),
)
_KINDS = (
    ("a U-Net", re.compile(r"(?:down|up)_blocks|mid_block|(?:input|output)_blocks_\d|middle_block")),
    ("a transformer", re.compile(r"^transformer\.|(?:single|double|joint)_blocks_\d|single_transformer_blocks")),
)
"""Names that U-Nets and transformers have, and not the other."""
_CROSS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Width of the text that a U-Net's cross-attention reads, of the full-sized models."""
_CROSS_KEY = re.compile(r"attn2[._]to_[kv][._].*(?:down|lora_A)")


def check_family(kind: str) -> str:
    """Raises ConfigError, with the nearest, for a family that there is not."""
    if kind not in FAMILIES:
        raise ConfigError(f"base kind {kind!r} is not one of {', '.join(FAMILIES)}{suggest(kind, FAMILIES)}")
    return kind


def guess_family(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str | None:
    """The family of base model that a file's header speaks of, None where nothing tells.

    What a program wrote comes first, then names that one family alone has, then the width of cross-attention.
    """
    written = metadata.get("modelspec.architecture", ""), metadata.get("ss_base_model_version", "")
    for text, marks in zip(written, (_ARCHITECTURES, _VERSIONS), strict=True):
        for mark, family in marks:
            if mark in text:
                return family
    return _by_names(shapes) or _by_width(shapes)


def mixed_families(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What tells that a file's layers belong to several bases, "" where nothing does."""
    marked = {mark: key for key in shapes for mark, known in _KINDS if known.search(key)}
    if len(marked) > 1:
        return "its layers belong to several bases: " + ", ".join(f"{key!r} to {m}" for m, key in marked.items())
    found: dict[int, str] = {}
    for key, shape in shapes.items():
        if len(shape) >= 2 and shape[1] in _CROSS and _CROSS_KEY.search(key):
            found.setdefault(shape[1], key)
    if len(found) > 1:
        told = ", ".join(f"{key!r} to {_CROSS[width]} (text of width {width})" for width, key in sorted(found.items()))
        return f"its layers belong to several bases: {told}"
    return ""


def _by_names(keys: Iterable[str]) -> str | None:
    found = list(keys)
    return next((family for mark, family in _NAMES if any(re.search(mark, key) for key in found)), None)


def _by_width(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    widths = (shape[1] for key, shape in shapes.items() if len(shape) >= 2 and _CROSS_KEY.search(key))
    return next((_CROSS[width] for width in widths if width in _CROSS), None)
