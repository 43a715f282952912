"""The original names of Flux' and SD3's transformers and diffusers' names, both ways.

The original models keep query, key and value (and in Flux' single blocks the first layer of the MLP) in one fused
layer, which diffusers has as separate ones. A fused layer's adapter becomes one per part: the same A, and the part's
rows of B. The other way the factors are stacked, unless all parts have the same A, which gives the fused ones back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loraloom.errors import FormatError
from loraloom.formats.updates import Update

_ROOT = "transformer."

BLOCKS: dict[str, dict[str, tuple[str, tuple[tuple[str, tuple[str, ...]], ...]]]] = {
    "flux": {
        "double_blocks": (
            "transformer_blocks",
            (
                ("img_attn_qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
                ("img_attn_proj", ("attn.to_out.0",)),
                ("img_mlp_0", ("ff.net.0.proj",)),
                ("img_mlp_2", ("ff.net.2",)),
                ("img_mod_lin", ("norm1.linear",)),
                ("txt_attn_qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
                ("txt_attn_proj", ("attn.to_add_out",)),
                ("txt_mlp_0", ("ff_context.net.0.proj",)),
                ("txt_mlp_2", ("ff_context.net.2",)),
                ("txt_mod_lin", ("norm1_context.linear",)),
            ),
        ),
        "single_blocks": (
            "single_transformer_blocks",
            (
                ("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
                ("linear2", ("proj_out",)),
                ("modulation_lin", ("norm.linear",)),
            ),
        ),
    },
    "sd3": {
        "joint_blocks": (
            "transformer_blocks",
            (
                ("x_block_attn_qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
                ("x_block_attn_proj", ("attn.to_out.0",)),
                ("x_block_attn2_qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
                ("x_block_attn2_proj", ("attn2.to_out.0",)),
                ("x_block_mlp_fc1", ("ff.net.0.proj",)),
                ("x_block_mlp_fc2", ("ff.net.2",)),
                ("x_block_adaLN_modulation_1", ("norm1.linear",)),
                ("context_block_attn_qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
                ("context_block_attn_proj", ("attn.to_add_out",)),
                ("context_block_mlp_fc1", ("ff_context.net.0.proj",)),
                ("context_block_mlp_fc2", ("ff_context.net.2",)),
            ),
        ),
    },
}
"""Family → the original's blocks → diffusers' blocks, and their layers: original → diffusers'."""

TOP = {
    "flux": {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in_out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer_linear": "proj_out",
    },
    "sd3": {"context_embedder": "context_embedder", "final_layer_linear": "proj_out"},
}
"""Layers outside the blocks. The modulation of the last layer, whose halves diffusers swaps, is refused."""

_BLOCK = re.compile(r"(double_blocks|single_blocks|joint_blocks)_(\d+)_(.+)")


def split_name(name: str) -> tuple[str, ...]:
    """diffusers' paths of a layer with an original name, in the order of its rows; none for an unknown name.

    >>> split_name("double_blocks_3_img_mlp_0")
    ('transformer.transformer_blocks.3.ff.net.0.proj',)
    """
    match = _BLOCK.fullmatch(name)
    if match is None:
        return tuple(_ROOT + table[name] for table in TOP.values() if name in table)[:1]
    for blocks in BLOCKS.values():
        if match[1] in blocks:
            theirs, layers = blocks[match[1]]
            return tuple(f"{_ROOT}{theirs}.{match[2]}.{layer}" for layer in dict(layers).get(match[3], ()))
    return ()


def split(update: Update, paths: tuple[str, ...]) -> list[Update]:
    """One update per part of a fused layer. Raises ValueError where its rows cannot be those of the parts."""
    if len(paths) == 1:
        return [replace(update, path=paths[0])]
    rows = _rows(int(update.b.shape[0]), int(update.a.shape[1]), len(paths))
    parts: tuple[Tensor, ...] = update.b.split(rows)  # type: ignore[no-untyped-call]
    sizes: Sequence[Tensor | None] = [None] * len(paths)
    if update.magnitude is not None:
        sizes = update.magnitude.split(rows)  # type: ignore[no-untyped-call]
    return [replace(update, path=path, b=b, magnitude=size) for path, b, size in zip(paths, parts, sizes, strict=True)]


def _rows(total: int, width: int, count: int) -> list[int]:
    """Rows of the parts: three of the same size, and a fourth that takes the rest."""
    if count == 3 and total % 3 == 0:
        return [total // 3] * 3
    if count == 4 and total > 3 * width:
        return [width, width, width, total - 3 * width]
    raise ValueError(f"its {total} rows are not those of {count} layers of width {width}")


def fuse(updates: Iterable[Update], kind: str) -> dict[str, Update]:
    """Updates of a transformer by their original, underscored names; those without one are left out."""
    by_path = {update.path: update for update in updates}
    numbers = sorted({int(match[1]) for path in by_path if (match := re.search(r"blocks\.(\d+)\.", path))})
    found: dict[str, Update] = {}
    for ours, (theirs, layers) in BLOCKS[kind].items():
        for number in numbers:
            for original, parts in layers:
                paths = [f"{_ROOT}{theirs}.{number}.{part}" for part in parts]
                if any(path in by_path for path in paths):
                    found[f"{ours}_{number}_{original}"] = _fused(by_path, paths)
    tops = {original: by_path.get(_ROOT + path) for original, path in TOP[kind].items()}
    return found | {original: update for original, update in tops.items() if update is not None}


def _fused(by_path: Mapping[str, Update], paths: list[str]) -> Update:
    here = [by_path[path] for path in paths if path in by_path]
    first = here[0]
    if len(paths) == 1:
        return first
    same = len(here) == len(paths) and all(
        u.scale == first.scale and u.a.shape == first.a.shape and torch.equal(u.a, first.a) for u in here
    )
    sizes = [update.magnitude for update in here if update.magnitude is not None]
    if sizes and len(sizes) < len(paths):
        raise FormatError(
            f"{first.path!r} is DoRA, and the other parts of its fused layer are not: no format holds that"
        )
    magnitude = torch.cat(sizes) if sizes else None
    if same:
        return replace(first, b=torch.cat([update.b for update in here]), magnitude=magnitude)
    rank, width = sum(update.rank for update in here), int(first.a.shape[1])
    usual = [width] * 3 + [4 * width] * (len(paths) - 3)
    rows: list[Tensor] = []
    at = 0
    for path, size in zip(paths, usual, strict=True):
        update = by_path.get(path)
        row = first.b.new_zeros(size if update is None else update.b.shape[0], rank, dtype=torch.float32)
        if update is not None:
            row[:, at : at + update.rank] = update.b.float() * update.scale
            at += update.rank
        rows.append(row)
    return Update(
        first.path, torch.cat([update.a for update in here]), torch.cat(rows), float(rank), magnitude=magnitude
    )
