"""Pictures and boxes as a detector takes them: resized with their aspect kept, varied in training, padded, batched.

Boxes come as [x, y, width, height] in pixels and leave as (centre x, centre y, width, height), each a share of
the picture (where the model is told by pixel_mask which part of its input is picture) or of the whole input
(where it is not).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from loraloom.data.pictures import open_picture
from loraloom.errors import BaseModelError

FILE = "preprocessor_config.json"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LEAST_VISIBLE = 0.2
"""Share of a box that must stay in the picture when it is cropped; else the box is dropped."""
CACHED_BYTES = 512 * 2**20
"""Resized pictures that are kept in memory, so that only the first epoch decodes them."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Preparation:
    """How a model's pictures are prepared; `save_pretrained` writes what `of_base` reads again."""

    shortest: int | None
    """Pixels of the shorter side after resizing, unless the longer one would exceed `longest`."""
    longest: int | None
    canvas: Size | None
    """Height and width that every picture is padded to; None pads to the largest of a batch."""
    masked: bool
    """Whether the model takes pixel_mask."""
    keep_aspect: bool = True
    """Without, a picture is stretched to the canvas."""
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    raw: Mapping[str, Any] = field(default_factory=dict)
    """What the base's own file says beside."""

    def size(self, width: int, height: int) -> Size:
        """Height and width that a picture of this size is resized to.

        >>> Preparation(None, 64, None, True).size(640, 480), Preparation(32, None, None, True).size(640, 480)
        ((48, 64), (32, 43))
        """
        if self.canvas is not None and not self.keep_aspect:
            return self.canvas
        limits = [] if self.canvas is None else [self.canvas[0] / height, self.canvas[1] / width]
        if self.longest is not None:
            limits.append(self.longest / max(width, height))
        factor = min(limits) if limits else float("inf")
        if self.shortest is not None:
            factor = min(factor, self.shortest / min(width, height))
        return max(1, round(height * factor)), max(1, round(width * factor))

    def normalised(self, pixels: Tensor) -> Tensor:
        """Float pixels (3, H, W) of 0 to 255 as the model takes them."""
        mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (self.mean, self.std))
        return (pixels * self.scale - mean) / std

    def settings(self) -> dict[str, Any]:
        """The preparation in transformers' words."""
        own: dict[str, Any] = {
            "do_resize": True,
            "size": self._size_words(),
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_pad": self.keep_aspect,
        }
        if self.canvas is not None and self.keep_aspect:
            own["pad_size"] = {"height": self.canvas[0], "width": self.canvas[1]}
        return {**self.raw, **own}

    def _size_words(self) -> dict[str, int]:
        if self.canvas is not None:
            names = ("max_height", "max_width") if self.keep_aspect else ("height", "width")
            return dict(zip(names, self.canvas, strict=True))
        if self.shortest is None and self.longest is not None:
            return {"max_height": self.longest, "max_width": self.longest}
        words = {"shortest_edge": self.shortest, "longest_edge": self.longest}
        return {name: pixels for name, pixels in words.items() if pixels is not None}

    def save_pretrained(self, folder: str | Path) -> list[str]:
        """Write `preprocessor_config.json` into a folder; returns its path in a list, as processors do."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.settings(), indent=2) + "\n", "utf-8")
        return [str(path)]


def read_settings(folder: Path) -> dict[str, Any]:
    """What a base's folder says of its pictures; empty where it says nothing. Raises BaseModelError."""
    for name, key in ((FILE, None), ("processor_config.json", "image_processor")):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text("utf-8"))
            found = content if key is None else content.get(key)
        except (ValueError, OSError, AttributeError) as error:
            raise BaseModelError(f"base model: {path} cannot be read as JSON ({error})") from None
        if isinstance(found, dict):
            return found
    return {}


# --- variation in training


@dataclass(frozen=True)
class Variation:
    """How pictures are varied by chance in training."""

    flip: bool = True
    """Mirror every second one."""
    zoom: float = 1.25
    """Enlarge or shrink by at most this factor; what leaves the picture is cut. 1 never does."""
    colour: float = 0.2
    """Change brightness, contrast and each channel by at most this share."""


NONE = Variation(flip=False, zoom=1.0, colour=0.0)


def vary(pixels: Tensor, boxes: Tensor, variation: Variation) -> tuple[Tensor, Tensor, Tensor]:
    """A picture (3, H, W) and its boxes (N, 4) as [x, y, width, height] in its pixels, varied by chance.

    Returns the picture at the same size, the boxes (M, 4) that can still be seen, and which these are (N,) bool.
    Draws the same number of values from torch's global generator whatever the picture is.
    """
    drawn = torch.rand(9).tolist()
    if variation.zoom > 1:
        pixels, boxes = _zoomed(pixels, boxes, variation.zoom ** (2 * drawn[0] - 1), drawn[1], drawn[2])
    boxes, kept = clipped(boxes, pixels.shape[-1], pixels.shape[-2])
    if variation.flip and drawn[3] < 0.5:
        pixels = pixels.flip(-1)
        boxes = torch.stack([pixels.shape[-1] - boxes[:, 0] - boxes[:, 2], *boxes[:, 1:].unbind(1)], dim=1)
    if variation.colour > 0:
        light, contrast, *tint = (1 + variation.colour * (2 * value - 1) for value in drawn[4:])
        mean = pixels.mean()
        pixels = ((pixels - mean) * contrast + mean * light) * torch.tensor(tint).view(3, 1, 1)
    return pixels.clamp(0, 255), boxes, kept


def _zoomed(pixels: Tensor, boxes: Tensor, factor: float, across: float, down: float) -> tuple[Tensor, Tensor]:
    """Enlarge (or shrink) a picture about a point; its size stays, and what is new is of its mean colour.

    `across` and `down`, 0 to 1, say which part stays in sight, or where the shrunk picture stands.
    """
    height, width = pixels.shape[-2:]
    new = max(1, round(height * factor)), max(1, round(width * factor))
    scaled = torch.nn.functional.interpolate(pixels[None], size=new, mode="bilinear", align_corners=False)[0]
    top, left = round((new[0] - height) * down), round((new[1] - width) * across)
    out = pixels.mean(dim=(1, 2), keepdim=True).expand_as(pixels).clone()
    rows = slice(max(0, top), min(new[0], top + height))
    columns = slice(max(0, left), min(new[1], left + width))
    y, x = max(0, -top), max(0, -left)
    seen = scaled[:, rows, columns]
    out[:, y : y + seen.shape[1], x : x + seen.shape[2]] = seen
    ratio = torch.tensor([new[1] / width, new[0] / height] * 2)
    return out, boxes * ratio - torch.tensor([float(left), float(top), 0.0, 0.0])


def clipped(boxes: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The parts of boxes (N, 4) inside a picture, and which ones are kept (N,): those that show enough."""
    ends = boxes[:, :2] + boxes[:, 2:]
    limit = torch.tensor([width, height], dtype=boxes.dtype)
    start, end = boxes[:, :2].clamp(min=0), torch.minimum(ends, limit)
    sides = (end - start).clamp(min=0)
    kept = sides.prod(1) >= LEAST_VISIBLE * boxes[:, 2:].prod(1)
    return torch.cat([start, sides], dim=1)[kept], kept


# --- batches


def resized(picture: Image.Image, size: Size) -> NDArray[np.uint8]:
    """The picture at this height and width, (H, W, 3)."""
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))


class PictureCache:
    """Resized pictures by file, as many as fit into `CACHED_BYTES`; the longest unused leaves first."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[tuple[str, Size], NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0

    def resized(self, file: str, size: Size) -> NDArray[np.uint8]:
        """The picture in a file at this height and width, (H, W, 3). Raises DataError."""
        key = (file, size)
        found = self._pictures.get(key)
        if found is None:
            found = self._pictures[key] = resized(open_picture(file), size)
            self._bytes += found.nbytes
        self._pictures.move_to_end(key)
        while self._bytes > CACHED_BYTES and len(self._pictures) > 1:
            self._bytes -= self._pictures.popitem(last=False)[1].nbytes
        return found


class Prepared(NamedTuple):
    """One picture before it is padded into a batch."""

    pixels: Tensor
    """(3, H, W), normalised."""
    boxes: Tensor
    """(N, 4), [x, y, width, height] in its pixels."""
    labels: Tensor
    """(N,) class numbers."""
    original: Size
    """Width and height of the file's picture."""


def prepare(
    inputs: Mapping[str, Any], preparation: Preparation, cache: PictureCache, variation: Variation = NONE
) -> Prepared:
    """Read, resize and vary one picture; `inputs` hold "file", "size" (width, height), "boxes" and "labels"."""
    width, height = inputs["size"]
    found = cache.resized(inputs["file"], preparation.size(width, height))
    pixels = torch.from_numpy(found.astype(np.float32)).permute(2, 0, 1)
    ratio = torch.tensor([pixels.shape[2] / width, pixels.shape[1] / height] * 2)
    boxes = torch.tensor(inputs["boxes"], dtype=torch.float32).view(-1, 4) * ratio
    labels = torch.tensor(inputs["labels"], dtype=torch.long)
    if variation != NONE:
        pixels, boxes, kept = vary(pixels, boxes, variation)
        labels = labels[kept]
    return Prepared(preparation.normalised(pixels), boxes, labels, (width, height))


def batch_of(pictures: Sequence[Prepared], preparation: Preparation, dtype: torch.dtype) -> dict[str, Any]:
    """pixel_values (B, 3, H, W) in `dtype`, sizes (B, 2) and scales (B, 2), pixel_mask (B, H, W) where it is taken.

    "labels" has per picture class_labels (N,) and boxes (N, 4), normalised. Pictures stand in the top left
    corner. A predicted box times its picture's scale, (x, y), is in pixels of the file's picture; sizes are
    width and height of that.
    """
    height, width = preparation.canvas or (max(one.pixels.shape[1] for one in pictures), 0)
    width = width or max(one.pixels.shape[2] for one in pictures)
    values = torch.zeros(len(pictures), 3, height, width)
    mask = torch.zeros(len(pictures), height, width, dtype=torch.long)
    labels, scales = [], []
    for row, one in enumerate(pictures):
        h, w = one.pixels.shape[1:]
        values[row, :, :h, :w] = one.pixels
        mask[row, :h, :w] = 1
        unit = (w, h) if preparation.masked else (width, height)
        labels.append({"class_labels": one.labels, "boxes": normalised_boxes(one.boxes, *unit)})
        scales.append([unit[0] * one.original[0] / w, unit[1] * one.original[1] / h])
    batch: dict[str, Any] = {
        "pixel_values": values.to(dtype),
        "labels": labels,
        "sizes": torch.tensor([one.original for one in pictures], dtype=torch.float32),
        "scales": torch.tensor(scales),
    }
    return {**batch, "pixel_mask": mask} if preparation.masked else batch


def normalised_boxes(boxes: Tensor, width: float, height: float) -> Tensor:
    """[x, y, width, height] (N, 4) in pixels as (centre x, centre y, width, height) in shares."""
    centred = torch.cat([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
    return centred / torch.tensor([width, height, width, height])


def pixel_boxes(boxes: Tensor, scales: Tensor, sizes: Tensor) -> Tensor:
    """Predicted boxes (B, Q, 4), normalised, as [x, y, width, height] in the file's pixels, cut at its edges."""
    centres, sides = boxes[..., :2] * scales[:, None], boxes[..., 2:] * scales[:, None]
    limit = sizes[:, None].expand_as(centres)
    start = torch.minimum((centres - sides / 2).clamp(min=0), limit)
    end = torch.minimum((centres + sides / 2).clamp(min=0), limit)
    return torch.cat([start, end - start], dim=-1)
