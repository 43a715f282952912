"""The same adapters at the same weights give the latents that diffusers with PEFT gives, from every file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
from tests.imaging import tiny
from tests.imaging.adapters_made import FORMATS, attached, write
from torch import Tensor, nn

from loraloom.imaging.conditioning import Conditioner
from loraloom.imaging.mixing import Dose, Mixer
from loraloom.imaging.pictures import decode
from loraloom.imaging.prompt import parse_prompt
from loraloom.imaging.recipe import AdapterUse
from loraloom.imaging.samplers import SAMPLERS
from loraloom.imaging.sampling import Denoising, make_scheduler, noise_of
from loraloom.tasks.diffusion import Diffusion

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:.*__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

MOST = 1e-4
"""The largest difference of a latent, of which most are between -4 and 4."""
PROMPT, NEGATIVE = "a red house in the sea", "a blue cat"
WEIGHTS = {"one": 0.7, "two": -0.4}
STEPS, GUIDANCE, SEED = 6, 5.0, 3


def _files(kind: str, folder: Path, how: str) -> dict[str, Path]:
    adapters = attached(tiny.diffusion(kind), *WEIGHTS, size=0.15)
    return {name: write(adapters, name, folder / how, how, kind) for name in WEIGHTS}


def _ours(diffusion: Diffusion, files: dict[str, Path], sampler: str, fold: bool, te: float = 1.0) -> Tensor:
    mixer = Mixer(diffusion)
    mixer.fold = fold
    uses = [AdapterUse(name, te * weight, weight) for name, weight in WEIGHTS.items() if name in files]
    mixer.take([Dose(files[use.name], use.as_tag) for use in uses], STEPS)
    mixer.turn(1)
    conditioner = Conditioner(diffusion)
    texts = []
    for text in (PROMPT, NEGATIVE):
        prompt = parse_prompt(text, steps=STEPS)
        texts.append(conditioner.conditionings(prompt, STEPS, size=(64, 64), negative=text == NEGATIVE))
    plan = Denoising(diffusion, SAMPLERS[sampler], STEPS, texts[0], texts[1], GUIDANCE, turn=mixer.turn)
    return plan.latents(SEED, (64, 64))


def _theirs(pipeline: Any, sampler: str) -> Tensor:
    pipeline.scheduler = make_scheduler(SAMPLERS[sampler], dict(pipeline.scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    noise, generator = noise_of(SEED, (1, 4, 8, 8))
    latents: Tensor = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        width=64,
        height=64,
        latents=noise,
        generator=generator,
        output_type="latent",
    ).images
    return latents


def _loaded_by_diffusers(kind: str, files: dict[str, Path]) -> Any:
    pipeline = tiny.MAKERS[kind]()
    for name, file in files.items():
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(list(files), [WEIGHTS[name] for name in files])
    return pipeline


def _loaded_by_peft(kind: str, files: dict[str, Path]) -> Any:
    """PEFT's own folders: its model around a container of the parts, as the paths in the files are."""
    pipeline = tiny.MAKERS[kind]()
    parts: Any = nn.ModuleDict(dict(Diffusion.of(pipeline).parts.items()))
    model = None
    for name, folder in files.items():
        if model is None:
            model = peft.PeftModel.from_pretrained(parts, str(folder), adapter_name=name)
        else:
            model.load_adapter(str(folder), adapter_name=name)
    assert model is not None
    model.base_model.set_adapter(list(files))
    for layer in model.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            for name in files:
                if name in layer.scaling:
                    layer.set_scale(name, WEIGHTS[name])
    return pipeline


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_latents_are_those_of_diffusers_and_peft(kind: str, how: str, tmp_path: Path) -> None:
    files = _files(kind, tmp_path, how)
    load = _loaded_by_peft if how == "peft" else _loaded_by_diffusers
    expected = _theirs(load(kind, files), "Euler")
    plain = _ours(tiny.diffusion(kind), {}, "Euler", True)
    for fold in (True, False):
        found = _ours(tiny.diffusion(kind), files, "Euler", fold)
        assert (found - expected).abs().max() < MOST
    assert (found - plain).abs().max() > 100 * MOST
    other = _ours(tiny.diffusion(kind), files, "Euler", True, te=0.0)
    assert (found - other).abs().max() > 10 * MOST


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M Karras", "DDIM", "LMS", "Heun", "UniPC", "PLMS", "DPM++ SDE"])
def test_samplers_are_diffusers_own(sampler: str) -> None:
    expected = _theirs(tiny.sd1(), sampler)
    assert (_ours(tiny.diffusion("sd1"), {}, sampler, True) - expected).abs().max() < MOST


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_both_predictions_of_the_other_families(kind: str, prediction: str) -> None:
    expected = _theirs(tiny.MAKERS[kind](prediction=prediction), "Euler")
    found = _ours(tiny.diffusion(kind, prediction=prediction), {}, "Euler", True)
    assert (found - expected).abs().max() < MOST


def test_pictures_are_decoded_alike() -> None:
    pipeline = tiny.sd1()
    latents = _theirs(pipeline, "Euler")
    pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0].detach()
    expected = pipeline.image_processor.postprocess(pixels, output_type="pil")[0]
    assert decode(Diffusion.of(pipeline), latents).tobytes() == expected.tobytes()
