"""The colours of the scenes: nine that a subject may have, and how light changes them.

A colour is (red, green, blue), each 0–255.
"""

from __future__ import annotations

import random

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (222, 46, 50),
    "orange": (247, 130, 28),
    "yellow": (252, 214, 56),
    "green": (44, 158, 74),
    "blue": (44, 98, 214),
    "purple": (130, 66, 188),
    "pink": (248, 130, 182),
    "white": (248, 247, 243),
    "black": (42, 42, 50),
}
"""What a subject can be asked to be, in the order of the checker's answers."""

INK: Colour = (30, 26, 46)
PAPER: Colour = (255, 255, 250)
BROWN: Colour = (126, 82, 50)
LEAF: Colour = (74, 146, 62)
LAMP: Colour = (255, 226, 130)
GLASS: Colour = (176, 222, 244)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with `share` (0–1) of `second` in it."""
    r, g, b = (round(x + (y - x) * share) for x, y in zip(first, second, strict=True))
    return r, g, b


def lighter(colour: Colour, share: float = 0.3) -> Colour:
    """The colour where light falls on it."""
    return mix(colour, PAPER, share)


def darker(colour: Colour, share: float = 0.3) -> Colour:
    """The colour in its own shadow; black and very dark colours get lighter instead, so that the form still shows."""
    return mix(colour, PAPER, share * 0.45) if sum(colour) < 200 else mix(colour, INK, share)


def jittered(rng: random.Random, colour: Colour, reach: int = 9) -> Colour:
    """A colour up to `reach` steps from this one in every channel."""
    r, g, b = (min(255, max(0, part + rng.randint(-reach, reach))) for part in colour)
    return r, g, b
