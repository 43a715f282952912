"""Boxes drawn on pictures, their labels legible on light ground and dark."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

_LIGHT, _DARK = (255, 255, 255), (16, 16, 16)
_SMALLEST_SIDE = 320
"""Pixels: pictures with shorter sides are enlarged before boxes are drawn, to have room for text."""


class DrawnBox(NamedTuple):
    """One box to draw."""

    box: Sequence[float]
    """[x, y, width, height] in pixels."""
    text: str
    number: int
    """Of its class, which has a colour of its own."""


def class_colour(number: int) -> Colour:
    """A strong colour for a class; neighbouring numbers get hues far apart (steps of the golden section)."""
    hue = (0.58 + number * 0.6180339887498949) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 - 0.25 * (number // 6 % 2), 0.9 - 0.3 * (number // 12 % 2))
    return round(red * 255), round(green * 255), round(blue * 255)


def text_colour(ground: Colour) -> Colour:
    """White or nearly black, whichever contrasts more with `ground` (relative luminance of WCAG 2)."""
    light = _luminance(ground)
    return _LIGHT if 1.05 / (light + 0.05) > (light + 0.05) / (_luminance(_DARK) + 0.05) else _DARK


def _luminance(colour: Colour) -> float:
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def draw_boxes(picture: Image.Image, boxes: Sequence[DrawnBox]) -> Image.Image:
    """A copy of an RGB picture with the boxes on it, the first ones on top; small pictures are enlarged."""
    factor = max(1, -(-_SMALLEST_SIDE // max(1, min(picture.size))))
    factor = min(factor, 8)
    canvas = picture.convert("RGB").resize((picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    unit = max(1, round(min(canvas.size) / 240))
    font = ImageFont.load_default(size=max(11, round(min(canvas.size) / 34)))
    placed = [(one, [side * factor for side in one.box]) for one in reversed(boxes)]
    for one, (x, y, width, height) in placed:
        _outline(draw, (x, y, x + width, y + height), class_colour(one.number), unit)
    taken: list[tuple[float, float, float, float]] = []
    for one, box in reversed(placed):
        _tag(draw, one, box, font, canvas.size, taken)
    return canvas


def _outline(draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], colour: Colour, unit: int) -> None:
    """A frame with a thin edge in the opposite brightness, so that it stands out on a ground of its own colour."""
    left, top, right, bottom = corners
    edge = text_colour(colour)
    draw.rectangle((left, top, max(right, left), max(bottom, top)), outline=edge, width=unit + 2)
    draw.rectangle((left + 1, top + 1, max(right - 1, left + 1), max(bottom - 1, top + 1)), outline=colour, width=unit)


def _tag(
    draw: ImageDraw.ImageDraw,
    one: DrawnBox,
    box: Sequence[float],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """The text on a plate of the class's colour, inside the picture, where no other plate is if that can be had."""
    left, top, right, bottom = draw.textbbox((0, 0), one.text, font=font)
    wide, high = right - left + 6, bottom - top + 4
    places = [(box[0], box[1] - high), (box[0], box[1]), (box[0], box[1] + box[3]), (box[0] + box[2] - wide, box[1])]
    inside = [
        (min(max(0.0, x), max(0.0, size[0] - wide)), min(max(0.0, y), max(0.0, size[1] - high))) for x, y in places
    ]
    plates = [(x, y, x + wide, y + high) for x, y in inside]
    plate = next((plate for plate in plates if not any(_meet(plate, other) for other in taken)), plates[0])
    taken.append(plate)
    colour = class_colour(one.number)
    draw.rectangle(plate, fill=colour)
    draw.text((plate[0] + 3 - left, plate[1] + 2 - top), one.text, fill=text_colour(colour), font=font)


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
