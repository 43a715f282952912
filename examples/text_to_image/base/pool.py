"""The pool of training pictures: scenes drawn once, kept as one array beside a list of what they show."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ..scenes import SIDE, Scene, caption, draw, is_held_out, random_scene

POOR_SHARE = 0.04
"""Of the pictures are spoilt on purpose and captioned so, for a negative prompt such as "blurry" to mean something."""


@dataclass(frozen=True)
class Pool:
    """Pictures (N, SIDE, SIDE, 3) as bytes, the scenes they show, and which of them are spoilt."""

    pictures: np.ndarray
    scenes: list[Scene]
    poor: list[bool]

    def caption(self, index: int, rng: random.Random) -> str:
        """A caption for one picture, worded anew each time."""
        return caption(self.scenes[index], rng, poor=self.poor[index])


def draw_pool(folder: Path, count: int, *, seed: int = 0) -> None:
    """Draw `count` scenes, none of a held-out combination, into `folder`; does nothing where they are there already."""
    if (folder / "scenes.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    pictures = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    rows = []
    for index in range(count):
        scene = random_scene(rng)
        while is_held_out(scene.colour, scene.subject, scene.place):
            scene = random_scene(rng)
        poor = rng.random() < POOR_SHARE
        picture = draw(scene).small()
        pictures[index] = np.asarray(_spoilt(picture, rng) if poor else picture)
        rows.append({**asdict(scene), "poor": poor})
    np.save(folder / "pictures.npy", pictures)
    (folder / "scenes.json").write_text(json.dumps(rows))


def _spoilt(picture: Image.Image, rng: random.Random) -> Image.Image:
    blurred = picture.filter(ImageFilter.GaussianBlur(rng.uniform(1.3, 2.4)))
    grey = blurred.convert("L").convert("RGB")
    return Image.blend(blurred, grey, rng.uniform(0.1, 0.5))


def open_pool(folder: Path) -> Pool:
    """The pool in `folder`."""
    rows = json.loads((folder / "scenes.json").read_text())
    poor = [row.pop("poor") for row in rows]
    return Pool(np.load(folder / "pictures.npy"), [Scene(**row) for row in rows], poor)
