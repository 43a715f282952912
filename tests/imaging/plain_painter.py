"""A painter that needs no model: one plain colour per recipe, and a count of what it was asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from loraloom.errors import ConfigError
from loraloom.imaging.pngfile import write_png
from loraloom.imaging.recipe import Recipe, write_parameters


class Killed(BaseException):
    """The process ends here."""


@dataclass
class OnePicture:
    """What the painter gives."""

    image: Image.Image
    recipe: Recipe
    parameters: str
    notes: list[str]

    def save(self, path: Path) -> None:
        write_png(path, self.image, self.parameters)


@dataclass
class Base:
    """What pictures depend on of a base."""

    name: str
    weights: tuple[Path, ...]
    dtype: str = "fp32"
    device: str = "cpu"


@dataclass
class Painter:
    """Paints one plain colour, which depends on every field of the recipe."""

    shelf: Any
    diffusion: Base
    last: int = 10**9
    """Calls after which it is killed."""
    calls: list[tuple[Recipe, int]] = field(default_factory=list)

    def recipe(self, **given: Any) -> Recipe:
        return Recipe(**{"width": 64, "height": 64, "steps": 2, **given})

    def check(self, recipe: Recipe) -> Recipe:
        if recipe.width % 8:
            raise ConfigError(f"width is {recipe.width}: no")
        return recipe

    def paint(
        self, recipe: Recipe, *, batch: int = 1, progress: Callable[..., None] | None = None, stop: Any = None
    ) -> list[OnePicture]:
        if len(self.calls) == self.last:
            raise Killed
        self.calls.append((recipe, batch))
        for step in range(recipe.steps):
            if progress is not None:
                progress(step + 1, recipe.steps)
        made = (replace(recipe, seed=recipe.seed + number) for number in range(batch))
        return [OnePicture(picture_of(one), one, write_parameters(one), ["a note"]) for one in made]

    @property
    def painted(self) -> int:
        return sum(batch for _, batch in self.calls)


def picture_of(recipe: Recipe) -> Image.Image:
    red, green, blue = hashlib.sha256(json.dumps(recipe.to_json()).encode()).digest()[:3]
    return Image.new("RGB", (recipe.width, recipe.height), (red, green, blue))
