"""A base model with a classification head: its labels settled, its head found, kept or newly drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from loraloom.tasks.models.bases import ResolvedBase
from loraloom.tasks.models.loading import (
    check_backbone,
    known_labels,
    label_heads,
    load_config,
    load_model,
    own_modules,
    reorder,
    same_labels,
    set_labels,
)


@dataclass(frozen=True)
class Classifier:
    """A model that gives logits (B, number of labels), and what is new in it."""

    model: PreTrainedModel
    heads: tuple[str, ...]
    """Paths of the modules to train as a whole, e.g. ("classifier",)."""
    notes: list[str]


def load_classifier(
    auto: Any,
    base: ResolvedBase,
    labels: Sequence[str],
    what: str,
    *,
    dtype: torch.dtype,
    seed: int,
    quantize: str | None = None,
) -> Classifier:
    """Load `base` with the Auto class `auto` for telling `labels` apart.

    `what` names such a model in sentences, e.g. "text classification model". A head that the files do not
    have, or have for other labels, is drawn from `seed`. Raises BaseModelError when the files are no such
    model, or are incomplete.
    """
    config = load_config(base)
    known = known_labels(config, "Classification")
    set_labels(config, labels)
    config.problem_type = "single_label_classification"
    loaded = load_model(auto, base, what, config=config, dtype=dtype, seed=seed, quantize=quantize)
    check_backbone(loaded, base)
    order = None if loaded.missing or base.random else same_labels(known, labels)
    if order is not None:
        heads = own_modules(loaded.model)
        reorder(loaded.model, heads, order)
        notes = [f"the checkpoint's head ({', '.join(heads)}) is for these labels and was kept"]
    else:
        heads, notes = label_heads(loaded, known, len(labels), seed)
    return Classifier(loaded.model, tuple(heads), [*notes, *loaded.notes])
