"""Draw scenes to learn detection from: discs, rings and blobs of many sizes on a textured ground.

Writes FOLDER/train/*.png and FOLDER/test/*.png with annotations_train.json and annotations_test.json beside
them (COCO). The same seed draws the same scenes.

    python examples/object_detection/draw_scenes.py runs/scenes
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SHAPES = ("disc", "ring", "blob")
WIDTH, HEIGHT = 320, 240
FINER = 2
"""Shapes are drawn this many times larger and scaled down, which smooths their edges."""

Point = tuple[float, float]
Colour = tuple[int, int, int]


def draw_scene(rng: random.Random, *, most: int = 16) -> tuple[Image.Image, list[tuple[str, list[float]]]]:
    """One scene of WIDTH × HEIGHT pixels and its (shape, [x, y, width, height] in pixels), 2 to `most` of them."""
    ground = _colour(rng, 90, 235)
    image = _texture(rng, ground).resize((WIDTH * FINER, HEIGHT * FINER), Image.Resampling.BILINEAR)
    hue = _contrasting(rng, ground)
    found: list[tuple[str, list[float]]] = []
    for _ in range(rng.randint(2, most)):
        outline = _outline(rng)
        box = _box(outline)
        if box[2] < 6 or box[3] < 6 or any(_overlap(box, other) > 0.3 for _, other in found):
            continue
        shape = rng.choice(SHAPES)
        outline = _roughened(rng, outline) if shape == "blob" else outline
        colour = _near(rng, hue, 30) if rng.random() < 0.7 else _contrasting(rng, ground)
        _paint(image, shape, outline, colour, rng)
        found.append((shape, _box(outline)))
    image = image.reduce(FINER)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.9))), found


def _colour(rng: random.Random, low: int, high: int) -> Colour:
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def _near(rng: random.Random, colour: Colour, reach: int) -> Colour:
    r, g, b = (min(255, max(0, part + rng.randint(-reach, reach))) for part in colour)
    return r, g, b


def _contrasting(rng: random.Random, ground: Colour) -> Colour:
    """A colour that can be told from the ground."""
    while True:
        colour = _colour(rng, 20, 240)
        if sum(abs(a - b) for a, b in zip(colour, ground, strict=True)) > 120:
            return colour


def _texture(rng: random.Random, ground: Colour) -> Image.Image:
    """The ground with soft stains and fine grain, WIDTH × HEIGHT."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    stains = Image.fromarray(numbers.integers(0, 256, (rng.randint(3, 12), rng.randint(3, 12), 3), dtype=np.uint8))
    soft = np.asarray(stains.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32) / 255 - 0.5
    grain = numbers.normal(0, rng.uniform(1, 8), (HEIGHT, WIDTH, 1)).astype(np.float32)
    pixels = np.array(ground, dtype=np.float32) + soft * rng.uniform(10, 60) + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _outline(rng: random.Random) -> list[Point]:
    """An ellipse of 6 to 80 pixels across, somewhere in the picture, cut off by its edge at most by half."""
    radius = math.exp(rng.uniform(math.log(4), math.log(42)))
    flat, turn = rng.uniform(0.75, 1.0), rng.uniform(0, math.pi)
    x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
    points = []
    for step in range(48):
        angle = 2 * math.pi * step / 48
        dx, dy = radius * math.cos(angle), radius * flat * math.sin(angle)
        points.append((x + dx * math.cos(turn) - dy * math.sin(turn), y + dx * math.sin(turn) + dy * math.cos(turn)))
    return points


def _roughened(rng: random.Random, outline: list[Point]) -> list[Point]:
    """The outline with two to five bulges."""
    x, y = _centre(outline)
    bulges, shift = rng.randint(2, 5), rng.uniform(0, 2 * math.pi)
    depth = rng.uniform(0.15, 0.3)
    sizes = [1 - depth + depth * math.sin(bulges * 2 * math.pi * step / len(outline) + shift) for step in range(48)]
    return [(x + (px - x) * size, y + (py - y) * size) for (px, py), size in zip(outline, sizes, strict=True)]


def _centre(outline: list[Point]) -> Point:
    return sum(x for x, _ in outline) / len(outline), sum(y for _, y in outline) / len(outline)


def _box(outline: list[Point]) -> list[float]:
    """[x, y, width, height] of the part inside the picture, in pixels."""
    left, right = max(0.0, min(x for x, _ in outline)), min(float(WIDTH), max(x for x, _ in outline))
    top, bottom = max(0.0, min(y for _, y in outline)), min(float(HEIGHT), max(y for _, y in outline))
    return [round(left, 2), round(top, 2), round(right - left, 2), round(bottom - top, 2)]


def _overlap(one: list[float], other: list[float]) -> float:
    """Common area as a share of the smaller box."""
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high) / min(one[2] * one[3], other[2] * other[3])


def _paint(image: Image.Image, shape: str, outline: list[Point], colour: Colour, rng: random.Random) -> None:
    """Lay one shape over the picture, a little see-through; a ring keeps the ground in its middle."""
    fine = [(x * FINER, y * FINER) for x, y in outline]
    left, top = math.floor(min(x for x, _ in fine)), math.floor(min(y for _, y in fine))
    size = math.ceil(max(x for x, _ in fine)) - left + 1, math.ceil(max(y for _, y in fine)) - top + 1
    mask = Image.new("L", size, 0)
    drawn = ImageDraw.Draw(mask)
    drawn.polygon([(x - left, y - top) for x, y in fine], fill=rng.randint(190, 255))
    if shape == "ring":
        x, y = _centre(fine)
        hole = rng.uniform(0.45, 0.7)
        inner = [(x + (px - x) * hole - left, y + (py - y) * hole - top) for px, py in fine]
        drawn.polygon(inner, fill=rng.randint(0, 60))
    image.paste(colour, (left, top), mask)


def write_split(folder: Path, split: str, count: int, seed: int) -> None:
    """Write `count` scenes and their annotations."""
    rng = random.Random(f"{split}/{seed}")
    (folder / split).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        picture, found = draw_scene(rng)
        name = f"{split}/scene_{number:04d}.png"
        picture.save(folder / name)
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for shape, box in found:
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": number,
                    "category_id": SHAPES.index(shape) + 1,
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(SHAPES, start=1)]
    data = {"images": images, "annotations": boxes, "categories": categories}
    (folder / f"annotations_{split}.json").write_text(json.dumps(data), "utf-8")


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description="Draw scenes of discs, rings and blobs with COCO annotations.")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--train", type=int, default=500, help="scenes to train on")
    parser.add_argument("--test", type=int, default=60, help="scenes to test on")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for split, count in (("train", given.train), ("test", given.test)):
        write_split(given.folder, split, count, given.seed)
    print(f"{given.train} + {given.test} scenes in {given.folder}")


if __name__ == "__main__":
    main()
