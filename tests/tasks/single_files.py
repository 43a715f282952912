"""Writes a tiny pipeline as one checkpoint file with the names of the original Stable Diffusion code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.imaging import tiny
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def write_single_file(kind: str, file: Path, more: dict[str, Tensor] | None = None) -> Any:
    """The pipeline that was written; its vocabulary lies in `tokenizer` beside the file."""
    pipeline = _pipeline(kind)
    attended = {number for number, block in enumerate(pipeline.unet.up_blocks) if hasattr(block, "attentions")}
    unet = pipeline.unet.state_dict()
    tensors = {f"model.diffusion_model.{_unet(key, attended)}": value for key, value in unet.items()}
    tensors |= {f"first_stage_model.{_vae(key)}": _conv(key, value) for key, value in pipeline.vae.state_dict().items()}
    if kind == "sd1":
        tensors |= _clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    elif kind == "sd2":
        tensors |= _openclip(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        tensors |= _clip(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        tensors |= _openclip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    tensors |= more or {}
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, file)
    pipeline.tokenizer.save_pretrained(file.parent / "tokenizer")
    return pipeline


def _pipeline(kind: str) -> Any:
    """Widths that the released files' rules hold for: groups of 32, heads of 64."""
    levels = {"norm_num_groups": 32, "block_out_channels": (32, 64, 64, 64)}
    if kind == "sd1":
        pipeline = tiny.sd1(attention_head_dim=8, cross_attention_dim=64, **levels)
    elif kind == "sd2":
        pipeline = tiny.sd2(attention_head_dim=(1, 1, 1, 1), cross_attention_dim=64, **levels)
    else:
        levels["block_out_channels"] = (32, 64, 64)
        wide = {"cross_attention_dim": 64 + 128, "projection_class_embeddings_input_dim": 6 * 8 + 128}
        pipeline = tiny.sdxl(attention_head_dim=(1, 1, 1), **wide, **levels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        scaling = {"scaling_factor": 0.13025} if kind == "sdxl" else {}
        channels = {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 32, "layers_per_block": 2}
        pipeline.vae = tiny.vae(**channels, **scaling)
        encoder = _encoder(pipeline.tokenizer, "gelu" if kind == "sd2" else "quick_gelu", False)
        pipeline.text_encoder = encoder
        if kind == "sdxl":
            pipeline.text_encoder_2 = _encoder(pipeline.tokenizer_2, "gelu", True, width=128)
    return pipeline


def _encoder(own: Any, act: str, projected: bool, width: int = 64) -> Any:
    """As released: heads of 64, an end mark that is looked for as the highest number."""
    encoder = tiny.text_encoder(own, width=width, act=act, projected=projected)
    config = encoder.config
    config.num_attention_heads, config.eos_token_id, config.bos_token_id, config.pad_token_id = width // 64, 2, 0, 1
    return type(encoder)(config).eval()


def _unet(key: str, attended: set[int]) -> str:
    """`attended`: the up blocks with attention, behind which the upsampler comes third in its place."""
    for name, old in UNET.items():
        if key.startswith(f"{name}."):
            return key.replace(name, old, 1)
    layers = 3
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key)
    if match is None:
        place = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key)
        assert place is not None, key
        index = 1 if place[1] == "attentions" else 2 * int(place[2])
        return f"middle_block.{index}.{_resnet(place[3]) if place[1] == 'resnets' else place[3]}"
    side, block, what, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if what == "downsamplers":
        return f"input_blocks.{block * layers + 3}.0.op.{rest.removeprefix('conv.')}"
    if what == "upsamplers":
        return f"output_blocks.{block * layers + 2}.{2 if block in attended else 1}.{rest}"
    index = block * layers + number + (1 if side == "down" else 0)
    inner = f"0.{_resnet(rest)}" if what == "resnets" else f"1.{rest}"
    return f"{'input' if side == 'down' else 'output'}_blocks.{index}.{inner}"


def _resnet(rest: str) -> str:
    name, _, leaf = rest.rpartition(".")
    return f"{RESNET[name]}.{leaf}"


def _vae(key: str) -> str:
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1")
        for name, old in VAE_ATTENTION.items():
            key = key.replace(f".{name}.", f".{old}.")
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda match: f"up.{3 - int(match[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda match: f"up.{3 - int(match[1])}.upsample", key)
    for name, old in VAE.items():
        key = key.replace(name, old)
    return key


def _conv(key: str, value: Tensor) -> Tensor:
    """The original attention of the autoencoder is made of 1×1 convolutions."""
    attention = "attentions" in key and value.dim() == 2
    return value[:, :, None, None] if attention else value


def _clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}text_model.{key.removeprefix('text_model.')}": value for key, value in encoder.state_dict().items()
    }


def _openclip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    tensors = {
        "positional_embedding": state.pop("embeddings.position_embedding.weight"),
        "token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        "ln_final.weight": state.pop("final_layer_norm.weight"),
        "ln_final.bias": state.pop("final_layer_norm.bias"),
    }
    if "text_projection.weight" in state:
        tensors["text_projection"] = state.pop("text_projection.weight").t()
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
    for layer in range(layers):
        own = {
            key.removeprefix(f"encoder.layers.{layer}."): value
            for key, value in state.items()
            if key.startswith(f"encoder.layers.{layer}.")
        }
        place = f"transformer.resblocks.{layer}"
        for leaf in ("weight", "bias"):
            joined = torch.cat([own.pop(f"self_attn.{name}_proj.{leaf}") for name in "qkv"])
            tensors[f"{place}.attn.in_proj_{leaf}"] = joined
            tensors[f"{place}.attn.out_proj.{leaf}"] = own.pop(f"self_attn.out_proj.{leaf}")
        for key, value in own.items():
            name, _, leaf = key.rpartition(".")
            tensors[f"{place}.{OPENCLIP[name]}.{leaf}"] = value
    if prefix.startswith("cond_stage_model"):  # SD 2.x's file holds the layer after the one that is used
        last = f"transformer.resblocks.{layers - 1}."
        spare = {
            key.replace(last, f"transformer.resblocks.{layers}."): value
            for key, value in tensors.items()
            if last in key
        }
        tensors |= spare
    return {prefix + key: value for key, value in tensors.items()}
