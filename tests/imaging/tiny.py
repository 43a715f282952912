"""Stable-Diffusion pipelines of the real classes and the real block structure, a few channels wide, randomly filled.

    pipeline = tiny.sd1()                  # also sd2(), sdxl(); each call makes a new one, the same for the same seed
    diffusion = tiny.diffusion("sdxl")     # the same as loraloom's Diffusion
    folder = tiny.saved("sd1", tmp_path)   # as a diffusers folder

Pictures are 64 × 64 by default: latents of 8 × 8, four channels. The tokenizer is byte-level CLIP BPE with a few
whole words (WORDS); any other text comes out as single letters.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from loraloom.tasks.diffusion.base import Diffusion

WORDS = (
    "red",
    "blue",
    "house",
    "tree",
    "boat",
    "cat",
    "sea",
    "night",
    "photo",
    "of",
    "a",
    "in",
    "the",
    "style",
    "good",
)
SIZE = 64
LEVELS = (16, 32, 32, 32)
GROUPS = 8


def bytes_to_unicode() -> list[str]:
    """The printable characters that stand for the 256 bytes, in the order of CLIP's vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + index) for index, _ in enumerate(rest)]


def tokenizer(pad: str = "<|endoftext|>") -> Any:
    """A CLIP tokenizer: 512 byte tokens, the WORDS built up by merges, and the two marks at the end."""
    from transformers import CLIPTokenizer

    letters = bytes_to_unicode()
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            pieces[:2] = ["".join(pair)]
            if pair not in merges:
                merges.append(pair)
                vocabulary.append(pieces[0])
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, merge = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab.write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}), "utf-8")
        merge.write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n", "utf-8")
        return CLIPTokenizer(str(vocab), str(merge), model_max_length=77, pad_token=pad)


def text_encoder(
    own: Any, *, width: int = 32, layers: int = 3, act: str = "quick_gelu", projected: bool = False
) -> Any:
    """A CLIP text encoder for the tokenizer `own`, with a projection for SDXL's second."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(own),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def vae(**settings: Any) -> Any:
    """An autoencoder: factor 8, four latent channels."""
    from diffusers import AutoencoderKL

    given: dict[str, Any] = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
    given |= {"latent_channels": 4, "sample_size": SIZE, **settings}
    downs, ups = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return AutoencoderKL(down_block_types=downs, up_block_types=ups, **given).eval()


def scheduler(prediction: str = "epsilon") -> Any:
    """The schedule of Stable Diffusion, as its folders configure it."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type=prediction,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


def _unet(**settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    given = {"sample_size": SIZE // 8, "layers_per_block": 2, "norm_num_groups": GROUPS, **settings}
    return UNet2DConditionModel(**given).eval()


def sd1(seed: int = 0, prediction: str = "epsilon", **unet: Any) -> Any:
    """SD 1.x: four levels, attention on three, 1×1 convolutions around it."""
    return _one_encoder(seed, prediction, act="quick_gelu", **{"attention_head_dim": 4, **unet})


def sd2(seed: int = 0, prediction: str = "v_prediction", **unet: Any) -> Any:
    """SD 2.x: linear projections around the attention, OpenCLIP's activation, padding with "!"."""
    given = {"attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True, **unet}
    return _one_encoder(seed, prediction, act="gelu", pad="!", **given)


def _one_encoder(seed: int, prediction: str, act: str, pad: str = "<|endoftext|>", **unet: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        own = tokenizer(pad)
        levels = {"block_out_channels": LEVELS, "cross_attention_dim": 32}
        return StableDiffusionPipeline(
            vae=vae(),
            text_encoder=text_encoder(own, act=act),
            tokenizer=own,
            unet=_unet(**{**levels, **unet}),
            scheduler=scheduler(prediction),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def sdxl(seed: int = 0, prediction: str = "epsilon", **unet: Any) -> Any:
    """SDXL: three levels, attention on two with one and two layers, two encoders (32 and 24 wide), pooled 24."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = tokenizer(), tokenizer(pad="!")
        settings: dict[str, Any] = {
            "block_out_channels": (16, 32, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4, 4),
            "transformer_layers_per_block": (1, 1, 2),
            "use_linear_projection": True,
            "cross_attention_dim": 56,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 24,
        }
        return StableDiffusionXLPipeline(
            vae=vae(scaling_factor=0.13025),
            text_encoder=text_encoder(first),
            text_encoder_2=text_encoder(second, width=24, act="gelu", projected=True),
            tokenizer=first,
            tokenizer_2=second,
            unet=_unet(**{**settings, **unet}),
            scheduler=EulerDiscreteScheduler.from_config(scheduler(prediction).config, timestep_spacing="leading"),
            add_watermarker=False,
        )


MAKERS = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl}


def diffusion(kind: str = "sd1", seed: int = 0, **settings: Any) -> Diffusion:
    """A tiny base of a kind, ready for adapters."""
    return Diffusion.of(MAKERS[kind](seed, **settings), name=f"tiny-{kind}")


def saved(kind: str, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """A tiny base of a kind as a diffusers folder below `folder`; returns the folder to load."""
    place = folder / f"tiny-{kind}"
    MAKERS[kind](seed, **settings).save_pretrained(place)
    return place
