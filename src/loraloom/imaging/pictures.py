"""Between pictures and latents: the autoencoder, and fitting a picture into a size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from loraloom.tasks.diffusion import Diffusion


@torch.no_grad()
def decode(diffusion: Diffusion, latents: Tensor) -> Image.Image:
    """The picture of latents (1, C, H, W)."""
    vae, dtype = _ready(diffusion)
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    pixels = vae.decode((latents.float() / vae.config.scaling_factor + shift).to(dtype), return_dict=False)[0]
    values = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values[0].permute(1, 2, 0).cpu().numpy())


@torch.no_grad()
def encode(diffusion: Diffusion, image: Image.Image) -> Tensor:
    """(1, C, H, W), float32: the latents of a picture whose sides are multiples of the latent factor.

    The encoder's mean, not a sample: the same picture starts from the same latents whatever the seed.
    """
    vae, dtype = _ready(diffusion)
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1.0
    mean: Tensor = vae.encode(pixels.to(diffusion.device, dtype)).latent_dist.mode().float()
    return (mean - (getattr(vae.config, "shift_factor", None) or 0.0)) * float(vae.config.scaling_factor)


def _ready(diffusion: Diffusion) -> tuple[Any, torch.dtype]:
    """The autoencoder, in float32 where half precision is known to overflow in it (SDXL's)."""
    vae = diffusion.vae
    if vae.dtype == torch.float16 and vae.config.force_upcast:
        vae.to(torch.float32)
    return vae, vae.dtype


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture, scaled to fill `size` (width, height)."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)
