"""The configuration of a pipeline from the shapes in a checkpoint file, so that loading one asks no network for it.

The names are those of the original Stable Diffusion code: `model.diffusion_model.` is the U-Net, `first_stage_model.`
the autoencoder, `cond_stage_model.` or `conditioner.embedders.N.` the text encoders. What shapes do not tell (heads,
activations, schedules) is what SD 1.x, SD 2.x and SDXL were released with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
ENCODERS = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
"""Prefix of each text encoder; one that ends in "model." is OpenCLIP's."""
SIZES = {"sd1": 64, "sd2": 64, "sdxl": 128}
"""Sides of the latents that each family was trained with."""
_HEADS = 8
_HEAD_WIDTH = 64
_SCALING = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}


def pipeline_index(kind: str) -> dict[str, Any]:
    """model_index.json."""
    clip = ["transformers", "CLIPTextModel"]
    index: dict[str, Any] = {
        "scheduler": ["diffusers", "PNDMScheduler" if kind != "sdxl" else "EulerDiscreteScheduler"],
        "text_encoder": clip,
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if kind == "sdxl":
        more = {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": True,
        }
        return {"_class_name": "StableDiffusionXLPipeline", **index, **more}
    without = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    return {"_class_name": "StableDiffusionPipeline", **index, **without}


def schedule_config(kind: str, prediction: str, zero_snr: bool) -> dict[str, Any]:
    """The noise schedule that all three families were trained with."""
    config = {
        "_class_name": pipeline_index(kind)["scheduler"][1],
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    if kind == "sdxl":
        return config | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_snr else {})
    return config | {"set_alpha_to_one": False, "skip_prk_steps": True}


def unet_config(shapes: Shapes, kind: str) -> dict[str, Any]:
    """UNet2DConditionModel's."""
    own = _below(shapes, UNET)
    downs = sorted(int(key.split(".")[1]) for key in own if re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", key))
    layers = downs[0] - 1
    starts = [1, *(index + 1 for index in downs)]
    widths = [own[f"input_blocks.{start}.0.out_layers.3.weight"][0] for start in starts]
    depths = [_count(own, f"input_blocks.{start}.1.transformer_blocks") for start in starts]
    attention = next(key for key in own if key.endswith("attn2.to_k.weight"))
    linear = len(own[attention.partition(".transformer_blocks")[0] + ".proj_in.weight"]) == 2
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": SIZES[kind],
        "in_channels": own["input_blocks.0.0.weight"][1],
        "out_channels": own["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "cross_attention_dim": own[attention][1],
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        # diffusers reads this as the number of heads.
        "attention_head_dim": _HEADS if kind == "sd1" else [max(1, width // _HEAD_WIDTH) for width in widths],
        "use_linear_projection": linear,
    }
    if kind == "sdxl":
        pooled = shapes[f"{ENCODERS[kind]['text_encoder_2']}text_projection"][1]
        whole = own["label_emb.0.0.weight"][1]
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (whole - pooled) // 6,
            "projection_class_embeddings_input_dim": whole,
        }
    return config


def vae_config(shapes: Shapes, kind: str) -> dict[str, Any]:
    """AutoencoderKL's."""
    own = _below(shapes, VAE)
    levels = _count(own, "encoder.down")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [own[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(own, "encoder.down.0.block"),
        "latent_channels": own["post_quant_conv.weight"][0],
        "sample_size": SIZES[kind] * 8,
        "scaling_factor": _SCALING[kind],
        "force_upcast": kind == "sdxl",
    }


def text_config(shapes: Shapes, kind: str, part: str) -> dict[str, Any]:
    """CLIPTextModel's, of a part such as "text_encoder_2"."""
    prefix = ENCODERS[kind][part]
    own = _below(shapes, prefix)
    if prefix.endswith("model."):
        width, layers = own["positional_embedding"][1], _count(own, "transformer.resblocks")
        # SD 2.x was trained on the layer before the last, and diffusers leaves the last one out.
        layers -= 1 if kind == "sd2" else 0
        inner, vocabulary = own["transformer.resblocks.0.mlp.c_fc.weight"][0], own["token_embedding.weight"][0]
        projection = own.get("text_projection", (width, width))[1]
        activation = "gelu"
    else:
        own = _below(shapes, f"{prefix}text_model.")
        width, layers = own["embeddings.position_embedding.weight"][1], _count(own, "encoder.layers")
        inner, vocabulary = own["encoder.layers.0.mlp.fc1.weight"][0], own["embeddings.token_embedding.weight"][0]
        projection, activation = width, "quick_gelu"
    return {
        "architectures": [pipeline_index(kind)[part][1]],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "max_position_embeddings": 77,
        "vocab_size": vocabulary,
        "projection_dim": projection,
        "hidden_act": activation,
        # The end mark has the highest number; 2 makes transformers look for that, as the released files do.
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def tokenizer_config(kind: str, part: str) -> dict[str, Any]:
    """CLIPTokenizer's, of a part such as "tokenizer_2": OpenCLIP's pads with "!", OpenAI's with the end mark."""
    padded_with = "!" if kind == "sd2" or part == "tokenizer_2" else "<|endoftext|>"
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": padded_with,
    }


def _below(shapes: Shapes, prefix: str) -> Shapes:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def _count(shapes: Shapes, path: str) -> int:
    """How many numbered entries lie below a path."""
    found = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    return len({match[1] for key in shapes if (match := found.match(key))})
