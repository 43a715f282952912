"""Tiny diffusion bases and captioned pictures for the tests of text-to-image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests.imaging import tiny

from loraloom.data.config import DataConfig
from loraloom.tasks import create_task
from loraloom.tasks.base import BaseModel, Batch
from loraloom.tasks.text_to_image import TextToImage

NARROW: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
}
"""A U-Net of two levels: a step takes a few milliseconds, and sides of pictures are multiples of 16."""
COLOURS = {"red": (200, 40, 40), "blue": (40, 60, 200)}


def save_base(kind: str, folder: Path, **settings: Any) -> Path:
    """A base of a kind as a folder; SD 1.x and 2.x with the narrow U-Net."""
    narrow = {} if kind == "sdxl" else NARROW
    with torch.random.fork_rng(devices=[]):
        return tiny.saved(kind, folder, **{**narrow, **settings})


def draw(colour: str, seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A noisy square of a colour on grey, left of the middle; size is (width, height)."""
    random = np.random.default_rng(seed)
    width, height = size
    pixels = np.full((height, width, 3), 150, np.int64)
    pixels[height // 4 : 3 * height // 4, width // 8 : width // 2] = COLOURS[colour]
    return Image.fromarray((pixels + random.integers(0, 30, pixels.shape)).astype(np.uint8))


def draw_folder(
    folder: Path, count: int, *, first: int = 0, sizes: Sequence[tuple[int, int]] = ((64, 64),), table: bool = True
) -> Path:
    """`count` pictures, red and blue in turn, with captions in a table or in text files."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        colour = list(COLOURS)[number % 2]
        draw(colour, first + number, sizes[number % len(sizes)]).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"a {colour} house, in the sea, good"})
        if not table:
            (folder / f"{number}.txt").write_text(rows[-1]["text"] + "\n", "utf-8")
    if table:
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


def make_task(cache: Path, **options: Any) -> TextToImage:
    """A task that keeps its tensors in `cache`."""
    task = create_task("text-to-image", cache=str(cache), **options)
    assert isinstance(task, TextToImage)
    return task


def ready(task: TextToImage, base: Path, pictures: Path, **load: Any) -> tuple[BaseModel, Batch]:
    """The base, and every picture as one training batch of seed 0."""
    splits = task.read(DataConfig(train=str(pictures), eval=str(pictures)), seed=0)
    loaded = task.load(str(base), **load)
    features = task.encode(splits.train, loaded).features
    torch.manual_seed(0)
    return loaded, task.collate(features, loaded, training=True)
