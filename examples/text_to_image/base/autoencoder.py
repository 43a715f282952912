"""Train the base's AutoencoderKL: 64 × 64 pixels to 16 × 16 latents of four channels that are white by construction."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

CHANNELS = (16, 32, 64)
CROP = 32
"""Pixels to a side of the crops that most of the training sees: a quarter of the cost, and the network is local."""
KL_WEIGHT = 3e-4
DECODED_NOISE = 0.04
"""Noise on white latents while the decoder alone is refined: what the U-Net makes is never quite right either."""


def new_autoencoder() -> AutoencoderKL:
    """The untrained autoencoder. No attention, so that crops and whole pictures are treated alike."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def train_autoencoder(
    pictures: np.ndarray, *, minutes: float, batch: int = 24, rate: float = 2.5e-3,
    start: AutoencoderKL | None = None, decoder_only: bool = False,
    seed: int = 0, say: Callable[[str], None] = print, keep: Path | None = None,
) -> AutoencoderKL:  # fmt: skip
    """Train on pictures (N, H, W, 3) for so many minutes; from `start` on if given, with `decoder_only` its decoder.

    The rate follows the clock (a cosine with a short warm-up), so that the run ends where it should on any machine.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = start or new_autoencoder()
    model = model.to(memory_format=torch.channels_last).train()
    trained = [*model.decoder.parameters()] if decoder_only else [*model.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
    begun, step, shown = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - begun) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        whole = done > 0.8
        wanted = _batch(pictures, max(4, batch // 4) if whole else batch, whole, rng)
        loss, parts = _loss(model, wanted, decoder_only)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        step += 1
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            say(f"autoencoder {step} {done:.0%} {parts}")
            if keep is not None:
                model.save_pretrained(keep)
    say(f"autoencoder: {step} steps in {time.monotonic() - begun:.0f} s")
    return model.eval()


def _batch(pictures: np.ndarray, count: int, whole: bool, rng: random.Random) -> Tensor:
    """(B, 3, S, S) in −1 … 1; a quarter in changed colours, so that restyled pictures pass through as well."""
    size, made = pictures.shape[1], []
    for _ in range(count):
        picture = pictures[rng.randrange(len(pictures))]
        if not whole:
            y, x = rng.randint(0, size - CROP), rng.randint(0, size - CROP)
            picture = picture[y : y + CROP, x : x + CROP]
        if rng.random() < 0.5:
            picture = picture[:, ::-1]
        made.append(
            _recoloured(picture.astype(np.float32) / 127.5 - 1, rng) if rng.random() < 0.25 else picture / 127.5 - 1
        )
    batch = torch.from_numpy(np.stack(made).astype(np.float32)).permute(0, 3, 1, 2)
    return batch.contiguous(memory_format=torch.channels_last)


def _recoloured(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    kind = rng.randrange(4)
    if kind == 0:
        return picture[..., rng.sample(range(3), 3)]
    if kind == 1:
        return -picture
    if kind == 2:
        return np.repeat(picture.mean(-1, keepdims=True), 3, axis=-1) * rng.uniform(0.5, 1.2)
    edges = np.abs(picture - np.roll(picture, 1, 0)) + np.abs(picture - np.roll(picture, 1, 1))
    return (
        np.clip(edges * 2 - 1, -1, 1)
        if rng.random() < 0.5
        else np.clip(1 - edges.mean(-1, keepdims=True) * [2, 2, 2], -1, 1)
    )


def _loss(model: AutoencoderKL, wanted: Tensor, decoder_only: bool) -> tuple[Tensor, str]:
    with torch.set_grad_enabled(not decoder_only):
        spread = model.encode(wanted).latent_dist
    latent = spread.mode() + DECODED_NOISE * torch.randn_like(spread.mean) if decoder_only else spread.sample()
    made = model.decode(latent).sample
    off, edges = (made - wanted).abs().mean(), _edge_loss(made, wanted)
    squares = F.mse_loss(made, wanted)
    kl = 0.5 * (spread.mean.square() + spread.var - 1 - spread.logvar).mean()
    psnr = 10 * math.log10(4 / squares.item())
    parts = f"L1 {off.item():.4f} edges {edges.item():.4f} PSNR {psnr:.1f} KL {kl.item():.2f}"
    return off + edges + squares + (0.0 if decoder_only else KL_WEIGHT) * kl, parts


def _edge_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 between the differences of neighbouring pixels, down and across: keeps outlines sharp."""
    down = (made.diff(dim=2) - wanted.diff(dim=2)).abs().mean()
    return down + (made.diff(dim=3) - wanted.diff(dim=3)).abs().mean()


@torch.no_grad()
def encode_all(model: AutoencoderKL, pictures: np.ndarray, batch: int = 50) -> Tensor:
    """Mean latents (N, 4, H / 4, W / 4) of pictures (N, H, W, 3), before the scaling factor."""
    made = []
    for start in range(0, len(pictures), batch):
        made.append(model.encode(_as_batch(pictures[start : start + batch])).latent_dist.mode().contiguous())
    return torch.cat(made)


def _as_batch(pictures: np.ndarray) -> Tensor:
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def whiten(model: AutoencoderKL, pictures: np.ndarray) -> None:
    """Fold a whitening of the latents into the two 1 × 1 convolutions between encoder and decoder, in place.

    Afterwards the four channels have mean 0, deviation 1 and no correlation over `pictures`, so that the scaling
    factor is 1 and noise covers all channels alike. What is decoded stays what it was.
    """
    latents = encode_all(model, pictures).permute(1, 0, 2, 3).flatten(1).double()
    mean = latents.mean(dim=1)
    values, vectors = torch.linalg.eigh(torch.cov(latents))
    forth = torch.diag(values.rsqrt()) @ vectors.T
    back = vectors @ torch.diag(values.sqrt())
    quant, post = model.quant_conv, model.post_quant_conv
    spread = model.encode(_as_batch(pictures[:50])).latent_dist.var.mean(dim=(0, 2, 3)).double()
    weight, bias = quant.weight[:4, :, 0, 0].double(), quant.bias[:4].double()
    quant.weight[:4] = (forth @ weight).float()[:, :, None, None]
    quant.bias[:4] = (forth @ (bias - mean)).float()
    quant.weight[4:] = 0.0
    quant.bias[4:] = ((forth**2) @ spread).log().float()
    inner, shift = post.weight[:, :, 0, 0].double(), post.bias.double()
    post.weight.copy_((inner @ back).float()[:, :, None, None])
    post.bias.copy_((shift + inner @ mean).float())
