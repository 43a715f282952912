"""From a picture of any size to what a model wants to see: size, fitting, normalisation, and a store in memory.

A base brings its mean, standard deviation, size and resampling in preprocessor_config.json; how a picture is
fitted into that size is the user's choice, and never changes its aspect unless asked to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from loraloom.data.pictures import open_picture
from loraloom.errors import BaseModelError

FILE_NAME = "preprocessor_config.json"
Resize = Literal["crop", "pad", "stretch"]
Pixels = NDArray[np.uint8]

_SHARES = (0.5, 0.5, 0.5)  # mean and standard deviation of pixel values where nothing else is known
_LUMA = torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)  # ITU-R BT.601, as Pillow makes grey
_WRITTEN_AS = {"crop": "CLIPImageProcessor", "pad": "ViTImageProcessor", "stretch": "ViTImageProcessor"}


@dataclass(frozen=True)
class PictureProcessor:
    """How pictures become the input of one model."""

    height: int
    """Pixels; H of what the model sees."""
    width: int
    """Pixels; W."""
    resize: Resize = "crop"
    """"crop": the short side is scaled and the middle kept; "pad": the long side, with borders; "stretch": both."""
    mean: tuple[float, ...] = _SHARES
    """Subtracted from each channel's values, after `rescale`."""
    std: tuple[float, ...] = _SHARES
    """What each channel is divided by then."""
    resample: int = int(Image.Resampling.BILINEAR)
    """Pillow's number of the filter that resizes."""
    rescale: float = 1 / 255
    """What the values 0 to 255 are multiplied by first."""
    channels: int = 3
    """Of the model's input: 3, or 1 for a model of grey pictures."""

    @property
    def fill(self) -> tuple[int, ...]:
        """The colour, 0 to 255, that is zero to the model: of borders, and of what is erased."""
        return tuple(round(min(max(mean / self.rescale, 0), 255)) for mean in self.mean)

    def fit(self, picture: Image.Image, *, margin: float = 1.0) -> Pixels:
        """An RGB picture as uint8 (H, W, 3), `margin` times as large as the model's input."""
        height, width = self.fitted_size(margin)
        if self.resize == "pad":
            return self._padded(picture, height, width)
        box = _middle(picture.size, width / height) if self.resize == "crop" else None
        # With the box, only what is kept is computed: the whole of a long strip would fill the memory.
        return np.asarray(picture.resize((width, height), self.resample, box=box))

    def fitted_size(self, margin: float = 1.0) -> tuple[int, int]:
        """(H, W) of what `fit` returns."""
        return round(self.height * margin), round(self.width * margin)

    def normalise(self, values: Tensor) -> Tensor:
        """Values 0 to 255 (B, 3, H, W), float, as the model wants them: (B, C, H, W)."""
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
        if self.channels == 1:
            values, mean, std = (values * _LUMA).sum(1, keepdim=True), mean[:1], std[:1]
        return values * (self.rescale / std) - mean / std

    def settings(self) -> dict[str, Any]:
        """All of it as JSON data; `of_settings` takes it back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> PictureProcessor:
        """What `settings` was called on."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        return cls(**plain)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json, for loading here again and, in their words, for transformers.

        transformers has no fitting with borders: it will stretch the pictures of a model made with "pad".
        """
        size = {"height": self.height, "width": self.width}
        crop = self.resize == "crop"
        written = {
            "image_processor_type": _WRITTEN_AS[self.resize],
            "do_resize": True,
            "size": {"shortest_edge": min(self.height, self.width)} if crop else size,
            **({"do_center_crop": True, "crop_size": size} if crop else {}),
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        text = json.dumps(written, indent=2, sort_keys=True) + "\n"
        (Path(folder) / FILE_NAME).write_text(text, encoding="utf-8")

    def _padded(self, picture: Image.Image, height: int, width: int) -> Pixels:
        scale = min(height / picture.height, width / picture.width)
        inner = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        whole = np.empty((height, width, 3), dtype=np.uint8)
        whole[:] = self.fill
        top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
        whole[top : top + inner[1], left : left + inner[0]] = np.asarray(picture.resize(inner, self.resample))
        return whole


def _middle(size: tuple[int, int], aspect: float) -> tuple[float, float, float, float]:
    """The largest box of that aspect (width over height) in the middle of a picture: left, top, right, bottom."""
    width, height = size
    kept_width, kept_height = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return left, top, left + kept_width, top + kept_height


def read_processor(
    folder: Path, *, config: Any, size: tuple[int, int] | None, resize: Resize
) -> tuple[PictureProcessor, list[str]]:
    """How the base in `folder` wants its pictures, and notes on what it does not say.

    `size` (H, W) is the user's, if any; else the folder's preprocessor_config.json counts, then the size in
    the model's `config`, then 224. Raises BaseModelError when the file cannot be read, or when the model
    takes no pictures of one or three channels.
    """
    channels = getattr(config, "num_channels", 3)
    if channels not in (1, 3):
        raise BaseModelError(f"base model: {folder} takes pictures of {channels} channels; only 1 or 3 can be given")
    told = _read(folder / FILE_NAME)
    notes = [] if told else [f"no {FILE_NAME} beside the base: pixel values are scaled from 0–255 to -1–1"]
    height, width = size or _file_size(told) or _pair(getattr(config, "image_size", None)) or (224, 224)
    normalise = told.get("do_normalize", True)
    try:
        processor = PictureProcessor(
            height,
            width,
            resize,
            mean=_channels(told.get("image_mean"), 0.5) if normalise else (0.0, 0.0, 0.0),
            std=_channels(told.get("image_std"), 0.5) if normalise else (1.0, 1.0, 1.0),
            resample=int(Image.Resampling(told.get("resample", Image.Resampling.BILINEAR))),
            rescale=float(told.get("rescale_factor") or 1 / 255) if told.get("do_rescale", True) else 1.0,
            channels=channels,
        )
    except (TypeError, ValueError) as error:
        raise BaseModelError(f"base model: {folder / FILE_NAME} cannot be used ({error})") from None
    return processor, notes


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        told = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise BaseModelError(f"base model: {file} is no JSON ({error})") from None
    if not isinstance(told, dict):
        raise BaseModelError(f"base model: {file} holds no settings of pictures but {type(told).__name__}")
    return told


def _file_size(told: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) after resizing and cropping, None where the file does not say."""
    cropped = _pair(told.get("crop_size")) if told.get("do_center_crop") else None
    return cropped or _pair(told.get("size"))


def _pair(size: Any) -> tuple[int, int] | None:
    """A size in any of transformers' ways as (H, W): 224, [224, 224], {height, width}, {shortest_edge}."""
    if isinstance(size, Mapping):
        side = size.get("shortest_edge")
        size = (size["height"], size["width"]) if {"height", "width"} <= size.keys() else side
    if isinstance(size, int) and size > 0:
        return size, size
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size):
        return size[0], size[1]
    return None


def _channels(values: Any, default: float) -> tuple[float, ...]:
    """One number for each of the three channels."""
    numbers = [default] if values is None else [values] if isinstance(values, (int, float)) else list(values)
    if len(numbers) not in (1, 3):
        raise ValueError(f"mean and std must be one number or three, not {len(numbers)}")
    return tuple(float(number) for number in (numbers if len(numbers) == 3 else numbers * 3))


class PictureStore:
    """Pictures that were read and fitted once, kept in memory so that later epochs need not decode them.

    The first that fit into the budget stay, which for pictures met in random order is as good as any rule;
    the others are read anew each time.
    """

    def __init__(self, budget: int = 2**30) -> None:
        self.budget = budget
        """Bytes that the kept pixels may take."""
        self.used = 0
        """Bytes that they take."""
        self._kept: dict[tuple[str, str], Pixels] = {}

    def rows(self, files: Sequence[str], kind: str, fit: Callable[[Image.Image], Pixels]) -> Pixels:
        """B pictures as uint8 (B, H, W, 3). `kind` tells one way to `fit` from others. Raises DataError."""
        return np.stack([self._one(file, kind, fit) for file in files])

    def _one(self, file: str, kind: str, fit: Callable[[Image.Image], Pixels]) -> Pixels:
        found = self._kept.get((file, kind))
        if found is None:
            found = fit(open_picture(file))
            if self.used + found.nbytes <= self.budget:
                self._kept[file, kind] = found
                self.used += found.nbytes
        return found
