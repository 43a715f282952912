"""Adapters for tiny bases, randomly filled, written in every format that is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from loraloom.adapters import AdapterSet, attach
from loraloom.formats import save_adapter, save_diffusers, save_kohya
from loraloom.tasks.diffusion import Diffusion

UNET = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
"""All four: diffusers takes a kohya file's text encoder for one only where it finds an out_proj."""
FORMATS = ("kohya", "diffusers", "peft")


def attached(diffusion: Diffusion, *names: str, seed: int = 0, size: float = 0.2, **settings: Any) -> AdapterSet:
    """Adapters on a base's parts; each differs, and is large enough to be seen in a picture."""
    targets = settings.pop("targets", UNET + TEXT)
    for number, name in enumerate(names):
        adapters = attach(diffusion.parts, name=name, targets=targets, **{"rank": 4, **settings})
        generator = torch.Generator().manual_seed(seed + number)
        for parameter in adapters.parameters(name):
            parameter.data.normal_(0, size, generator=generator)
    return adapters


def write(adapters: AdapterSet, name: str, folder: Path, how: str, kind: str) -> Path:
    """One adapter in a format; returns the file, or PEFT's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if how == "peft":
        save_adapter(adapters, name, folder / name)
        return folder / name
    path = folder / f"{name}.safetensors"
    if how == "kohya":
        save_kohya(adapters, name, path, kind=kind)
    else:
        save_diffusers(adapters, name, path)
    return path


def made(diffusion: Diffusion, folder: Path, *names: str, how: str = "kohya", **settings: Any) -> Path:
    """Files of adapters for a base, which stays without; returns the folder."""
    adapters = attached(diffusion, *names, **settings)
    for name in names:
        write(adapters, name, folder, how, diffusion.kind)
    adapters.detach()
    return folder
