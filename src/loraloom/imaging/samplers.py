"""The samplers by the web UI's names: which of diffusers' schedulers each one is, and with which settings.

A name is a method ("DPM++ 2M"), alone or with a schedule of noise levels behind it ("DPM++ 2M Karras"). Importing
this imports neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loraloom.errors import ConfigError, suggest


@dataclass(frozen=True)
class Sampler:
    """One way from noise to a picture."""

    name: str
    scheduler: str
    """Class in diffusers."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What of the base's own schedule is overridden."""
    calls: int = 1
    """Calls of the denoiser per step."""
    noisy: bool = False
    """Whether it adds noise at every step, drawn from the picture's own generator."""
    takes_eta: bool = False
    schedule: str = ""
    """"Karras", "Exponential" or "Beta" where the noise levels are spaced so; "" for the method's own."""

    @property
    def method(self) -> str:
        """The name without the schedule."""
        return self.name.removesuffix(f" {self.schedule}") if self.schedule else self.name


_LINSPACE = {"timestep_spacing": "linspace"}
_SINGLE = {"solver_order": 2, "lower_order_final": True}
_SDE = {**_LINSPACE, "algorithm_type": "sde-dpmsolver++"}

_METHODS = (
    Sampler("Euler a", "EulerAncestralDiscreteScheduler", _LINSPACE, noisy=True),
    Sampler("Euler", "EulerDiscreteScheduler", _LINSPACE),
    Sampler("LMS", "LMSDiscreteScheduler", _LINSPACE),
    Sampler("Heun", "HeunDiscreteScheduler", _LINSPACE, calls=2),
    Sampler("DPM2", "KDPM2DiscreteScheduler", _LINSPACE, calls=2),
    Sampler("DPM2 a", "KDPM2AncestralDiscreteScheduler", _LINSPACE, calls=2, noisy=True),
    Sampler("DPM++ 2S", "DPMSolverSinglestepScheduler", _SINGLE),
    Sampler("DPM++ 2M", "DPMSolverMultistepScheduler", {**_LINSPACE, "solver_order": 2}),
    Sampler("DPM++ SDE", "DPMSolverSinglestepScheduler", {**_SINGLE, "algorithm_type": "sde-dpmsolver++"}, noisy=True),
    Sampler("DPM++ 2M SDE", "DPMSolverMultistepScheduler", {**_SDE, "solver_order": 2}, noisy=True),
    Sampler(
        "DPM++ 2M SDE Heun",
        "DPMSolverMultistepScheduler",
        {**_SDE, "solver_order": 2, "solver_type": "heun"},
        noisy=True,
    ),
    Sampler("DPM++ 3M SDE", "DPMSolverMultistepScheduler", {**_SDE, "solver_order": 3}, noisy=True),
    Sampler("DDIM", "DDIMScheduler", {"timestep_spacing": "leading", "clip_sample": False}, takes_eta=True),
    Sampler("PLMS", "PNDMScheduler", {"timestep_spacing": "leading", "skip_prk_steps": True}),
    Sampler("UniPC", "UniPCMultistepScheduler", _LINSPACE),
    Sampler("LCM", "LCMScheduler", {"timestep_spacing": "leading", "clip_sample": False}, noisy=True),
)
SCHEDULES = {"Karras": "use_karras_sigmas", "Exponential": "use_exponential_sigmas", "Beta": "use_beta_sigmas"}
"""Spacing of the noise levels, and the setting that switches it on."""
_WITHOUT_SCHEDULES = ("Euler a", "DDIM", "PLMS", "LCM")

AUTOMATIC = {
    **dict.fromkeys(("DPM++ 2M", "DPM++ SDE", "DPM2", "DPM2 a", "DPM++ 2S"), "Karras"),
    **dict.fromkeys(("DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"), "Exponential"),
}
"""The schedule that the web UI means by "Automatic"."""
_PLAIN_SCHEDULES = ("", "Uniform", "Normal", "DDIM", "Simple")


def _every() -> dict[str, Sampler]:
    table = {sampler.name: sampler for sampler in _METHODS}
    for sampler in _METHODS:
        for schedule, setting in SCHEDULES.items() if sampler.name not in _WITHOUT_SCHEDULES else ():
            name, settings = f"{sampler.name} {schedule}", {**sampler.settings, setting: True}
            table[name] = replace(sampler, name=name, settings=settings, schedule=schedule)
    return table


SAMPLERS: dict[str, Sampler] = _every()
"""Every sampler by its name."""
DEFAULT_SAMPLER = "DPM++ 2M Karras"
_ALIASES = {
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "euler_a": "Euler a",
    "euler ancestral": "Euler a",
    "k_euler": "Euler",
    "k_euler_a": "Euler a",
    "pndm": "PLMS",
}


def find_sampler(name: str) -> Sampler:
    """The sampler of that name, however it is written ("euler a", "dpm++ 2m karras").

    Raises ConfigError, with the nearest names, for one that there is not.

    >>> find_sampler("dpm++ 2m karras").name
    'DPM++ 2M Karras'
    """
    if name in SAMPLERS:
        return SAMPLERS[name]
    plain = {_plain(known): known for known in SAMPLERS} | {_plain(alias): known for alias, known in _ALIASES.items()}
    if _plain(name) in plain:
        return SAMPLERS[plain[_plain(name)]]
    near = suggest(_plain(name), plain)
    for short, known in plain.items():
        near = near.replace(f"'{short}'", f"'{known}'")
    methods = ", ".join(sampler.name for sampler in _METHODS)
    raise ConfigError(f"there is no sampler {name!r}{near or f'; there are {methods}'}")


def _plain(name: str) -> str:
    return "".join(name.lower().replace("_", " ").replace("-", " ").split())


def sampler_name(method: str, schedule: str) -> str:
    """One name from the web UI's two fields "Sampler" and "Schedule type"; an unknown one is left as it is."""
    if schedule == "Automatic":
        schedule = AUTOMATIC.get(method, "")
    if schedule in _PLAIN_SCHEDULES:
        return method
    return f"{method} {schedule}"
