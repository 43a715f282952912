"""A scene as plain data, and its picture: one subject in one colour at one place under one light."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageFilter

from .palette import COLOURS, INK, Colour, jittered, mix
from .pen import Pen, Pose
from .places import LIGHTS, PLACES, draw_place, shadow
from .subjects import SUBJECTS

SIDE = 64
"""Pixels to a side of a finished picture."""
FINER = 4
"""Scenes are drawn this many times larger and averaged down, which smooths their edges."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `seed` decides position, size, pose and everything small."""

    subject: str
    colour: str
    place: str
    light: str = "day"
    seed: int = 0


@dataclass(frozen=True)
class Drawing:
    """A scene drawn large: what a restyling starts from. Each image is SIDE · FINER pixels to a side."""

    picture: Image.Image
    """RGB."""
    subject: Image.Image
    """The subject alone on a transparent ground, RGBA."""
    scene: Scene

    def small(self) -> Image.Image:
        """The finished picture of SIDE × SIDE pixels."""
        return self.picture.reduce(FINER)


def draw(scene: Scene) -> Drawing:
    """Draw a scene; the same scene is always drawn alike."""
    rng = random.Random(f"{scene.subject} {scene.colour} {scene.place} {scene.light} {scene.seed}")
    canvas, kind = SIDE * FINER, SUBJECTS[scene.subject]
    horizon = round(canvas * rng.uniform(0.56, 0.66))
    picture = draw_place(scene.place, scene.light, horizon, canvas, rng)
    size = canvas * rng.uniform(0.3, 0.36)
    x = canvas * rng.uniform(0.42, 0.58)
    y = canvas * rng.uniform(0.42, 0.52) if kind.aloft else canvas * rng.uniform(0.87, 0.94) - size
    pose = Pose(x, y, size, rng.uniform(-kind.tilt, kind.tilt), mirrored=rng.random() < 0.5)
    pen = Pen(canvas, pose)
    kind.draw(pen, subject_colour(scene, rng), rng)
    if not kind.aloft:
        shadow(picture, x, y + size * 0.98, size * 0.85)
    subject = outlined(pen.layer)
    picture.paste(subject, (0, 0), subject)
    return Drawing(picture, subject, scene)


def subject_colour(scene: Scene, rng: random.Random) -> Colour:
    """The subject's own colour under the scene's light: a lit subject keeps its colour even at night."""
    colour = jittered(rng, COLOURS[scene.colour], 8)
    return mix(colour, INK, 0.1) if scene.light == "night" and scene.colour != "black" else colour


def outlined(layer: Image.Image, width: int = 3) -> Image.Image:
    """The layer with a thin dark rim around what is drawn on it, so that white shows on snow and blue on the sea."""
    wide = layer.getchannel("A").filter(ImageFilter.BoxBlur(width))
    rim = Image.new("RGBA", layer.size, (*INK, 0))
    rim.putalpha(wide.point([min(255, 5 * level) for level in range(256)]))
    rim.alpha_composite(layer)
    return rim


def random_scene(rng: random.Random) -> Scene:
    """Any scene, all combinations alike."""
    return Scene(
        rng.choice(list(SUBJECTS)),
        rng.choice(list(COLOURS)),
        rng.choice(PLACES),
        rng.choice(LIGHTS),
        rng.randrange(2**31),
    )
