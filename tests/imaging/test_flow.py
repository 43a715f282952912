"""SD 3 and Flux run through diffusers' own pipeline: the same recipe, the same picture; what they lack is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.imaging.adapters_made import attached, write
from tests.imaging.conditioning import tiny

from loraloom.errors import ConfigError
from loraloom.imaging.painter import Painter
from loraloom.imaging.recipe import AdapterUse, Recipe
from loraloom.tasks.diffusion import Diffusion


def make_sd3() -> Diffusion:
    """With a transformer as wide as the tiny T5, which the texts are brought to."""
    pipeline = tiny.make_sd3().pipeline
    config = {**pipeline.transformer.config, "joint_attention_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline.register_modules(transformer=type(pipeline.transformer).from_config(config))
    pipeline.vae.register_to_config(shift_factor=0.1)
    return Diffusion.of(pipeline, name="tiny sd3")


def make_flux() -> Diffusion:
    pipeline = tiny.make_flux().pipeline
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline.register_modules(transformer=type(pipeline.transformer).from_config(pipeline.transformer.config))
    pipeline.vae.register_to_config(shift_factor=0.1)
    return Diffusion.of(pipeline, name="tiny flux")


KINDS = {"sd3": make_sd3, "flux": make_flux}
every_kind = pytest.mark.parametrize("kind", list(KINDS))


def recipe_of(painter: Painter, **given: Any) -> Recipe:
    return painter.recipe(**{"prompt": "a red house", "steps": 3, "width": 32, "height": 32, "seed": 1, **given})


def paint(painter: Painter, **given: Any) -> bytes:
    return painter.paint(recipe_of(painter, **given))[0].image.tobytes()


@pytest.fixture(autouse=True)
def _vae_alike() -> Iterator[None]:
    """The tiny autoencoders are drawn from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@every_kind
def test_a_picture_is_its_recipe(kind: str) -> None:
    painter = Painter(KINDS[kind]())
    told: list[tuple[int, int]] = []
    batch = painter.paint(recipe_of(painter), batch=2, progress=lambda done, total: told.append((done, total)))
    assert [picture.image.size for picture in batch] == [(32, 32)] * 2
    assert told == [(step, 6) for step in range(1, 7)]
    assert batch[0].recipe.sampler == "Euler" and painter.samplers() == ["Euler"]
    for picture in batch:
        assert paint(painter, seed=picture.seed) == picture.image.tobytes()
    assert len({paint(painter), paint(painter, seed=2), paint(painter, prompt="a boat")}) == 3
    assert painter.paint(recipe_of(painter), stop=lambda: True) == []


@every_kind
def test_adapters_are_turned(kind: str, tmp_path: Path) -> None:
    made: Diffusion = KINDS[kind]()
    targets = ["to_q", "to_v", "to_out.0"]
    file = write(attached(made, "ink", targets=targets, size=0.5), "ink", tmp_path, "diffusers", kind)
    painter = Painter(KINDS[kind]())
    shown = [paint(painter, adapters=(AdapterUse(str(file), weight, weight),)) for weight in (0.0, 0.5, 1.0)]
    assert shown[0] == paint(painter) and len(set(shown)) == 3
    assert painter.mixer.loads == 1


@every_kind
def test_from_a_picture(kind: str, tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "start.png")
    painter = Painter(KINDS[kind]())
    for strength, steps in ((0.7, 3), (0.1, 1), (1.0, 4)):
        told: list[tuple[int, int]] = []
        recipe = recipe_of(painter, image=str(tmp_path / "start.png"), strength=strength, steps=4)
        painter.paint(recipe, progress=lambda done, total, told=told: told.append((done, total)))
        assert told == [(step, steps) for step in range(1, steps + 1)]


@every_kind
def test_what_they_lack_is_told(kind: str) -> None:
    painter = Painter(KINDS[kind]())
    notes = painter.paint(recipe_of(painter, prompt="a (red:1.3) house"))[0].notes
    assert any("weights in a prompt have no effect" in note for note in notes)
    with pytest.raises(ConfigError, match="take 'Euler'"):
        paint(painter, sampler="DDIM")
    for prompt in ("a AND b", "a [b:c:2]"):
        with pytest.raises(ConfigError, match="AND and schedules"):
            paint(painter, prompt=prompt)
    with pytest.raises(ConfigError, match="no multiple"):
        paint(painter, width=painter.diffusion.size_step + 1)
