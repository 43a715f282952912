"""Put the trained parts together as a Stable-Diffusion pipeline and write it as a folder of fp16 safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from .denoiser import new_scheduler

DEFAULTS = {"sampler": "DPM++ 2M", "steps": 20, "guidance": 4.0, "width": 64, "height": 64}
"""What the base is best sampled with; read by `loraloom generate` and the studio."""
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def pack(
    folder: Path,
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write the pipeline's parts into `folder`, replacing those that are there and leaving everything else."""
    pipeline = StableDiffusionPipeline(
        vae=autoencoder, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    scratch = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(scratch, safe_serialization=True)
    _add_plain_vocabulary(tokenizer, scratch / "tokenizer")
    (scratch / "defaults.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n")
    for file in scratch.rglob("*.safetensors"):
        file.chmod(0o644)  # the library writes them for the owner alone
    folder.mkdir(parents=True, exist_ok=True)
    for part in scratch.iterdir():
        old = folder / part.name
        if old.is_dir():
            shutil.rmtree(old)
        part.rename(old)
    scratch.rmdir()
    for module in (autoencoder, unet, encoder):
        module.float()


def _add_plain_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The vocabulary as vocab.json and merges.txt as well, the two files that older tools look for."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab(), ensure_ascii=False), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def size(folder: Path) -> int:
    """Bytes of the pipeline's parts."""
    return sum(path.stat().st_size for part in PARTS for path in (folder / part).rglob("*") if path.is_file())
