"""Samplers by name, their schedulers, noise, guidance with AND parts, and zero terminal SNR."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.imaging import tiny

from loraloom.errors import ConfigError
from loraloom.imaging.conditioning import Conditioner
from loraloom.imaging.prompt import parse_prompt
from loraloom.imaging.samplers import SAMPLERS, find_sampler, sampler_name
from loraloom.imaging.sampling import Denoising, Stopped, make_scheduler, noise_of, rescaled, zero_snr_betas
from loraloom.tasks.diffusion import Diffusion

pytestmark = pytest.mark.filterwarnings("ignore:.*__array:DeprecationWarning")
CONFIG = dict(tiny.scheduler().config)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Euler a", "Euler a"),
        ("euler A", "Euler a"),
        ("dpm++ 2m karras", "DPM++ 2M Karras"),
        ("dpmpp_2m", "DPM++ 2M"),
        ("euler_a", "Euler a"),
        ("unipc", "UniPC"),
    ],
)
def test_samplers_are_found_however_they_are_written(written: str, name: str) -> None:
    assert find_sampler(written).name == name


def test_an_unknown_sampler_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no sampler 'DPM\+\+ 2N Karas'; did you mean .*'DPM\+\+ 2M Karras'"):
        find_sampler("DPM++ 2N Karas")
    with pytest.raises(ConfigError, match="there are Euler a, Euler"):
        find_sampler("xyzxyz")


def test_the_web_uis_two_fields() -> None:
    assert sampler_name("DPM++ 2M", "Karras") == "DPM++ 2M Karras"
    assert sampler_name("DPM++ 2M", "Automatic") == "DPM++ 2M Karras"
    assert sampler_name("DPM++ 3M SDE", "Automatic") == "DPM++ 3M SDE Exponential"
    assert sampler_name("Euler a", "Automatic") == sampler_name("Euler a", "") == "Euler a"
    assert all(sampler_name(one.method, one.schedule) == name for name, one in SAMPLERS.items())


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_sampler_finds_the_picture_that_a_perfect_model_sees(name: str, prediction: str) -> None:
    """A model that knows the picture predicts exactly its noise; sampling with it must end in the picture."""
    sampler = SAMPLERS[name]
    scheduler = make_scheduler(sampler, {**CONFIG, "prediction_type": prediction})
    steps = 12
    scheduler.set_timesteps(steps)
    picture = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    noise, generator = noise_of(1, (1, 1, 8, 8))
    latents = noise * scheduler.init_noise_sigma
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        sigma = _sigma(scheduler, timestep, latents, scaled)
        # Every scheduler calls the model with x_t = a·x0 + s·eps, a² + s² = 1.
        a, s = 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5
        epsilon = (scaled - a * picture) / s
        out = epsilon if prediction == "epsilon" else a * epsilon - s * picture
        extra = {"generator": generator} if takes_generator else {}
        latents = scheduler.step(out, timestep, latents, return_dict=False, **extra)[0]
    assert (latents - picture).abs().max() < 0.12
    assert len(scheduler.timesteps) <= sampler.calls * steps + 1
    assert sampler.noisy == takes_generator or not sampler.noisy


def _sigma(scheduler: Any, timestep: torch.Tensor, latents: torch.Tensor, scaled: torch.Tensor) -> float:
    """Noise over signal in what the model is shown; where inputs are scaled down by √(1 + σ²), that tells it."""
    ratio = float(latents.double().norm() / scaled.double().norm())
    if ratio > 1 + 1e-6:
        return (ratio**2 - 1) ** 0.5
    index = getattr(scheduler, "step_index", None)
    if index is None and hasattr(scheduler, "_init_step_index"):
        scheduler._init_step_index(timestep)
        index = scheduler.step_index
    if index is not None and hasattr(scheduler, "sigmas"):
        return float(scheduler.sigmas[index])
    alpha = float(scheduler.alphas_cumprod.double()[int(timestep)])
    return ((1 - alpha) / alpha) ** 0.5


def test_zero_terminal_snr() -> None:
    betas = tiny.scheduler().betas
    kept = (1 - zero_snr_betas(betas)).cumprod(0)
    assert kept[-1] < 1e-7
    torch.testing.assert_close(kept[0], 1 - betas[0])
    for name in ("DDIM", "Euler", "DPM++ 2M", "LMS", "Heun", "UniPC", "DPM++ SDE"):
        scheduler = make_scheduler(
            SAMPLERS[name], {**CONFIG, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
        )
        scheduler.set_timesteps(10)
        assert float(scheduler.alphas_cumprod[-1]) < 1e-6, name
        assert int(scheduler.timesteps[0]) == 999, name


def test_noise_is_the_seeds_own() -> None:
    first, generator = noise_of(5, (1, 4, 8, 8))
    again, _ = noise_of(5, (1, 4, 8, 8))
    other, _ = noise_of(6, (1, 4, 8, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(torch.randn(first.shape, generator=generator), first)


def test_rescaled_guidance_has_the_spread_of_the_plain() -> None:
    plain, guided = torch.randn(1, 4, 8, 8), 5 * torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(rescaled(guided, plain, 1.0).std(), plain.std(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rescaled(guided, plain, 0.0), guided)


# -- the guided loop -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusion() -> Diffusion:
    return tiny.diffusion()


def _plan(diffusion: Diffusion, prompt: str, negative: str = "", *, steps: int = 4, **settings: object) -> Denoising:
    conditioner = Conditioner(diffusion)
    texts = [
        conditioner.conditionings(parse_prompt(text, steps=steps), steps, negative=text is negative)
        for text in (prompt, negative)
    ]
    given = {"guidance": 3.0, **settings}
    return Denoising(diffusion, SAMPLERS["Euler"], steps, texts[0], texts[1], **given)  # type: ignore[arg-type]


def _latents(diffusion: Diffusion, prompt: str, negative: str = "", **settings: object) -> torch.Tensor:
    return _plan(diffusion, prompt, negative, **settings).latents(1, (64, 64))


def test_parts_of_and_add_up(diffusion: Diffusion) -> None:
    whole = _latents(diffusion, "a red house", "blue")
    halves = _latents(diffusion, "a red house :0.5 AND a red house :0.5", "blue")
    torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(_latents(diffusion, "a red house AND a boat", "blue"), whole, atol=1e-3)


def test_guidance_one_is_the_prompt_alone(diffusion: Diffusion) -> None:
    told = _latents(diffusion, "a red house", "blue", guidance=1.0)
    other = _latents(diffusion, "a red house", "a cat", guidance=1.0)
    assert torch.equal(told, other)
    torch.testing.assert_close(
        told, _latents(diffusion, "a red house", "blue", guidance=1.000001), rtol=1e-3, atol=1e-3
    )


def test_schedules_change_the_prompt_at_their_step(diffusion: Diffusion) -> None:
    changed = _latents(diffusion, "a [red:blue:2] house")
    assert not torch.equal(changed, _latents(diffusion, "a red house"))
    assert torch.equal(_latents(diffusion, "a [red:blue:4] house"), _latents(diffusion, "a red house"))
    assert torch.equal(_latents(diffusion, "a [red:blue:0] house"), _latents(diffusion, "a blue house"))


def test_every_step_is_told_once_and_can_be_the_last(diffusion: Diffusion) -> None:
    told: list[int] = []
    turned: list[int] = []
    plan = _plan(diffusion, "a house", turn=turned.append)
    plan.latents(1, (64, 64), progress=told.append)
    assert told == turned == [1, 2, 3, 4]
    with pytest.raises(Stopped):
        plan.latents(1, (64, 64), stop=lambda: len(turned) >= 6)
    assert turned == [1, 2, 3, 4, 1, 2]


@pytest.mark.parametrize(("strength", "skipped"), [(1.0, 0), (0.5, 2), (0.74, 2), (0.01, 3)])
def test_strength_is_the_share_of_steps(diffusion: Diffusion, strength: float, skipped: int) -> None:
    turned: list[int] = []
    start = torch.zeros(1, 4, 8, 8)
    plan = _plan(diffusion, "a house", start=start, strength=strength, turn=turned.append)
    plan.latents(1, (64, 64))
    assert turned == list(range(skipped + 1, 5)) and plan.length == len(turned)


@pytest.mark.parametrize("name", ["Heun", "DPM2", "PLMS", "DPM++ SDE", "LCM", "DDIM"])
def test_steps_of_samplers_that_call_more_often(diffusion: Diffusion, name: str) -> None:
    turned: list[int] = []
    plan = _plan(diffusion, "a house", turn=turned.append)
    object.__setattr__(plan, "sampler", SAMPLERS[name])
    plan.latents(1, (64, 64))
    assert list(dict.fromkeys(turned)) == [1, 2, 3, 4] and turned == sorted(turned)


def test_more_steps_of_an_exact_sampler_come_nearer(diffusion: Diffusion) -> None:
    fine = _latents(diffusion, "a house", steps=60)
    rough, middle = (_latents(diffusion, "a house", steps=steps) for steps in (6, 24))
    assert (middle - fine).norm() < (rough - fine).norm()
