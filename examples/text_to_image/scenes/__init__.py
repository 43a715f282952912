"""The small base's world: scenes as data, drawings of them, their captions, and their restylings."""

from .captions import caption, held_out_scenes, is_held_out, plain_caption
from .drawing import SIDE, Drawing, Scene, draw, random_scene
from .palette import COLOURS
from .places import LIGHTS, PLACES
from .subjects import SUBJECTS

__all__ = [
    "COLOURS", "LIGHTS", "PLACES", "SIDE", "SUBJECTS", "Drawing", "Scene", "caption", "draw", "held_out_scenes",
    "is_held_out", "plain_caption", "random_scene",
]  # fmt: skip
