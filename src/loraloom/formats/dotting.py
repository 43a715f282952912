"""Kohya's underscored names back into paths: by a model's own modules, or by the names that these models have.

"down_blocks_0_attentions_0" is "down_blocks.0.attentions.0", which no rule about underscores tells: some belong to
names. With a model at hand there is nothing to guess; without one, a name is read from its start as the longest
known names in a row.
"""

from __future__ import annotations

from collections.abc import Iterable

UNET = (
    *("down_blocks", "mid_block", "up_blocks", "resnets", "attentions", "downsamplers", "upsamplers"),
    *("transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj", "proj_in"),
    *("proj_out", "conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "conv_norm_out", "time_emb_proj"),
    *("norm", "norm1", "norm2", "norm3", "time_embedding", "add_embedding", "class_embedding", "linear_1", "linear_2"),
    *("cond_proj", "encoder_hid_proj", "add_k_proj", "add_q_proj", "add_v_proj"),
)
CLIP = (
    *("text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2"),
    *("layer_norm1", "layer_norm2", "final_layer_norm", "embeddings", "token_embedding", "position_embedding"),
    "text_projection",
)
T5 = (
    *("block", "layer", "SelfAttention", "DenseReluDense", "q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo", "shared"),
    *("relative_attention_bias", "layer_norm"),
)
TRANSFORMER = (
    *("single_transformer_blocks", "attn", "to_add_out", "norm1_context", "norm2_context", "ff_context", "norm_q"),
    *("norm_k", "norm_added_q", "norm_added_k", "norm_out", "linear", "x_embedder", "context_embedder", "pos_embed"),
    *("time_text_embed", "timestep_embedder", "guidance_embedder", "text_embedder", "proj_mlp"),
)
"""SD3 and Flux, in diffusers' names."""

NAMES = frozenset((*UNET, *CLIP, *T5, *TRANSFORMER))
_LONGEST = max(name.count("_") for name in NAMES) + 1


def dotted(name: str) -> str | None:
    """The path of an underscored name, None where it holds a name that these models do not have.

    >>> dotted("up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0")
    'up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0'
    """
    pieces, path, at = name.split("_"), list[str](), 0
    while at < len(pieces):
        length = next((n for n in range(_LONGEST, 0, -1) if _known(pieces[at : at + n], n)), 0)
        if not length:
            return None
        path.append("_".join(pieces[at : at + length]))
        at += length
    return ".".join(path)


def _known(pieces: list[str], length: int) -> bool:
    if len(pieces) < length:
        return False
    return "_".join(pieces) in NAMES or (length == 1 and pieces[0].isascii() and pieces[0].isdigit())


def underscored(path: str) -> str:
    """A path as kohya writes it."""
    return path.replace(".", "_")


def by_underscores(paths: Iterable[str]) -> dict[str, list[str]]:
    """The paths of a model by their underscored names; where two are written alike, both."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(underscored(path), []).append(path)
    return found
