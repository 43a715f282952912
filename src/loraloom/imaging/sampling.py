"""From noise to latents, step by step: schedulers by the samplers' names, and the guided denoising loop.

A picture is always sampled alone, as a batch of one and its prompts, from a generator of its own on the CPU: so one of
a batch is, to the byte, the picture that its seed makes by itself, and where the model runs changes no noise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from loraloom.errors import MissingExtraError
from loraloom.imaging.conditioning import Conditioning, Schedule, batches, pad_together
from loraloom.imaging.pictures import decode
from loraloom.imaging.samplers import SAMPLERS, Sampler, find_sampler
from loraloom.tasks.diffusion import Diffusion

__all__ = ["SAMPLERS", "Denoising", "Sampler", "Stopped", "find_sampler", "make_scheduler", "noise_of"]

_OF_THE_BASE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "steps_offset",
    "set_alpha_to_one",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)
"""Settings of a scheduler that say how the base was trained, not how it is sampled."""
_ALMOST_NOISE = 2.0**-24
"""The share of picture that is left in what counts as pure noise, lest a ratio be infinite; diffusers' own value."""


class Stopped(Exception):
    """The picture was given up between two steps."""


def make_scheduler(sampler: Sampler, config: Mapping[str, Any]) -> Any:
    """diffusers' scheduler of a sampler, over the noise schedule that a base was trained with.

    A base trained down to zero signal (`rescale_betas_zero_snr`, arXiv 2305.08891) is sampled so, its steps counted
    from the very end, by every sampler.
    """
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError('pictures are made by diffusers; pip install "loraloom[images]"') from error
    kind = getattr(diffusers, sampler.scheduler)
    known = inspect.signature(kind.__init__).parameters
    settings = {name: config[name] for name in _OF_THE_BASE if name in config} | dict(sampler.settings)
    if config.get("rescale_betas_zero_snr"):
        settings |= {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
        if "rescale_betas_zero_snr" not in known:
            settings["trained_betas"] = zero_snr_betas(kind(**_only(settings, known)).betas).tolist()
    return kind(**_only(settings, known))


def _only(settings: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in known}


def zero_snr_betas(betas: Tensor) -> Tensor:
    """(T,): the noise schedule shifted and scaled so that its last step is noise alone (arXiv 2305.08891, alg. 1)."""
    root = (1.0 - betas).cumprod(0).sqrt()
    shifted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    kept = (shifted**2).clamp(min=_ALMOST_NOISE)
    return 1.0 - torch.cat([kept[:1], kept[1:] / kept[:-1]])


def noise_of(seed: int, shape: tuple[int, ...]) -> tuple[Tensor, torch.Generator]:
    """The noise of a seed, float32 on the CPU, and its generator, which goes on for samplers that need more."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator), generator


@dataclass(frozen=True)
class Denoising:
    """How latents are made: everything but the seed. Latents are (1, C, H, W), float32."""

    diffusion: Diffusion
    sampler: Sampler
    steps: int
    positive: Schedule
    negative: Schedule
    guidance: float
    rescale: float = 0.0
    """How far a guided prediction is brought back to the spread of the unguided one."""
    eta: float | None = None
    start: Tensor | None = None
    """Latents of a picture to start from."""
    strength: float = 1.0
    turn: Callable[[int], None] = lambda step: None
    """Called before each step, counted from 1, with the step: adapters take their weights there."""

    @property
    def length(self) -> int:
        """Steps that a picture takes."""
        return self.steps - self.skipped

    def picture(
        self,
        seed: int,
        size: tuple[int, int],
        *,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Image.Image:
        """One picture of `size` (width, height). Raises Stopped where `stop` says so."""
        return decode(self.diffusion, self.latents(seed, size, progress=progress, stop=stop))

    @torch.no_grad()
    def latents(
        self,
        seed: int,
        size: tuple[int, int],
        *,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Tensor:
        """(1, C, H, W) of a picture of `size` (width, height) in pixels. Raises Stopped where `stop` says so."""
        width, height = (side // self.diffusion.latent_factor for side in size)
        noise, generator = noise_of(seed, (1, self.diffusion.latent_channels, height, width))
        scheduler = make_scheduler(self.sampler, self.diffusion.scheduler_config)
        scheduler.set_timesteps(self.steps, device=self.diffusion.device)
        skipped = self.skipped
        first = skipped * scheduler.order
        timesteps = scheduler.timesteps[first:]
        if skipped and hasattr(scheduler, "set_begin_index"):  # those without one look steps up by their timestep
            scheduler.set_begin_index(first)
        latents: Tensor = self._start(scheduler, noise.to(self.diffusion.device), timesteps)
        extra = _accepted(scheduler.step, {"generator": generator, "eta": self.eta if self.sampler.takes_eta else None})
        look = _Look(self)
        done = skipped
        for index, timestep in enumerate(timesteps):
            step = min(self.steps, skipped + index // scheduler.order + 1)
            if stop is not None and stop():
                raise Stopped
            self.turn(step)
            prediction = look.predict(scheduler.scale_model_input(latents, timestep), timestep, step)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
            if progress is not None and step > done:
                done = step
                progress(step - skipped)
        return latents

    @property
    def skipped(self) -> int:
        """Steps that a picture to start from saves."""
        return 0 if self.start is None else self.steps - max(1, min(int(self.steps * self.strength), self.steps))

    def _start(self, scheduler: Any, noise: Tensor, timesteps: Tensor) -> Tensor:
        noisy: Tensor
        if self.start is None:
            noisy = noise * scheduler.init_noise_sigma
        else:
            noisy = scheduler.add_noise(self.start, noise, timesteps[:1])
        return noisy


def _accepted(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that a scheduler's `step` takes and that are given."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in given.items() if name in known and value is not None}


class _Look:
    """The guided prediction of one picture; what the denoiser is told is put together anew only where it changes."""

    def __init__(self, plan: Denoising) -> None:
        self.plan = plan
        self.unet: Any = plan.diffusion.denoiser
        self.dtype = plan.diffusion.dtype
        weights = plan.positive.weights.tolist()
        # At guidance 1 one part of weight 1 is the prediction itself; distilled models are told their guidance.
        self.told = _told_guidance(plan)
        self.free = self.told is not None or (plan.guidance == 1.0 and weights == [1.0])
        self.weights = weights
        self._conditionings: list[Conditioning] = []
        self._batches: list[tuple[Tensor, dict[str, Tensor] | None]] = []

    def predict(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """uncond + guidance · Σ wᵢ (condᵢ − uncond), (1, C, H, W); the web UI's rule for AND."""
        self._tell(step)
        rows = torch.cat([self._run(latents, timestep, *batch) for batch in self._batches]).float()
        if self.free:
            shares = torch.tensor(self.weights, device=rows.device).view(-1, 1, 1, 1)
            return rows if len(rows) == 1 else (rows * shares).sum(0, keepdim=True) / shares.sum()
        uncond = rows[-1:]
        guided = uncond.clone()
        for row, weight in zip(rows[:-1], self.weights, strict=True):
            guided += (row[None] - uncond) * (weight * self.plan.guidance)
        return rescaled(guided, rows[:1], self.plan.rescale) if self.plan.rescale else guided

    def _tell(self, step: int) -> None:
        positive, negative = self.plan.positive.at(step), self.plan.negative.at(step)[0]
        told = positive if self.free else [*positive, negative]
        if len(told) == len(self._conditionings) and all(map(_same, told, self._conditionings)):
            return
        self._conditionings = told
        texts = [pad_together(positive, "last")] if self.free else batches(positive, negative)
        self._batches, first = [], 0
        for hidden in texts:
            share = told[first : first + hidden.shape[0]]
            first += hidden.shape[0]
            self._batches.append((hidden.to(self.dtype), self._added(share)))

    def _added(self, share: list[Conditioning]) -> dict[str, Tensor] | None:
        """SDXL's further conditions: pooled texts (B, P) and time ids (B, 6)."""
        if self.unet.config.addition_embed_type != "text_time":
            return None
        pooled = torch.stack([one.pooled for one in share if one.pooled is not None])
        times = torch.stack([one.time_ids for one in share if one.time_ids is not None])
        return {"text_embeds": pooled.to(self.dtype), "time_ids": times.to(self.dtype)}

    def _run(self, latents: Tensor, timestep: Tensor, hidden: Tensor, added: dict[str, Tensor] | None) -> Tensor:
        rows = latents.to(self.dtype).expand(hidden.shape[0], -1, -1, -1)
        out: Tensor = self.unet(
            rows,
            timestep,
            encoder_hidden_states=hidden,
            timestep_cond=None if self.told is None else self.told.expand(hidden.shape[0], -1),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out


def _same(one: Conditioning, other: Conditioning) -> bool:
    return one is other


def _told_guidance(plan: Denoising) -> Tensor | None:
    """The embedding of the guidance, (1, E), for models that were distilled to take it as an input (LCM)."""
    width = getattr(getattr(plan.diffusion.denoiser, "config", None), "time_cond_proj_dim", None)
    if width is None:
        return None
    scale = torch.tensor([plan.guidance - 1.0])
    embedded: Tensor = plan.diffusion.pipeline.get_guidance_scale_embedding(scale, embedding_dim=width)
    return embedded.to(plan.diffusion.device, plan.diffusion.dtype)


def rescaled(guided: Tensor, plain: Tensor, share: float) -> Tensor:
    """A guided prediction (1, C, H, W) with the spread of the unguided one, mixed in by `share`.

    Guidance makes pictures too bright where the noise schedule ends at zero signal: arXiv 2305.08891, eqs. 15–16.
    """
    spread = guided * (plain.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True))
    return share * spread + (1.0 - share) * guided
