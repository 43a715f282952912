"""Tiny detectors of every family with random weights, and drawn pictures to try them on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import (
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    ResNetConfig,
    RTDetrConfig,
    RTDetrResNetConfig,
    YolosConfig,
)

COLOURS = {"green": (30, 160, 60), "red": (220, 40, 40)}
CONVOLUTIONAL = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "layer_type": "basic"}
ATTENTION = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "dropout": 0.0,
}
THREE = ["stage2", "stage3", "stage4"]


def _resnet(stages: list[str]) -> dict[str, Any]:
    return {
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": ResNetConfig(**CONVOLUTIONAL, out_features=stages),
    }


@dataclass(frozen=True)
class Family:
    """One architecture: how to make it, and what the task should find in it."""

    config: Callable[..., Any]
    heads: tuple[str, ...]
    convolution: str | None
    """A convolution that must be adapted by default."""
    crossing: str | None
    """A part of the cross-attention that must be adapted by default."""
    masked: bool
    softmax: bool


FAMILIES = {
    "detr": Family(
        lambda **more: DetrConfig(**_resnet(["stage4"]), **ATTENTION, d_model=16, num_queries=8, init_std=0.2, **more),
        ("class_labels_classifier",),
        "model.backbone.model.encoder.stages.1.layers.0.layer.0.convolution",
        "model.decoder.layers.0.encoder_attn.q_proj",
        True,
        True,
    ),
    "conditional_detr": Family(
        lambda **more: ConditionalDetrConfig(**_resnet(["stage4"]), **ATTENTION, d_model=16, num_queries=8, **more),
        ("class_labels_classifier",),
        "model.backbone.model.encoder.stages.1.layers.0.layer.0.convolution",
        "model.decoder.layers.0.encoder_attn.k_content_proj",
        True,
        False,
    ),
    "deformable_detr": Family(
        lambda **more: DeformableDetrConfig(
            **_resnet(THREE), **ATTENTION, d_model=32, num_queries=8, num_feature_levels=3, **more
        ),
        ("class_embed.0", "class_embed.1"),
        "model.backbone.model.encoder.stages.1.layers.0.layer.0.convolution",
        "model.decoder.layers.0.encoder_attn.sampling_offsets",
        True,
        False,
    ),
    "deformable_detr, refined": Family(
        lambda **more: DeformableDetrConfig(
            **_resnet(THREE),
            **ATTENTION,
            d_model=32,
            num_queries=8,
            num_feature_levels=3,
            with_box_refine=True,
            **more,
        ),
        ("class_embed.0", "class_embed.1"),
        "model.input_proj.0.0",
        "model.decoder.layers.1.encoder_attn.value_proj",
        True,
        False,
    ),
    "yolos": Family(
        lambda **more: YolosConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=[48, 64],
            patch_size=16,
            num_detection_tokens=8,
            initializer_range=0.2,
            **more,
        ),
        ("class_labels_classifier",),
        "vit.embeddings.patch_embeddings.projection",
        None,
        False,
        True,
    ),
    "rt_detr": Family(
        lambda **more: RTDetrConfig(
            **ATTENTION,
            backbone_config=RTDetrResNetConfig(**CONVOLUTIONAL, out_features=THREE),
            encoder_in_channels=[12, 16, 24],
            encoder_hidden_dim=16,
            d_model=16,
            decoder_in_channels=[16, 16, 16],
            num_queries=8,
            num_denoising=4,
            hidden_expansion=0.5,
            freeze_backbone_batch_norms=False,
            **more,
        ),
        (
            "model.denoising_class_embed",
            "model.enc_score_head",
            "model.decoder.class_embed.0",
            "model.decoder.class_embed.1",
        ),
        "model.encoder.lateral_convs.0.conv",
        "model.decoder.layers.0.encoder_attn.sampling_offsets",
        False,
        False,
    ),
}


def make_base(folder: Path, family: str, *, labels: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    """Write a detector of `labels` into `folder`, without a preprocessor_config.json."""
    names = dict(enumerate(labels))
    config = FAMILIES[family].config(id2label=names, label2id={name: number for number, name in names.items()})
    torch.manual_seed(3)
    AutoModelForObjectDetection.from_config(config).save_pretrained(folder)
    return folder


def draw(path: Path, boxes: dict[tuple[int, int, int, int], str], size: tuple[int, int] = (64, 48)) -> Path:
    """Write a grey picture with a filled rectangle of its label's colour for each (x, y, width, height)."""
    picture = Image.new("RGB", size, (120, 120, 120))
    drawn = ImageDraw.Draw(picture)
    for (x, y, width, height), label in boxes.items():
        drawn.rectangle((x, y, x + width - 1, y + height - 1), fill=COLOURS[label])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


SCENES: list[dict[tuple[int, int, int, int], str]] = [
    {(4, 4, 20, 16): "red", (36, 20, 16, 20): "green"},
    {(10, 22, 18, 18): "green"},
    {(30, 6, 24, 14): "red", (6, 30, 14, 14): "red", (40, 28, 12, 12): "green"},
    {},
]


def write_scenes(folder: Path, split: str = "train") -> Path:
    """Write SCENES as COCO; returns the folder."""
    names = sorted(COLOURS)
    images, annotations = [], []
    for number, boxes in enumerate(SCENES, start=1):
        draw(folder / split / f"{number}.png", boxes)
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        annotations += [
            {"image_id": number, "category_id": names.index(label), "bbox": list(box)} for box, label in boxes.items()
        ]
    annotations = [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"annotations_{split}.json").write_text(json.dumps(content), "utf-8")
    return folder
