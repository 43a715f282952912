"""Pipelines of a few kilobytes with the block layout of SD 1.x and SDXL, random weights, and outputs to compare."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from loraloom.adapters import AdapterSet, adapters_of, attach

WIDTHS = (8, 16, 16, 16)
TEXT = 16
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ATTENTION,
    "all linear": (*ATTENTION, "ff.net.0.proj", "ff.net.2", "q_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "everything": (
        *(*ATTENTION, "ff.net.0.proj", "ff.net.2", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        *("proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv"),
        *("upsamplers.0.conv", "conv_in", "unet.conv_out"),
    ),
}


def _text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=TEXT,
        intermediate_size=2 * TEXT,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=64,
        max_position_embeddings=16,
        projection_dim=TEXT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=2, sample_size=8)


def sd1_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=WIDTHS,
        norm_num_groups=4,
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        sample_size=8,
        layers_per_block=2,
    )


def sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=WIDTHS[:3],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        norm_num_groups=4,
        cross_attention_dim=2 * TEXT,
        attention_head_dim=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + TEXT,
        sample_size=8,
        layers_per_block=2,
    )


def sd1_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=None,
        unet=sd1_unet(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline


def sdxl_pipeline(seed: int = 0) -> StableDiffusionXLPipeline:
    torch.manual_seed(seed)
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer=None,
        tokenizer_2=None,
        unet=sdxl_unet(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    )


PIPELINES = {"sd1": sd1_pipeline, "sdxl": sdxl_pipeline}


@functools.cache
def pipeline_of(kind: str) -> Any:
    """One pipeline per family; whoever loads an adapter into it takes it out again (`unload_lora_weights`)."""
    return PIPELINES[kind]()


@functools.cache
def shared_parts(kind: str) -> nn.ModuleDict:
    """The parts of a pipeline; whoever attaches adapters detaches them again."""
    return parts(kind)


@contextmanager
def lent(kind: str) -> Iterator[nn.ModuleDict]:
    """A pipeline's parts for one test; adapters are taken off at the end."""
    model = shared_parts(kind)
    try:
        yield model
    finally:
        if (adapters := adapters_of(model)) is not None:
            adapters.detach()


def parts_of(pipeline: Any) -> nn.ModuleDict:
    names = ("unet", "text_encoder", "text_encoder_2")
    return nn.ModuleDict({name: module for name in names if (module := getattr(pipeline, name, None)) is not None})


def parts(kind: str) -> nn.ModuleDict:
    """The parts of a new pipeline, the same weights each time."""
    return parts_of(PIPELINES[kind]()).eval()


def outputs(model: Any) -> dict[str, Tensor]:
    """What the U-Net and the text encoders make of fixed inputs."""
    found = {}
    held = dict(model.items()) if isinstance(model, nn.ModuleDict) else dict(parts_of(model).items())
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, module in held.items():
            if name != "unet":
                found[name] = module(torch.arange(8)[None] + 2).last_hidden_state
        unet = held["unet"]
        latent = torch.randn(2, 4, 8, 8, generator=generator)
        text = torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator)
        added = None
        if unet.config.addition_embed_type:
            added = {"text_embeds": torch.randn(2, TEXT, generator=generator), "time_ids": torch.ones(2, 6)}
        found["unet"] = unet(latent, 3, text, added_cond_kwargs=added).sample
    return found


@dataclass(frozen=True)
class Made:
    """An adapter on the parts of a pipeline."""

    parts: nn.ModuleDict
    adapters: AdapterSet
    outputs: dict[str, Tensor]


def adapted(kind: str, targets: str = "all linear", *, size: float = 0.5, **spec: Any) -> Made:
    """A pipeline's parts with an adapter named "style", its factors filled with random numbers."""
    model = parts(kind)
    adapters = attach(model, name="style", **{"targets": TARGETS[targets], "rank": 4, "alpha": 2, **spec})
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return Made(model, adapters, outputs(model))


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Outputs differ by no more than `tolerance` of their size."""
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        difference = float((found[name] - tensor).abs().max() / tensor.abs().max())
        assert difference <= tolerance, f"{name}: {difference:g}"


def assert_differs(found: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Every part's outputs differ clearly, so that an update that acts cannot be missed."""
    for name, tensor in other.items():
        assert float((found[name] - tensor).abs().max()) > 1e-3, name
