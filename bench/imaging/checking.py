"""The trained checker that the measures ask, made once and kept under runs/."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from examples.text_to_image.checker import Checker, open_checker, save_checker, train_checker
from examples.text_to_image.scenes import Scene, draw, random_scene
from examples.text_to_image.scenes.styles import STYLES
from PIL import Image

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "runs" / "scenes_checker.safetensors"
PLAIN, RESTYLED = 4000, 200
"""Pictures to learn from: plain ones, and for each style those on a random way from plain to restyled."""


@dataclass(frozen=True)
class Sample:
    """Labelled pictures (N, 64, 64, 3) and whether each one's colour can still be told."""

    pictures: np.ndarray
    labels: list[tuple[str, str]]
    coloured: list[bool]


def the_checker() -> Checker:
    """The checker, trained if it is not there yet (some minutes)."""
    if not KEPT.exists():
        print("the checker is trained first, once", flush=True)
        sample = draw_sample(PLAIN, RESTYLED, seed=11)
        checker = train_checker(sample.pictures, sample.labels, colour_counts=sample.coloured)
        save_checker(checker, KEPT)
    return open_checker(KEPT)


def draw_sample(plain: int, restyled: int, *, seed: int) -> Sample:
    """Freshly drawn scenes of all combinations, `plain` plain ones and `restyled` in each style."""
    rng = random.Random(seed)
    pictures, labels, coloured = [], [], []
    for style in [*[None] * plain, *(name for name in STYLES for _ in range(restyled))]:
        scene = random_scene(rng)
        share = rng.uniform(0.3, 1.0)
        pictures.append(np.asarray(_picture(scene, style, share)))
        labels.append((scene.colour, scene.subject))
        coloured.append(style is None or share < 0.5)
    return Sample(np.stack(pictures), labels, coloured)


def _picture(scene: Scene, style: str | None, share: float) -> Image.Image:
    drawing = draw(scene)
    if style is None:
        return drawing.small()
    return Image.blend(drawing.small(), STYLES[style].restyle(drawing), share)
