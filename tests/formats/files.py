"""Small adapter files of other programs, made tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from loraloom.formats.tensorfile import tensor_pieces, write_together

ATTENTION = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CLIP = "text_model_encoder_layers_1_mlp_fc1"


def write(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    write_together({path: tensor_pieces(tensors, {"format": "pt", **metadata})})
    return path


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def pair(
    stem: str, rank: int = 4, out: int = 6, inside: tuple[int, ...] = (5,), alpha: float | None = 2.0
) -> dict[str, Tensor]:
    """One layer of a kohya file."""
    ones = (1,) * (len(inside) - 1)
    tensors = {
        f"{stem}.lora_down.weight": random(rank, *inside, seed=len(stem)),
        f"{stem}.lora_up.weight": random(out, rank, *ones, seed=len(stem) + 1),
    }
    return tensors if alpha is None else tensors | {f"{stem}.alpha": torch.tensor(alpha)}


def sd1_file(path: Path, **options: float | None) -> Path:
    """A kohya file for SD 1.x: attention, a 3×3 convolution, a 1×1 convolution, the text encoder."""
    alpha = options.get("alpha", 2.0)
    return write(
        path,
        {
            **pair(f"lora_unet_{ATTENTION}", alpha=alpha),
            **pair("lora_unet_up_blocks_1_resnets_2_conv1", rank=2, inside=(5, 3, 3), alpha=alpha),
            **pair("lora_unet_mid_block_attentions_0_proj_in", inside=(5, 1, 1), alpha=alpha),
            **pair(f"lora_te_{CLIP}", alpha=alpha),
        },
        ss_base_model_version="sd_v1",
    )
