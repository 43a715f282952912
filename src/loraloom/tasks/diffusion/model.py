"""What trains of a text-to-image base: its denoiser, on request its text encoders, and a new word's vectors.

The container's paths are diffusers' own ("unet.down_blocks.0.…", "text_encoder.text_model.…"), so that an
adapter attached here is read over `Diffusion.parts`, by PEFT and by diffusers alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loraloom.adapters.targets import matches
from loraloom.errors import ConfigError
from loraloom.tasks.diffusion.base import Diffusion
from loraloom.tasks.diffusion.texts import CLIP_KINDS, Texts

EMBEDDING = "new_word"
"""The path of a new word's vectors. PEFT takes a module to be meant whose name ends so: no other's may."""
ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context.net.0.proj", "ff_context.net.2"),
    "proj_mlp",
)
"""Attention and feed-forward layers of diffusers' U-Nets and transformers."""
CONVOLUTIONS = (
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in", "proj_out"),
    *("downsamplers.*.conv", "upsamplers.*.conv"),
)
"""What else the blocks of a U-Net are made of."""
CLIP = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Linear layers of a CLIP text encoder."""


class TrainedParts(nn.ModuleDict):
    """The parts of a base that a run may change, called as one model."""

    def __init__(self, diffusion: Diffusion, texts: Texts, *, encoders: bool) -> None:
        if encoders and diffusion.kind not in CLIP_KINDS:
            known = ", ".join(CLIP_KINDS)
            raise ConfigError(
                f"train_text_encoder: the encoders of {diffusion.kind} stay frozen; those of {known} can train"
            )
        parts: dict[str, nn.Module] = {diffusion.denoiser_name: diffusion.denoiser}
        if encoders or texts.vectors is not None:
            parts |= diffusion.text_encoders
        if texts.vectors is not None:
            parts[EMBEDDING] = texts.vectors
        super().__init__(parts)
        self.diffusion = diffusion
        self.texts = texts
        self.targets: tuple[str, ...] = ()
        """Patterns of the layers that an adapter changes where the settings name none."""
        self.rates: dict[str, float] = {}
        """Learning rate of parts over that of the run."""

    @property
    def encodes(self) -> bool:
        """Whether texts are encoded at every step, since what encodes them trains."""
        return any(name.startswith("text_encoder") for name in self)

    def forward(self, noisy: Tensor, times: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """What the denoiser says of latents (B, C, H, W) at times (B,), float32 of that shape.

        `conditions` are "hidden" and "pooled" as `Texts.encode` makes them, or token ids (B, T) by encoder, and
        of SDXL "time_ids" (B, 6).
        """
        given = dict(conditions)
        ids = {name: given.pop(name) for name in list(given) if name.startswith("text_encoder")}
        if ids:
            given |= self.texts.encode(ids)
        dtype = self.diffusion.dtype
        given = {name: tensor.to(dtype) for name, tensor in given.items()}
        return CALLS[self.diffusion.kind](self.diffusion, noisy.to(dtype), times, given).float()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole pipeline as diffusers does, to be a base again."""
        self.diffusion.pipeline.save_pretrained(str(folder), safe_serialization=True)


def _unet(diffusion: Diffusion, noisy: Tensor, times: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    said: Tensor = diffusion.denoiser(noisy, times, encoder_hidden_states=given["hidden"], return_dict=False)[0]
    return said


def _sdxl(diffusion: Diffusion, noisy: Tensor, times: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    said: Tensor = diffusion.denoiser(
        noisy,
        times,
        encoder_hidden_states=given["hidden"],
        added_cond_kwargs={"text_embeds": given["pooled"], "time_ids": given["time_ids"]},
        return_dict=False,
    )[0]
    return said


def _sd3(diffusion: Diffusion, noisy: Tensor, times: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    said: Tensor = diffusion.denoiser(
        hidden_states=noisy,
        timestep=times,
        encoder_hidden_states=given["hidden"],
        pooled_projections=given["pooled"],
        return_dict=False,
    )[0]
    return said


def _flux(diffusion: Diffusion, noisy: Tensor, times: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Flux sees patches of 2 × 2 latents as tokens, and times from 0 to 1; trained without guidance, at 1."""
    pipeline, transformer = diffusion.pipeline, diffusion.denoiser
    rows, channels, height, width = noisy.shape
    places = pipeline._prepare_latent_image_ids(rows, height // 2, width // 2, noisy.device, noisy.dtype)
    config: Any = transformer.config
    guidance = torch.ones(rows, device=noisy.device, dtype=noisy.dtype) if config.guidance_embeds else None
    said = transformer(
        hidden_states=pipeline._pack_latents(noisy, rows, channels, height, width),
        timestep=(times / 1000).to(noisy.dtype),
        guidance=guidance,
        pooled_projections=given["pooled"],
        encoder_hidden_states=given["hidden"],
        txt_ids=torch.zeros(given["hidden"].shape[1], 3, device=noisy.device, dtype=noisy.dtype),
        img_ids=places,
        return_dict=False,
    )[0]
    factor = pipeline.vae_scale_factor
    unpacked: Tensor = pipeline._unpack_latents(said, height * factor, width * factor, factor)
    return unpacked


CALLS = {"sd1": _unet, "sd2": _unet, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}
"""How the denoiser of each family is called."""


def default_targets(parts: TrainedParts, *, convolutions: bool, encoders: bool) -> tuple[str, ...]:
    """Patterns of the layers that an adapter changes: attention and feed-forward, and what was asked for beside."""
    wanted = (*ATTENTION, *(CONVOLUTIONS if convolutions else ()), *(CLIP if encoders else ()))
    paths = [path for path, _ in parts.named_modules()]
    return tuple(pattern for pattern in wanted if _any_match(pattern, paths))


def _any_match(pattern: str, paths: Iterable[str]) -> bool:
    return any(matches(pattern, path) for path in paths)
