"""Pictures as latents: encoded once by the base's autoencoder, kept on disk, and drawn from at every step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from loraloom.data.pictures import open_picture
from loraloom.tasks.diffusion.base import Diffusion
from loraloom.tasks.diffusion.buckets import Fit, Size, apply, fit, make_buckets, nearest_bucket
from loraloom.tasks.diffusion.cache import TensorCache, key_of

_VERSION = 1  # of how pictures become latents; a change of it makes all of them anew


@dataclass(frozen=True)
class Latent:
    """Where one picture's latents are kept, and how it was cut."""

    key: str
    mirrored: str | None
    """The key of the picture seen in a mirror, where mirrored pictures train."""
    original: Size
    """Of the picture's file."""
    fit: Fit
    seed: int
    """Of the noise that it is scored with: follows from its bytes."""

    @property
    def time_ids(self) -> Tensor:
        """(1, 6) what SDXL is told of a picture's size: original, cut off, and final, each height before width.

        Podell et al. 2023, arXiv 2307.01952, § 2.2.
        """
        width, height = self.fit.bucket
        values = (*reversed(self.original), self.fit.top, self.fit.left, height, width)
        return torch.tensor([values], dtype=torch.float32)


class LatentShelf:
    """The latents of a base for pictures of one area, in buckets."""

    def __init__(
        self, diffusion: Diffusion, fingerprint: str, cache: TensorCache, size: Size, *, buckets: bool
    ) -> None:
        self.diffusion = diffusion
        self.fingerprint = fingerprint
        """Of the base's weights: another base's latents are others."""
        self.cache = cache
        self.size = size
        self.buckets = make_buckets(size, bucket_step(diffusion)) if buckets else [size]
        self.made = 0
        """How many pictures went through the autoencoder, mirrored ones counted too."""

    def place(self, values: Mapping[str, Any], *, mirrored: bool) -> Latent:
        """The latents of a picture by its "file", "sha256", "width" and "height": made where they are not there yet.

        Raises DataError for a picture that can no longer be read, OutputError where they cannot be kept.
        """
        size = (int(values["width"]), int(values["height"]))
        how = fit(size, nearest_bucket(size, self.buckets))
        keys = [self._key(values["sha256"], how.bucket, flip) for flip in ((False, True) if mirrored else (False,))]
        missing = [number for number, key in enumerate(keys) if not self.cache.has(key)]
        if missing:
            picture = apply(open_picture(values["file"]), how)
            for number in missing:
                self.cache.put(keys[number], self._encode(ImageOps.mirror(picture) if number else picture))
        seed = int.from_bytes(hashlib.sha256(f"noise/{values['sha256']}".encode()).digest()[:8], "big") >> 1
        return Latent(keys[0], keys[1] if mirrored else None, size, how, seed)

    def _key(self, sha256: str, bucket: Size, flip: bool) -> str:
        made = {"base": self.fingerprint, "device": self.diffusion.device.type, "version": _VERSION}
        return key_of(kind="latent", picture=sha256, size=bucket, mirrored=flip, **made)

    @torch.no_grad()
    def _encode(self, picture: Image.Image) -> dict[str, Tensor]:
        """Mean and standard deviation (C, h, w) of the latents of one picture: one at a time, always the same bytes."""
        self.made += 1
        vae, device = self.diffusion.vae, self.diffusion.device
        home = vae.device
        values = torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
        posterior = vae.to(device).encode(values.unsqueeze(0).to(device, vae.dtype)).latent_dist
        found = {"mean": posterior.mean[0].float().cpu(), "std": posterior.std[0].float().cpu()}
        if home != device:
            vae.to(home)
        return found

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents (…, h, w) as the denoiser sees them: moved and scaled to about unit variance."""
        config = self.diffusion.vae.config
        scaled: Tensor = (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
        return scaled

    def values(self, keys: Sequence[str], *, spread: bool) -> Tensor:
        """(B, C, h, w) drawn from what the autoencoder allows; without `spread`, the means."""
        found = [self.cache.get(key) for key in keys]
        mean = torch.stack([tensors["mean"] for tensors in found])
        if spread:
            mean = mean + torch.stack([tensors["std"] for tensors in found]) * torch.randn_like(mean)
        return self.scaled(mean)


def bucket_step(diffusion: Diffusion) -> int:
    """Pixels that sides of buckets are multiples of: what the denoiser halves without a remainder."""
    config: Any = diffusion.denoiser.config
    halvings = len(getattr(config, "down_block_types", ())) - 1
    return int(diffusion.latent_factor * 2**halvings) if halvings >= 0 else diffusion.size_step * 8
