"""Captions of a scene in many wordings, so that sentences, tags and half-told prompts are all understood.

Which combinations of colour, subject and place training never sees is decided here too.
"""

from __future__ import annotations

import random

from .drawing import Scene
from .palette import COLOURS
from .places import LIGHTS, PLACES
from .subjects import SUBJECTS

WHERE = {
    "meadow": ("on a meadow", "in a meadow", "on the meadow", "on green grass"),
    "sea": ("by the sea", "at sea", "on the sea", "at the sea"),
    "desert": ("in the desert", "in a desert", "on the sand in the desert"),
    "snow": ("in the snow", "in snow", "on white snow"),
    "mountains": ("in the mountains", "in front of mountains", "below the mountains"),
}
WHEN = {
    "day": ("by day", "on a sunny day", "in daylight", "under a blue sky"),
    "sunset": ("at sunset", "in the evening", "under a red sky"),
    "night": ("at night", "by night", "under the stars"),
}
TAGS = {"day": ("day", "sunny", "blue sky"), "sunset": ("sunset", "evening"), "night": ("night", "stars", "moon")}
GOOD = ("best quality", "masterpiece, best quality", "detailed", "high quality", "masterpiece")
POOR = ("blurry, low quality", "worst quality, blurry", "low quality", "blurry", "worst quality, low quality")
OPENINGS = ("a picture of ", "a drawing of ", "an illustration of ", "an image of ", "a scene with ")


def is_held_out(colour: str, subject: str, place: str) -> bool:
    """Whether pictures of this combination are kept out of training: three in nineteen, evenly spread."""
    i, j, k = list(COLOURS).index(colour), list(SUBJECTS).index(subject), PLACES.index(place)
    return (2 * i + 11 * j + 3 * k) % 19 < 3


def held_out_scenes(count: int) -> list[Scene]:
    """`count` scenes of combinations that training never sees, spread over all subjects, colours and lights."""
    scenes = [
        Scene(subject, colour, place, light)
        for subject in SUBJECTS for colour in COLOURS for place in PLACES for light in LIGHTS
        if is_held_out(colour, subject, place)
    ]  # fmt: skip
    random.Random(20).shuffle(scenes)
    if count > len(scenes):
        raise ValueError(f"there are {len(scenes)} held-out scenes, not {count}")
    return scenes[:count]


def plain_caption(scene: Scene) -> str:
    """The one plain sentence for a scene: "a red house on a meadow at night"."""
    when = "" if scene.light == "day" else f" {WHEN[scene.light][0]}"
    return f"{_article(scene.colour)} {scene.colour} {scene.subject} {WHERE[scene.place][0]}{when}"


def caption(scene: Scene, rng: random.Random, *, poor: bool = False) -> str:
    """A caption in a wording chosen by `rng`; `poor` says that the picture is a spoilt one."""
    words = _tags(scene, rng) if rng.random() < 0.35 else _sentence(scene, rng)
    if poor:
        extra = rng.choice(POOR)
        return f"{words}, {extra}" if rng.random() < 0.5 else extra
    if rng.random() < 0.12:
        return f"{rng.choice(GOOD)}, {words}" if rng.random() < 0.6 else f"{words}, {rng.choice(GOOD)}"
    return words


def _sentence(scene: Scene, rng: random.Random) -> str:
    told = rng.random()
    colour = "" if told < 0.05 else f"{scene.colour} "
    thing = f"{_article(colour or scene.subject)} {colour}{scene.subject}"
    if rng.random() < 0.15:
        thing = f"the {colour}{scene.subject}"
    where = "" if 0.05 < told < 0.13 else f" {rng.choice(WHERE[scene.place])}"
    when = "" if rng.random() < (0.5 if scene.light == "day" else 0.1) else f" {rng.choice(WHEN[scene.light])}"
    tail = f",{when}{where}" if rng.random() < 0.15 and where and when else f"{where}{when}"
    return f"{rng.choice(OPENINGS) if rng.random() < 0.2 else ''}{thing}{tail}"


def _tags(scene: Scene, rng: random.Random) -> str:
    thing = [f"{scene.colour} {scene.subject}"] if rng.random() < 0.8 else [scene.subject, scene.colour]
    rest = []
    if rng.random() < 0.92:
        rest.append(scene.place if rng.random() < 0.7 else rng.choice(WHERE[scene.place]))
    if rng.random() < (0.5 if scene.light == "day" else 0.9):
        rest.append(rng.choice(TAGS[scene.light]))
    rng.shuffle(rest)
    return ", ".join([*thing, *rest] if rng.random() < 0.85 else [*rest, *thing])


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def all_wordings() -> list[str]:
    """Every phrase a caption may hold: what the vocabulary is learnt from."""
    words = [*SUBJECTS, *COLOURS, *PLACES, *LIGHTS, *GOOD, *POOR, *OPENINGS, "a", "an", "the"]
    for phrases in (*WHERE.values(), *WHEN.values(), *TAGS.values()):
        words += phrases
    return words
