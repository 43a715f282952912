"""Tiny image classifiers of real architectures with random weights, and folders of pictures drawn for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

LABELS = ("circle", "cross", "stripes")
SIZE = 32
_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": SIZE,
    "patch_size": 8,
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class Family:
    """One architecture: how to make it, and what the task should find in it."""

    config: Callable[..., Any]
    classifier: str
    targets: tuple[str, ...]
    """What the test adapts; for a ResNet, what the task proposes."""
    heads: tuple[str, ...] = ("classifier",)


FAMILIES = {
    "vit": Family(lambda **more: transformers.ViTConfig(**_VIT, **more), "ViTForImageClassification", ("all-linear",)),
    "deit": Family(
        lambda **more: transformers.DeiTConfig(**_VIT, **more), "DeiTForImageClassification", ("all-linear",)
    ),
    "deit-distilled": Family(
        lambda **more: transformers.DeiTConfig(**_VIT, **more),
        "DeiTForImageClassificationWithTeacher",
        ("all-linear",),
        ("cls_classifier", "distillation_classifier"),
    ),
    "swin": Family(
        lambda **more: transformers.SwinConfig(
            image_size=SIZE,
            patch_size=4,
            embed_dim=8,
            depths=[1, 2],
            num_heads=[1, 2],
            window_size=4,
            drop_path_rate=0.0,
            initializer_range=0.2,
            **more,
        ),
        "SwinForImageClassification",
        ("all-linear",),
    ),
    "convnext": Family(
        lambda **more: transformers.ConvNextConfig(
            hidden_sizes=[8, 12, 16, 20],
            depths=[1, 1, 1, 1],
            image_size=SIZE,
            layer_scale_init_value=0.5,
            initializer_range=0.2,
            **more,
        ),
        "ConvNextForImageClassification",
        ("all-linear",),
    ),
    "resnet": Family(
        lambda **more: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **more
        ),
        "ResNetForImageClassification",
        ("convolution",),
    ),
}


def make_picture_base(folder: Path, family: str, *, labels: Sequence[str] = ()) -> Path:
    """Write a classifier for `labels`, or for two nameless ones, into `folder`."""
    kind = FAMILIES[family]
    names = dict(enumerate(labels)) or {0: "LABEL_0", 1: "LABEL_1"}
    config = kind.config(id2label=names, label2id={name: number for number, name in names.items()})
    torch.manual_seed(3)
    model = getattr(transformers, kind.classifier)(config)
    for module in model.modules():  # as if trained: fresh running statistics would hide whether they are used
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def draw(label: str, seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """A noisy picture of one of `LABELS`; size is (width, height)."""
    random = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width]
    middle_x, middle_y = width * random.uniform(0.4, 0.6), height * random.uniform(0.4, 0.6)
    across, down = x - middle_x, y - middle_y
    shape = {
        "circle": np.hypot(across, down) < 0.3 * min(size),
        "cross": (np.abs(across) < 4) | (np.abs(down) < 4),
        "stripes": (x // 4) % 2 == 0,
    }[label]
    pixels = np.where(shape[..., None], random.integers(150, 255, 3), random.integers(0, 90, 3))
    return Image.fromarray((pixels + random.integers(0, 20, (height, width, 3))).clip(0, 255).astype(np.uint8))


def draw_folder(folder: Path, each: int, *, first: int = 0, labels: Sequence[str] = LABELS) -> Path:
    """A folder per class with `each` pictures of each label, the first one of seed `first`."""
    for number, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for row in range(each):
            draw(label, 1000 * number + first + row).save(folder / label / f"{row}.png")
    return folder
