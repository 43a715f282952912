"""Pictures for the measures: many at once, each with its own seed, and sheets of them to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from loraloom.tasks.diffusion.base import Diffusion, load_diffusion

BATCH = 40


def open_base(base: str = "scenes") -> Diffusion:
    """The base, sampled by DPM++ 2M, without the pipeline's own progress bar."""
    diffusion = load_diffusion(base)
    pipeline = diffusion.pipeline
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return diffusion


def paint(
    diffusion: Diffusion, prompts: Sequence[str], seeds: Sequence[int], *, steps: int = 20, guidance: float = 4.0
) -> list[Image.Image]:
    """One 64 × 64 picture for each prompt, from noise of its own seed."""
    made: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        some = list(prompts[start : start + BATCH])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + BATCH]]
        found = diffusion.pipeline(
            some, num_inference_steps=steps, guidance_scale=guidance, generator=generators, width=64, height=64
        )
        made += found.images
    return made


def sheet(pictures: Sequence[Image.Image], columns: int, path: Path, *, scale: int = 2) -> None:
    """All pictures in rows, enlarged, as one PNG."""
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * 66 - 2, rows * 66 - 2), "white")
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index % columns * 66, index // columns * 66))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.resize((whole.width * scale, whole.height * scale), Image.Resampling.LANCZOS).save(path)
