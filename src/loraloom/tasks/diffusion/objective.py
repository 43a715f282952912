"""What a diffusion model is trained to say: the noise, the velocity or the flow, at which times and how weighted.

A picture's latent x is mixed with noise ε at a time t:  x_t = signal · x + spread · ε

| prediction | signal, spread   | target                  | source                                          |
|------------|------------------|-------------------------|-------------------------------------------------|
| epsilon    | √ā_t, √(1 − ā_t) | ε                       | Ho et al. 2020, arXiv 2006.11239, eq. 14        |
| v          | √ā_t, √(1 − ā_t) | signal · ε − spread · x | Salimans & Ho 2022, arXiv 2202.00512, § 4       |
| flow       | 1 − σ, σ         | ε − x                   | Esser et al. 2024, arXiv 2403.03206, eq. 13, 15 |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from loraloom.errors import BaseModelError

Prediction = Literal["epsilon", "v", "flow"]
_NAMES: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "flow_prediction": "flow"}


@dataclass(frozen=True)
class Times:
    """At which time each of B pictures is looked at, and what follows from it; float32."""

    model: Tensor
    """(B,) as the denoiser is told it: 0 to 1000, whole numbers but for flow matching."""
    signal: Tensor
    """(B,) the latent's share of what the denoiser sees."""
    spread: Tensor
    """(B,) the noise's share."""


@dataclass(frozen=True)
class Objective:
    """The prediction type of one base and its noise schedule."""

    prediction: Prediction
    levels: Tensor
    """(steps,) float64: ā by time step, or of flow matching nothing."""
    shift: float = 1.0
    """Flow matching: by how much times are moved towards noise (2403.03206, § 5.3.2)."""
    steps: int = 1000

    def draw(self, count: int) -> Times:
        """Times for `count` pictures, drawn from torch's global generator on the CPU.

        Uniform over the steps; of flow matching logit-normal (2403.03206, § 3.1), then shifted.
        """
        if self.prediction == "flow":
            return self.at_sigmas(self._shifted(torch.randn(count, dtype=torch.float64).sigmoid()))
        return self.at_steps(torch.randint(self.steps, (count,)))

    def fixed(self, count: int) -> list[Times]:
        """The middles of `count` equal parts of the schedule, each a Times of one picture: for scores that compare."""
        middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        if self.prediction == "flow":
            return [self.at_sigmas(self._shifted(middle.view(1))) for middle in middles]
        return [self.at_steps((middle.view(1) * self.steps).long()) for middle in middles]

    def at_steps(self, steps: Tensor) -> Times:
        """Times at whole steps (B,) of a schedule of noise levels."""
        level = self.levels[steps]
        return Times(steps.float(), level.sqrt().float(), (1 - level).sqrt().float())

    def at_sigmas(self, sigmas: Tensor) -> Times:
        """Times of flow matching at shares of noise (B,), 0 to 1."""
        return Times((sigmas * self.steps).float(), (1 - sigmas).float(), sigmas.float())

    def _shifted(self, sigmas: Tensor) -> Tensor:
        return self.shift * sigmas / (1 + (self.shift - 1) * sigmas)

    def weights(self, signal: Tensor, spread: Tensor, min_snr: float | None) -> Tensor:
        """What the squared errors at times of these shares count: 1, or by min-SNR-γ with γ = `min_snr`.

        Hang et al. 2023, arXiv 2303.09556, § 3.4: min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v. Flow
        matching already weighs by its choice of times, and is left alone.
        """
        if min_snr is None or self.prediction == "flow":
            return torch.ones_like(signal)
        ratio = (signal.double() / spread.double()).square()
        if self.prediction == "v":
            return (ratio.clamp(max=min_snr) / (ratio + 1)).float()
        return (min_snr / ratio).clamp(max=1.0).float()  # where the ratio is 0, that is its limit


def noised(latents: Tensor, noise: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """x_t (B, C, H, W) from latents and noise of that shape and their shares (B,)."""
    return _per_row(signal, latents) * latents + _per_row(spread, noise) * noise


def target(prediction: Prediction, latents: Tensor, noise: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """What the denoiser should say of x_t, (B, C, H, W); the table above."""
    if prediction == "epsilon":
        return noise
    if prediction == "v":
        return _per_row(signal, noise) * noise - _per_row(spread, latents) * latents
    return noise - latents


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def objective_of(config: Mapping[str, Any], prediction: str = "auto") -> Objective:
    """The objective that a scheduler's configuration means; `prediction` overrides its type ("epsilon", "v", "flow").

    Raises BaseModelError for a prediction type that there is no training for.
    """
    flow = "prediction_type" not in config and "FlowMatch" in str(config.get("_class_name", ""))
    named = "flow_prediction" if flow else str(config.get("prediction_type", "epsilon"))
    kind = prediction if prediction in get_args(Prediction) else _NAMES.get(named)
    if kind is None:
        known = ", ".join(_NAMES)
        raise BaseModelError(f"base model: its scheduler has prediction_type {named!r}; {known} can be trained")
    steps = int(config.get("num_train_timesteps", 1000))
    if kind == "flow":
        fixed = not config.get("use_dynamic_shifting", False)
        shift = float(config.get("shift") or config.get("flow_shift") or 1.0) if fixed else 1.0
        return Objective("flow", torch.empty(0, dtype=torch.float64), shift, steps)
    return Objective(kind, _levels(config), steps=steps)  # type: ignore[arg-type]


def _levels(config: Mapping[str, Any]) -> Tensor:
    """ā by step, as diffusers makes it of any scheduler's configuration."""
    import diffusers

    names = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
    )
    known = {name: config[name] for name in names if config.get(name) is not None}
    library: Any = diffusers
    levels: Tensor = library.DDPMScheduler(**known).alphas_cumprod
    return levels.double()
