"""The original names of a Stable Diffusion U-Net and diffusers' names for the same layers, both ways.

Names are written as kohya writes them, with an underscore for every dot. The original U-Net numbers its blocks in one
row: `input_blocks` 0 is the first convolution, then come, level by level, `layers` blocks and one that halves the size;
`output_blocks` has `layers` + 1 blocks per level, the last of which doubles the size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LAYERS = 2
"""Blocks per level of the U-Nets of SD 1.x, 2.x and SDXL (diffusers' `layers_per_block`)."""

TOP = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
}
"""Layers outside the blocks: original → diffusers."""

INSIDE = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
"""Layers inside a residual block: original → diffusers. Those inside attention have the same names."""

MIDDLE = {"0": "resnets_0", "1": "attentions_0", "2": "resnets_1"}
"""`middle_block`: original number → diffusers."""

_ORIGINAL = re.compile(r"(input|output)_blocks_(\d+)_(\d+)_(.+)|middle_block_(\d+)_(.+)")
_DIFFUSERS = re.compile(
    r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)"
    r"|mid_block_(resnets|attentions)_(\d+)_(.+)"
)
_TOP_BACK = {name: original for original, name in TOP.items()}
_INSIDE_BACK = {name: original for original, name in INSIDE.items()}
_MIDDLE_BACK = {name: original for original, name in MIDDLE.items()}


def from_original(name: str, layers: int = LAYERS) -> str | None:
    """diffusers' name of a layer with an original name, None for a name that is none.

    >>> from_original("input_blocks_4_1_proj_in")
    'down_blocks_1_attentions_0_proj_in'
    """
    if name in TOP:
        return TOP[name]
    match = _ORIGINAL.fullmatch(name)
    if match is None:
        return None
    side, block, inner, rest, middle, middle_rest = match.groups()
    if middle is not None:
        place = MIDDLE.get(middle)
        return None if place is None else f"mid_block_{place}_{_inside(place, middle_rest)}"
    place = _down(int(block), inner, rest, layers) if side == "input" else _up(int(block), inner, rest, layers)
    return None if place is None else f"{place}_{_inside(place, rest)}"


def _down(block: int, inner: str, rest: str, layers: int) -> str | None:
    level, layer = divmod(block - 1, layers + 1)
    if block < 1 or inner not in "01":
        return None
    if rest == "op" and inner == "0" and layer == layers:
        return f"down_blocks_{level}_downsamplers_0"
    return f"down_blocks_{level}_{('resnets', 'attentions')[int(inner)]}_{layer}"


def _up(block: int, inner: str, rest: str, layers: int) -> str | None:
    """The layer that doubles the size stands behind the attention, or in its place where a level has none."""
    level, layer = divmod(block, layers + 1)
    if rest == "conv" and inner in "12":
        return f"up_blocks_{level}_upsamplers_0"
    return f"up_blocks_{level}_{('resnets', 'attentions')[int(inner)]}_{layer}" if inner in "01" else None


def _inside(place: str, rest: str) -> str:
    if "samplers" in place:
        return "conv"
    return INSIDE.get(rest, rest) if "resnets" in place else rest


def to_original(name: str, layers: int = LAYERS, *, plain_levels: Iterable[int] = ()) -> str | None:
    """The original name of a layer with diffusers' name; `plain_levels` are the up blocks that have no attention.

    >>> to_original("down_blocks_1_attentions_0_proj_in")
    'input_blocks_4_1_proj_in'
    """
    if name in _TOP_BACK:
        return _TOP_BACK[name]
    match = _DIFFUSERS.fullmatch(name)
    if match is None:
        return None
    side, level, kind, layer, rest, middle, number, middle_rest = match.groups()
    if middle is not None:
        block = _MIDDLE_BACK.get(f"{middle}_{number}")
        return None if block is None else f"middle_block_{block}_{_inside_back(middle, middle_rest)}"
    first = int(level) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks_{first + layers + 1}_0_op"
    if kind == "upsamplers":
        return f"output_blocks_{first + layers}_{1 if int(level) in plain_levels else 2}_conv"
    block = f"input_blocks_{first + int(layer) + 1}" if side == "down" else f"output_blocks_{first + int(layer)}"
    return f"{block}_{0 if kind == 'resnets' else 1}_{_inside_back(kind, rest)}"


def _inside_back(kind: str, rest: str) -> str:
    return _INSIDE_BACK.get(rest, rest) if kind == "resnets" else rest
