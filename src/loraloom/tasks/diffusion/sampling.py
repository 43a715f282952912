"""Pictures by diffusers' own pipeline, as a run shows them: no prompt language, one adapter, a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from loraloom.errors import OutputError
from loraloom.tasks.diffusion.base import Diffusion
from loraloom.tasks.diffusion.buckets import Size
from loraloom.tasks.diffusion.texts import Texts

STEPS, GUIDANCE = 20, 5.0
"""Where neither the options nor the base say."""


@dataclass(frozen=True)
class Sketch:
    """How a picture is made."""

    prompt: str
    size: Size
    negative: str = ""
    steps: int = STEPS
    guidance: float = GUIDANCE
    seed: int = 0


@dataclass(frozen=True)
class Painted:
    """A picture and how it was made."""

    image: Image.Image
    sketch: Sketch

    def save(self, path: Path) -> None:
        """Write a PNG whose text chunk "parameters" says how it was made, as the web UI's do. Raises OutputError."""
        sketch = self.sketch
        negative = f"\nNegative prompt: {sketch.negative}" if sketch.negative else ""
        info = PngInfo()
        info.add_text(
            "parameters",
            f"{sketch.prompt}{negative}\nSteps: {sketch.steps}, CFG scale: {sketch.guidance:g}, Seed: {sketch.seed}, "
            f"Size: {sketch.size[0]}x{sketch.size[1]}",
        )
        partial = path.with_name(f".{path.name}.partial")
        try:
            self.image.save(partial, format="PNG", pnginfo=info)
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def sketch_of(diffusion: Diffusion, size: Size, *, steps: int | None, guidance: float | None, negative: str) -> Sketch:
    """How pictures of this base are made unless asked otherwise; its own defaults where nothing is given."""
    defaults = diffusion.defaults
    return Sketch(
        prompt="",
        size=size,
        negative=negative,
        steps=steps or defaults.steps or STEPS,
        guidance=guidance if guidance is not None else (defaults.guidance or GUIDANCE),
    )


@torch.no_grad()
def paint(diffusion: Diffusion, texts: Texts, sketch: Sketch) -> Painted:
    """One picture. All parts are moved to the denoiser's device for it, and back."""
    with _together(diffusion), _one_precision(diffusion):
        latents = diffusion.pipeline(
            **_prompts(diffusion, texts, sketch),
            width=sketch.size[0],
            height=sketch.size[1],
            num_inference_steps=sketch.steps,
            guidance_scale=sketch.guidance,
            generator=torch.Generator("cpu").manual_seed(sketch.seed),
            output_type="latent",
        ).images
        image = _decoded(diffusion, latents, sketch.size)
    return Painted(image, sketch)


def paint_many(diffusion: Diffusion, texts: Texts, sketch: Sketch, prompts: list[str]) -> list[Painted]:
    """One picture for each prompt, all of them from the sketch's seed."""
    return [paint(diffusion, texts, replace(sketch, prompt=prompt)) for prompt in prompts]


def _prompts(diffusion: Diffusion, texts: Texts, sketch: Sketch) -> dict[str, Any]:
    """The pipeline's arguments that say what is to be seen."""
    if diffusion.kind == "flux":
        return {"prompt": sketch.prompt}
    if diffusion.kind == "sd3":
        return {"prompt": sketch.prompt, "negative_prompt": sketch.negative}
    given: dict[str, Any] = {}
    for prefix, text in (("", sketch.prompt), ("negative_", sketch.negative)):
        found = {name: tensor.to(diffusion.device) for name, tensor in texts.conditions(text).items()}
        given[f"{prefix}prompt_embeds"] = found["hidden"]
        if "pooled" in found:
            given[f"{prefix}pooled_prompt_embeds"] = found["pooled"]
    return given


def _decoded(diffusion: Diffusion, latents: Tensor, size: Size) -> Image.Image:
    """Latents as the denoiser left them (1, C, h, w), or Flux's tokens, as a picture."""
    vae, pipeline = diffusion.vae, diffusion.pipeline
    if diffusion.kind == "flux":
        latents = pipeline._unpack_latents(latents, size[1], size[0], pipeline.vae_scale_factor)
    latents = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    with torch.autocast(vae.device.type, enabled=False):
        pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    values = ((pixels[0].float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


@contextmanager
def _together(diffusion: Diffusion) -> Iterator[None]:
    """All parts on the denoiser's device, the progress bar off; afterwards as before."""
    pipeline, device = diffusion.pipeline, diffusion.device
    helpers = [diffusion.vae, *diffusion.text_encoders.values()]
    homes = [next(part.parameters()).device for part in helpers]
    bar = getattr(pipeline, "_progress_bar_config", None)
    scheduler = pipeline.scheduler
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = type(scheduler).from_config(scheduler.config)  # it keeps a state from one picture to the next
    try:
        for part in helpers:
            part.to(device)
        yield
    finally:
        pipeline.scheduler = scheduler
        if bar is None:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = bar
        for part, home in zip(helpers, homes, strict=True):
            part.to(home)


def _one_precision(diffusion: Diffusion) -> Any:
    """Parts of different precision meet in the pipeline: matrix products take the denoiser's."""
    if diffusion.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(diffusion.device.type, dtype=diffusion.dtype)
