"""Predictions and scores over many examples, in batches of like length, by all processes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from loraloom.data.batches import sorted_batches
from loraloom.tasks.base import Feature
from loraloom.training.job import Loaded


@torch.no_grad()
def predict_features(loaded: Loaded, features: Sequence[Feature], batch_size: int) -> list[Any]:
    """One prediction per feature, in their order; the model must be in evaluation mode.

    Inference mode would be no faster, and tensors that layers keep from it could not be trained with.
    """
    processes = loaded.processes
    batches = sorted_batches([feature.length for feature in features], batch_size)
    own: list[tuple[int, Any]] = []
    for indices in batches[processes.index :: processes.count]:
        with loaded.precision.computing(processes.device):
            batch = loaded.collate([features[index] for index in indices])
            predictions = loaded.task.predict(loaded.callable, batch, loaded.base)
        own += zip(indices, predictions, strict=True)
    found = dict(entry for part in processes.gather(own) for entry in part)
    return [found[index] for index in range(len(features))]


def score_features(loaded: Loaded, features: Sequence[Feature], batch_size: int) -> dict[str, float]:
    """Every metric of the task over labelled features."""
    predictions = predict_features(loaded, features, batch_size)
    return dict(loaded.task.score(predictions, [feature.reference for feature in features]))


@torch.no_grad()
def raw_outputs(loaded: Loaded, features: Sequence[Feature], batch_size: int = 16) -> list[torch.Tensor]:
    """The model's raw float32 output on the CPU, batch by batch: each (B, …), the same batches at every call."""
    outputs = []
    for indices in sorted_batches([feature.length for feature in features], batch_size):
        with loaded.precision.computing(loaded.processes.device):
            batch = loaded.collate([features[index] for index in indices])
            outputs.append(loaded.task.outputs(loaded.callable, batch).float().cpu())
    return outputs
