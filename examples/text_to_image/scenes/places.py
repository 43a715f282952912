"""The places: sky, far hills and ground, under three kinds of light."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .palette import INK, LEAF, PAPER, Colour, darker, jittered, lighter, mix

PLACES = ("meadow", "sea", "desert", "snow", "mountains")
LIGHTS = ("day", "sunset", "night")


@dataclass(frozen=True)
class Light:
    """Sky colours from top to horizon, and what the light does to the ground."""

    top: Colour
    horizon: Colour
    tint: Colour
    share: float
    """How much of `tint` is in everything but the sky (0–1)."""


SKIES: dict[str, Light] = {
    "day": Light((92, 176, 240), (214, 240, 252), (255, 255, 240), 0.0),
    "sunset": Light((112, 78, 158), (255, 176, 104), (226, 96, 76), 0.26),
    "night": Light((14, 18, 56), (54, 66, 128), (20, 24, 74), 0.62),
}

GROUNDS: dict[str, tuple[Colour, Colour]] = {
    "meadow": ((158, 208, 92), (112, 178, 72)),
    "sea": ((72, 180, 200), (24, 108, 160)),
    "desert": ((246, 214, 146), (226, 170, 96)),
    "snow": ((248, 252, 255), (204, 224, 242)),
    "mountains": ((172, 190, 140), (126, 152, 112)),
}
"""The ground's colour at the horizon and at our feet, by day."""


def draw_place(place: str, light: str, horizon: int, canvas: int, rng: random.Random) -> Image.Image:
    """The empty place, RGB, `canvas` × `canvas` pixels, its horizon `horizon` pixels from the top."""
    picture = _gradient(canvas, [jittered(rng, SKIES[light].top), jittered(rng, SKIES[light].horizon)], 0, horizon)
    _draw_sky(picture, light, horizon, rng)
    near, far = (jittered(rng, lit(colour, light)) for colour in reversed(GROUNDS[place]))
    ground = _gradient(canvas, [far, near], horizon, canvas)
    _FAR[place](picture, light, horizon, rng)
    edge = Image.new("L", picture.size, 0)
    ImageDraw.Draw(edge).polygon(_rim(place, horizon, canvas, rng), fill=255)
    picture.paste(ground, (0, 0), edge)
    _NEAR[place](picture, light, horizon, rng)
    return picture


def lit(colour: Colour, light: str) -> Colour:
    """The colour of a thing on the ground under this light."""
    return mix(colour, SKIES[light].tint, SKIES[light].share)


def _gradient(canvas: int, colours: Sequence[Colour], top: int, bottom: int) -> Image.Image:
    """Colours from `top` to `bottom`, the first above and the last below."""
    share = np.clip((np.arange(canvas) - top) / max(1, bottom - top), 0, 1)[:, None]
    rows = np.asarray(colours[0]) * (1 - share) + np.asarray(colours[-1]) * share
    return Image.fromarray(rows.round().astype(np.uint8)[:, None, :]).resize((canvas, canvas), Image.Resampling.NEAREST)


def _rim(place: str, horizon: int, canvas: int, rng: random.Random) -> list[tuple[float, float]]:
    """The ground's outline: flat for the sea, waved for dunes and meadows."""
    height = {"sea": 0.0, "desert": 7.0, "snow": 6.0}.get(place, 5.0) * canvas / 256
    phase, waves = rng.uniform(0, 6.3), rng.uniform(1.2, 2.2)
    top = [(x, horizon + height * math.sin(phase + waves * 2 * math.pi * x / canvas)) for x in range(0, canvas + 9, 8)]
    return [*top, (canvas, canvas), (0, canvas)]


def _draw_sky(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    canvas = picture.width
    x = canvas * (rng.uniform(0.08, 0.26) if rng.random() < 0.5 else rng.uniform(0.74, 0.92))
    if light == "night":
        _draw_stars(picture, horizon, rng)
        _draw_disc(picture, x, canvas * rng.uniform(0.1, 0.2), canvas * 0.065, (252, 246, 214), glow=0.35)
    elif light == "sunset":
        _draw_disc(picture, x, horizon - canvas * rng.uniform(0.02, 0.1), canvas * 0.1, (255, 232, 150), glow=0.7)
    else:
        _draw_disc(picture, x, canvas * rng.uniform(0.09, 0.17), canvas * 0.07, (255, 240, 150), glow=0.6)
    if light != "night":
        for _ in range(rng.randint(1, 3)):
            _draw_cloud(picture, light, horizon, rng)


def _draw_stars(picture: Image.Image, horizon: int, rng: random.Random) -> None:
    draw, unit = ImageDraw.Draw(picture), picture.width / 64
    for _ in range(rng.randint(14, 22)):
        x, y, r = rng.uniform(0, picture.width), rng.uniform(0, horizon * 0.9), unit * rng.uniform(0.35, 0.6)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(236, 240, 255))


def _draw_disc(picture: Image.Image, x: float, y: float, radius: float, colour: Colour, glow: float) -> None:
    """A sun or moon with a soft halo."""
    mask = Image.new("L", picture.size, 0)
    draw = ImageDraw.Draw(mask)
    for step in range(8, 0, -1):
        r = radius * (1 + step * 0.14)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=round(255 * glow * (1 - step / 9) ** 1.6))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    picture.paste(colour, (0, 0), mask)


def _draw_cloud(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    canvas = picture.width
    x, y, size = rng.uniform(0, canvas), rng.uniform(0.1, 0.7) * horizon, canvas * rng.uniform(0.045, 0.07)
    mask = Image.new("L", picture.size, 0)
    draw = ImageDraw.Draw(mask)
    for dx, dy, r in ((-1.6, 0.2, 0.7), (-0.6, -0.3, 1.0), (0.5, -0.1, 0.9), (1.5, 0.25, 0.65)):
        cx, cy, cr = x + dx * size, y + dy * size, r * size
        draw.ellipse((cx - cr, cy - cr, cx + cr, cy + cr * 0.8), fill=225)
    picture.paste((255, 206, 176) if light == "sunset" else PAPER, (0, 0), mask)


def _hills(picture: Image.Image, colour: Colour, horizon: int, height: float, rng: random.Random) -> None:
    """One smooth ridge behind the ground, `height` (share of the canvas) tall."""
    canvas, phase = picture.width, rng.uniform(0, 6.3)
    points = [
        (x, horizon - height * canvas * (0.55 + 0.45 * math.sin(phase + 2 * math.pi * 1.3 * x / canvas)))
        for x in range(0, canvas + 9, 8)
    ]
    ImageDraw.Draw(picture).polygon([*points, (canvas, canvas), (0, canvas)], fill=colour)


def _far_meadow(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    _hills(picture, lit((142, 190, 150), light), horizon, 0.13, rng)


def _far_sea(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    if rng.random() < 0.4:
        x, canvas = rng.uniform(0, picture.width), picture.width
        box = (x - 0.2 * canvas, horizon - 0.05 * canvas, x + 0.2 * canvas, horizon + 0.05 * canvas)
        ImageDraw.Draw(picture).ellipse(box, fill=lit((120, 160, 150), light))


def _far_desert(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    _hills(picture, lit((236, 190, 128), light), horizon, 0.1, rng)


def _far_snow(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    _hills(picture, lit((216, 230, 244), light), horizon, 0.12, rng)
    canvas, draw = picture.width, ImageDraw.Draw(picture)
    for _ in range(rng.randint(3, 5)):
        x, tall = rng.uniform(0, canvas), canvas * rng.uniform(0.1, 0.15)
        for level in range(3):
            y, wide = horizon + 2 - tall * level * 0.3, tall * (0.34 - 0.08 * level)
            draw.polygon([(x - wide, y), (x + wide, y), (x, y - tall * 0.5)], fill=lit((74, 122, 112), light))


def _far_mountains(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    canvas, draw = picture.width, ImageDraw.Draw(picture)
    rock = lit((128, 138, 168), light)
    left = rng.uniform(-0.1, 0.1)
    for share, tall in ((0.05, 0.3), (0.98, 0.34), (0.36, 0.24), (0.7, 0.27)):
        x, peak = canvas * (share + left), horizon - canvas * (tall + rng.uniform(-0.03, 0.03))
        foot, wide = horizon + 8, canvas * tall * 0.92
        draw.polygon([(x - wide, foot), (x, peak), (x + wide, foot)], fill=rock)
        draw.polygon([(x, peak), (x + wide, foot), (x + wide * 0.1, foot)], fill=darker(rock, 0.22))
        cap = [
            (x, peak),
            (x - wide * 0.3, peak + (foot - peak) * 0.3),
            (x - wide * 0.08, peak + (foot - peak) * 0.24),
            (x + wide * 0.08, peak + (foot - peak) * 0.34),
            (x + wide * 0.3, peak + (foot - peak) * 0.3),
        ]
        draw.polygon(cap, fill=lit((246, 250, 255), light))


def _near_meadow(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    canvas, draw = picture.width, ImageDraw.Draw(picture)
    for _ in range(16):
        x, y = rng.uniform(0, canvas), rng.uniform(horizon + 0.06 * canvas, canvas)
        draw.polygon([(x - 5, y), (x, y - 15), (x + 5, y)], fill=lit(lighter(LEAF, 0.1), light))
    for _ in range(7):
        x, y, r = rng.uniform(0, canvas), rng.uniform(horizon + 0.08 * canvas, canvas), canvas * 0.011
        colour = rng.choice(((255, 255, 255), (255, 236, 120), (255, 180, 200)))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=lit(colour, light))


def _near_sea(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    canvas, draw = picture.width, ImageDraw.Draw(picture)
    foam = lit((206, 240, 246), light)
    for _ in range(13):
        y = rng.uniform(horizon + 4, canvas)
        wide = canvas * (0.03 + 0.09 * (y - horizon) / (canvas - horizon))
        x, thick = rng.uniform(0, canvas), 1.5 + 3 * (y - horizon) / (canvas - horizon)
        draw.ellipse((x - wide, y - thick, x + wide, y + thick), fill=foam)


def _near_desert(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    canvas, draw = picture.width, ImageDraw.Draw(picture)
    shade = lit((206, 148, 82), light)
    for _ in range(5):
        x, y, wide = rng.uniform(0, canvas), rng.uniform(horizon + 14, canvas), canvas * rng.uniform(0.08, 0.16)
        draw.arc((x - wide, y, x + wide, y + wide * 0.5), 190, 350, fill=shade, width=5)
    x = canvas * rng.choice((0.07, 0.93))
    y, tall, thick, green = horizon + 0.08 * canvas, 0.24 * canvas, 0.03 * canvas, lit((70, 138, 86), light)
    draw.rounded_rectangle((x - thick, y - tall, x + thick, y), thick, fill=green)
    draw.rounded_rectangle((x - 3 * thick, y - tall * 0.72, x - 1.6 * thick, y - tall * 0.34), thick * 0.6, fill=green)
    draw.rounded_rectangle((x + 1.6 * thick, y - tall * 0.8, x + 3 * thick, y - tall * 0.42), thick * 0.6, fill=green)
    draw.rectangle((x - 2 * thick, y - tall * 0.42, x, y - tall * 0.34), fill=green)
    draw.rectangle((x, y - tall * 0.5, x + 2 * thick, y - tall * 0.42), fill=green)


def _near_snow(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    canvas, draw = picture.width, ImageDraw.Draw(picture)
    for _ in range(22):
        x, y, r = rng.uniform(0, canvas), rng.uniform(0, canvas), canvas * rng.uniform(0.006, 0.012)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=lighter(lit(PAPER, light), 0.5))


def _near_mountains(picture: Image.Image, light: str, horizon: int, rng: random.Random) -> None:
    canvas, draw = picture.width, ImageDraw.Draw(picture)
    for _ in range(7):
        x, y, r = (
            rng.uniform(0, canvas),
            rng.uniform(horizon + 0.06 * canvas, canvas),
            canvas * rng.uniform(0.015, 0.035),
        )
        draw.ellipse((x - r, y - r * 0.6, x + r, y + r * 0.6), fill=lit((150, 150, 156), light))


_FAR = {"meadow": _far_meadow, "sea": _far_sea, "desert": _far_desert, "snow": _far_snow, "mountains": _far_mountains}
_NEAR = {
    "meadow": _near_meadow,
    "sea": _near_sea,
    "desert": _near_desert,
    "snow": _near_snow,
    "mountains": _near_mountains,
}


def shadow(picture: Image.Image, x: float, y: float, wide: float) -> None:
    """A soft shadow on the ground, `wide` pixels to each side."""
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).ellipse((x - wide, y - wide * 0.16, x + wide, y + wide * 0.16), fill=110)
    picture.paste(INK, (0, 0), mask.filter(ImageFilter.GaussianBlur(picture.width / 64)))
