"""Small random models of the real classes, and a CLIP tokenizer trained on a handful of words."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from loraloom.tasks.diffusion import Diffusion

WORDS = (
    "a photo of the cat and dog in snow on hill house tree boat rocket flower meadow sea night desert red blue green "
    "masterpiece best quality detailed worst low normal text bad hands eyes fingers many extra fused 1girl cute hair "
    "masterpiece, best quality, cat, dog, snow, hill, easynegativev2 badhandv4 deepnegative ng v1 75t"
)


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Bytes, bytes that end a word, merges, marks: the order of the true CLIP vocabulary."""
    trainer = trainers.BpeTrainer(vocab_size=900, end_of_word_suffix="</w>", show_progress=False)
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["!", *[letter for letter in letters if letter != "!"], *[f"{letter}</w>" for letter in letters]]
    merges = []
    for merge in json.loads(tokenizer.to_str())["model"]["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        if left + right not in tokens:
            merges.append((left, right))
            tokens.append(left + right)
    return {token: place for place, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def make_tokenizer(pad: str = "<|endoftext|>") -> Any:
    vocabulary, merges = _vocabulary()
    return transformers.CLIPTokenizer(dict(vocabulary), list(merges), pad_token=pad, model_max_length=77)


def make_encoder(*, width: int, seed: int, projected: bool = False, act: str = "quick_gelu", layers: int = 3) -> Any:
    torch.manual_seed(seed)
    tokens = len(_vocabulary()[0])
    config = transformers.CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        initializer_factor=6.0,  # so that words differ and the mean over all is not lost in rounding
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    encoder = kind(config).eval()
    with torch.no_grad():  # a layer norm of 1 and 0 would hide one that is applied twice
        for name, weight in encoder.named_parameters():
            if "layer_norm" in name:
                weight += 0.3 * torch.randn_like(weight) + 0.1
    return encoder


def _vae(channels: int = 4) -> Any:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
    )


def _unet(width: int, **more: Any) -> Any:
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=width,
        norm_num_groups=4,
        **more,
    )


def make_sd(kind: str = "sd1", *, layers: int = 3) -> Diffusion:
    """An SD 1.x or SD 2.x base with one encoder, 16 or 24 wide."""
    width, pad, act = (16, "<|endoftext|>", "quick_gelu") if kind == "sd1" else (24, "!", "gelu")
    pipeline = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=make_encoder(width=width, seed=1, act=act, layers=layers),
        tokenizer=make_tokenizer(pad),
        unet=_unet(width, use_linear_projection=kind == "sd2"),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return Diffusion.of(pipeline, name=f"tiny {kind}")


def make_sdxl() -> Diffusion:
    """An SDXL base with encoders 16 and 24 wide."""
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=make_encoder(width=16, seed=1),
        text_encoder_2=make_encoder(width=24, seed=2, projected=True, act="gelu"),
        tokenizer=make_tokenizer(),
        tokenizer_2=make_tokenizer("!"),
        unet=_unet(
            40, addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=48
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
    )
    return Diffusion.of(pipeline, name="tiny sdxl")


def _t5() -> tuple[Any, Any]:
    letters = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *[(chr(code), -2.0) for code in range(33, 123)],
        ("▁", -2.0),
    ]
    tokenizer = transformers.T5TokenizerFast(vocab=letters, extra_ids=0, model_max_length=512)
    config = transformers.T5Config(vocab_size=128, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    torch.manual_seed(3)
    return transformers.T5EncoderModel(config).eval(), tokenizer


def make_flux() -> Diffusion:
    encoder, tokenizer = _t5()
    transformer = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(1),
        text_encoder=make_encoder(width=16, seed=1),
        tokenizer=make_tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )
    return Diffusion.of(pipeline, name="tiny flux")


def make_sd3() -> Diffusion:
    encoder, tokenizer = _t5()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=40,
        out_channels=4,
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=make_encoder(width=16, seed=1, projected=True),
        tokenizer=make_tokenizer(),
        text_encoder_2=make_encoder(width=24, seed=2, projected=True, act="gelu"),
        tokenizer_2=make_tokenizer(),
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
    )
    return Diffusion.of(pipeline, name="tiny sd3")
