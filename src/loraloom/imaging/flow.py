"""SD 3 and Flux: pictures by diffusers' own pipeline call, which knows their samplers and their texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from loraloom.errors import ConfigError
from loraloom.imaging.conditioning import Schedule
from loraloom.imaging.sampling import Stopped
from loraloom.tasks.diffusion import Diffusion

SAMPLER = "Euler"
"""The one sampler of flow-matching models here: diffusers' FlowMatchEulerDiscreteScheduler."""


@dataclass(frozen=True)
class FlowPainting:
    """How a picture is made with a flow-matching base: everything but the seed."""

    diffusion: Diffusion
    steps: int
    positive: Schedule
    negative: Schedule
    guidance: float
    start: Image.Image | None = None
    strength: float = 1.0
    turn: Callable[[int], None] = lambda step: None

    def __post_init__(self) -> None:
        if len(self.positive.parts) > 1 or len(self.positive.parts[0].conditionings) > 1:
            raise ConfigError(f"AND and schedules in a prompt are not to be had with {self.diffusion.kind} bases")

    @property
    def length(self) -> int:
        """Steps that a picture takes."""
        # diffusers rounds up here, where it rounds down for the older families.
        return self.steps if self.start is None else self.steps - int(self.steps - self.steps * self.strength)

    @torch.no_grad()
    def picture(
        self,
        seed: int,
        size: tuple[int, int],
        *,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Image.Image:
        """One picture of `size` (width, height). Raises Stopped where `stop` says so."""
        pipeline = self._pipeline()
        pipeline.set_progress_bar_config(disable=True)
        self.turn(1)

        def after(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if stop is not None and stop():
                raise Stopped
            if progress is not None:
                progress(index + 1)
            self.turn(index + 2)
            return tensors

        found = pipeline(
            **self._texts(),
            **({} if self.start is None else {"image": self.start, "strength": self.strength}),
            width=size[0],
            height=size[1],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=after,
        )
        image: Image.Image = found.images[0]
        return image

    def _pipeline(self) -> Any:
        if self.start is None:
            return self.diffusion.pipeline
        from diffusers import AutoPipelineForImage2Image

        return AutoPipelineForImage2Image.from_pipe(self.diffusion.pipeline)

    def _texts(self) -> dict[str, Any]:
        positive, negative = self.positive.at(1)[0], self.negative.at(1)[0]
        assert positive.pooled is not None and negative.pooled is not None
        texts = {"prompt_embeds": positive.hidden[None], "pooled_prompt_embeds": positive.pooled[None]}
        if self.diffusion.kind == "sd3":
            texts["negative_prompt_embeds"] = negative.hidden[None]
            texts["negative_pooled_prompt_embeds"] = negative.pooled[None]
        return texts
