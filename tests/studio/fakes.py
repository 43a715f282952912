"""A painter that needs no model: quick, plain pictures whose colour follows the prompt, the seed and the weights."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from loraloom.errors import ConfigError
from loraloom.imaging.pngfile import write_png
from loraloom.imaging.recipe import Recipe, write_parameters


@dataclass(frozen=True)
class FakeFacts:
    format: str = "kohya"
    kind: str = "sd1"
    rank: int = 4
    alpha: float = 8.0
    parts: tuple[str, ...] = ("unet",)
    sites: int = 32
    metadata: dict[str, str] = field(default_factory=lambda: {"ss_network_dim": "4"})


@dataclass(frozen=True)
class FakeEntry:
    name: str
    path: Path
    facts: Any = FakeFacts()
    thumbnail: Path | None = None


class FakeShelf:
    """The .safetensors files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen = self._now()

    def _now(self) -> list[tuple[str, int]]:
        return sorted((path.name, path.stat().st_mtime_ns) for path in self.folder.glob("*.safetensors"))

    def all(self) -> list[FakeEntry]:
        found = sorted(self.folder.glob("*.safetensors"))
        thumbs = {path: path.with_suffix(".png") for path in found}
        return [FakeEntry(path.stem, path, thumbnail=t if t.is_file() else None) for path, t in thumbs.items()]

    def changed(self) -> bool:
        before, self._seen = self._seen, self._now()
        return before != self._seen


@dataclass
class FakePicture:
    image: Image.Image
    recipe: Recipe
    notes: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def parameters(self) -> str:
        return write_parameters(self.recipe)

    def save(self, path: Path) -> None:
        write_png(Path(path), self.image, self.parameters)


class FakePainter:
    """Takes `pause` seconds per step, and fails with the prompt "fail: …"."""

    base = "scenes"
    example = "a red house in a meadow"

    def __init__(self, folder: Path, *, pause: float = 0.0) -> None:
        self.shelf = FakeShelf(folder)
        self.pause = pause
        self.recipes: list[Recipe] = []

    def samplers(self) -> list[str]:
        return ["DPM++ 2M", "Euler a", "DDIM"]

    def recipe(self, **changes: Any) -> Recipe:
        settings = {"width": 64, "height": 64, "steps": 8, "guidance": 4.0, "sampler": "DPM++ 2M", "base": self.base}
        return Recipe(**{**settings, **changes})

    def token_count(self, text: str) -> tuple[int, int]:
        tokens = len(text.split())
        return tokens, max(1, -(-tokens // 75))

    def paint(self, recipe: Recipe, *, batch: int = 1, progress: Any = None, stop: Any = None) -> list[FakePicture]:
        if recipe.prompt == "crash":
            raise RuntimeError("<b>boom</b>")
        if recipe.prompt.startswith("fail: "):
            raise ConfigError(recipe.prompt.removeprefix("fail: "))
        self.recipes.append(recipe)
        for step in range(1, recipe.steps + 1):
            if stop is not None and stop():
                return []
            time.sleep(self.pause)
            if progress is not None:
                progress(step, recipe.steps)
        recipes = [replace(recipe, seed=recipe.seed + index) for index in range(batch)]
        return [FakePicture(drawn(one), one) for one in recipes]


def drawn(recipe: Recipe) -> Image.Image:
    """A house whose colours are a hash of the recipe."""
    said = repr((recipe.prompt, recipe.seed, recipe.adapters, recipe.steps, recipe.guidance, recipe.sampler))
    colours = hashlib.sha256(said.encode()).digest()
    picture = Image.new("RGB", (recipe.width, recipe.height), tuple(colours[:3]))
    pen = ImageDraw.Draw(picture)
    side = recipe.width / 4
    pen.rectangle((side, 2 * side, 3 * side, 3.4 * side), fill=tuple(colours[3:6]))
    pen.polygon([(0.8 * side, 2 * side), (2 * side, 0.9 * side), (3.2 * side, 2 * side)], fill=tuple(colours[6:9]))
    return picture
