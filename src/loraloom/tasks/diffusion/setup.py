"""From a base's name and the options to what trains: the loaded parts, their targets and rates, and the bench."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from loraloom.tasks.diffusion.base import PIPELINES, Diffusion, load_diffusion
from loraloom.tasks.diffusion.bench import Bench, ConditionShelf
from loraloom.tasks.diffusion.buckets import Size
from loraloom.tasks.diffusion.cache import TensorCache, cache_folder
from loraloom.tasks.diffusion.latents import LatentShelf
from loraloom.tasks.diffusion.model import TrainedParts, default_targets
from loraloom.tasks.diffusion.objective import objective_of
from loraloom.tasks.diffusion.options import TextToImageOptions
from loraloom.tasks.diffusion.places import find_base, read_index
from loraloom.tasks.diffusion.random_base import draw_diffusion
from loraloom.tasks.diffusion.texts import CLIP_KINDS, Texts, first_vectors


def load_parts(
    base: str, options: TextToImageOptions, *, dtype: torch.dtype, seed: int, from_config: bool
) -> tuple[Diffusion, str, TrainedParts]:
    """The base, its fingerprint, and what of it a run may change. Raises BaseModelError, ConfigError."""
    if from_config:
        diffusion, fingerprint = draw_diffusion(base, seed=seed)
    else:
        diffusion = load_diffusion(base, dtype=dtype if _is_large(base) else torch.float32)
        fingerprint = diffusion.fingerprint
    texts = Texts(diffusion)
    if options.train_embedding is not None:
        texts.word = options.train_embedding
        texts.vectors = first_vectors(diffusion, options.embedding_init, options.embedding_vectors)
    parts = TrainedParts(diffusion, texts, encoders=options.train_text_encoder)
    _set_precision(diffusion, parts, dtype)
    alone = texts.vectors is not None and options.embedding_only
    encoders = options.train_text_encoder
    parts.targets = () if alone else default_targets(parts, convolutions=options.convolutions, encoders=encoders)
    parts.rates = {name: options.text_encoder_rate for name in diffusion.text_encoders if name in parts}
    denoiser: Any = diffusion.denoiser
    if options.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    return diffusion, fingerprint, parts


def _is_large(base: str) -> bool:
    """Whether a base is of a family whose encoders alone fill a machine's memory in float32."""
    place = find_base(base)
    if place.source == "file":
        return False
    return PIPELINES.get(read_index(place.path)["_class_name"]) not in CLIP_KINDS


def _set_precision(diffusion: Diffusion, parts: TrainedParts, dtype: torch.dtype) -> None:
    """What trains, or is trained through, in the run's precision; the autoencoder, whose bf16 shows, in float32."""
    wanted = {diffusion.parts[name]: dtype for name in parts if name in diffusion.parts} | {
        diffusion.vae: torch.float32
    }
    for part, precision in wanted.items():
        nn.Module.to(part, precision)  # diffusers' own `to` is the same with a remark to the terminal


def make_bench(
    diffusion: Diffusion, fingerprint: str, parts: TrainedParts, options: TextToImageOptions, size: Size
) -> Bench:
    """The shelves and the objective of a run over this base."""
    cache = TensorCache(cache_folder(options.cache), int(options.cache_gib * 2**30))
    scheduler = diffusion.pipeline.scheduler
    config = {**diffusion.scheduler_config, "_class_name": type(scheduler).__name__}
    return Bench(
        diffusion,
        parts.texts,
        LatentShelf(diffusion, fingerprint, cache, size, buckets=options.buckets),
        ConditionShelf(parts.texts, cache, fingerprint, parts.encodes),
        objective_of(config, options.prediction),
    )
