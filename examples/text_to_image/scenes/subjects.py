"""The subjects: each a function that draws itself in one colour with a pen, facing a little differently each time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from .palette import BROWN, GLASS, INK, LAMP, LEAF, PAPER, Colour, darker, lighter, mix
from .pen import Pen, Point


def house(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A gabled house with a chimney, a door and two lit windows."""
    shade = darker(colour, 0.38)
    pen.box(0.34, -0.86, 0.58, -0.3, darker(colour, 0.5))
    pen.box(-0.74, -0.16, 0.74, 1, colour)
    pen.box(0.36, -0.16, 0.74, 1, darker(colour, 0.14))
    pen.polygon([(-0.98, -0.1), (0, -1), (0.98, -0.1)], shade)
    pen.polygon([(-0.8, -0.1), (0, -0.84), (0.1, -0.74), (-0.56, -0.1)], mix(shade, PAPER, 0.2))
    door = rng.choice((-0.18, -0.16, 0.0))
    pen.box(door - 0.17, 0.4, door + 0.17, 1, mix(INK, BROWN, 0.6))
    pen.disc(door + 0.09, 0.72, 0.04, LAMP)
    for x in (-0.5, 0.48):
        pen.box(x - 0.17, 0.1, x + 0.17, 0.46, darker(colour, 0.55))
        pen.box(x - 0.13, 0.14, x + 0.13, 0.42, LAMP)


def tree(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A round tree: a brown trunk under a full crown, lit from one side."""
    pen.polygon([(-0.14, 0.1), (0.14, 0.1), (0.24, 1), (-0.24, 1)], BROWN)
    pen.polygon([(0.02, 0.1), (0.14, 0.1), (0.24, 1), (0.08, 1)], darker(BROWN, 0.3))
    puffs = [(-0.46, -0.08, 0.42), (0.46, -0.06, 0.42), (0, 0.1, 0.42), (-0.28, -0.5, 0.44), (0.3, -0.48, 0.42)]
    puffs = [(x + rng.uniform(-0.06, 0.06), y + rng.uniform(-0.05, 0.05), r) for x, y, r in puffs]
    for x, y, r in puffs:
        pen.disc(x, y + 0.03, r, darker(colour, 0.3))
    for x, y, r in puffs:
        pen.disc(x - 0.03, y - 0.06, r * 0.92, colour)
    pen.disc(-0.32, -0.54, 0.25, lighter(colour, 0.25))
    pen.disc(-0.58, -0.14, 0.15, lighter(colour, 0.25))


def boat(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A sailing boat: a full hull with a stripe, a mast with two sails and a pennant."""
    pen.box(-0.06, -1, 0.02, 0.5, mix(BROWN, INK, 0.2))
    lean = rng.uniform(-0.06, 0.06)
    pen.polygon([(-0.1, -0.92), (-0.1, 0.32), (-0.8 + lean, 0.32)], lighter(colour, 0.5))
    pen.polygon([(0.08, -0.82), (0.08, 0.32), (0.74 + lean, 0.32)], lighter(colour, 0.22))
    pen.polygon([(-1, 0.42), (1, 0.42), (0.7, 1), (-0.66, 1)], colour)
    pen.polygon([(-0.86, 0.68), (0.88, 0.68), (0.7, 1), (-0.66, 1)], darker(colour, 0.3))
    pen.polygon([(-1, 0.42), (1, 0.42), (0.95, 0.52), (-0.94, 0.52)], lighter(colour, 0.4))


def rocket(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A rocket in flight: fins, a round window, and a flame."""
    reach = rng.uniform(0.9, 1.0)
    pen.polygon([(-0.22, 0.5), (0.22, 0.5), (0.08, 0.8), (0, reach), (-0.08, 0.8)], (255, 140, 30))
    pen.polygon([(-0.12, 0.5), (0.12, 0.5), (0, 0.8)], (255, 232, 120))
    pen.polygon([(-0.3, 0.05), (-0.66, 0.5), (-0.6, 0.72), (-0.24, 0.5)], darker(colour, 0.42))
    pen.polygon([(0.3, 0.05), (0.66, 0.5), (0.6, 0.72), (0.24, 0.5)], darker(colour, 0.52))
    body = [(0, -1), (-0.24, -0.7), (-0.38, -0.2), (-0.36, 0.2), (-0.24, 0.56)]
    pen.polygon([*body, *((-x, y) for x, y in reversed(body[1:]))], colour)
    pen.polygon(
        [(0.12, -0.86), (0.24, -0.7), (0.38, -0.2), (0.36, 0.2), (0.24, 0.56), (0.08, 0.56), (0.2, -0.2)],
        darker(colour, 0.22),
    )
    pen.polygon([(0, -1), (-0.24, -0.7), (-0.29, -0.52), (0.29, -0.52), (0.24, -0.7)], darker(colour, 0.45))
    pen.disc(0, -0.14, 0.22, darker(colour, 0.55))
    pen.disc(0, -0.14, 0.16, GLASS)
    pen.disc(-0.05, -0.19, 0.06, PAPER)


def cat(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A sitting cat that looks at us, its tail to one side."""
    shade, light = darker(colour, 0.26), lighter(colour, 0.4)
    tip = rng.uniform(-0.2, 0.1)
    pen.line([(0.3, 0.86), (0.7, 0.84), (0.86, 0.5), (0.78, tip)], 0.2, shade)
    pen.blob([(-0.3, 0.1), (0.3, 0.1), (0.52, 0.62), (0.46, 1), (-0.46, 1), (-0.52, 0.62)], colour)
    pen.oval(0, 0.6, 0.22, 0.34, light)
    for side in (-1, 1):
        pen.oval(side * 0.2, 0.94, 0.16, 0.09, lighter(colour, 0.16))
        pen.polygon([(side * 0.56, -0.98), (side * 0.08, -0.66), (side * 0.56, -0.3)], colour)
        pen.polygon(
            [(side * 0.49, -0.82), (side * 0.22, -0.62), (side * 0.49, -0.46)], mix(colour, (250, 150, 160), 0.6)
        )
    pen.oval(0, -0.28, 0.58, 0.47, colour)
    iris = (120, 214, 90) if sum(colour) < 300 else (40, 44, 60)
    for side in (-1, 1):
        pen.oval(side * 0.25, -0.32, 0.12, 0.14, PAPER)
        pen.oval(side * 0.24, -0.31, 0.085, 0.12, iris)
        pen.oval(side * 0.24, -0.31, 0.04, 0.1, INK)
    pen.polygon([(-0.08, -0.12), (0.08, -0.12), (0, -0.02)], (236, 120, 130))
    for side in (-1, 1):
        pen.line([(0, 0.02), (side * 0.07, 0.06), (side * 0.15, 0.02)], 0.045, darker(colour, 0.6))


def flower(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """One large blossom on a stem with two leaves."""
    bend = rng.uniform(-0.08, 0.08)
    pen.line([(0, -0.2), (bend, 0.4), (0, 1)], 0.12, darker(LEAF, 0.15))
    pen.oval(-0.3, 0.68, 0.32, 0.13, LEAF, 0.55)
    pen.oval(0.32, 0.56, 0.34, 0.13, lighter(LEAF, 0.15), -0.55)
    petals, turn = 8, rng.uniform(0, math.pi / 4)
    for layer, tone in ((0, darker(colour, 0.22)), (1, colour)):
        for k in range(petals):
            angle = turn + 2 * math.pi * (k + layer / 2) / petals
            reach = 0.44 - 0.05 * layer
            x, y = reach * math.cos(angle), -0.36 + reach * math.sin(angle)
            pen.oval(x, y, 0.27, 0.17, tone, angle)
    pen.disc(0, -0.36, 0.23, (150, 84, 30) if _is_yellow(colour) else (238, 168, 30))
    pen.disc(-0.04, -0.4, 0.14, (184, 112, 46) if _is_yellow(colour) else (254, 208, 70))


def _is_yellow(colour: Colour) -> bool:
    return colour[0] > 200 and 110 < colour[1] < 235 and colour[2] < 120


def car(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A small rounded car seen from the side."""
    roof = rng.uniform(-0.34, -0.26)
    pen.blob([(-0.66, 0.2), (-0.46, roof), (0.16, roof - 0.02), (0.56, 0.2)], colour)
    pen.polygon([(-0.5, 0.14), (-0.37, roof + 0.1), (-0.1, roof + 0.08), (-0.1, 0.14)], GLASS)
    pen.polygon([(0.0, 0.14), (0.0, roof + 0.08), (0.17, roof + 0.1), (0.38, 0.14)], GLASS)
    pen.polygon([(-0.36, roof + 0.14), (-0.26, roof + 0.12), (-0.38, 0.14), (-0.46, 0.14)], PAPER)
    pen.blob(
        [(-0.96, 0.3), (-0.8, 0.12), (0.6, 0.14), (0.94, 0.28), (0.98, 0.6), (0.9, 0.74), (-0.9, 0.74), (-0.98, 0.6)],
        colour,
    )
    pen.box(-0.94, 0.52, 0.95, 0.7, darker(colour, 0.3))
    pen.oval(0.86, 0.38, 0.09, 0.09, LAMP)
    pen.oval(-0.9, 0.38, 0.06, 0.08, (230, 70, 60))
    for x in (-0.54, 0.54):
        pen.disc(x, 0.72, 0.28, INK)
        pen.disc(x, 0.72, 0.14, (196, 200, 208))
        pen.disc(x, 0.72, 0.05, INK)


def fish(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A round fish with a forked tail, fins and a large eye, leaping."""
    shade = darker(colour, 0.32)
    pen.polygon([(-0.42, 0), (-1, -0.48), (-0.8, 0), (-1, 0.5)], shade)
    pen.blob([(-0.22, -0.4), (0.1, -0.78), (0.46, -0.34)], shade)
    pen.polygon([(-0.1, 0.42), (-0.06, 0.8), (0.28, 0.42)], shade)
    pen.blob([(-0.58, 0), (-0.1, -0.5), (0.56, -0.42), (0.96, 0.02), (0.56, 0.44), (-0.1, 0.5)], colour)
    pen.oval(0.24, 0.22, 0.46, 0.16, lighter(colour, 0.35))
    for x in (-0.24, 0.02):
        pen.line([(x, -0.22), (x + 0.1, 0.0), (x, 0.22)], 0.07, shade)
    pen.oval(0.12, 0.1, 0.17, 0.1, shade, 0.5)
    pen.disc(0.56, -0.1, 0.17, PAPER)
    pen.disc(0.6, -0.1, 0.1, INK)
    pen.disc(0.63, -0.14, 0.035, PAPER)


def bird(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A plump songbird in profile, with wing, tail and beak."""
    for x in (-0.08, 0.16):
        pen.line([(x, 0.6), (x, 0.94), (x + 0.16, 0.97)], 0.07, (220, 130, 40))
    lift = rng.uniform(-0.1, 0.1)
    pen.polygon([(-0.5, 0.06), (-1, -0.24 + lift), (-0.94, 0.16 + lift), (-0.4, 0.44)], darker(colour, 0.45))
    pen.oval(-0.02, 0.22, 0.62, 0.5, colour, 0.15)
    pen.disc(0.38, -0.38, 0.42, colour)
    pen.blob([(0.06, 0.44), (0.38, 0.02), (0.56, 0.2), (0.36, 0.58)], lighter(colour, 0.5))
    pen.blob([(0.16, 0.04), (-0.16, -0.14), (-0.66, 0.1), (-0.76, 0.4), (-0.1, 0.42)], darker(colour, 0.32))
    pen.polygon([(0.74, -0.52), (1, -0.34), (0.74, -0.24)], (246, 160, 40) if sum(colour) < 620 else (230, 120, 30))
    pen.disc(0.5, -0.46, 0.1, PAPER)
    pen.disc(0.52, -0.46, 0.065, INK)


def balloon(pen: Pen, colour: Colour, rng: random.Random) -> None:
    """A hot-air balloon: gores in two tones, ropes and a basket."""
    for side in (-1, 1):
        pen.line([(side * 0.26, 0.34), (side * 0.14, 0.78)], 0.04, BROWN)
    pen.box(-0.17, 0.74, 0.17, 1, BROWN)
    pen.box(-0.17, 0.74, 0.17, 0.81, lighter(BROWN, 0.3))
    pen.polygon(_envelope(1.0), darker(colour, 0.3))
    pen.polygon(_envelope(0.72), colour)
    pen.polygon(_envelope(0.42), lighter(colour, 0.38))
    pen.polygon(_envelope(0.16), colour)
    pen.oval(-0.36 + rng.uniform(-0.04, 0.04), -0.6, 0.1, 0.17, lighter(colour, 0.55), 0.5)


def _envelope(share: float) -> list[Point]:
    """The balloon's outline squeezed to `share` of its width, as its gores are seen."""
    half = [(0.0, -1.0), (0.4, -0.9), (0.68, -0.58), (0.7, -0.26), (0.52, 0.06), (0.26, 0.4)]
    right = [(x * share, y) for x, y in half]
    return [*right, *((-x, y) for x, y in reversed(right))]


@dataclass(frozen=True)
class Subject:
    """What draws it, and how it stands."""

    draw: Callable[[Pen, Colour, random.Random], None]
    aloft: bool = False
    """Whether it flies instead of standing on the ground."""
    tilt: float = 0.05
    """The most it leans, in radians."""


SUBJECTS: dict[str, Subject] = {
    "house": Subject(house, tilt=0.0),
    "tree": Subject(tree, tilt=0.04),
    "boat": Subject(boat, tilt=0.1),
    "rocket": Subject(rocket, aloft=True, tilt=0.4),
    "cat": Subject(cat, tilt=0.03),
    "flower": Subject(flower, tilt=0.1),
    "car": Subject(car, tilt=0.03),
    "fish": Subject(fish, aloft=True, tilt=0.3),
    "bird": Subject(bird, tilt=0.08),
    "balloon": Subject(balloon, aloft=True, tilt=0.08),
}
"""In the order of the checker's answers."""
